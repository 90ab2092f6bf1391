"""The training loop: one flat function, in the order in which a run happens."""

import contextlib
import dataclasses
import functools
import math
import os
import time
from collections.abc import Sequence
from typing import Any

import jax

from pit_jax import (
    beat,
    checkpoint,
    claim,
    classifier,
    evaluate,
    judge,
    metrics,
    optim,
    outcome,
    rundir,
    signals,
    step,
    tasks,
)
from pit_jax.config import flatten, label
from pit_jax.data import identity, pipeline
from pit_jax.errors import NonFiniteLoss, StopAsked
from pit_jax.evals import generation, probes
from pit_jax.evals.context import Context
from pit_jax.lengths import Clock, every, total_steps
from pit_jax.meter import Meter, due
from pit_jax.models.transformer import compute_dtype
from pit_jax.parallel import leader
from pit_jax.parallel import mesh as meshes
from pit_jax.validation import check_batch, check_meant, check_names, resolve
from pit_jax.weights import initial


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run ended with: its last evaluation, and where it lies."""

    workdir: str
    step: int
    metrics: dict[str, float]
    parameters: int
    images_per_s: float
    seconds: float


def train(
    config: Any,
    workdir: str | os.PathLike,
    profile: tuple[int, int] | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Result:
    """Trains, evaluates and saves what a config describes; resumes by itself.

    Args:
      config: resolved or not.
      workdir: the run directory, new or of the same run.
      profile: (first, last) step of this start to write a profiler trace of.
      devices: those to use; all of them by default.

    Raises:
      ConfigError: if the config, the directory, the data, the mesh or what evaluations need do
        not fit, or another run is writing there.
      NonFiniteLoss: if the loss or the gradient norm is NaN or infinite.
      StorageError: if something cannot be written or no checkpoint is intact.
      Stopped: after a SIGTERM or Ctrl-C, once the state is saved.
    """
    # ---- 1. The run directory: the same run or a new one, and nobody else's ----------
    asked = resolve(config)
    run = rundir.RunDir(workdir)
    config = run.as_begun(asked)
    if leader.by_process_0(lambda: run.status().get("state", "").encode()) != b"done":
        generation.check_start(config, classifier.network, devices)
    found = None

    def start() -> None:
        nonlocal found
        begun = run.exists()
        if begun:
            run.check_same(config)
        else:
            check_meant(config)
            initial.check(config)
        metrics.check(config)
        found = identity.open_checked(config, run, tasks.build(config).learns_labels)
        found = found._replace(remarks=[*found.remarks, *_begun_before(asked, config)])
        if not begun:
            run.create()

    with claim.of_all(run, start):
        return _train(config, run, found or identity.open_both(config), profile, devices)


def _train(
    config: Any,
    run: rundir.RunDir,
    data: identity.Opened,
    profile: tuple[int, int] | None,
    devices: Sequence[jax.Device] | None,
) -> Result:
    """The chapters behind the first, in a directory that nobody else writes."""
    started = time.time()
    writes = jax.process_index() == 0

    # ---- 2. Devices ------------------------------------------------------------------
    mesh = meshes.make_mesh(config.mesh, devices)
    check_batch(config, dict(mesh.shape))

    # ---- 3. Data ---------------------------------------------------------------------
    train_source, eval_source = data.training, data.held_out
    train_reader = pipeline.Reader(train_source, config.data, train=True, seed=config.train.seed)
    eval_reader = pipeline.Reader(eval_source, config.data, train=False)
    batch_size = config.train.batch_size
    total = total_steps(config.train, len(train_reader))
    clock = Clock(batch_size, len(train_reader), total)

    # ---- 4. Model, optimiser and their compiled steps --------------------------------
    task = tasks.build(pipeline.device_config(config, train_source))
    check_names(config, evaluate.offered(task))
    cost = task.flops()
    steps = step.build(task, config, mesh, clock)
    if not run.exists():
        optim.check_freeze(config.optim, steps.shapes.params)
    with jax.set_mesh(mesh):
        attends = task.attends()
        measures = probes.possible(config.eval.what, train_source)
        probes.require_room(measures, config, task, steps)
    train_data = pipeline.Pipeline(
        train_reader, steps.batch_sharding, batch_size, config.data.workers
    )

    def in_order(reader: pipeline.Reader) -> pipeline.Pipeline:
        size = config.eval.batch_size or batch_size
        words = (reader, steps.batch_sharding, size, config.data.workers)
        return pipeline.Pipeline(*words, on_batch=lambda: beats(number))

    context = Context(
        config=config,
        task=task,
        steps=steps,
        held_out=in_order(eval_reader),
        training=lambda: in_order(pipeline.in_order(train_reader, config.data)),
        network=classifier.network,
    )
    parameters = sum(x.size for x in jax.tree.leaves(steps.shapes.params))

    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        progress = stack.enter_context(metrics.Progress(total, label(config), quiet=not writes))
        say = progress.say
        for line in dict.fromkeys(train_source.passed_over + eval_source.passed_over):
            if writes:
                progress.warn(line)
        if left_out := [name for name in config.eval.what if name not in measures]:
            say(f"{train_source.name} has no classes to tell apart: {', '.join(left_out)} left out")

        # ---- 5. State: own checkpoint, another run's, its weights, or scratch ---------
        saved = checkpoint.Checkpoints(run, config.checkpoint.keep, config.checkpoint.keep_best)
        stack.callback(saved.close)
        newest = saved.newest_intact(progress.warn)
        if newest is not None:
            state = saved.restore(newest, steps.shapes)
        else:
            state = initial.state(config, steps, say, train_source.classes)
        first = int(state.step)
        result = run.evaluation(first)
        # Stopped in its last evaluation it is trained, but not done.
        unmeasured = first == total and not result and run.status().get("state") != "done"
        if first >= total and not unmeasured:
            say(f"{run.path} is done: step {first} of {total}. {judge.told(result)}")
            if writes:  # a kill after the last checkpoint may have come before this line
                run.write_status(state="done", exit_code=0, step=first, result=result)
            return Result(str(run.path), first, result, parameters, 0.0, 0.0)
        before = run.status().get("total", total) if first else None
        stop_request = stack.enter_context(signals.StopRequest(mesh))
        status = stack.enter_context(outcome.Outcome(run, first, writes))
        stop_request.last_words = status.killed
        writers = None
        if writes:
            writers = stack.enter_context(metrics.Writers(run, config))
            if newest is None:
                run.write_config(config)
            identity.keep(run, data.identity)
            if run.rows():  # of an earlier start, perhaps one that never saved
                run.cut_rows(first)
            environment = rundir.environment(mesh, jax.process_count())
            environment["cost"] = {"parameters": parameters} | cost.named()
            environment["copy"] = train_source.copy
            environment["dtype"] = compute_dtype(config.model.dtype).name
            attempt = run.add_environment(environment)
            status.running(total=total, attempt=attempt)
            if newest is not None:
                say(f"resumed at step {first} of {total}")
            for line in data.remarks:
                say(line)
        of = f" of {train_source.copy}" if train_source.copy else ""
        say(
            f"{label(config)}: {cost.tokens} tokens, {parameters:,} parameters,"
            f" {len(train_reader):,} training and {len(eval_reader):,} evaluation examples{of},"
            f" {total} steps of {batch_size} on {_devices(mesh)},"
            f" attention {attends}"
        )
        for line in optim.remarks(config.optim, clock, first, before):
            say(line)

        # ---- 6. The loop --------------------------------------------------------------
        eval_every = every(config.eval.every, clock)
        save_every = every(config.checkpoint.every, clock)
        batches = stack.enter_context(
            contextlib.closing(train_data.train(config.train.seed, first))
        )
        beats = stack.enter_context(contextlib.closing(beat.Beat()))
        meter = Meter(batch_size, mesh.size, cost.training, mesh.devices.flat[0].device_kind)
        last_finite: dict[str, float] = {}
        last_eval: dict[str, float] = {}
        pending: tuple[int, Any] | None = None  # a step whose metrics were not fetched yet
        profiling = False

        def fetch(number: int, values: Any) -> dict[str, float]:
            """One step's metrics, found finite: before that nothing may use the state after it."""
            nonlocal last_finite
            values = {k: float(v) for k, v in jax.device_get(values).items()}
            if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
                found = f"loss {values['loss']}, gradient norm {values['grad_norm']}"
                raise not_finite(number, found)
            last_finite = {"step": number, **{k: values[k] for k in ("loss", "grad_norm")}}
            return values

        def not_finite(number: int, found: str) -> NonFiniteLoss:
            saved.finish()
            # This directory goes on with none of these changed.
            state = f", which config.resume={run.path} may continue if only the rate differs"
            return NonFiniteLoss(
                f"step {number}: {found}; last finite values {last_finite or 'none'};"
                f" the checkpoints before it stay: {saved.steps() or 'none'}. A lower"
                " config.optim.lr, more config.optim.warmup or config.optim.clip may help,"
                f" in another --workdir{state if saved.steps() else ''}"
            )

        def log(number: int, values: dict[str, float], extra: dict[str, float] | None) -> None:
            """A row and a line where they are due, as they are with an evaluation, `extra`."""
            more = (due(number, total, often) for often in (eval_every, save_every))
            rate, left = meter.rate(), meter.left(total - number, *more)
            progress.update(number, values["loss"], rate, left)
            row = dict(extra or {})
            if number % config.train.log_every == 0 or extra is not None:
                row = {f"train/{k}": v for k, v in values.items()} | meter.row() | row
                row["perf/left_s"] = round(left, 1)
                progress.line(number, values["loss"], rate, left, judge.told(extra or {}))
            if row and writers:
                writers.write(number, row)

        def asked_to_stop() -> int:
            """The signal to stop for; asking is also a sign of life."""
            beats(number)
            return stop_request.asked()

        def evaluation(number: int) -> dict[str, float]:
            """What is measured of the state after step `number`."""
            now = dataclasses.replace(context, state=state, stopped=asked_to_stop)
            if writers:
                draw = functools.partial(writers.picture, number)
                record = functools.partial(run.write_record, number)
                now = dataclasses.replace(now, draw=draw, record=record, say=say)
            with meter.aside("eval"):
                return evaluate.run(measures, now)

        number = first
        try:
            for number in range(first + 1, total + 1):
                if profile and number == first + profile[0]:
                    jax.profiler.start_trace(run.local("profile"))
                    profiling = True
                with meter.waiting():
                    batch = next(batches)
                state, values = steps.train(state, batch)
                status.step = number
                if pending:
                    log(pending[0], fetch(*pending), None)
                pending = (number, values)
                if number == first + 1:
                    jax.block_until_ready(values)
                meter.step()
                if profiling and number == first + profile[1]:
                    jax.block_until_ready(values)
                    jax.profiler.stop_trace()
                    profiling = False
                    say(f"profiler trace of steps {profile} in {run.path}/profile")
                asked = asked_to_stop()
                evaluates = number % eval_every == 0 or number == total
                saves = number % save_every == 0 or number == total or asked
                saved.poll()
                if not (evaluates or saves):
                    continue
                values, pending, extra = fetch(number, values), None, None
                if not steps.finite(state.params):
                    raise not_finite(number, "its update made weights that are not finite")
                if evaluates:
                    try:
                        last_eval = extra = evaluation(number)
                    except StopAsked as stop:  # of half an evaluation nothing is logged
                        asked = saves = stop.signal
                saves = saves or saved.would_be_best(extra or {})
                log(number, values, extra)
                if saves:
                    with meter.aside("checkpoint"):
                        saved.save(number, state, extra or {})
                    status.running()
                if asked:
                    saved.finish()
                    raise signals.stopped(asked, f"saved at step {number}")
            saved.finish()
            if unmeasured:
                try:
                    last_eval = evaluation(total)
                except StopAsked as stop:
                    raise signals.stopped(stop.signal, f"saved at step {total}") from None
                say(f"step {total} of {total}. {judge.told(last_eval)}")
                if writers:
                    writers.write(total, last_eval)
        finally:
            if profiling:
                jax.profiler.stop_trace()

        # ---- 7. The end ----------------------------------------------------------------
        for reader in (train_reader, eval_reader):
            if writes and (skipped := pipeline.skipped(reader)):
                progress.warn(skipped)
        status.done(last_eval)
        seconds = time.time() - started
    return Result(str(run.path), total, last_eval, parameters, meter.mean_rate(), seconds)


def _begun_before(asked: Any, config: Any) -> list[str]:
    """A line where a run goes on with other values than it is asked for, see `as_begun`."""
    was, now = flatten(asked), flatten(config)
    differ = [name for name in now if was[name] != now[name]]
    if config.task != "diffusion":  # which alone reads them
        differ = [name for name in differ if not name.startswith(("diffusion.", "sample."))]
    kept = ", ".join(f"config.{name}={now[name]!r}" for name in differ)
    return [f"begun before some fields existed, it goes on with {kept}"] if kept else []


def _devices(mesh: jax.sharding.Mesh) -> str:
    axes = " × ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    kind = mesh.devices.flat[0].device_kind
    return f"{mesh.size} × {kind}" + (f" ({axes})" if axes else "")
