"""What the files of a run directory may hold: read once, so that all behind can trust it.

Files get damaged, edited and made by hand. A value of a wrong type is left out and named, a
number beyond any measurement counts as infinite, and text is printable.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from pit_jax.files import printable

LARGEST = 1e30  # of a number that is a measurement; sums and squares of such are still finite

_Read = Callable[[Any], Any]  # a value of the type that is meant, or None


def number(value: Any) -> float | None:
    """A number; infinite beyond LARGEST. None of anything else, True and False among it."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    if abs(value) > LARGEST:  # of a whole number, perhaps one that no float holds
        return math.inf if value > 0 else -math.inf
    return value


def finite(value: Any) -> float | None:
    found = number(value)
    return found if found is not None and math.isfinite(found) else None


def whole(value: Any) -> int | None:
    """A whole number from 0 on."""
    fits = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return value if fits else None


def text(value: Any) -> str | None:
    return printable(value) if isinstance(value, str) else None


def truth(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def texts(value: Any) -> list[str] | None:
    fits = isinstance(value, list) and all(isinstance(x, str) for x in value)
    return [printable(x) for x in value] if fits else None


def status(found: Any) -> tuple[dict[str, Any], list[str]]:
    """Of status.json, and the names of what was left out of it."""
    return _fields(found, _STATUS)


def environment(found: Any) -> tuple[dict[str, Any], list[str]]:
    """Of one start in env.json, and the names of what was left out of it."""
    return _fields(found, _ENVIRONMENT)


def is_row(found: Any) -> bool:
    """Whether a line of metrics.jsonl is one: it has a step at least."""
    return isinstance(found, dict) and type(found.get("step")) is int


def row(found: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Of a row of metrics.jsonl, and the names of what was left out of it."""
    of_the_machine = [n for n in found if n == "time" or n.startswith("perf/")]
    kinds = dict.fromkeys(found, number) | dict.fromkeys(of_the_machine, finite)
    return _fields(found, kinds | {"step": _same, "event": text})


def record(found: Any) -> dict[str, float]:
    """The numbers of a file of records/, by name; what else it holds is for people.

    Raises:
      ValueError: if it is no record.
    """
    if not isinstance(found, dict):
        raise ValueError("no record")
    read = {printable(name): number(value) for name, value in found.items()}
    return {name: value for name, value in read.items() if value is not None}


def _fields(found: Any, kinds: Mapping[str, _Read]) -> tuple[dict[str, Any], list[str]]:
    """What `kinds` says of each field; those it does not know stay. null is no value at all."""
    if not isinstance(found, dict):
        return {}, ["what it holds"]
    kept, lost = {}, []
    for name, value in found.items():
        kind = kinds.get(name, _same)
        if value is None:
            continue
        if isinstance(kind, _Each):
            kept[name], inner = kind.read(value)
            lost += [f"{name}/{printable(n)}" if n else name for n in inner]
        elif (read := kind(value)) is None:
            lost.append(printable(name))
        else:
            kept[name] = read
    return kept, lost


class _Each:
    """An object of any names whose values are all of one kind."""

    def __init__(self, kind: _Read):
        self._kind = kind

    def read(self, found: Any) -> tuple[dict[str, Any], list[str]]:
        if not isinstance(found, dict):
            return {}, [""]
        read = {name: self._kind(value) for name, value in found.items() if value is not None}
        kept = {printable(name): value for name, value in read.items() if value is not None}
        return kept, [name for name, value in read.items() if value is None]


def _same(value: Any) -> Any:
    return value


_STATUS = {"state": text, "exit_code": whole, "step": whole, "total": whole, "time": text}
_STATUS |= {"attempt": whole, "result": _Each(number)}
_STATUS |= {"launch": text, "final": truth, "reason": text}  # of a supervisor
_ENVIRONMENT = {"time": text, "commit": text, "uncommitted": text, "versions": _Each(text)}
_ENVIRONMENT |= {"python": text, "platform": text, "devices": texts, "device_count": whole}
_ENVIRONMENT |= {"dtype": text}
_ENVIRONMENT |= {"command": texts, "cost": _Each(finite)}
