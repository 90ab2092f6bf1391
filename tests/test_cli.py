"""The command line: verbs, exit codes, and one line for every mistake."""

import argparse
import contextlib
import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys

import pytest

from pit_jax import cli, configfile, grammar
from pit_jax.parallel import processes

TRAIN = ["train", "--config", "configs/digits.py:pit"]


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = cli.run(words)
    output = capsys.readouterr()
    return code, output.out, output.err


def refused(capsys, *words: str) -> str:
    """The one line on stderr of a command that ends with exit code 2."""
    code, _, err = run(capsys, *words)
    assert code == 2
    assert err.startswith("pit-jax: ")
    assert err.count("\n") == 1, err
    return err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trian"], "there is no pit-jax trian; did you mean train?"),
        (["prepare"], "there is no pit-jax prepare; did you mean data prepare?"),
        (["qqq"], "there is no pit-jax qqq; there is train, eval, sample,"),
        (["weights", "exprt", "a", "b"], "write one of import, export; did you mean export?"),
        (["train"], "the following arguments are required: --config, --workdir"),
        ([*TRAIN], "the following arguments are required: --workdir"),
        ([*TRAIN, "--workdir", "x", "--widht=3"], "unexpected argument --widht=3"),
        ([*TRAIN, "--wrkdir", "x"], "--workdir"),
        ([*TRAIN, "--workdir", "x", "word"], "unexpected argument word"),
        ([*TRAIN, "--workdir", "x", "--config.model.widht=3"], "did you mean config.model.width?"),
        ([*TRAIN, "--workdir", "x", "--profile", "9:3"], "write FIRST:LAST, e.g. 10:15"),
        ([*TRAIN, "--workdir", "x", "--lr=3"], "--lr=3; did you mean --config.optim.lr=3?"),
        ([*TRAIN, "--workdir", "x", "--steps", "3"], "did you mean --config.train.steps?"),
        ([*TRAIN, "--workdir", "x", "--model.width=3"], "did you mean --config.model.width=3?"),
        ([*TRAIN, "--workdir", "x", "--config.lr=3"], "did you mean config.optim.lr?"),
        (["sample", "x", "--out", "y", "--eta=1"], "did you mean --config.sample.eta=1?"),
        (["train", "configs/digits.py", "x"], "argument x; did you mean --workdir x?"),
        (["train", "--config", "none.py", "--workdir", "x"], "there is no config file none.py"),
        (["show", "configs/digit.py:pit"], "did you mean configs/digits.py:pit?"),
        (["show", "digits"], "did you mean configs/digits.py?"),
        (["show", "configs/digits.py:pti"], "did you mean pit?"),
        (["show", "pixel_permutation:tiny"], "did you mean experiments/pixel_permutation.py:tiny?"),
        (["bench", "configs/digits.py", "--against", "pytorch"], "did you mean --against torch?"),
        (["train", "--config", "configs/digits.py:deit", "--workdir", "x"], "write one of pit"),
        ([*TRAIN, "--workdir", "/proc/none"], "--workdir /proc/none cannot be written"),
        ([*TRAIN, "--workdir", "tests"], "holds no run but other files"),
        (["eval", "--workdir", "tests"], "is no run directory"),
        (["data", "prepare"], "the following arguments are required: name"),
        (["weights", "import", "none.safetensors", "x"], "name the model by --config"),
        (["show", "--config", "configs/digits.py:pit", "--config.mesh.fsdp=0"], "config.mesh="),
    ],
)
def test_mistakes_are_one_line(capsys, words, sentence):
    assert sentence in refused(capsys, *words)


def test_a_tilde_is_the_home_directory_in_every_argument(capsys, monkeypatch, tmp_path):
    """Of --config=~/x, unlike of --config ~/x, no shell makes it one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy("configs/digits.py", tmp_path / "mine.py")
    code, printed, _ = run(capsys, "show", "--config=~/mine.py:vit/2")
    assert code == 0
    assert "ViT/2" in printed
    assert f"{tmp_path}/none is no run directory" in refused(capsys, "eval", "--workdir=~/none")
    words = ("compare", "~/one", "~/two", "--out=~/x.html")
    assert f"{tmp_path}/one" in refused(capsys, *words)


def test_a_file_that_may_not_be_read_is_one_line_wherever_it_comes_up(capsys, monkeypatch):
    def denied(*words):
        """What the verb says of itself."""
        raise PermissionError(13, "Permission denied", "/theirs/x")

    monkeypatch.setattr(cli, "compare", denied)
    code, _, err = run(capsys, "compare", "a")
    assert (code, err) == (5, "pit-jax: /theirs/x: Permission denied\n")


def test_a_mesh_that_cannot_be_is_refused_by_train_only(capsys, tmp_path):
    words = ["--config.mesh.data=3"]
    line = refused(capsys, *TRAIN, "--workdir", str(tmp_path / "x"), *words)
    assert "does not multiply to the 8 device(s) here" in line
    assert run(capsys, "show", "--config", "configs/digits.py:pit", *words)[0] == 0


def test_a_data_set_that_is_not_there_names_the_command_that_prepares_it(capsys, tmp_path):
    words = ["--workdir", str(tmp_path / "run"), f"--config.data.dir={tmp_path}"]
    config = ["train", "--config", "configs/cifar100.py:pit-t"]
    line = refused(capsys, *config, *words)
    assert f"`pit-jax data prepare cifar100 --data-dir {tmp_path}`" in line
    assert "(0.13 GB)" in line
    line = refused(capsys, *config, *words, "--config.data.name=cifar-100")
    assert "did you mean cifar100?" in line


def test_flags_come_in_any_order(capsys):
    words = ["show", "--config.train.seed=5", "--config", "configs/digits.py:vit/2"]
    code, out, _ = run(capsys, *words)
    assert code == 0
    assert "train.seed = 5" in out


def test_show_prints_fields_parameters_and_cost(capsys):
    code, out, _ = run(capsys, "show", "--config", "configs/cifar100.py:pit-t")
    assert code == 0
    assert "model.width = 192" in out
    assert re.search(r"trunk/blocks/up/kernel +11 × 192 × 768 +·, fsdp, model", out)
    assert re.search(r"parameters +5,555,812", out)
    assert re.search(r"tokens an image +1,025", out)
    assert re.search(r"forward FLOPs an image +2\.056e\+10 \(10\.28 GMAC\): every row", out)
    assert re.search(r"steps +117,188 of 1024 examples", out)


def test_help_and_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.run(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "Trains Pixel Transformers" in " ".join(text.split()[:20])
    for verb in ("train", "eval", "show", "weights", "data"):
        assert f"    {verb} " in text
    assert "launch status" not in text  # an action of launch, which says so itself
    assert cli.run([]) == 0


def test_the_first_steps_of_the_help_are_commands():
    lines = [line for line in grammar._FIRST.splitlines() if line.startswith("  pit-jax ")]
    assert len(lines) == 3
    for line in lines:
        args, _ = grammar.parse(cli.parser(), line.split()[1:])
        if args.verb == "train":
            configfile.load(args.config)


def every_parser() -> list[argparse.ArgumentParser]:
    found = [cli.parser()]
    for parser in found:
        subs = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        found += [sub for action in subs for sub in action.choices.values()]
    return found


@pytest.mark.parametrize("parser", every_parser(), ids=lambda parser: parser.prog)
def test_help_explains_every_option_in_80_columns(parser, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    silent = [action.dest for action in parser._actions if not action.help]
    assert silent in ([], ["verb"], ["action"])
    for line in parser.format_help().splitlines():
        assert len(line) <= 80 or line.startswith("usage: "), line


@pytest.mark.parametrize(
    ("words", "first", "rest"),
    [
        ("train C --workdir D", "C", []),
        ("train --workdir D C", "C", []),
        ("train --workdir D --config.optim.lr 1e-3 C", "C", ["--config.optim.lr", "1e-3"]),
        ("train --workdir D --noconfig.train.tensorboard C", "C", None),
        ("train --workdir D --config.train.deterministic C", "C", None),
        ("train --config C --workdir D --config.model.patch 2", "C", None),
        ("eval D --probe knn", "D", []),
        ("eval --probe knn --step 3 D", "D", []),
        ("sample D --out E --labels 1 2", "D", []),
        ("show C", "C", []),
        ("preflight C --topology v5e-8", "C", []),
        ("bench C --against torch", "C", []),
        ("launch C --target local --workdir D", "C", []),
        ("data latents C --vae V --out E", "C", []),
        ("data stats C --out F.npz", "C", []),
    ],
)
def test_the_first_need_of_a_verb_may_stand_without_its_flag(words, first, rest):
    words = words.replace("C", "configs/digits.py").replace("D", "runs/x").split()
    args, left = grammar.parse(cli.parser(), words)
    first = {"C": "configs/digits.py", "D": "runs/x"}[first]
    assert getattr(args, args.first) == first
    assert rest is None or left == rest
    assert first not in left


def test_all_takes_no_config(capsys):
    args, _ = grammar.parse(cli.parser(), ["preflight", "--all", "--topology", "v5e-8"])
    assert args.config is None
    words = ["preflight", "--all", "--topology", "v5e-8", "configs/digits.py"]
    assert "unexpected argument configs/digits.py" in refused(capsys, *words)


def test_without_an_accelerator_libtpu_prints_nothing(tmp_path):
    """Nobody set JAX_PLATFORMS; an installed libtpu would print half a dozen lines."""
    if processes.has_tpu() or processes.has_gpu():
        pytest.skip("this machine has an accelerator")
    words = ["--config.model.width=16", "--config.model.depth=1", "--config.train.steps=2"]
    done = subprocess.run(
        [sys.executable, "-m", "pit_jax.cli", *TRAIN, "--workdir", str(tmp_path / "run"), *words],
        env={k: v for k, v in os.environ.items() if k not in ("JAX_PLATFORMS", "XLA_FLAGS")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    cores = len(os.sched_getaffinity(0))
    assert f"on {min(cores, 8)} × cpu" in done.stdout or cores == 1


SMALL = "model.width=16 model.depth=2 train.batch_size=64 train.steps=4 eval.batch_size=64"
SMALL = [f"--config.{field}" for field in [*SMALL.split(), "train.log_every=1"]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The directory of a run on all devices here, and what the command printed."""
    path = tmp_path_factory.mktemp("cli") / "run"
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert cli.run([*TRAIN, "--workdir", str(path), *SMALL]) == 0
    return path, out.getvalue(), err.getvalue()


def test_train_eval_and_export(trained, capsys, tmp_path):
    """What a user does, by the command line alone, on all devices here."""
    path, out, err = trained
    words, workdir = SMALL, str(path)
    assert err == ""
    assert "PiT: 65 tokens" in out
    assert re.search(r"step 4/4  loss \d\.\d{4}", out)
    code, out, _ = run(capsys, *TRAIN, "--workdir", workdir, *words)
    assert code == 0
    assert "is done: step 4 of 4" in out
    code, out, _ = run(capsys, "eval", "--workdir", workdir, "--config.eval.batch_size=16")
    assert code == 0
    assert re.search(r"eval/examples +360", out)
    code, _, _ = run(capsys, "weights", "export", workdir, str(tmp_path / "hf"))
    assert code == 0
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["hidden_size"] == 16
    code, out, _ = run(
        capsys, "weights", "import", str(tmp_path / "hf"), str(tmp_path / "w.safetensors")
    )
    assert code == 0
    assert "written to" in out
    start = [f"--config.init_from={tmp_path}/w.safetensors", "--workdir", str(tmp_path / "new")]
    code, out, _ = run(capsys, *TRAIN, *words, *start)
    assert code == 0
    assert re.search(r"loaded +embed \(4\), head \(2\), norm \(2\), trunk \(32\)", out)


def test_tensorboard_events_hold_the_logged_values(trained):
    path, *_ = trained
    from tensorboardX.proto import event_pb2

    (file,) = (path / "events").iterdir()
    content, found, at = file.read_bytes(), {}, 0
    while at < len(content):  # TFRecord: length, its checksum, the event, its checksum
        length = int.from_bytes(content[at : at + 8], "little")
        event = event_pb2.Event.FromString(content[at + 12 : at + 12 + length])
        found |= {(event.step, v.tag): v.simple_value for v in event.summary.value}
        at += 16 + length
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    for row in rows:
        assert found[row["step"], "train/loss"] == pytest.approx(row["train/loss"])


def test_a_terminal_shows_a_bar(tmp_path):
    """Loss, images/s and time left, on one line that is drawn again."""
    words = "model.width=16 model.depth=2 train.batch_size=64 train.steps=30"
    overrides = [f"--config.{field}" for field in words.split()]
    one = {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", "count=1")}
    main, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "pit_jax.cli", *TRAIN, "--workdir", str(tmp_path / "x"), *overrides],
        stdout=terminal,
        stderr=terminal,
        env=os.environ | {"PYTHONPATH": os.getcwd(), "COLUMNS": "80", "TERM": "xterm"} | one,
    )
    os.close(terminal)
    shown = b""
    try:
        while chunk := os.read(main, 4096):
            shown += chunk
    except OSError:  # the other end is closed: the process is done
        assert process.wait(60) == 0, shown.decode()
    text = shown.decode()
    assert re.search(r"PiT .*\d+/30.*loss \d\.\d+", text)
    assert "images/s" in text
    assert " left" in text
