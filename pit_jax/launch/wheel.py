"""A wheel of this very checkout, uncommitted changes among it; built without a network."""

import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import pit_jax
from pit_jax import installation
from pit_jax.errors import ConfigError

_FILES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE")
_VERSION = re.compile(r'^__version__ = "([^"]+)"$', re.MULTILINE)
_BUILD = "import sys; from setuptools import build_meta as b; print(b.build_wheel(sys.argv[1]))"


def checkout() -> pathlib.Path | None:
    """Where this package runs from, if that is a checkout and no installation."""
    root = pathlib.Path(pit_jax.__file__).resolve().parent.parent
    return root if all((root / name).is_file() for name in _FILES[:2]) else None


def file_name() -> str:
    """Of the wheel that `build` makes.

    Raises:
      ConfigError: if there is no checkout.
    """
    return f"pit_jax-{version(_root())}-py3-none-any.whl"


def version(root: pathlib.Path) -> str:
    """0.1.0+g1a2b3c4, with .dirty after it where files differ from that commit."""
    commit = _git(root, "rev-parse", "--short=7", "HEAD")
    if not commit:
        return f"{pit_jax.__version__}+local"
    changed = _git(root, "status", "--porcelain", "--", "pit_jax", *_FILES)
    return f"{pit_jax.__version__}+g{commit}{'.dirty' if changed else ''}"


def build(folder: str | os.PathLike) -> pathlib.Path:
    """Writes the wheel into `folder`; the checkout is only read.

    Raises:
      ConfigError: if there is no checkout, or nothing to build it with.
    """
    root = _root()
    if importlib.util.find_spec("setuptools") is None:
        raise ConfigError(f"the wheel is built with setuptools: {installation.extra('launch')}")
    name = version(root)
    with tempfile.TemporaryDirectory() as place:
        copy = pathlib.Path(place)
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
        shutil.copytree(root / "pit_jax", copy / "pit_jax", ignore=ignored)
        for file in _FILES:
            if (root / file).is_file():
                shutil.copy(root / file, copy / file)
        init = copy / "pit_jax" / "__init__.py"
        init.write_text(_VERSION.sub(f'__version__ = "{name}"', init.read_text()))
        done = subprocess.run(
            [sys.executable, "-c", _BUILD, os.path.abspath(folder)],
            cwd=copy,
            capture_output=True,
            text=True,
            env={**os.environ, "SOURCE_DATE_EPOCH": "315532800"},  # the same bytes every time
        )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        hint = f": {installation.install('setuptools>=70.1')}" if "bdist_wheel" in lines[-1] else ""
        raise ConfigError(f"the wheel could not be built: {lines[-1][:200]}{hint}")
    return pathlib.Path(folder) / done.stdout.strip().splitlines()[-1]


def constraints() -> str:
    """The exact versions to install beside it: constraints.txt of the checkout, or none."""
    root = checkout()
    path = root / "constraints.txt" if root else None
    return path.read_text() if path and path.is_file() else "# none\n"


def _root() -> pathlib.Path:
    root = checkout()
    if root is None:
        raise ConfigError(
            "pit_jax is installed here and no checkout, so there is nothing to build a wheel"
            f" from: add --requirement pit_jax=={pit_jax.__version__}"
        )
    return root


def _git(root: pathlib.Path, *words: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
