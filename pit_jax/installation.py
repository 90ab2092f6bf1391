"""How pit_jax was installed, and so what a missing package is installed by.

pip notes where a package came from in direct_url.json (PEP 610): a checkout that is used where it
lies, a wheel, a repository. Nothing there means that an index had it.
"""

import functools
import importlib.metadata
import json
import os
import shlex
import shutil
import sys
from urllib.parse import unquote, urlsplit


def extra(name: str) -> str:
    """The command that adds an extra of setup.cfg, such as "tpu", to what is installed here."""
    return install(*_with_extra(name))


def install(*packages: str) -> str:
    """The command that installs packages beside pit_jax: by this interpreter's own pip."""
    here = os.path.dirname(sys.executable)
    found = shutil.which("pip")
    pip = ["pip"] if found and os.path.dirname(found) == here else [sys.executable, "-m", "pip"]
    return shlex.join([*pip, "install", *packages])


def _with_extra(name: str) -> list[str]:
    origin = _origin()
    url = origin.get("url", "")
    if origin.get("dir_info", {}).get("editable"):
        return ["-e", f"{unquote(urlsplit(url).path)}[{name}]"]
    if version := origin.get("vcs_info"):
        url = f"{version['vcs']}+{url}@{version['commit_id']}"
    return [f"pit_jax[{name}] @ {url}" if url else f"pit_jax[{name}]"]


@functools.cache
def _origin() -> dict:
    """direct_url.json; of a checkout that nobody installed what it would be."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    checkout = {"url": f"file://{root}", "dir_info": {"editable": True}}
    try:
        found = importlib.metadata.distribution("pit_jax").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        found = None
    if found is None and os.path.exists(os.path.join(root, "setup.cfg")):
        return checkout
    return json.loads(found or "{}")
