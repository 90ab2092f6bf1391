"""What `pit-jax sample` is told that cannot be: refused in one line, and nothing is written."""

import os
import socket
import subprocess
import sys

import pytest

from pit_jax import cli, config, rundir, validation
from pit_jax import sample as sampling
from pit_jax.diffusion import names
from pit_jax.errors import ConfigError, StorageError

from .saved_runs import config_of, diffusion, save_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run"
    save_run(diffusion(), path)
    return path


def test_the_samplers_of_a_config_are_those_there_are():
    field = config.FIELDS["sample.sampler"]
    assert field.choices == ("ddpm", "ddim", "dpm++", "euler", "heun")
    assert field.doc == "gaussian: ddpm, ddim, dpm++; flow: euler, heun"
    for family, known in names.SAMPLERS.items():
        fields = {"diffusion__family": family, "diffusion__predict": "v"}
        for name in field.choices:
            if name in known:
                assert diffusion(**fields, sample__sampler=name).sample.sampler == name
            else:
                with pytest.raises(
                    ConfigError, match=f"is not one of the {family} family's: {known[0]}"
                ):
                    diffusion(**fields, sample__sampler=name)


def test_a_config_is_read_without_jax():
    program = "import sys; from pit_jax import configfile; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_a_directory_of_something_else_is_refused(run, tmp_path):
    (tmp_path / "letter.txt").write_text("")
    with pytest.raises(ConfigError, match=r"holds no samples but other files \(letter.txt"):
        sampling.sample(config_of(run), run, tmp_path)
    for content in ("{", "[1]", "{}"):
        (tmp_path / "sample.json").write_text(content)
        with pytest.raises(StorageError, match=r"sample.json is damaged"):
            sampling._begin(sampling.epath.Path(tmp_path), {})
    with pytest.raises(ConfigError, match=r"--out .*letter.txt: Not a directory"):
        sampling._begin(sampling.epath.Path(tmp_path / "letter.txt"), {})


def refused(capsys, *words: str) -> str:
    assert cli.run(words) == 2
    err = capsys.readouterr().err
    assert err.startswith("pit-jax: ")
    assert err.count("\n") == 1, err
    return err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--num", "0"], "config.sample.num=0 must be at least 1"),
        (["--num", "-3"], "config.sample.num=-3 must be at least 1"),
        (["--labels", "3", "10"], "labels 3 10: write numbers from 0 to 9"),
        (["--labels", "3", "balanced"], "--labels 3 balanced: write class numbers, balanced,"),
        (["--labels", "-1"], "labels -1: write"),
        (["--step", "5"], "has no checkpoint 5, but [7]"),
        (
            ["--sampler", "euler"],
            "config.sample.sampler='euler' is not one of the gaussian family's",
        ),
        (["--steps", "2000"], "config.sample.steps=2000 is more than"),
        (["--guidance", "x"], "argument --guidance: invalid float value: 'x'"),
        (["--batch-size", "12"], "samples in batches of 12 do not divide over the 8 devices"),
        (["--labels", "²"], "--labels ²: write class numbers, balanced, random, or unconditional"),
        (["--config.model.width=32"], "already holds another run: config.model.width was 16"),
        (["--guidence", "2"], "unexpected argument --guidence; did you mean --guidance?"),
    ],
)
def test_mistakes_are_one_line(capsys, run, tmp_path, words, sentence):
    line = refused(capsys, "sample", "--workdir", str(run), "--out", str(tmp_path / "x"), *words)
    assert sentence in line
    assert not (tmp_path / "x").exists()


def test_runs_that_cannot_be_sampled_are_refused(capsys, tiny, run, tmp_path):
    words = ["--workdir", str(tmp_path), "--out", str(tmp_path / "x")]
    assert "is no run directory" in refused(capsys, "sample", *words)
    rundir.RunDir(tmp_path).write_config(validation.resolve(tiny))
    line = refused(capsys, "sample", *words)
    assert "was trained by task 'classification': only diffusion runs generate images" in line
    rundir.RunDir(tmp_path).write_config(diffusion(optim__ema=0.0))
    assert "holds no checkpoint yet" in refused(capsys, "sample", *words)
    line = refused(capsys, "sample", *words, "--ema")
    assert f"--ema: {tmp_path} keeps no moving average (config.optim.ema=0), leave it out" in line
    assert not (tmp_path / "x").exists()


TWO = """
import sys, jax
from pit_jax import sample
from pit_jax.errors import ConfigError
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
first = jax.process_index() == 0
def found():
    assert first
    return {"num": 3}
def refused():
    assert first
    raise ConfigError("another directory, please: ü")
print("found", sample._decided(found))
try:
    sample._decided(refused)
except ConfigError as error:
    print("refused", error)
"""


def test_process_0_decides_about_the_directory_for_all():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.getcwd(), "XLA_FLAGS": ""}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, address, str(number)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    for process in both:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert "found {'num': 3}" in out
        assert "refused another directory, please: ü" in out
