"""`pit-jax launch --sweep`: the points of a study on Cloud TPUs.

Either every point is a launch of its own, with a limit on how many are alive at once, or N
slices of one host work through a share of the points each. The runs lie where `pit-jax sweep`
would put them, so that `pit-jax compare DIR` reads them. With a launch a point somebody has to
stay, start the next ones and recreate what was preempted; killed and started again, the same
command takes up the launches that it finds.
"""

import collections
import copy
import os
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from pit_jax.config import flatten
from pit_jax.errors import ConfigError
from pit_jax.launch import accelerators, money, queue, startup, tpu, upload, watch, wheel
from pit_jax.launch import request as requests
from pit_jax.launch.accelerators import Accelerator
from pit_jax.launch.fleet import Fleet, Planned
from pit_jax.rundir import RunDir
from pit_jax.study import board, points, sweep
from pit_jax.study.points import Point

AT_ONCE = 4
_NAME = 40  # characters
# Of a step's cost nothing follows from these.
_SAME_STEP = ("train.seed", "optim.lr", "init_from", "resume")


def launch(args: Any, overrides: Sequence[str]) -> None:
    """Launches the points of a study, or prints what would be created with --dry-run.

    Raises:
      ConfigError: for what cannot be, cannot be reached, or was not confirmed.
      DoesNotFit: if a point's step needs more memory than a chip has.
      Failed: if some points did not end well.
      Stopped: after Ctrl-C; the launches go on.
    """
    upload.check_bucket(args.workdir, "tpu")
    if args.shards is not None and args.at_once is not None:
        raise ConfigError("--at-once is for one launch a point: leave it or --shards out")
    where = accelerators.find(args.accelerator, args.slices or 1)
    if args.shards is not None and (where.hosts > 1 or (args.slices or 1) > 1):
        raise ConfigError(
            f"--shards {args.shards}: a shard is worked through by one host, and {where.name} has"
            f" {where.hosts * (args.slices or 1)}: take one such as v5litepod-8, or leave --shards"
            " out for a launch a point"
        )
    base = args.name or requests.name_of(args.workdir)
    project = tpu.project(args)
    tpu.prepare(args, base, args.workdir, project)  # refuses what is wrong for all of them
    if not args.dry_run:
        money.check_answer(args.yes)
        upload.check_there(args.workdir)
    with tempfile.TemporaryDirectory() as folder:
        # A dry run needs no network: what the bucket holds is not looked at.
        at = f"{folder}/sweep" if args.dry_run else args.workdir
        file, found, directory = sweep.read(args.sweep, at, overrides)
        points.check_evaluations(found)
        unreachable = [
            f"point {point.index} ({point.label}): {line}"
            for point in found
            for line in upload.check_reachable(_without_needs(point), "tpu", tpu.data_dir(args))
        ]
        if unreachable and not args.dry_run:
            raise ConfigError(unreachable[0])
        plan = _shards if args.shards is not None else _launches
        if args.dry_run:
            planned = plan(args, overrides, base, project, found, None)
            _show(args, overrides, where, found, planned)
            for line in unreachable[:1]:
                more = f"; and {len(unreachable) - 1} more" if unreachable[1:] else ""
                print(money.refused_later(f"{line}{more}"))
            return
        built = None if args.requirement else wheel.build(folder)
        todo = [point for point in found if not directory.is_done(point)]
        print(f"{directory.path}: {len(found)} points, {len(found) - len(todo)} done", flush=True)
        if not todo:
            return
        planned = plan(args, overrides, base, project, found, built)
        if args.shards is None:
            _check_names(_of(planned, found, todo))
            at_once = min(args.at_once or AT_ONCE, len(todo))
            _confirm(args, where, todo, planned, f"{_slices(todo)}, {at_once} at once,")
            directory.write(file, found)
            Fleet(directory, found, planned, args.at_once or AT_ONCE).run()
            return
        there = _there(planned)
        planned, todo = _left(planned, todo, there)
        if planned:
            _check_names(planned)
            _confirm(args, where, todo, planned, _slices(planned))
        directory.write(file, found)
        _start_shards(args, planned, there)


# What is asked for ---------------------------------------------------------------------


def _launches(
    args: Any,
    overrides: Sequence[str],
    base: str,
    project: str,
    found: Sequence[Point],
    built: pathlib.Path | None,
) -> list[Planned]:
    """One of each point, all made now: the wheel's name follows from the checkout as it is."""
    planned = []
    for point in found:
        place = f"{args.workdir.rstrip('/')}/{point.directory}"
        asked = tpu.prepare(args, name_of(base, point.index), place, project)
        text = upload.config_text(tpu.for_workers(point.config, args))
        files = tpu.contents(args, asked, {"config.json": text}, built)
        planned.append(Planned(asked, files, {"point_of": args.workdir.rstrip("/")}))
    return planned


def _shards(
    args: Any,
    overrides: Sequence[str],
    base: str,
    project: str,
    found: Sequence[Point],
    built: pathlib.Path | None,
) -> list[Planned]:
    """One of each shard with points: a directory in the sweep's, and the study's files."""
    folder, spec, paths = upload.study(args.sweep)
    study = {name: path.read_bytes() for name, path in paths.items()}
    words = [*overrides]
    if tpu.data_dir(args):
        words.append(f"--config.data.dir={tpu.data_dir(args)}")
    place = args.workdir.rstrip("/")
    planned = []
    for number in range(args.shards):
        share = points.select(found, f"{number}/{args.shards}")
        if not share:
            continue
        work = ["--sweep", f"{startup.FILES}/{folder}/{spec}"]
        work += ["--shard", f"{number}/{args.shards}", "--directory", place]
        work += [f"--override={word}" for word in words]
        own = f"{place}/shards/{number}-of-{args.shards}"
        asked = tpu.prepare(args, name_of(base, number), own, project, work, folder)
        # How far a shard is, the runs of the sweep say.
        more = {"sweep": place, "points": [point.directory for point in share]}
        planned.append(Planned(asked, tpu.contents(args, asked, study, built), more))
    return planned


def name_of(base: str, number: int) -> str:
    """Of one of several launches: short enough, and different."""
    end = f"-{number}"
    return base[: _NAME - len(end)].rstrip("-") + end


def _without_needs(point: Point) -> Any:
    """The config without the runs of this sweep that it starts from: these are on gs://."""
    config = copy.deepcopy(point.config)
    for field in point.needs:
        part = config
        *groups, name = field.split(".")
        for group in groups:
            part = part[group]
        part[name] = ""
    return config


def _show(
    args: Any,
    overrides: Sequence[str],
    where: Accelerator,
    found: Sequence[Point],
    planned: Sequence[Planned],
) -> None:
    first = planned[0]
    tpu.show(first.asked)
    board.plan(found, [""] * len(found))
    if args.shards is not None:
        print(f"{len(found)} points on {len(planned)} slices; the first one:")
    else:
        at_once = min(args.at_once or AT_ONCE, len(found))
        print(f"{len(found)} launches, {at_once} at once; the first one:")
    print("\n".join(tpu.summary(args, first.asked, where, first.files)))
    print("nothing was created or compiled. Whether a point fits, and its chip-hours:")
    spec, own = _by_hand(args.sweep, found[0])
    print(money.preflight_command(spec, where, args.slices or 1, [*own, *overrides]))


def _by_hand(sweep_file: str, point: Point) -> tuple[str, list[str]]:
    """A point's FILE[:ARG] and overrides for another command; what it needs is left out."""
    spec = point.overrides.get("config")
    beside = os.path.join(os.path.dirname(sweep_file), spec or "")
    if spec and os.path.isfile(beside.partition(".py:")[0].removesuffix(".py") + ".py"):
        spec = beside
    left_out = ("config", "label", *point.needs)
    fields = {name: value for name, value in point.overrides.items() if name not in left_out}
    return spec or sweep_file, [f"--config.{name}={value}" for name, value in fields.items()]


def _of(planned: Sequence[Planned], found: Sequence[Point], todo: Sequence[Point]) -> list[Planned]:
    """The launches of these points."""
    wanted = {point.index for point in todo}
    return [one for one, point in zip(planned, found, strict=True) if point.index in wanted]


def _check_names(planned: Sequence[Planned]) -> None:
    """Refuses names that queued resources of others have, before anything is compiled.

    Raises:
      ConfigError: naming the first one.
    """
    asked = planned[0].asked
    there = {one.name: one for one in queue.Client(asked.project, asked.zone).list()}
    for one in planned:
        other = there.get(one.asked.name)
        if other is None or other.state == "DELETING":  # gone by then, or waited for
            continue
        if other.launch != upload.record(RunDir(one.asked.workdir)).get("id"):
            raise tpu.taken(one.asked, other.state)


def _confirm(
    args: Any, where: Accelerator, todo: Sequence[Point], planned: Sequence[Planned], what: str
) -> None:
    """Compiles every different step, shows what it all takes, and asks.

    Args:
      what: is to be created.

    Raises:
      DoesNotFit, ConfigError: see money.py.
    """
    price = args.price_per_chip_hour
    alike = collections.defaultdict(list)
    for point in todo:
        flat = flatten(point.config)
        key = repr([(name, flat[name]) for name in sorted(flat) if name not in _SAME_STEP])
        alike[key].append(point)
    hours: float | None = 0.0
    for group in alike.values():
        first = group[0]
        more = f" and {len(group) - 1} more like it" if group[1:] else ""
        print(f"point {first.index} ({first.label}){more}", flush=True)
        compiled = money.preflight(first.config, where, price, args.anyway)
        print(money.table(where, args.slices or 1, args.spot, compiled, price), flush=True)
        money.check_fits(compiled, where, args.anyway)
        one = compiled["chip_hours"] if compiled else None
        hours = None if hours is None or one is None else hours + one * len(group)
    if hours is not None and len(todo) > 1:
        cost = f", price {money.at_least(hours * price, decimals=2)}" if price is not None else ""
        print(f"all {len(todo)} points: chip-hours {money.at_least(hours)}{cost}")
    asked = planned[0].asked
    money.confirm(f"create {what} in {asked.project}, {asked.zone}?", args.yes)


def _slices(things: Sequence[Any]) -> str:
    return f"{len(things)} slice{'s' if len(things) != 1 else ''}"


# Shards --------------------------------------------------------------------------------


def _there(planned: Sequence[Planned]) -> list[dict[str, Any]]:
    """The launches of shards that an earlier start has created and that go on."""
    found = []
    for one in planned:
        run = RunDir(one.asked.workdir)
        before = upload.record(run)
        if before and not upload.ended(run, before) and tpu.alive(before):
            found.append(before)
    return found


def _left(
    planned: Sequence[Planned], todo: Sequence[Point], there: Sequence[Mapping[str, Any]]
) -> tuple[list[Planned], list[Point]]:
    """The shards that are to be created, and what they will have to do."""
    taken = {record["name"] for record in there}
    names = {point.directory for point in todo}
    left = [
        one
        for one in planned
        if one.asked.name not in taken and not names.isdisjoint(one.more["points"])
    ]
    work = {name for one in left for name in one.more["points"]}
    return left, [point for point in todo if point.directory in work]


def _start_shards(
    args: Any, planned: Sequence[Planned], there: Sequence[Mapping[str, Any]]
) -> None:
    made = [*there]
    for record in there:
        print(f"{record['name']} is there already", flush=True)
    for one in planned:
        made.append(tpu.create(RunDir(one.asked.workdir), one.asked, one.files, **one.more))
        print(f"created {one.asked.name}", flush=True)
    if args.watch:
        watch.watch(made)
    else:
        print("pit-jax launch watch recreates what is preempted; pit-jax launch list")
