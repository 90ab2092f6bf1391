"""The start-up script of a launch: startup.sh with its settings, every one of them quoted."""

import importlib.resources
import re
import shlex
from collections.abc import Sequence

from pit_jax.errors import ConfigError

ROOT = "/opt/pit_jax"  # on a worker
DATA_DIR = f"{ROOT}/data"  # where its data lies, however it came there
FILES = f"{ROOT}/launch"  # what was uploaded to <workdir>/launch, as far as it is needed
EXTRAS = "[tpu,launch]"

_PLACE = "# SETTINGS\n"
_MOST = 250_000  # bytes; the metadata server takes 256 KiB a value


def script(
    *,
    name: str,
    launch: str,
    project: str,
    zone: str,
    workdir: str,
    arguments: Sequence[str],
    wheel: str = "",
    requirement: str = "",
    data: str = "",
    data_mode: str = "",
    study: str = "",
) -> str:
    """What every worker runs at each boot.

    Args:
      launch: its id.
      arguments: of `python -m pit_jax.launch.worker`.
      wheel: file name of the uploaded wheel to install, or else
      requirement: what pip installs, see `with_extras`.
      data: gs:// place of data sets.
      data_mode: "stage" copies it to DATA_DIR, "mount" mounts it there, "disk" mounts the
        attached disk there; "" brings none.
      study: uploaded directory <workdir>/launch/<study>, brought to FILES/<study>.
    """
    settings = {
        "NAME": name,
        "LAUNCH": launch,
        "PROJECT": project,
        "ZONE": zone,
        "WORKDIR": workdir.rstrip("/"),
        "WHEEL": wheel,
        "PACKAGE": f"pit_jax{EXTRAS}" if wheel else with_extras(requirement),
        "FILES": [*([wheel] if wheel else []), "constraints.txt"],
        "DATA": data.rstrip("/"),
        "DATA_MODE": data_mode,
        "STUDY": study,
        "ARGUMENTS": list(arguments),
    }
    head = "".join(f"{name}={_quoted(value)}\n" for name, value in settings.items())
    body = importlib.resources.files("pit_jax.launch").joinpath("startup.sh").read_text()
    before, found, after = body.partition(_PLACE)
    if not found:
        raise AssertionError("startup.sh has no place for its settings")
    text = before + head + after
    if len(text.encode()) > _MOST:
        raise ConfigError("the start-up script is too long for an instance's metadata")
    return text


def with_extras(requirement: str) -> str:
    """The requirement with what a worker needs: pit_jax==0.2 → pit_jax[launch,tpu]==0.2.

    Raises:
      ConfigError: if it is none, or one of something else.
    """
    from packaging.requirements import InvalidRequirement, Requirement

    text = requirement.strip()
    if re.match(r"[a-z+]+://|git\+", text):
        text = f"pit_jax @ {text}"
    try:
        found = Requirement(text)
    except InvalidRequirement as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--requirement {requirement[:60]}: {reason}") from None
    if found.name.lower().replace("-", "_") != "pit_jax":
        raise ConfigError(f"--requirement {requirement[:60]}: of pit_jax, not of {found.name}")
    found.extras |= {"tpu", "launch"}
    return str(found)


def _quoted(value: str | Sequence[str]) -> str:
    if isinstance(value, str):
        return shlex.quote(value)
    return f"({' '.join(map(shlex.quote, value))})"
