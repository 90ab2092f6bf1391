"""What a missing package is installed by, however pit_jax itself was."""

import json
import shlex
import sys

import pytest

from pit_jax import installation


@pytest.fixture(autouse=True)
def anew():
    installation._origin.cache_clear()
    yield
    installation._origin.cache_clear()


@pytest.mark.parametrize(
    ("origin", "words"),
    [
        (
            {"url": "file:///a%20b/pit_jax", "dir_info": {"editable": True}},
            ["-e", "/a b/pit_jax[tpu]"],
        ),
        ({"url": "file:///a/pit_jax", "dir_info": {}}, ["pit_jax[tpu] @ file:///a/pit_jax"]),
        (
            {"url": "file:///a/pit_jax-0.1.0-py3-none-any.whl", "archive_info": {}},
            ["pit_jax[tpu] @ file:///a/pit_jax-0.1.0-py3-none-any.whl"],
        ),
        (
            {"url": "https://host/p", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            ["pit_jax[tpu] @ git+https://host/p@abc"],
        ),
        (None, ["pit_jax[tpu]"]),  # of an index
    ],
)
def test_an_extra_comes_from_where_the_package_did(monkeypatch, origin, words):
    class Found:
        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return json.dumps(origin) if origin else None

    monkeypatch.setattr(installation.importlib.metadata, "distribution", lambda name: Found())
    monkeypatch.setattr(installation.os.path, "exists", lambda path: False)  # no checkout
    command = shlex.split(installation.extra("tpu"))
    assert command[-len(words) - 1 :] == ["install", *words]


def test_of_a_checkout_that_nobody_installed(monkeypatch):
    def missing(name: str) -> None:
        raise installation.importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(installation.importlib.metadata, "distribution", missing)
    *_, flag, place = shlex.split(installation.extra("study"))
    assert flag == "-e"
    assert place.endswith("[study]")


@pytest.mark.parametrize("mine", [True, False])
def test_it_is_this_interpreters_pip(monkeypatch, mine):
    """After `make demo` the environment is not active: another pip is on the PATH, or none."""
    folder = sys.executable.rpartition("/")[0] if mine else "/usr/bin"
    monkeypatch.setattr(installation.shutil, "which", lambda name: f"{folder}/{name}")
    command = shlex.split(installation.install("a>=1"))
    assert command == [*(["pip"] if mine else [sys.executable, "-m", "pip"]), "install", "a>=1"]
