"""Every fenced block of every page works, from what the page itself said to do before it."""

import re
import shlex
from pathlib import Path

import pytest

from pit_jax import cli, configfile, files, grammar, rundir
from pit_jax.study import sweep
from tests.saved_runs import save_run

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("*/*.md"))]
# Checked by tests/launch/test_docs.py, every flag of them.
THEIRS = ("gcloud", "kubectl", "docker")
BLOCK = re.compile(r"([^\n]*)\n\n```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A directory like a fresh checkout's, which may be written to."""
    for name in ("configs", "experiments"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands(text: str) -> list[str]:
    """The commands of a block, without what they print and what is said beside them."""
    text = text.replace("\\\n", " ")
    text = re.sub(r"^\$ .*\npit-jax: .*$", "", text, flags=re.MULTILINE)  # refused, see below
    lines = [line for line in text.splitlines() if line.strip()]
    if any(line.startswith("$ ") for line in lines):
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    # "…" stands for a work directory, of which the page speaks elsewhere.
    return [line.replace("…", "--workdir runs/elsewhere") for line in lines]


def run(line: str, made: set[str], page: str) -> None:
    """Does what a command is for, without the training: parsed, resolved, its directory made."""
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text()
        return
    if words[0].rpartition("/")[2] in (*THEIRS, "source", "pip", "python", "python3"):
        assert words[0] not in THEIRS or page == "launch.md", line
        return
    assert words[0] == "pit-jax", f"{page}: {line}"
    if words[1:] == ["--help"]:
        return
    args, rest = grammar.parse(cli.parser(), words[1:])
    has_run = args.verb in ("eval", "sample", "compare")
    needed = [args.workdir] if args.verb in ("eval", "sample") else []
    needed += args.directories if args.verb == "compare" else []
    needed += [word.split("=")[1] for word in rest if word.startswith("--config.init_from=")]
    needed += [args.of] if args.verb in ("launch status", "launch logs") else []
    for directory in needed:
        assert directory in made, f"{page}: nothing before has made {directory}: {line}"
    directory = getattr(args, "workdir", None)
    in_bucket = bool(directory) and files.in_bucket(directory)
    if args.verb == "sweep" or getattr(args, "sweep", None):
        spec = args.file if args.verb == "sweep" else args.sweep
        assert sweep.read(spec, "runs/of a bucket" if in_bucket else directory, rest)[1]
    elif getattr(args, "config", None) and not has_run:
        config = configfile.load(args.config, rest)
        if args.verb == "train" and not in_bucket:
            rundir.RunDir(directory).create()
            rundir.RunDir(directory).write_config(config)
    if directory and not has_run:
        made |= {directory, directory.rsplit("/", 1)[-1]}  # a launch goes by its last part


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_follows_from_those_before_it(page, here, capsys):
    text = page.read_text()
    found = BLOCK.findall(text)
    assert len(found) == text.count("\n```") / 2  # none is written in a way that escapes
    made: set[str] = set()
    for before, language, block in found:
        if language == "python":
            python(block, here)
        elif language == "dockerfile":
            assert page.name == "launch.md"  # tests/launch/test_docs.py
        elif re.search("ends with", before):
            continue  # what a command prints, not what one types
        else:
            assert not language, language
            for line in commands(block):
                run(line, made, page.name)


def python(block: str, here: Path) -> None:
    """A config or a study is read as one, anything else runs, after `make demo`."""
    if "def sweep(" in block:
        (here / "study.py").write_text(block)
    elif "def get_config(" in block:
        (here / "mine.py").write_text(block)
        assert configfile.load("mine.py").model.patch == 1
    else:
        demo("runs/demo")
        exec(compile(block, "README.md", "exec"), {})


def demo(workdir: str) -> None:
    """The first run of `make demo`, under its own name, with weights that nobody trained."""
    first = sweep.read("experiments/demo.py", workdir, [])[1][0]
    first.config.model.update(width=16, depth=2)
    save_run(first.config, Path(workdir) / first.directory)


def test_a_refusal_is_printed_as_the_page_shows_it(here, capsys):
    found = re.findall(r"^\$ (pit-jax train .*)\n(pit-jax: .*)$", PAGES[0].read_text(), re.M)
    assert found
    for line, told in found:
        assert cli.run(shlex.split(line)[1:]) == 2
        assert capsys.readouterr().err == f"{told}\n"


def test_make_demo_ends_by_saying_where_the_command_is():
    rule = re.search(r"^demo:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)[1]
    assert "source $(BIN)/activate" in rule.splitlines()[-1]
