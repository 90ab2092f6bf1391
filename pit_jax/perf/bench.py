"""`pit-jax bench`: how fast the trainer's own step is, alone or side by side with another:
the same model in PyTorch, or another config of ours."""

import contextlib
import datetime
import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import statistics
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from pit_jax import configfile, installation
from pit_jax.config import label
from pit_jax.errors import ConfigError, PitError
from pit_jax.perf import flops
from pit_jax.perf.worker import Worker
from pit_jax.validation import resolve

SCHEMA = 1
_EQUAL = 1e-4  # of the largest output, and of the loss
_TURN_S = 0.5  # a turn runs one step, or as many as fit into this time
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "ml_collections", "numpy")
_OURS, _TORCH = "pit_jax.perf.bench_ours", "pit_jax.perf.bench_torch"


class Unequal(PitError):
    """The two sides do not compute the same: a bug, and no time of theirs means anything."""

    exit_code = 1


def bench(config: Any, against: str | Any = None, turns: int = 10) -> dict[str, Any]:
    """Measures one training step on this machine.

    Args:
      config: resolved or not.
      against: "torch" to alternate with the same model in PyTorch, another config to
        alternate with its step, or None.
      turns: how often each side is asked; a turn is one step, or half a second of them, after
        one that is not timed.

    Returns:
      The contract's JSON. Times in seconds, medians over steps; `step_s_iqr` is the
      distance between the quartiles; rates in FLOP/s count the operations each side
      computes, of which ours needs fewer: no more of the last block than is read. Shares of
      the measured peak are of what ours reaches in one large matrix product.

    Raises:
      ConfigError: if a config cannot run here, or PyTorch is missing.
      Unequal: if outputs or loss of ours and PyTorch's differ by more than 1e-4.
    """
    torch = against == "torch"
    config = resolve(config)
    if against is not None and not torch:
        against = resolve(against)
    if torch:
        _check_torch(config)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        arrays = f"{folder}/arrays.npz"
        ours, facts = _ours(stack, config, f"{folder}/cache", arrays if torch else None)
        sides, known = {"ours": ours}, {"ours": facts}
        if torch:
            theirs = _torch_arguments(config, arrays)
            difference = _differences(theirs, folder)
            sides["torch"] = stack.enter_context(Worker(_TORCH))
            known["torch"] = sides["torch"].ask("start", **theirs)
            known["torch"]["flops"] = facts["flops_full"]
            known["torch"]["batch_size"] = facts["batch_size"]
        elif against is not None:
            sides["other"], known["other"] = _ours(stack, against, f"{folder}/other")
        times = _alternate(sides, turns)
        peak_bytes = {name: side.ask("memory") for name, side in sides.items()}
        matmul_peaks = {name: side.ask("matmul_peak") for name, side in sides.items()}
    matmul_peak = matmul_peaks["ours"]

    published = flops.peak(facts["device_kind"])

    def row(name: str) -> dict[str, Any]:
        side = known[name]
        step_s = statistics.median(times[name])
        rate = side["flops"] * side["batch_size"] / step_s
        quartiles = statistics.quantiles(times[name], n=4)
        return side.get("compiled", {}) | {
            "step_s": step_s,
            "step_s_iqr": quartiles[2] - quartiles[0],
            "steps": len(times[name]),
            "images_per_s": side["batch_size"] / step_s,
            "flops_per_s": rate,
            "matmul_flops_per_s": matmul_peaks[name],
            "share_of_measured_peak": rate / matmul_peak,
            "mfu": rate / (facts["devices"] * published) if published else None,
            "peak_bytes": peak_bytes[name],
            "start_bytes": side["start_bytes"],
        }

    rows = {name: row(name) for name in sides}
    result = {
        "schema": SCHEMA,
        "label": label(config),
        "config": config.to_dict(),
        "machine": _machine(facts, matmul_peak),
        "versions": versions(_PACKAGES) | (known["torch"]["versions"] if torch else {}),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": command(sys.argv[1:]),
        "tokens": facts["tokens"],
        "attention": facts["attention"],
    } | rows
    if torch:
        result["difference"] = difference
    elif against is not None:
        result |= {"other_label": label(against), "other_config": against.to_dict()}
    for name in set(rows) - {"ours"}:
        ratio = rows["ours"]["images_per_s"] / rows[name]["images_per_s"]
        result[f"ratio_to_{name}"] = ratio
    return result


def _ours(
    stack: contextlib.ExitStack, config: Any, cache: str, arrays: str | None = None
) -> tuple[Worker, dict[str, Any]]:
    """A worker that is ready to run a config's step, and what is known of it.

    Args:
      stack: ends the worker.
      config: resolved.
      cache: a new folder for its compilations.
      arrays: the .npz file for PyTorch to write, if wanted.
    """
    start = {"config": configfile.to_json(config), "cache": cache}
    with Worker(_OURS) as cold:
        say(f"compiling {label(config)}")
        cold.ask("start", **start)
        compile_cold = cold.ask("compile_step")
        cold.ask("prepare")  # compiles what starts the state
        if arrays:
            cold.ask("export", path=arrays)
    # A process of its own for the timing: its memory holds no compilation.
    worker = stack.enter_context(Worker(_OURS))
    facts = worker.ask("start", **start)
    facts["compiled"] = {
        "compile_cold_s": compile_cold,
        "compile_warm_s": worker.ask("compile_step"),
    }
    facts["batch_size"] = config.train.batch_size
    worker.ask("prepare")
    return worker, facts


def _check_torch(config: Any) -> None:
    """Refuses what the other side cannot do before anything is compiled."""
    from pit_jax.weights import counterpart

    counterpart.check_expressible(config)
    counterpart.check_loss(config)
    names = ("torch", counterpart.library(config))
    missing = [n for n in names if importlib.util.find_spec(n) is None]
    if missing:
        raise ConfigError(
            f"--against torch needs {' and '.join(missing)}: {installation.extra('parity')}"
        )


def _torch_arguments(config: Any, arrays: str) -> dict[str, Any]:
    from pit_jax.weights import counterpart

    fields = ("lr", "betas", "eps", "weight_decay")
    return {
        "arrays": arrays,
        "model": counterpart.description(config),
        "optim": {name: config.optim[name] for name in fields},
        "cores": len(os.sched_getaffinity(0)),
    }


def _differences(arguments: dict, folder: str) -> dict[str, float]:
    """How far the two sides are apart before any timing, as shares of the largest output
    and of the loss."""
    say("comparing outputs and loss with PyTorch")
    path = f"{folder}/outputs.npy"
    with Worker(_TORCH) as worker:
        worker.ask("start", **arguments)
        loss = worker.ask("results", outputs=path)["loss"]
    with np.load(arguments["arrays"]) as ours:
        expected, our_loss = ours["outputs"], float(ours["loss"])
    difference = {
        "outputs": float(np.abs(np.load(path) - expected).max() / np.abs(expected).max()),
        "loss": abs(loss - our_loss) / abs(our_loss),
    }
    for name, value in difference.items():
        if not value <= _EQUAL:
            raise Unequal(f"{name} of PyTorch differ by {value:.2e} from ours: nothing was timed")
    return difference


def _alternate(sides: dict[str, Worker], turns: int) -> dict[str, list[float]]:
    """Step times of each side, taken in turn so that a slow moment hits them alike.

    The first step of a turn is not counted: while the other side ran, it emptied the caches,
    and a virtual machine may have handed freed memory back to its host, which then took
    half of the next step. In a training run steps follow each other.
    """
    counts = {}
    for name, side in sides.items():
        say(f"first steps: {name}")
        side.ask("run", count=1)  # compiles, or touches memory for the first time
        counts[name] = max(1, round(_TURN_S / side.ask("run", count=1)[0]))
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns):
        for name, side in sides.items():
            times[name] += side.ask("run", count=counts[name] + 1)[1:]
        medians = ", ".join(f"{n} {statistics.median(t):.3f} s" for n, t in times.items())
        say(f"turn {turn + 1}/{turns}: {medians}")
    return times


def command(words: Sequence[str]) -> str:
    """What to type for this result, less where it was written to."""
    kept = list(words)
    if "--json" in kept:
        at = kept.index("--json")
        del kept[at : at + 2]
    kept = [word for word in kept if not word.startswith("--json=")]
    return shlex.join(["pit-jax", *kept])


def processor() -> dict[str, Any]:
    """What this machine's CPU calls itself, its vectors ("AVX-512", "AVX2", ""), its cores.

    One name may stand for several kinds: clouds sell three generations as "AMD EPYC".
    """
    name, flags = platform.processor() or platform.machine(), ""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as info:
        about = dict(re.findall(r"^([^\t:]+)\t*: (.*)$", info.read(), re.MULTILINE))
        name, flags = about.get("model name", name), about.get("flags", "")
    kinds = {"avx512f": "AVX-512", "avx2": "AVX2"}
    vectors = next((word for flag, word in kinds.items() if flag in flags.split()), "")
    return {"cpu": name, "vectors": vectors, "cores": len(os.sched_getaffinity(0))}


def _machine(facts: dict, matmul_peak: float) -> dict[str, Any]:
    return processor() | {
        "device": facts["device_kind"],
        "platform": facts["platform"],
        "devices": facts["devices"],
        "matmul_peak_flops_per_s": matmul_peak,
        "system": platform.platform(),
    }


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Of Python and these packages."""
    return {"python": platform.python_version()} | {
        p: importlib.metadata.version(p) for p in packages
    }


def say(text: str) -> None:
    """Progress, for whoever waits."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def report(result: dict[str, Any]) -> str:
    """The result for people, 80 columns wide."""
    config, machine = result["config"], result["machine"]
    sides = [name for name in ("ours", "torch", "other") if name in result]
    heads = {"ours": "pit_jax", "torch": "PyTorch"}
    if "other" in result:
        heads = {"ours": result["label"], "other": result["other_label"]}
    lines = [
        f"{result['label']}: {result['tokens']} tokens, batch {config['train']['batch_size']},"
        f" attention {result['attention']}",
        f"{machine['devices']} × {machine['device']} on {machine['cores']} cores of"
        f" {machine['cpu']}{machine['vectors'] and ' with '}{machine['vectors']}",
        "",
        f"{'':32}" + "".join(f"{heads[name]:>16}" for name in sides),
    ]

    def add(title: str, field: str, form: Any) -> None:
        cells = [result[name].get(field) for name in sides]
        if any(cell is not None for cell in cells):
            texts = ["–" if cell is None else form(cell) for cell in cells]
            lines.append(f"{title:32}" + "".join(f"{text:>16}" for text in texts))

    def seconds(x: float) -> str:
        return f"{x:.2f} s" if x >= 10 else f"{1000 * x:,.0f} ms"

    add("compile, cold", "compile_cold_s", seconds)
    add("compile, warm", "compile_warm_s", seconds)
    add("step, median", "step_s", seconds)
    add("step, between quartiles", "step_s_iqr", seconds)
    add("steps", "steps", str)
    add("images/s", "images_per_s", lambda x: f"{x:,.1f}")
    add("GFLOP/s", "flops_per_s", lambda x: f"{x / 1e9:,.0f}")
    add("in one large product, GFLOP/s", "matmul_flops_per_s", lambda x: f"{x / 1e9:,.0f}")
    add("share of measured peak", "share_of_measured_peak", lambda x: f"{x:.0%}")
    add("share of published peak", "mfu", lambda x: f"{x:.0%}")
    add("peak memory", "peak_bytes", lambda x: f"{x / 2**20:,.0f} MiB")
    add("of it before the first step", "start_bytes", lambda x: f"{x / 2**20:,.0f} MiB")
    if "ratio_to_torch" in result:
        lines += ["", f"pit_jax is {result['ratio_to_torch']:.2f} times as fast as PyTorch"]
    if "ratio_to_other" in result:
        ratio = f"{result['ratio_to_other']:.2f} times the images/s"
        lines += ["", f"{result['label']} has {ratio} of {result['other_label']}"]
    return "\n".join(lines)


def main(spec: str, overrides: Sequence[str], against: str | None, turns: int) -> dict[str, Any]:
    """Loads the config, and the one it is held against if there is one, and measures."""
    config = configfile.load(spec, overrides)
    if against in (None, "torch"):
        return bench(config, against, turns)
    return bench(config, configfile.load(against, overrides), turns)
