"""The points of a study as launches: which are alive when, and what a second start finds."""

import shlex

import grpc
import pytest

from pit_jax import cli
from pit_jax.errors import Stopped
from pit_jax.launch import decision, fleet, money, queue, records, sweeps, upload, watch, worker
from pit_jax.rundir import RunDir
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
LAUNCH = ["--target", "tpu", "--accelerator", "v5litepod-8", "--zone", "us-west4-a"]
LAUNCH += ["--project", "my-project"]


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
    """A sweep's directory here, its launches on the service, and workers that take an hour."""

    def __init__(self, service, study, path, argument=""):
        self.service, self.now, self.said, self.most = service, 0.0, [], 0
        self.spec, self.path = f"{study}{argument}", path
        self.codes = {}  # point → how its run ends
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
        if self.now > 48 * 3600:
            raise AssertionError(f"it never ends: {self.said[-5:]}")
        self.most = max(self.most, len(self.service.resources))
        for name in [*self.service.resources]:
            began = self.began.setdefault(name, self.now)
            if self.now - began >= 3600:
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
        patch.setattr(upload, "forget", lambda run: None)
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


def test_a_quota_that_is_used_up_is_waited_for(world, service, capsys):
    exhausted = grpc.StatusCode.RESOURCE_EXHAUSTED
    service.fail("CreateQueuedResource", exhausted, "Quota limit", 3)
    world.fleet.run()
    assert world.states() == ["done"] * 4
    assert any("again in 1 min" in line for line in world.said)


def test_a_refused_point_does_not_end_the_others(world, service, capsys):
    service.fail("CreateQueuedResource", grpc.StatusCode.INVALID_ARGUMENT, "no such type")
    with pytest.raises(Failed, match="1 of 4"):
        world.fleet.run()
    assert world.states() == ["failed", "done", "done", "done"]
    assert upload.record(SweepDir(world.path).run(world.points[0])) == {}


def test_names_are_short_and_differ():
    long = "a" * 37 + "-bc"
    names = {sweeps.name_of(long, number) for number in range(2000)}
    assert len(names) == 2000
    assert max(map(len, names)) == 40
    assert sweeps.name_of(long, 10) == "a" * 37 + "-10"


# The command -----------------------------------------------------------------------------


@pytest.fixture
def compiled(monkeypatch):
    """Preflight without a compiler: which configs it was asked about."""
    seen = []

    def preflight(config, where, price, anyway):
        seen.append(config)
        step = {"fits": True, "hbm_peak_bytes": 2**30, "hbm_limit_bytes": 2**34}
        return {"steps": {"train": step}, "chip_hours": 2.0}

    monkeypatch.setattr(money, "preflight", preflight)
    return seen


def test_a_dry_run_shows_points_and_one_request(study, capsys, monkeypatch, tmp_path):
    """Without credentials, network and service."""
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none"))
    words = ["launch", "--sweep", str(study), "--workdir", "gs://bucket/a-sweep", *LAUNCH]
    assert cli.run([*words, "--dry-run", "--at-once", "3"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("patch=") >= 4
    assert "4 launches, 3 at once; the first one" in printed
    assert "queuedResources/a-sweep-0" in printed
    assert "a-sweep-1" not in printed


def test_shards_in_a_dry_run(study, capsys):
    words = ["launch", "--sweep", f"{study}:needs", "--workdir", "gs://bucket/a-sweep", *LAUNCH]
    override = "--config.train.steps=5"
    assert cli.run([*words, "--dry-run", "--shards", "2", override]) == 0
    printed = capsys.readouterr().out
    assert "4 points on 2 slices" in printed
    assert "launch/study/experiments/study.py" in printed
    [line] = [line.strip() for line in printed.splitlines() if "ARGUMENTS=(" in line]
    words = shlex.split(line.removeprefix("ARGUMENTS=(").removesuffix(")"))
    args = worker.parser().parse_args(words)
    assert args.sweep.endswith("launch/study/experiments/study.py:needs")
    assert (args.shard, args.directory) == ("0/2", "gs://bucket/a-sweep")
    assert args.workdir == "gs://bucket/a-sweep/shards/0-of-2"
    assert args.override == [override]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--shards", "2", "--accelerator", "v5litepod-16"], "worked through by one host"),
        (["--shards", "2", "--slices", "2"], "worked through by one host"),
        (["--shards", "2", "--at-once", "2"], "--at-once is of a launch a point"),
        (["--name=-x"], "lower-case letters"),
        (["--config.model.patch=3"], "point 0"),
        (["--workdir", "runs/here"], "gs://"),
    ],
)
def test_what_is_refused(study, capsys, more, told):
    words = ["launch", "--sweep", str(study), "--workdir", "gs://bucket/a-sweep", *LAUNCH]
    assert cli.run([*words, "--dry-run", *more]) == 2
    captured = capsys.readouterr()
    assert told in captured.err
    assert len(captured.err.strip().splitlines()) == 1


def test_a_sweep_in_a_bucket(service, study, bucket, compiled, capsys, monkeypatch):
    """From the command line to the end, with a real storage server."""
    place = f"{bucket}/sweep"

    def ends(index):
        _, found, directory = sweep.read(str(study), place)
        run = directory.run(found[index])
        run.write_config(found[index].config)
        launch = upload.record(run)["id"]
        run.write_status(state="done", exit_code=0, final=True, launch=launch)

    for index in range(4):
        life = ["ACTIVE", lambda index=index: ends(index), "ACTIVE"]
        service.histories[f"sweep-{index}"] = [life]
    monkeypatch.setattr(watch, "POLL_S", 0.01)
    monkeypatch.setattr(decision, "GRACE_S", 0.0)
    words = ["launch", "--sweep", str(study), "--workdir", place, *LAUNCH]
    words += ["--requirement", "pit_jax==0.1", "--price-per-chip-hour", "1.5"]
    assert cli.run(words) == 2
    assert "add --yes" in capsys.readouterr().err
    assert service.calls == []
    assert cli.run([*words, "--yes"]) == 0
    printed = capsys.readouterr().out
    assert len(compiled) == 2 * 2  # a patch each, not a seed each; twice
    assert "all 4 points: 8 chip-hours at least, 12.00" in printed
    assert service.count("CreateQueuedResource") == 4
    capsys.readouterr()
    assert cli.run([*words, "--yes"]) == 0
    assert "4 points, 4 done" in capsys.readouterr().out
    assert service.count("CreateQueuedResource") == 4


def test_shards_in_a_bucket(service, study, bucket, compiled, capsys):
    place = f"{bucket}/sweep"
    words = ["launch", "--sweep", str(study), "--workdir", place, *LAUNCH, "--shards", "2"]
    words += ["--requirement", "pit_jax==0.1", "--yes", "--name", "x"]
    assert cli.run(words) == 0
    assert sorted(service.resources) == ["x-0", "x-1"]
    record = upload.record(RunDir(f"{place}/shards/1-of-2"))
    assert (record["name"], record["sweep"]) == ("x-1", place)
    assert (RunDir(f"{place}/shards/1-of-2").path / "launch/study/experiments/study.py").exists()
    capsys.readouterr()
    assert cli.run(words) == 0  # they are there already
    assert service.count("CreateQueuedResource") == 2
    _, found, directory = sweep.read(str(study), place)
    assert watch.saved(RunDir(record["workdir"]), record) == 0
    directory.run(found[0]).write_status(state="done")
    assert watch.saved(RunDir(record["workdir"]), record) == 1


def test_a_sweep_file_without_a_sweep(tmp_path, capsys):
    (tmp_path / "x.py").write_text("from pit_jax import config\nget_config = config.base\n")
    words = ["launch", "--sweep", str(tmp_path / "x.py"), "--workdir", "gs://b-x/s", *LAUNCH]
    assert cli.run([*words, "--dry-run"]) == 2
    assert "defines no sweep()" in capsys.readouterr().err
