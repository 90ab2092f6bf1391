"""The points of a study as launches: which are alive when, and what a second start finds."""

import dataclasses

import grpc
import pytest

from pit_jax import cli
from pit_jax.errors import Stopped, StorageError
from pit_jax.launch import fleet, queue, records, tpu, upload
from pit_jax.study import sweep
from pit_jax.study.scheduler import Failed
from pit_jax.study.sweepdir import SweepDir

from .fake_tpu import service as service
from .test_queue import asked

STUDY = '''"""A study of the patch."""
from pit_jax import config
from pit_jax.study.space import grid, seeds


def get_config(arg=""):
    c = config.base()
    c.model.update(width=16, depth=2, heads=2)
    c.data.update(name="digits", image_size=8, channels=1, num_classes=10)
    c.train.update(batch_size=32, steps=10, tensorboard=False)
    return c


def sweep(arg=""):
    if arg == "needs":
        return [
            {"label": "first"},
            {"label": "second", "init_from": "run:first", "train.seed": 1},
            {"label": "third", "init_from": "run:second", "train.seed": 2},
            {"label": "other", "train.seed": 3},
        ]
    return grid({"model.patch": (1, 2)}, seeds(2))
'''


@pytest.fixture
def study(tmp_path):
    (tmp_path / "experiments").mkdir()
    path = tmp_path / "experiments" / "study.py"
    path.write_text(STUDY)
    return path


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(queue, "PATIENCE_S", 0.2)


class World:
    """A sweep's directory here, its launches on the service, and workers that take an hour.

    Attributes:
      life: seconds that a run takes.
      codes: point → how its run ends.
    """

    def __init__(self, service, study, path, argument=""):
        self.service, self.now, self.said, self.most = service, 0.0, [], 0
        self.spec, self.path = f"{study}{argument}", path
        self.life, self.codes = 3600, {}
        self.began = {}
        self.killed_at = None
        self.fleet = self.make()

    def make(self, at_once=2):
        file, self.points, directory = sweep.read(self.spec, self.path)
        directory.write(file, self.points)
        # As in another start of the command: requests of their own.
        ids = [f"{len(self.said):04x}{point.index:08x}" for point in self.points]
        planned = [
            fleet.Planned(asked(f"s-{point.index}", id=one), {"config.json": "{}"})
            for point, one in zip(self.points, ids, strict=True)
        ]
        words = (self.said.append, lambda: self.now, self.sleep)
        return fleet.Fleet(SweepDir(self.path), self.points, planned, at_once, *words)

    def sleep(self, seconds):
        self.now += seconds
        if self.now > 48 * self.life:
            raise AssertionError(f"it never ends: {self.said[-5:]}")
        self.most = max(self.most, len(self.service.resources))
        for name in [*self.service.resources]:
            began = self.began.setdefault(name, self.now)
            if self.now - began >= self.life:
                self.finish(int(name.removeprefix("s-")))
                del self.service.resources[name], self.began[name]
        if self.killed_at is not None and self.now >= self.killed_at:
            self.killed_at = None
            raise KeyboardInterrupt

    def finish(self, index):
        point = self.points[index]
        run, code = SweepDir(self.path).run(point), self.codes.get(index, 0)
        run.write_config(point.config)
        state = "failed" if code else "done"
        launch = upload.record(run)["id"]
        run.write_status(state=state, exit_code=code, final=True, launch=launch, reason="")

    def created(self):
        return [name for method, name in self.service.calls if method == "CreateQueuedResource"]

    def ids(self):
        """The launches that asked for a resource of a name."""
        found = {}
        for sent in self.service.requests:
            if name := getattr(sent, "queued_resource_id", ""):
                [spec] = sent.queued_resource.tpu.node_spec
                found.setdefault(name, set()).add(spec.node.labels["pit-jax-launch"])
        return found

    def states(self):
        return [job.state for job in self.fleet.jobs]


@pytest.fixture
def world(service, study, tmp_path):
    return World(service, study, tmp_path / "sweep")


def test_as_many_are_alive_as_may_be(world, service, capsys):
    world.fleet.run()
    assert world.states() == ["done"] * 4
    assert world.created() == ["s-0", "s-1", "s-2", "s-3"]
    assert world.most == 2
    assert service.resources == {}
    assert f"next: pit-jax compare {world.path}" in world.said
    assert [record["name"] for record in records.all_of()] == ["s-0", "s-1", "s-2", "s-3"]


def test_compare_reads_what_they_leave(world, capsys):
    world.fleet.run()
    for point in world.points:
        run = SweepDir(world.path).run(point)
        value = 0.8 + point.index / 100
        run.write("metrics.jsonl", f'{{"step": 10, "time": 1.0, "eval/accuracy": {value}}}\n')
        run.write_status(result={"eval/accuracy": value})
    capsys.readouterr()
    assert cli.run(["compare", str(world.path)]) == 0
    printed = capsys.readouterr().out
    assert "80.5" in printed  # the mean of patch 1, and of patch 2
    assert "82.5" in printed


def test_points_wait_for_what_they_start_from(service, study, tmp_path, capsys):
    world = World(service, study, tmp_path / "sweep", ":needs")
    world.fleet.run()
    assert world.created() == ["s-0", "s-3", "s-1", "s-2"]
    assert world.states() == ["done"] * 4


def test_what_starts_from_a_failed_one_is_left_out(service, study, tmp_path, capsys):
    world = World(service, study, tmp_path / "sweep", ":needs")
    world.codes[0] = 3
    with pytest.raises(Failed, match="3 of 4 points"):
        world.fleet.run()
    assert world.states() == ["failed", "skipped", "skipped", "done"]
    assert world.created() == ["s-0", "s-3"]
    assert any("starts from first" in line for line in world.said)


def test_killed_and_started_again_it_goes_on(world, service, capsys):
    """In the middle of the second pair: nothing is created twice."""
    world.killed_at = 3600 + 600
    with pytest.raises(Stopped, match="2 launches go on"):
        world.fleet.run()
    assert len(service.resources) == 2
    world.fleet = world.make()
    world.fleet.run()
    assert world.created() == ["s-0", "s-1", "s-2", "s-3"]
    assert world.states() == ["done"] * 4
    assert world.most == 2


def test_killed_between_writing_and_creating(world, service, capsys, monkeypatch):
    def killed(client, request):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(queue.Client, "create", killed)
        with pytest.raises(Stopped):
            world.fleet.run()
    before = upload.record(SweepDir(world.path).run(world.points[0]))
    world.fleet = world.make()
    world.fleet.run()
    assert world.created() == ["s-0", "s-1", "s-2", "s-3"]
    [sent] = [r for r in service.requests if getattr(r, "queued_resource_id", "") == "s-0"]
    labels = sent.queued_resource.tpu.node_spec[0].node.labels
    assert labels["pit-jax-launch"] == before["id"]  # the request that was written down


def test_what_has_ended_and_still_costs_money_is_deleted(world, service, capsys):
    """Worker 0 could not delete it, and nobody was watching."""
    world.killed_at = 60
    with pytest.raises(Stopped):
        world.fleet.run()
    for index in (0, 1):
        world.finish(index)
    world.fleet = world.make()
    world.fleet.run()
    assert world.states() == ["done"] * 4
    assert sorted(n for m, n in service.calls if m == "DeleteQueuedResource") == ["s-0", "s-1"]
    assert world.most == 2


def test_a_preempted_point_is_created_again(world, service, capsys):
    service.histories["s-1"] = [["ACTIVE", "SUSPENDED"]]
    world.fleet.run()
    assert world.created().count("s-1") == 2
    assert world.states() == ["done"] * 4


@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "UNAUTHENTICATED"])
def test_a_quota_or_a_login_that_is_used_up_is_waited_for(world, service, capsys, code):
    service.fail("CreateQueuedResource", grpc.StatusCode[code], "no more", 3)
    world.fleet.run()
    assert world.states() == ["done"] * 4
    assert any("again in 1 min" in line for line in world.said)


def test_a_login_is_waited_for_as_long_as_it_takes(world, service, capsys):
    unauthenticated = grpc.StatusCode.UNAUTHENTICATED
    service.fail("CreateQueuedResource", unauthenticated, "no valid credential", 100)
    world.fleet.run()
    assert world.states() == ["done"] * 4


def test_a_refused_point_does_not_end_the_others(world, service, capsys):
    service.fail("CreateQueuedResource", grpc.StatusCode.INVALID_ARGUMENT, "no such type")
    with pytest.raises(Failed, match="1 of 4"):
        world.fleet.run()
    assert world.states() == ["failed", "done", "done", "done"]
    assert upload.record(SweepDir(world.path).run(world.points[0])) == {}


# What an earlier start has left ----------------------------------------------------------


def test_no_more_than_may_be_are_taken_up(world, service, capsys):
    """Killed four times before a creation, perhaps with another --at-once."""
    for job in world.fleet.jobs:
        upload.write_record(job.run, **tpu.described(job.planned.asked))
    written = [job.planned.asked.id for job in world.fleet.jobs]
    world.said.append("another start")
    world.fleet = world.make()
    world.fleet.run()
    assert world.states() == ["done"] * 4
    assert world.most == 2
    assert world.ids() == {f"s-{index}": {one} for index, one in enumerate(written)}


def test_what_is_alive_anyway_counts(world, service, capsys):
    """Of three that another --at-once has left, none is created, and no fourth beside them."""
    for job in world.fleet.jobs[:3]:
        upload.write_record(job.run, **tpu.described(job.planned.asked))
        service.add(job.planned.asked)
    world.fleet = world.make()
    world.fleet.run()
    assert world.created() == ["s-3"]
    assert world.states() == ["done"] * 4
    assert world.most == 3


def test_what_is_alive_in_another_zone_counts_too(world, service, capsys):
    elsewhere = dataclasses.replace(world.fleet.jobs[3].planned.asked, zone="us-east1-c")
    upload.write_record(world.fleet.jobs[3].run, **tpu.described(elsewhere))
    service.add(elsewhere)
    world.fleet = world.make(at_once=1)
    world.fleet.run()
    assert world.states() == ["done"] * 4
    assert world.most == 1


def test_a_quota_that_is_used_up_when_it_is_taken_up_is_waited_for(world, service, capsys):
    first = world.fleet.jobs[0]
    upload.write_record(first.run, **tpu.described(first.planned.asked))
    service.fail("CreateQueuedResource", grpc.StatusCode.RESOURCE_EXHAUSTED, "Quota limit", 2)
    world.fleet = world.make()
    world.fleet.run()
    assert world.states() == ["done"] * 4
    assert any("again in 1 min" in line for line in world.said)


# A bucket that is away -------------------------------------------------------------------


def test_a_bucket_that_is_away_is_waited_for(world, service, capsys, monkeypatch):
    put, away = upload.put, [1, 1]

    def sometimes(run, contents):
        if away:
            away.pop()
            raise StorageError("the bucket could not be written")
        put(run, contents)

    monkeypatch.setattr(upload, "put", sometimes)
    world.fleet.run()
    assert world.states() == ["done"] * 4


def test_a_bucket_that_is_away_when_a_run_ends_is_asked_again(world, capsys, monkeypatch):
    is_done, away = SweepDir.is_done, [1]

    def sometimes(directory, point):
        if world.now and away:
            away.pop()
            raise StorageError("the bucket could not be read")
        return is_done(directory, point)

    monkeypatch.setattr(SweepDir, "is_done", sometimes)
    world.fleet.run()
    assert not away
    assert world.states() == ["done"] * 4
