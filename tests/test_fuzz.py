"""Configs and command lines that nobody would write: accepted, or refused in one line.

Hypothesis makes them. Each ends with exit code 0 and nothing on standard error, or with 2 and
one line there; there is no traceback, and nothing is written.
"""

import contextlib
import io
import json
import os
import pathlib
import shlex
import string
import tempfile
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, currently_in_test_context, event, given, settings
from hypothesis import strategies as st

from pit_jax import cli, configfile
from pit_jax.config import FIELDS

ROOT = pathlib.Path(__file__).parent.parent
DIGITS = f"{ROOT}/configs/digits.py"
TINY = ("--config.model.width=16", "--config.model.depth=2", "--config.model.heads=2")
LONGEST = 1000  # characters of a line that refuses


def usual(examples: int) -> settings:
    """The same examples every time, so that CI fails for what was changed and for nothing else.

    PIT_JAX_FUZZ=N looks for new ones instead, N of them a test.
    """
    more = os.environ.get("PIT_JAX_FUZZ")
    return settings(
        max_examples=int(more or examples),
        derandomize=not more,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )


# Running --------------------------------------------------------------------------------


class Answer(NamedTuple):
    code: int
    out: str
    err: str


def answer(words: list[str]) -> Answer:
    """What the command says, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = cli.run(words)
            except SystemExit as ended:  # --help, --version
                code = ended.code or 0
    seen = [w for w in warned if not issubclass(w.category, DeprecationWarning)]
    assert not seen, [str(w.message) for w in seen]
    return Answer(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def nowhere() -> Iterator[None]:
    """An empty directory to be in, and the check that it stays empty.

    And that nothing is said past Python, as libraries in C++ do.
    """
    before, stderr = os.getcwd(), os.dup(2)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as said:
        os.chdir(folder)
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            os.chdir(before)
        assert os.listdir(folder) == []
        said.seek(0)
        assert said.read() == b""


def check(words: list[str]) -> Answer:
    """Runs it; what is refused is refused in one line."""
    found = answer(words)
    if found.code == 0:
        assert found.err == ""
        assert found.out
    else:
        assert found.code == 2
        assert found.out == ""
        assert found.err.startswith("pit-jax: ")
        assert found.err.endswith("\n")
        assert len(found.err.splitlines()) == 1
        assert len(found.err) < LONGEST
        assert "Traceback" not in found.err
    if currently_in_test_context():
        event("accepted" if found.code == 0 else "refused")
    return found


# What is given ---------------------------------------------------------------------------

NUMBERS = [0, 1, -1, 2, 3, 7, 8, 16, 31, 64, 1024, 10**6, 10**9, 2**31, 2**63, 10**20, -(10**9)]
FLOATS = [0.0, -0.0, 0.5, 1.0, 1.5, -0.1, 1e-300, 1e300, float("nan"), float("inf"), -float("inf")]
TEXTS = [
    *("", " ", "None", "True", "false", "nan", "inf", "-inf", "1e999", "0x10", "1_000", "auto"),
    *("()", "(1,)", "(1, 2)", "[]", "{}", "(", "((((", "'", '"', "\\", "a\nb", "a\0b", "\x1b[31m"),
    *("$(reboot)", "%s", "{0}", "../..", "gs://", "gs://a/b", "http://x", "~", "é", "\u2028"),
    *("\ud800", "５", "١", "10 steps", "-1 steps", "5%", "200%", "1e400 epochs", "steps"),
    *(
        "0 steps",
        "1.5 epochs",
        "lambda: 0",
        "__import__('os')",
        "-" * 3000,
        "9" * 5000,
        "a b " * 1000,
    ),
]
SPECIAL = [
    "vit/",
    "vit/0",
    "vit/-1",
    "pit-t",
    "pit-x",
    "dit/2",
    "",
    "/",
    ":",
    "é",
    "\r",
    "a\nb",
    "\x85",
]
UNKNOWN = ["optim.Lr", "model", "optim", "", ".", "a.b.c", "train.step", "mesh.dat", "model.width."]

texts = st.one_of(
    st.sampled_from(TEXTS),
    st.sampled_from([*NUMBERS, *FLOATS]).map(str),
    st.text(max_size=12),
    st.text(alphabet="()[]{},.'\"-+e0123456789 ", max_size=10),
)
values = st.recursive(
    st.none() | st.booleans() | st.sampled_from([*NUMBERS, *FLOATS, *TEXTS]) | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)


def fitting(name: str) -> st.SearchStrategy:
    """Values that the field takes when it stands alone, the default and the limits among them."""
    field = FIELDS[name]
    kind = field.element if field.type is tuple else field.type
    low, high = field.limits
    if field.choices:
        one = st.sampled_from(field.choices)
    elif kind is bool:
        one = st.booleans()
    elif kind in (int, float):
        near = [low, high, low + 1, min(high, 2), min(high, 8), max(low, 0), max(low, 1)]
        one = st.sampled_from([kind(n) for n in near if low <= n <= high])
    elif field.length:
        one = st.sampled_from(["1 steps", "3 epochs", "5%", "10 steps", "100%", "7 examples"])
    else:
        one = st.sampled_from(["", "digits", "a/b", "blocks/.*", "accuracy", "x"])
    if field.type is tuple:
        one = st.lists(one, max_size=4).map(tuple)
    return one if field.default is None else st.just(field.default) | one


def misspelt(name: str) -> st.SearchStrategy:
    place = st.integers(0, len(name))
    return st.builds(
        lambda at, letter, cut: name[:at] + letter + name[at + cut :],
        place,
        st.sampled_from([*string.ascii_lowercase, ".", "", "_"]),
        st.integers(0, 1),
    )


@st.composite
def overrides(draw: st.DrawFn) -> list[str]:
    """Words such as --config.optim.lr=3, most of them of a field that there is."""
    words = []
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 1, 2, 2, 3, 4]))):
        name = draw(st.sampled_from(sorted(FIELDS)))
        kind = draw(st.sampled_from(["fits"] * 12 + ["any"] * 3 + ["near", "unknown", "word"]))
        value = draw(fitting(name)) if kind in ("fits", "near") else draw(texts)
        if kind == "near":
            name = draw(misspelt(name))
        elif kind == "unknown":
            name = draw(st.sampled_from(UNKNOWN) | st.text(max_size=8))
        if kind == "word":
            words.append(
                draw(texts | st.sampled_from(["--config", "--help", "-x", "--noconfig.x"]))
            )
        else:
            dashes = draw(st.sampled_from(["--"] * 40 + ["-", "--no"]))
            between = draw(st.sampled_from(["="] * 40 + ["", " "]))
            word = f"{dashes}config.{name}{between}{value}"
            words += word.split(" ", 1) if between == " " else [word]
    return words


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    """A command line of a verb that changes nothing, mutated."""
    line = draw(st.sampled_from(LINES))
    words = shlex.split(line)
    cloud = "gs://" in line  # elsewhere a bucket would be looked into
    kept = texts if cloud else texts.filter(lambda text: "gs://" not in text)
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2, 3]))):
        at = draw(st.integers(1, len(words)))
        ways = ["value", "value", "value", "value", "replace", "drop", "insert", "twice", "swap"]
        how = draw(st.sampled_from([*ways, "cut"]))
        others = [i for i, word in enumerate(words[:-1]) if word in OTHER]
        if how == "value" and others:
            flag = draw(st.sampled_from(others))
            plausible = [v for v in OTHER[words[flag]] if cloud or "gs://" not in v]
            words[flag + 1] = draw(st.sampled_from(plausible))
        elif how in ("insert", "value") or at == len(words):
            words.insert(at, draw(st.sampled_from(FLAGS) | kept))
        elif how == "replace":
            words[at] = draw(kept)
        elif how == "drop":
            del words[at]
        elif how == "twice":
            words.insert(at, words[at])
        elif how == "swap":
            other = draw(st.integers(1, len(words) - 1))
            words[at], words[other] = words[other], words[at]
        else:
            words[at] = words[at][: draw(st.integers(0, len(words[at])))]
    # Without it a launch would start.
    return words + ["--dry-run"] if "--dry-run" in line and "--dry-run" not in words else words


_LAUNCH = f"launch --config {DIGITS} --dry-run"
LINES = [
    f"show --config {DIGITS}:pit {' '.join(TINY)}",
    f"show --config={DIGITS}:vit/2 {' '.join(TINY)} --config.train.steps 3",
    f"{_LAUNCH} --target local --workdir runs/a --processes 2 --devices-per-process 1",
    f"{_LAUNCH} --target gke --workdir gs://my-bucket/a --accelerator v5litepod-16 --image i"
    " --slices 2 --spot --queue q --namespace n --service-account s --price-per-chip-hour 1",
    f"{_LAUNCH} --target tpu --workdir gs://my-bucket/a --accelerator v5litepod-8"
    " --zone us-west4-a --name a --project my-project --requirement pit_jax==0.1 --data gs://abc/d",
    f"sweep {ROOT}/experiments/pixel_permutation.py:tiny --workdir runs/s --dry-run --jobs 2",
    f"sweep {ROOT}/experiments/pixels_vs_patches.py:tiny --workdir runs/s --dry-run --shard 0/2",
    "compare runs/a runs/b --metric eval/accuracy --out report.html",
    "compare runs/a --csv out.csv --baseline x",
    "launch list",
    "launch status a",
    "launch logs a --follow --lines 3",
    "launch stop a --yes",
]
OTHER = {  # values of a flag that a person might write
    "--config": [f"{DIGITS}:vit/2", DIGITS, f"{ROOT}/configs/digits_mae.py", "digits.py"],
    "--workdir": ["runs/b", "gs://my-bucket/b", "gs://my-bucket", "/a b", "s3://a/b", "gs:/a"],
    "--target": ["local", "tpu", "gke", "TPU"],
    "--accelerator": ["v5litepod-64", "v6e-8", "v5p-128", "v4-8", "v5e-16", "v5litepod-3", "h100"],
    "--processes": ["1", "2", "3", "64", "4096", "4097", "two"],
    "--devices-per-process": ["1", "4", "0", "-1"],
    "--slices": ["1", "2", "16", "4096", "0", "1.5"],
    "--price-per-chip-hour": ["0", "1.2", "1e300", "nan", "-1", "inf"],
    "--name": ["b", "a-b", "A", "a_b", "a" * 40, "a" * 41, "1a", "-"],
    "--zone": ["us-east5-b", "europe-west4-a", "mars", "us"],
    "--project": ["other-project", "1", "a b", "example.com:project"],
    "--image": ["gcr.io/a/b:latest", "a b", "b@sha256:0"],
    "--queue": ["q2", "Q", "a.b"],
    "--data": ["gs://abc", "abc", "gs://abc/d e"],
    "--jobs": ["1", "64", "4096", "0", "-1"],
    "--shard": ["1/2", "2/2", "0/1", "1", "0/0", "-1/2"],
    "--lines": ["0", "100000", "-1"],
    "--metric": ["eval/loss", "accuracy", "--"],
}
FLAGS = [
    *("--help", "--config", "--workdir", "--target", "--dry-run", "--slices", "--spot", "--jobs"),
    *("--processes", "--accelerator", "--name", "--only", "--search", "--metric", "--plot", "--"),
    *("--config.train.steps=3", "--config.model.width=7", "--noconfig.train.deterministic", "-h"),
]


# Tests -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _json(text: str) -> Iterator[str]:
    with tempfile.NamedTemporaryFile("w", suffix=".json", errors="surrogatepass") as file:
        file.write(text)
        file.flush()
        yield file.name


def shown(words: list[str]) -> Answer:
    with nowhere():
        return check(["show", *words])


OTHERS = [f"{ROOT}/configs/{name}.py" for name in ("digits_mae", "digits_diffusion")]
OTHERS += [f"{ROOT}/configs/{name}.py" for name in ("digits_autoencoder", "scenes_depth")]
_SPECIAL = [f"{DIGITS}:{argument}" for argument in SPECIAL]
specs = st.sampled_from([f"{DIGITS}:pit"] * 40 + [f"{DIGITS}:vit/2"] * 10 + OTHERS * 10 + _SPECIAL)


def of_overrides(spec: str, words: list[str]) -> Answer:
    return shown(["--config", spec, *TINY, *words])


@st.composite
def files(draw: st.DrawFn) -> str:
    """Texts of config.json: a good one with fields changed, added, taken out; or none at all."""
    tree = configfile.load(f"{DIGITS}:pit", TINY).to_dict()
    for _ in range(draw(st.integers(0, 3))):
        name = draw(st.sampled_from(sorted(FIELDS)))
        section, _, leaf = name.rpartition(".")
        how = draw(st.sampled_from(["fits"] * 5 + ["any"] * 3 + ["out", "section", "unknown"]))
        inner = tree.get(section, {}) if section else tree
        if not isinstance(inner, dict):
            continue
        if how == "fits":
            inner[leaf] = draw(fitting(name))
        elif how == "any":
            inner[leaf] = draw(values)
        elif how == "out":
            inner.pop(leaf, None)
        elif how == "section":
            tree[section or leaf] = draw(values)
        else:
            inner[draw(st.sampled_from(UNKNOWN) | misspelt(leaf))] = draw(values)
    text = json.dumps(tree)
    if draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.sampled_from(["", "}", "[" * 5000, "\0", "é", "1e999"]))
    return text


def of_files(text: str) -> Answer:
    with _json(text) as path:
        return shown(["--config", path])


def of_lines(words: list[str]) -> Answer:
    with nowhere():
        return check(words)


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    """No cloud, no kubeconfig, no records of launches."""
    for name in list(os.environ):
        if name.startswith(("GOOGLE_", "CLOUDSDK_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    def refuse(*args, **kwargs):
        raise AssertionError("it asked for the network, or started something")

    for name in ("socket.connect", "getaddrinfo"):
        monkeypatch.setattr(f"socket.{name}", refuse)
    monkeypatch.setattr("pit_jax.launch.local.supervise", refuse)
    monkeypatch.setattr("pit_jax.study.sweep.sweep", refuse)


@usual(80)
@given(specs, overrides())
def test_overrides_are_accepted_or_refused_in_one_line(spec, words):
    assert of_overrides(spec, words).code in (0, 2)


@usual(60)
@given(files())
def test_files_are_accepted_or_refused_in_one_line(text):
    assert of_files(text).code in (0, 2)


@usual(60)
@given(lines())
def test_command_lines_are_accepted_or_refused_in_one_line(words):
    assert of_lines(words).code in (0, 2)


@pytest.mark.slow
@usual(800)
@given(specs, overrides())
def test_many_overrides(spec, words):
    assert of_overrides(spec, words).code in (0, 2)


@pytest.mark.slow
@usual(600)
@given(files())
def test_many_files(text):
    assert of_files(text).code in (0, 2)


@pytest.mark.slow
@usual(600)
@given(lines())
def test_many_command_lines(words):
    assert of_lines(words).code in (0, 2)


@pytest.mark.parametrize("text", ["a\rb", "a\nb", "\x1b[2J", "a\x85b", "\u2028", "x" * 5000])
def test_what_a_line_quotes_stays_in_the_line(text):
    for words in (["show", text], ["show", "--config", text], ["launch", "status", text]):
        with nowhere():
            assert check(words).code == 2


def test_the_examples_are_of_both_kinds():
    """A check that everything is refused by would hold nothing."""
    with nowhere():
        assert check(["show", "--config", f"{DIGITS}:pit", *TINY]).code == 0
        assert check(["show", "--config", f"{DIGITS}:pit", "--config.model.width=7"]).code == 2
        for line in LINES[:7]:
            assert check(shlex.split(line)).code == 0, line
