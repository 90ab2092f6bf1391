"""`pit-jax preflight`: compiles a config's steps for a TPU that is not here and measures them.

What is compiled is what the trainer runs: the task's steps on the mesh of the config, laid
out by the same rules. Nothing runs, and no data set need be there.
"""

import copy
import dataclasses
import math
import re
import time
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from pit_jax import evaluate, optim, step, tasks
from pit_jax.config import assign
from pit_jax.data import pipeline, sources
from pit_jax.errors import ConfigError
from pit_jax.lengths import Clock, every, total_steps
from pit_jax.perf import collectives, roofline
from pit_jax.perf.topology import Topology
from pit_jax.tasks.program import Program
from pit_jax.validation import check_batch, check_names, resolve

SCHEMA = 1
_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def preflight(
    config: Any, topology: Topology, price: float | None = None, say: Callable = print
) -> dict[str, Any]:
    """Compiles every step of a config's task and measures it.

    Args:
      config: resolved or not.
      topology: what to compile for.
      price: of a chip-hour, in any currency, if the cost is wanted.
      say: called with one line before each compilation.

    Returns:
      The JSON of preflight: chips, mesh, for each step whether it fits, its peak HBM, its
      collectives, FLOPs and estimated time, and chip-hours and cost of the whole schedule
      (None where the length or an estimate is not known).

    Raises:
      ConfigError: if libtpu is missing, or mesh or batch do not fit the topology.
    """
    config = resolve(config)
    mesh = topology.mesh(config.mesh)
    check_batch(config, dict(mesh.shape))
    programs, clock = _programs(config, mesh)
    results = {}
    for name, program in programs.items():
        say(f"compiling the {name} step for {topology.name}")
        results[name] = measure(program, mesh, topology)
    hours = _chip_hours(config, clock, results, topology.chips)
    return {
        "schema": SCHEMA,
        "topology": topology.name,
        "slices": topology.slices,
        "chips": topology.chips,
        "devices": mesh.size,
        "mesh": dict(mesh.shape),
        "batch_size": config.train.batch_size,
        "total_steps": clock.total_steps if clock.num_examples else None,
        "steps": results,
        "chip_hours": hours,
        "cost": None if price is None or hours is None else hours * price,
        "largest_batch_per_chip": None,
        "tried": [],
    }


def measure(program: Program, mesh: jax.sharding.Mesh, topology: Topology) -> dict[str, Any]:
    """Compiles one step; bytes are those of one device.

    `hbm_peak_bytes` is the compiler's peak and what else lies on the device meanwhile.
    Where the step does not fit it is what the compiler says it would have needed, and
    what only a compiled program can tell is None.
    """
    chip = topology.chip
    params, optimizer = _bytes(program.params), _bytes(program.optimizer)
    aside = params + optimizer - _overlap(program)
    result: dict[str, Any] = {
        "fits": False,
        "hbm_peak_bytes": None,
        "hbm_limit_bytes": chip.hbm_limit,
        "params_bytes": params,
        "optimizer_bytes": optimizer,
        "activations_bytes": None,
        "temporaries_bytes": None,
        "collectives": [],
        "model_flops": program.model_flops,
        "recompute_flops": program.recompute_flops,
        "estimate_step_s": None,
        "bound": None,
        "clocks_s": None,
        "compile_s": None,
        "warnings": [],
    }
    started = time.perf_counter()
    try:
        with jax.set_mesh(mesh):  # nothing concrete may run in here: its devices are not there
            compiled = program.function.lower(*program.arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        needed, limit = _out_of_memory(error)
        result |= {"hbm_peak_bytes": needed + aside, "hbm_limit_bytes": limit}
        result["compile_s"] = time.perf_counter() - started
        result["activations_bytes"] = max(result["hbm_peak_bytes"] - params - optimizer, 0)
        return result
    result["compile_s"] = time.perf_counter() - started
    memory = compiled.memory_analysis()
    temporaries = memory.temp_size_in_bytes
    peak = max(memory.peak_memory_in_bytes, memory.argument_size_in_bytes) + aside
    activations = max(peak - params - optimizer, 0)
    everything = memory.argument_size_in_bytes + temporaries + aside
    if peak <= chip.hbm_limit < everything:
        result["warnings"].append(
            f"arguments and temporaries add up to {everything / 2**30:.2f} GiB, more than the"
            " limit; the compiler reports a lower peak and takes the program"
        )
    found = collectives.parse(compiled.as_text())
    if not all(c.turns_known for c in found):
        result["warnings"].append("a loop's length could not be read: its collectives count once")
    estimate = roofline.estimate(
        chip,
        (program.model_flops + program.recompute_flops) / mesh.size,
        roofline.hbm_bytes(params, optimizer, activations, program.trains),
        found,
    )
    return result | {
        "fits": peak <= chip.hbm_limit,
        "hbm_peak_bytes": peak,
        "activations_bytes": activations,
        "temporaries_bytes": temporaries,
        "collectives": [dataclasses.asdict(c) for c in found],
        "estimate_step_s": estimate.step_s,
        "bound": estimate.bound,
        "clocks_s": dataclasses.asdict(estimate),
    }


def find_batch(
    config: Any, topology: Topology, own: dict[str, Any], say: Callable = print
) -> tuple[int, list[dict]]:
    """The largest training batch that fits, by doubling and bisection to an eighth.

    Args:
      config: resolved or not.
      topology: what to compile for.
      own: what `measure` found for the config's own batch.
      say: called with one line about each trial.

    Returns:
      Images a chip (0 if not even one fits; chips that share an image over mesh.seq or
      mesh.model count as one), and what was tried: {"change", "fits", "hbm_peak_bytes",
      "reason"}. Where the config's own batch does not fit, also remat, fsdp and seq.
    """
    mesh = topology.mesh(config.mesh)
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    parts = config.train.accumulate  # a part of the batch is never less than one image
    tried: list[dict] = []

    def attempt(changes: dict[str, Any]) -> bool:
        row = try_changes(config, topology, changes)
        tried.append(row)
        say(describe(row))
        return row["fits"]

    def fits(images: int) -> bool:
        return attempt({"train.batch_size": images * ways * parts})

    start = config.train.batch_size // (ways * parts)
    # The largest that fits and the smallest that does not, as far as they are known.
    low, high = (start, math.inf) if own["fits"] else (0, start)
    needs = own["hbm_peak_bytes"]
    while not low and high > 1:
        guess = min(high // 2, int(high * own["hbm_limit_bytes"] / needs))
        if fits(max(guess, 1)):
            low = max(guess, 1)
        else:
            high = max(guess, 1)
            needs = tried[-1]["hbm_peak_bytes"] or needs
    while low and 2 * low < high:
        low, high = (2 * low, high) if fits(2 * low) else (low, 2 * low)
    while low and high - low > max(1, low // 8):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    if not own["fits"]:
        for changes in _remedies(config, dict(mesh.shape), topology.slices):
            attempt(changes)
    return low * parts, tried


def try_changes(config: Any, topology: Topology, changes: dict[str, Any]) -> dict[str, Any]:
    """Whether the training step fits with some fields changed, and if it cannot be, why."""
    row = {
        "change": " ".join(f"--config.{name}={value}" for name, value in changes.items()),
        "fits": False,
        "hbm_peak_bytes": None,
        "reason": "",
    }
    try:
        changed = copy.deepcopy(config)
        for name, value in changes.items():
            assign(changed, name, value)
        changed = resolve(changed)
        mesh = topology.mesh(changed.mesh)
        check_batch(_own_eval_batch(changed), dict(mesh.shape))
        programs, _ = _programs(changed, mesh)
        result = measure(programs["train"], mesh, topology)
    except (ConfigError, jax.errors.JaxRuntimeError, NotImplementedError) as error:
        return row | {"reason": " ".join(str(error).split())[:200]}
    return row | {k: result[k] for k in ("fits", "hbm_peak_bytes")}


def describe(row: dict[str, Any]) -> str:
    """One line about something that was tried."""
    needs = row["hbm_peak_bytes"]
    size = f", {needs / 2**30:.2f} GiB" if needs is not None else ""
    said = row["reason"] or ("fits" if row["fits"] else "does not fit") + size
    return f"{row['change']}: {said}"


def _remedies(config: Any, mesh: dict[str, int], slices: int) -> Iterator[dict[str, Any]]:
    """What may make a step fit at its batch size: each alone, then together."""
    remat = {"model.remat": "full"} if config.model.remat != "full" else {}
    split = {"mesh.data": slices, "mesh.fsdp": -1} if mesh["data"] > slices else {}
    alone: Sequence[dict] = [c for c in (remat, split) if c]
    yield from alone
    if len(alone) == 2:
        yield remat | split
    for seq in (2, 4, 8):
        ways = math.prod(mesh.values()) // mesh["model"] // slices
        if seq > mesh["seq"] and ways % seq == 0:
            yield remat | {"mesh.data": slices, "mesh.fsdp": -1, "mesh.seq": seq}


def _own_eval_batch(config: Any) -> Any:
    """Trials change the training batch; an evaluation batch of its own is none of theirs."""
    config = copy.deepcopy(config)
    config.eval.batch_size = 0
    return config


def _programs(config: Any, mesh: jax.sharding.Mesh) -> tuple[dict[str, Program], Clock]:
    """The task's steps as the trainer builds them; a clock without examples where the size
    of the set is not known and the length needs it."""
    examples = sources.num_examples(config.data, config.data.split)
    if examples is None and config.train.epochs is None:
        examples = config.train.batch_size  # only lengths in epochs would notice
    total = total_steps(config.train, examples or 0)
    clock = Clock(config.train.batch_size, examples or 0, total)
    shape = types.SimpleNamespace(native_shape=sources.native_shape(config.data))
    task = tasks.build(pipeline.device_config(config, shape))
    check_names(config, evaluate.offered(task))
    steps = step.build(task, config, mesh, clock)
    optim.check_freeze(config.optim, steps.shapes.params)
    return task.steps(steps), clock


def _chip_hours(config: Any, clock: Clock, results: dict, chips: int) -> float | None:
    """Of all training steps and evaluations, at the estimated speed."""
    seconds = {name: result["estimate_step_s"] for name, result in results.items()}
    if not clock.num_examples or seconds["train"] is None:
        return None
    total = clock.total_steps * seconds["train"]
    held_out = sources.num_examples(config.data, config.data.eval_split)
    if held_out and seconds.get("eval"):
        size = config.eval.batch_size or config.train.batch_size
        times = -(-clock.total_steps // every(config.eval.every, clock))
        total += times * -(-held_out // size) * seconds["eval"]
    return total * chips / 3600


def _bytes(tree: Any) -> int:
    """Bytes of a tree of laid-out shapes on one device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def _overlap(program: Program) -> int:
    """Bytes of the state that are arguments of the step, and so in the compiler's peak."""
    arguments = {id(x) for x in jax.tree.leaves(program.arguments)}
    state = jax.tree.leaves((program.params, program.optimizer))
    return _bytes([x for x in state if id(x) in arguments])


def _out_of_memory(error: Exception) -> tuple[int, int]:
    """(needed, available) bytes of HBM that the compiler names; any other error goes on up."""
    text = str(error)
    sizes = re.search(
        r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)", text
    ) or re.search(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm", text)
    if not sizes:
        raise error
    needed, needed_unit, limit, limit_unit = sizes.groups()
    return int(float(needed) * _SIZES[needed_unit]), int(float(limit) * _SIZES[limit_unit])
