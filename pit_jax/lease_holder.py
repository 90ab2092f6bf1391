"""Who holds a lease: what its file says, and whether those processes still live."""

import dataclasses
import os
import platform
import sys
import time
import uuid
from typing import Any

from pit_jax import files

TTL_S = 60.0  # where a file does not say it


@dataclasses.dataclass(frozen=True)
class Holder:
    """What a lease says, as far as it can be read."""

    content: dict[str, Any]

    @classmethod
    def of(cls, content: bytes | None) -> "Holder":
        try:
            found = files.parse_json(content or b"{}")
            return cls(found if isinstance(found, dict) else {})
        except ValueError:
            return cls({})

    @property
    def owner(self) -> str | None:
        found = self.content.get("owner")
        return found if isinstance(found, str) and found else None

    @property
    def ttl_s(self) -> float:
        found = self.content.get("ttl_s")
        return float(found) if type(found) in (int, float) and found > 0 else TTL_S

    @property
    def processes(self) -> list[dict[str, Any]]:
        found = self.content.get("processes")
        return [p for p in found if isinstance(p, dict)] if isinstance(found, list) else []

    def _is_here(self) -> bool:
        machine = _machine()
        return bool(machine and self.processes) and all(
            p.get("machine") == machine for p in self.processes
        )

    def living(self) -> list[dict[str, Any]]:
        """Its processes without those of this machine that are gone."""
        machine = _machine()
        return [p for p in self.processes if p.get("machine") != machine or _lives(p)]

    def is_dead(self) -> bool:
        """Whether all its processes are known to be gone."""
        return self._is_here() and not self.living()

    def age(self) -> float | None:
        """Seconds since it was renewed; None if that cannot be told from here."""
        then = self.content.get("monotonic")
        if not self._is_here() or type(then) not in (int, float):
            return None
        return max(time.monotonic() - then, 0.0)

    def __str__(self) -> str:
        hosts = {str(p.get("host"))[:80] for p in self.processes}
        numbers = [str(p.get("pid"))[:10] for p in self.processes]
        if not numbers:
            return "somebody unknown (the file is unreadable)"
        word = "process" if len(numbers) == 1 else "processes"
        text = f"{word} {' and '.join(numbers)} on host {' and '.join(sorted(hosts))}"
        return files.printable(text)


# Processes ----------------------------------------------------------------------------


def me() -> dict[str, Any]:
    pid = os.getpid()
    return {
        "host": platform.node(),
        "machine": _machine(),
        "pid": pid,
        "started": _started(pid),
    }


def _machine() -> str:
    """What is shared by the processes that see each other's numbers; changes at each boot."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return f"{platform.node()} {uuid.getnode():x}"


def _started(pid: int) -> str | None:
    """When a process started, in the kernel's ticks, since numbers are used again."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            after_name = file.read().rpartition(")")[2].split()
        return None if after_name[0] in "ZX" else after_name[19]
    except (OSError, IndexError):
        return None


def _lives(process: dict[str, Any]) -> bool:
    pid = process.get("pid")
    if type(pid) is not int or not 0 < pid < 1 << 31:
        return False
    if sys.platform == "linux":
        return _started(pid) is not None and _started(pid) == process.get("started")
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
