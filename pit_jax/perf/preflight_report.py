"""What preflight found, as text of 80 columns."""

import textwrap
from typing import Any

from pit_jax.perf.preflight import describe

ESTIMATE = "Times are estimates from published peaks, lower bounds; nothing was run."


def report(name: str, found: dict[str, Any]) -> str:
    """The report of one config.

    Args:
      name: of the config.
      found: what `preflight` returns.
    """
    mesh = " × ".join(f"{axis} {size}" for axis, size in found["mesh"].items())
    plural = "" if found["chips"] == 1 else "s"
    several = f"{found['slices']} slices of " if found["slices"] > 1 else ""
    halves = f" ({found['devices']} devices)" if found["devices"] != found["chips"] else ""
    lines = [
        name,
        f"  on {several}{found['topology']}, {found['chips']} chip{plural}{halves}, mesh {mesh}",
    ]
    for step, result in found["steps"].items():
        lines += ["", *_step(step, result, "device" if halves else "chip")]
    lines += ["", *_schedule(found)]
    if found["largest_batch_per_chip"] is not None:
        lines += ["", *_tried(found)]
    return "\n".join(lines)


def table(rows: list[dict[str, Any]]) -> str:
    """One row a config; a row that could not be compiled says why.

    Args:
      rows: what `preflight` returns with "config" added, or {"config", "error"}.
    """
    lines = [f"{'config':22} {'batch':>6} {'train GiB':>10} {'eval GiB':>9}"]
    lines[0] += f" {'limit':>6} {'step s':>8} {'chip-h':>8}"
    for row in rows:
        name = row["config"].removeprefix("configs/")
        if "error" in row:
            lines += textwrap.wrap(
                f"{name:22} {row['error']}", 79, subsequent_indent=" " * 23, drop_whitespace=True
            )
            continue
        train, evaluate = row["steps"]["train"], row["steps"].get("eval")
        seconds, hours = train["estimate_step_s"], row["chip_hours"]
        lines.append(
            f"{name:22} {row['batch_size']:>6} {_peak(train):>10} {_peak(evaluate):>9}"
            f" {train['hbm_limit_bytes'] / 2**30:>6.2f}"
            f" {f'{seconds:.3g}' if seconds else '–':>8} {f'{hours:,.3g}' if hours else '–':>8}"
        )
        for step, result in row["steps"].items():
            if not result["fits"]:
                lines.append(f"{'':22}  the {step} step does not fit; try --find-batch")
    return "\n".join([*lines, "", ESTIMATE])


def _peak(result: dict[str, Any] | None) -> str:
    if result is None:
        return "–"
    return f"{result['hbm_peak_bytes'] / 2**30:.2f}" + ("" if result["fits"] else " !")


def _step(name: str, result: dict[str, Any], unit: str) -> list[str]:
    peak, limit = result["hbm_peak_bytes"], result["hbm_limit_bytes"]
    seconds = result["compile_s"]
    lines = [
        f"{name} step: {'fits' if result['fits'] else 'DOES NOT FIT'}"
        f" (compiled in {seconds:.0f} s)",
        f"  peak HBM a {unit:6}       {size(peak):>10} of {size(limit)}, {peak / limit:.0%}",
        f"    parameters            {size(result['params_bytes']):>10}",
        f"    optimiser             {size(result['optimizer_bytes']):>10}"
        "   moments, moving average",
        f"    activations           {size(result['activations_bytes']):>10}"
        "   with gradients and all else",
    ]
    if result["temporaries_bytes"] is not None:
        lines.append(f"  temporaries in all      {size(result['temporaries_bytes']):>10}")
    if result["collectives"]:
        lines.append(f"  collectives a step          {'bytes':>10}   count, of them in loops")
        for found in result["collectives"]:
            group = f" of {found['group']}" if found["group"] else ""
            over = " between slices" if found["between"] == "slices" else group
            lines.append(
                f"    {found['kind'] + over:26}{size(found['bytes']):>10}"
                f"   {found['count']}, {found['in_loop']}"
            )
    elif result["temporaries_bytes"] is not None:
        lines.append("  collectives a step            none")
    lines.append(
        f"  model FLOPs a step      {result['model_flops']:>10.3g}"
        f"   and {result['recompute_flops']:.3g} recomputed"
    )
    if result["clocks_s"]:
        clocks = result["clocks_s"]
        lines += [
            f"  step time, estimated    {time(result['estimate_step_s']):>10}"
            f"   bound by {result['bound']}",
            f"    compute {time(clocks['compute_s'])}, HBM {time(clocks['hbm_s'])},"
            f" interconnect {time(clocks['interconnect_s'])}",
        ]
    for warning in result["warnings"]:
        lines += textwrap.wrap(f"note: {warning}", 78, initial_indent="  ", subsequent_indent="  ")
    return lines


def _schedule(found: dict[str, Any]) -> list[str]:
    if found["total_steps"] is None:
        return ["the schedule's length needs the size of the data set, which is not known"]
    line = f"schedule of {found['total_steps']:,} steps of {found['batch_size']:,}"
    if found["chip_hours"] is None:
        return [line]
    cost = f", cost {found['cost']:,.2f}" if found["cost"] is not None else ""
    return [f"{line}: {found['chip_hours']:,.3g} chip-hours{cost}", ESTIMATE]


def _tried(found: dict[str, Any]) -> list[str]:
    largest = found["largest_batch_per_chip"]
    ways = found["mesh"]["data"] * found["mesh"]["fsdp"]
    lines = [
        f"largest training batch: {largest} images a chip, {largest * ways} in all, to an eighth"
        if largest
        else "not even one image a chip fits"
    ]
    others = [row for row in found["tried"] if "train.batch_size" not in row["change"]]
    if others:
        lines.append(f"at the config's own batch of {found['batch_size']}:")
    for row in others:
        lines += textwrap.wrap(
            describe(row),
            78,
            initial_indent="  ",
            subsequent_indent="      ",
            break_on_hyphens=False,
        )
    return lines


def size(count: float) -> str:
    """Bytes with a unit a person can compare: 2.69 GiB, 512 KiB."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 0.1 * 2**power or unit == "KiB":
            return f"{count / 2**power:.2f} {unit}"
    raise AssertionError


def time(seconds: float) -> str:
    """Seconds with a unit: 1.25 s, 31.4 ms, 12 µs."""
    for unit, scale in (("s", 1), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"
