"""`pit-jax sweep`: every point of a study, or of a config's `sweep()`, as a run of its own.

    def get_config(): ...
    def sweep():
        return grid({"model.patch": (1, 2)}, seeds(3))

See space.py for what `sweep` returns, sweepdir.py for where the runs lie. The same command
again goes on: what is done is left alone, what was stopped resumes.
"""

import inspect
import os
import shlex
import sys
from collections.abc import Sequence

from pit_jax import configfile
from pit_jax.errors import ConfigError
from pit_jax.parallel import processes
from pit_jax.study import board, child, points, scheduler
from pit_jax.study.points import Point
from pit_jax.study.progress import Progress
from pit_jax.study.sweepdir import SweepDir, published

RETRIES = 2
MOST_JOBS = 4096
_MANY = 1000  # points that take seconds to read


def sweep(
    spec: str,
    workdir: str | os.PathLike,
    words: Sequence[str] = (),
    jobs: int = 1,
    only: str | None = None,
    retries: int = RETRIES,
) -> None:
    """Runs the points of `FILE[:ARG]` until all are done.

    Args:
      spec: a Python file that defines `sweep()` or `sweep(arg)`, and `get_config`.
      workdir: the sweep's directory, new or of the same sweep, local or gs://.
      words: overrides of all points, such as `--config.train.steps=5`.
      jobs: runs at once; they share the cores, or the GPUs.
      only: "INDEX" or "SHARD/TOTAL", see points.select.
      retries: how often a run that failed is started again.

    Raises:
      ConfigError: if a point is wrong; then none was started.
      Failed: if some points did not end well.
      Stopped: after a SIGTERM or Ctrl-C, once the runs have saved and ended.
    """
    shares = shares_of(jobs, retries)
    file, found, directory = read(spec, workdir, words)
    chosen = points.select(found, only)
    points.check_evaluations(found)
    directory.write(file, found)
    shown = board.Board(jobs)
    _tell(shown, found, chosen, directory)
    runner = scheduler.Scheduler(directory, chosen, shares, retries, shown)
    conduct(runner, shown, directory)


def plan(
    spec: str,
    workdir: str | os.PathLike,
    words: Sequence[str] = (),
    jobs: int = 1,
    only: str | None = None,
    retries: int = RETRIES,
) -> None:
    """Prints what `sweep` would run; touches nothing and needs no devices.

    Raises:
      ConfigError: as `sweep` does.
    """
    check_jobs(jobs, retries)
    _, found, directory = read(spec, workdir, words)
    chosen = points.select(found, only)
    points.check_evaluations(found)
    states = [state_of(directory, point) for point in chosen]
    board.plan(chosen, states)
    done = states.count("done")
    print(f"{len(chosen)} points, {done} done; leave out --dry-run to run them")


def conduct(runner: scheduler.Scheduler, shown: board.Board, directory: SweepDir) -> None:
    """Runs a scheduler under its table; whatever the end, shows all points and what is next."""
    try:
        with shown:
            runner.run()
    finally:
        shown.end(runner.jobs)
        if any(job.state == scheduler.DONE for job in runner.jobs):
            shown.say(f"next: pit-jax compare {shlex.quote(directory.given)}")
        if any(job.state == scheduler.FAILED for job in runner.jobs):
            shown.say(f"what the runs said: {directory.logs}")


def state_of(directory: SweepDir, point: Point) -> str:
    """ "new", "done", "running", "preempted, step 40": what the point's directory says."""
    if directory.is_taken(point):
        return scheduler.RUNNING
    if directory.is_done(point):
        return scheduler.DONE
    progress = Progress(directory.run(point)).read()
    state = progress.status.get("state")
    # Nobody runs it, whatever it says.
    state = "interrupted" if state == "running" else state
    return f"{state}, step {progress.step}" if state else "new"


def check_jobs(jobs: int, retries: int) -> None:
    """Refuses numbers that make no sense.

    Raises:
      ConfigError: naming the flag.
    """
    if not 1 <= jobs <= MOST_JOBS:
        raise ConfigError(f"--jobs {jobs}: at least 1 and at most {MOST_JOBS}")
    if retries < 0:
        raise ConfigError(f"--retries {retries}: 0 or more")


def shares_of(jobs: int, retries: int) -> list[child.Share]:
    """What each of the runs at once may use, of numbers that make sense."""
    check_jobs(jobs, retries)
    return child.shares(jobs)


def read(
    spec: str, workdir: str | os.PathLike, words: Sequence[str] = ()
) -> tuple[configfile.PythonFile, list[Point], SweepDir]:
    """The file, its points and the directory; JAX, where it is needed, finds no devices.

    Raises:
      ConfigError: if a point is wrong, or the directory holds something else.
    """
    processes.choose_platform()
    file = configfile.PythonFile(spec)
    if not hasattr(file.module, "sweep"):
        raise ConfigError(
            f"{file.path} defines no sweep(): write"
            " `def sweep(): return grid({'model.patch': (1, 2)}, seeds(3))`, or train it once"
            f" with `pit-jax train --config {spec}`"
        )
    if inspect.iscoroutinefunction(file.module.sweep):
        raise ConfigError(f"{spec}: sweep() is async: write `def sweep()`")
    published(file)
    directory = SweepDir(workdir)
    directory.check(file)
    entries = file.call("sweep", optional=True)
    if not isinstance(entries, list | tuple):
        raise ConfigError(f"{spec}: sweep() should return a list of dictionaries of overrides")
    if not entries:
        raise ConfigError(f"{spec}: the sweep is empty: sweep() returned no points")
    if len(entries) > _MANY:
        print(f"pit-jax: checking {len(entries)} points", file=sys.stderr, flush=True)
    return file, points.build(file, entries, words, workdir), directory


def _tell(
    shown: board.Board, found: Sequence[Point], chosen: Sequence[Point], directory: SweepDir
) -> None:
    part = f"{len(chosen)} of {len(found)}" if len(chosen) < len(found) else f"{len(found)}"
    done = sum(directory.is_done(point) for point in chosen)
    shown.say(f"{directory.path}: {part} points, {done} done")
    ours = {point.directory for point in found}
    others = directory.others(ours)
    if others:
        shown.say(
            f"{len(others)} run directories there belong to no point of this sweep as it is now,"
            f" {others[0]} among them; compare would count them in"
        )
