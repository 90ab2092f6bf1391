"""Whether compared runs were made by the same code on the same kind of machine."""

import os
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pit_jax.config import FIELDS
from pit_jax.study.collect import Run
from pit_jax.study.space import text
from pit_jax.study.sweepfile import Sweep


def warnings(runs: Sequence[Run]) -> list[str]:
    """One line for each of commit, changes, versions and machine that is not the same in all."""
    found = []
    if without := [run.called for run in runs if not run.environments]:
        found.append(f"{_some(without)}: no env.json, so commit and machine are not known")
    for what, read in (("commits", _commit), ("Python versions", _python), ("devices", _devices)):
        found += _differing(runs, what, read)
    uncommitted = Counter(e.get("uncommitted") or "" for run in runs for e in run.environments)
    changed = [run.called for run in runs if any(e.get("uncommitted") for e in run.environments)]
    if len(uncommitted) > 1:
        who = "all" if len(changed) == len(runs) else _some(changed)
        found.append(f"uncommitted changes differ between starts ({who} had some)")
    elif changed:
        found.append("all ran with the same uncommitted changes, which are in their env.json")
    packages = {p for run in runs for e in run.environments for p in e.get("versions") or {}}
    for package in sorted(packages):
        found += _differing(
            runs, f"versions of {package}", lambda e, p=package: (e.get("versions") or {}).get(p)
        )
    return found


def made_by(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """(what, values) of commit, versions, machine and dates, for a report."""
    starts = [e for run in runs for e in run.environments]
    if not starts:
        return []
    packages = sorted({p for e in starts for p in e.get("versions") or {}})
    versions = [
        f"{p} {v}"
        for p in packages
        if (v := _values(starts, lambda e, p=p: (e.get("versions") or {}).get(p)))
    ]
    times = sorted(str(e["time"]) for e in starts if e.get("time"))
    days = dict.fromkeys(time[:10] for time in (times[:1] + times[-1:]))
    lines = [
        ("Date", " to ".join(days)),
        ("Commit", _values(starts, lambda e: e.get("commit"))),
        ("Devices", _values(starts, _devices)),
        ("Machine", _values(starts, lambda e: e.get("platform"))),
        ("Python", _values(starts, _python)),
        ("Packages", ", ".join(versions)),
    ]
    return [(what, values) for what, values in lines if values]


def commands(runs: Sequence[Run], sweeps: Sequence[Sweep]) -> list[str]:
    """What was typed: of sweeps the sweep, of single runs at most six of them."""
    typed = [sweep.command for sweep in sweeps if sweep.command]
    swept = tuple(sweep.path + os.sep for sweep in sweeps if sweep.command)
    single = [
        shlex.join(["pit-jax", *map(str, run.environments[0].get("command", [])[1:])])
        for run in runs
        if run.environments and not (swept and run.path.startswith(swept))
    ]
    single = list(dict.fromkeys(single))
    more = [f"# and {len(single) - 6} more"] if len(single) > 6 else []
    return [*typed, *single[:6], *more]


def shared(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Fields that are the same in all runs and not what they are by default."""
    configs = [run.config for run in runs]
    return [
        (name, text(configs[0][name], name))
        for name, field in FIELDS.items()
        if all(c[name] == configs[0][name] for c in configs) and configs[0][name] != field.default
    ]


def _commit(environment: Mapping[str, Any]) -> str | None:
    commit = environment.get("commit")
    return commit and commit[:10]


def _python(environment: Mapping[str, Any]) -> str | None:
    return environment.get("python")


def _devices(environment: Mapping[str, Any]) -> str | None:
    kinds, count = environment.get("devices"), environment.get("device_count")
    return f"{count} × {', '.join(kinds)}" if kinds and count else None


def _differing(
    runs: Sequence[Run], what: str, read: Callable[[Mapping[str, Any]], Any]
) -> list[str]:
    """A line that says which values there are and in how many runs, if there are several."""
    names: dict[str, dict[str, None]] = {}  # value → names of runs
    for run in runs:
        for environment in run.environments:
            names.setdefault(str(read(environment) or "unknown"), {})[run.called] = None
    if len(names) < 2:
        return []
    told = [f"{value} ({_some(list(where))})" for value, where in names.items()]
    return [f"{what} differ: {', '.join(told)}"]


def _values(starts: Sequence[Mapping[str, Any]], read: Callable) -> str:
    return ", ".join(dict.fromkeys(str(v) for e in starts if (v := read(e))))


def _some(names: Sequence[str]) -> str:
    """Two names and how many more."""
    return "; ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
