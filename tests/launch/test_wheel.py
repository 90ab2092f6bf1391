"""A wheel of the checkout: complete, named by commit, and nothing left behind."""

import pathlib
import re
import shutil
import subprocess
import zipfile

import pytest

import pit_jax
from pit_jax.errors import ConfigError
from pit_jax.launch import wheel

ROOT = pathlib.Path(pit_jax.__file__).parent.parent


def git(where: pathlib.Path, *words: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", "-C", str(where), *who, *words], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> pathlib.Path:
    """A small checkout with one commit, which wheels are built of."""
    root = tmp_path / "checkout"
    (root / "pit_jax" / "launch").mkdir(parents=True)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root / name)
    for name in ("__init__.py", "errors.py", "launch/__init__.py", "launch/startup.sh"):
        shutil.copy(ROOT / "pit_jax" / name, root / "pit_jax" / name)
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "first")
    monkeypatch.setattr(wheel.pit_jax, "__file__", str(root / "pit_jax" / "__init__.py"))
    return root


def files(root: pathlib.Path) -> set[pathlib.Path]:
    return {path for path in root.rglob("*") if ".git" not in path.parts}


def test_the_wheel_holds_every_module_and_what_they_read(tmp_path):
    """Of this very checkout."""
    made = zipfile.ZipFile(wheel.build(tmp_path))
    names = set(made.namelist())
    here = {str(path.relative_to(ROOT)) for path in (ROOT / "pit_jax").rglob("*.py")}
    assert here - names == set()
    for name in ("pit_jax/launch/startup.sh", "pit_jax/study/report.html.j2"):
        assert made.read(name) == (ROOT / name).read_bytes()
    assert not [name for name in names if name.startswith(("tests/", "configs/", "experiments/"))]
    metadata = next(name for name in names if name.endswith("METADATA"))
    assert "Provides-Extra: launch" in made.read(metadata).decode()
    entry = next(name for name in names if name.endswith("entry_points.txt"))
    assert "pit-jax = pit_jax.cli:main" in made.read(entry).decode()


def test_the_version_names_the_commit_and_what_is_uncommitted(checkout, tmp_path):
    before = files(checkout)
    clean = wheel.build(tmp_path)
    assert re.fullmatch(r"pit_jax-0\.1\.0\+g[0-9a-f]{7}-py3-none-any\.whl", clean.name)
    assert clean.name == wheel.file_name()
    assert files(checkout) == before  # no build/, no egg-info
    again = tmp_path / "again"
    again.mkdir()
    assert wheel.build(again).read_bytes() == clean.read_bytes()

    (checkout / "pit_jax" / "new.py").write_text("x = 1\n")  # untracked, and yet what would run
    (checkout / "notes.txt").write_text("of no import")
    changed = wheel.build(tmp_path)
    assert changed.name == clean.name.replace("-py3", ".dirty-py3") == wheel.file_name()
    inside = zipfile.ZipFile(changed)
    assert inside.read("pit_jax/new.py") == b"x = 1\n"
    commit = clean.name.split("+")[1].split("-")[0]
    assert f'__version__ = "0.1.0+{commit}.dirty"' in inside.read("pit_jax/__init__.py").decode()
    assert '__version__ = "0.1.0"' in (checkout / "pit_jax" / "__init__.py").read_text()


def test_without_git_it_is_a_local_version(checkout, tmp_path):
    shutil.rmtree(checkout / ".git")
    assert wheel.build(tmp_path).name == "pit_jax-0.1.0+local-py3-none-any.whl"


def test_a_checkout_that_cannot_be_built_is_told_in_one_line(checkout, tmp_path):
    (checkout / "setup.cfg").write_text("[metadata]\nname = \nversion = x y\n")
    with pytest.raises(ConfigError, match="could not be built") as refused:
        wheel.build(tmp_path)
    assert "\n" not in str(refused.value)


def test_an_installed_package_asks_for_a_requirement(tmp_path, monkeypatch):
    place = tmp_path / "site-packages" / "pit_jax" / "__init__.py"
    monkeypatch.setattr(wheel.pit_jax, "__file__", str(place))
    for ask in (wheel.file_name, lambda: wheel.build(tmp_path)):
        with pytest.raises(ConfigError, match=r"--requirement pit_jax==0\.1\.0"):
            ask()
    assert wheel.constraints() == "# none\n"


def test_the_constraints_are_those_of_the_checkout():
    assert wheel.constraints() == (ROOT / "constraints.txt").read_text()
