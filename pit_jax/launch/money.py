"""What a launch takes before it is booked: chips, memory, hours and their price; and a question."""

import shlex
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from pit_jax import installation
from pit_jax.errors import ConfigError, DoesNotFit
from pit_jax.launch.accelerators import Accelerator

_COLUMNS = 80


def preflight(
    config: ConfigDict, accelerator: Accelerator, price: float | None, anyway: bool
) -> dict[str, Any] | None:
    """Compiles the config's steps for the accelerator, see perf/preflight.py.

    Returns what it found; None where it cannot be done and `anyway` lets that pass.

    Raises:
      ConfigError: if mesh or batch do not fit the slice, or libtpu is missing.
    """
    from pit_jax.perf import topology
    from pit_jax.perf.preflight import preflight as compile_steps

    if not topology.has_libtpu():
        if anyway:
            _say("preflight was left out: libtpu is not installed here")
            return None
        raise ConfigError(
            "a launch is compiled first, with libtpu, which is not installed here:"
            f" {installation.extra('tpu')} (x86-64 Linux), or launch --anyway"
        )
    _say(f"preflight: compiling for {accelerator.topology.name}, up to a minute a step")
    return compile_steps(config, accelerator.topology, price, _say)


def check_fits(found: Mapping[str, Any] | None, accelerator: Accelerator, anyway: bool) -> None:
    """Refuses steps that do not fit, unless told otherwise.

    Raises:
      DoesNotFit: with sizes and what to do.
    """
    for name, step in (found or {"steps": {}})["steps"].items():
        if step["fits"]:
            continue
        needed, limit = step["hbm_peak_bytes"] / 2**30, step["hbm_limit_bytes"] / 2**30
        line = (
            f"the {name} step does not fit on {accelerator.name}: {needed:.2f} GiB of"
            f" {limit:.2f} GiB a device"
        )
        if not anyway:
            raise DoesNotFit(
                f"{line}; pit-jax preflight --topology {accelerator.topology.name} --find-batch"
                " looks for what would, --anyway launches it all the same"
            )
        _say(f"note: {line}")


def preflight_command(
    config: str, accelerator: Accelerator, slices: int, overrides: Sequence[str]
) -> str:
    """What a dry run names to be tried: the same compilation, by hand; in lines of a terminal."""
    words = ["preflight", f"--config {shlex.quote(config)}"]
    words += [f"--topology {accelerator.topology.name}"]
    words += [f"--slices {slices}"] if slices > 1 else []
    lines = ["  pit-jax"]
    for word in [*words, *map(shlex.quote, overrides)]:
        if len(lines[-1]) + len(word) + len(" ") <= _COLUMNS - len("#  \\"):  # gke.py comments
            lines[-1] += f" {word}"
        else:
            lines.append(f"    {word}")
    return " \\\n".join(lines)


def refused_later(line: str) -> str:
    """What a dry run says of what a launch would refuse, in lines of a terminal."""
    text = f"note: without --dry-run this is refused: {line}"
    return textwrap.fill(
        text,
        _COLUMNS - len("# "),
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def table(
    accelerator: Accelerator,
    slices: int,
    spot: bool,
    found: Mapping[str, Any] | None,
    price: float | None,
) -> str:
    """What it takes, in lines of 80 columns.

    Args:
      found: what preflight found, if it ran.
      price: of a chip-hour, in any currency.
    """
    chips = accelerator.chips * slices
    hosts = accelerator.hosts * slices
    memory = accelerator.hbm_bytes * chips / 2**30
    several = f"{slices} slices of " if slices > 1 else ""
    kind = ", spot: it may be taken away" if spot else ""
    rows = [
        ("slice", f"{several}{accelerator.name}, {accelerator.shape}{kind}"),
        ("chips", f"{chips:,} on {hosts:,} host{'s' if hosts > 1 else ''}"),
        ("HBM", f"{memory:,.0f} GiB, {accelerator.hbm_bytes / 2**30:.2f} a chip"),
    ]
    for name, step in (found or {"steps": {}})["steps"].items():
        peak, limit = step["hbm_peak_bytes"], step["hbm_limit_bytes"]
        verdict = "fits" if step["fits"] else "DOES NOT FIT"
        of = f"{peak / 2**30:.2f} of {limit / 2**30:.2f} GiB a device"
        rows.append((f"{name} step", f"{verdict}, {of}"))
    hours = found["chip_hours"] if found else None
    if hours is not None:
        rows.append(("chip-hours", f"{at_least(hours)}, {_hours(hours / chips)} on this slice"))
        if price is not None:
            cost = at_least(hours * price, decimals=2)
            rows.append(("price", f"{cost}, at {price:g} a chip-hour"))
    elif found is not None:
        rows.append(("chip-hours", "not known: no estimate for this schedule"))
    if price is not None:
        rows.append(("a slice-hour", f"{chips * price:,.2f}, from ACTIVE to its deletion"))
    return "\n".join(f"  {name:13} {text}" for name, text in rows)


def check_answer(yes: bool, what: str = "create this") -> None:
    """Refuses `what` nobody would confirm, before anything is compiled or looked up for it.

    Raises:
      ConfigError: if nobody is there to ask.
    """
    if not yes and not sys.stdin.isatty():
        raise ConfigError(f"nobody is here to ask whether to {what}: add --yes")


def confirm(question: str, yes: bool, done: str = "created") -> None:
    """Goes on if somebody agrees: `yes`, or an answer on the terminal, see `check_answer`.

    Args:
      done: what was not, after another answer.

    Raises:
      ConfigError: if somebody says no.
    """
    if yes:
        return
    print(f"{question} [y/N] ", end="", flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise ConfigError(f"nothing was {done}")


def at_least(amount: float, decimals: int | None = None) -> str:
    """Chip-hours, or with two decimals a price: preflight knows the least that it can be."""
    if amount < 0.01:
        return "under 0.01"
    if decimals is None:
        return f"{f'{amount:,.0f}' if amount >= 100 else f'{amount:.3g}'} at least"
    return f"{amount:,.{decimals}f} at least"


def _hours(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    if hours < 1 / 60:
        return "under a minute"
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.0f} min"


def _say(line: str) -> None:
    """Progress and notes."""
    print(line, file=sys.stderr, flush=True)
