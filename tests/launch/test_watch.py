"""The watcher: scripted lives of resources, with a clock of their own."""

import dataclasses

import grpc
import pytest

from pit_jax.errors import ConfigError, Stopped
from pit_jax.launch import queue, records, tpu, upload, watch
from pit_jax.launch.decision import DONE, GIVE_UP
from pit_jax.rundir import RunDir

from .fake_tpu import service as service
from .test_queue import ID, asked


class World:
    """A launch in a local directory, and a clock that moves while the watcher sleeps."""

    def __init__(self, service, path):
        self.service, self.now, self.said = service, 0.0, []
        self.patience_s = 0.3
        self.run = RunDir(path / "run")
        self.events = []  # (time, what happens)
        self.request = asked(workdir="gs://bucket/pit")
        self.record = upload.write_record(self.run, **tpu.described(self.request))
        self.login = None  # credentials of the client's channel

    def at(self, when, what):
        self.events.append((when, what))

    def client(self, project, zone):
        channel = self.service.channel(self.login) if self.login else None
        return queue.Client(
            project, zone, patience_s=self.patience_s, pause_s=0.01, channel=channel
        )

    def sleep(self, seconds):
        self.now += seconds
        if self.now > 40 * 3600:
            raise AssertionError(f"it never ends: {self.said[-5:]}")
        for event in [event for event in self.events if event[0] <= self.now]:
            self.events.remove(event)
            event[1]()

    def watch(self):
        words = (self.said.append, lambda: self.now, self.sleep, self.client)
        [launch] = watch.watch([self.record], *words)
        return launch

    def launch(self):
        return watch.Launch(self.record, self.said.append, lambda: self.now, self.client)

    def create(self, *histories):
        self.service.histories["pit"] = [list(history) for history in histories]
        self.client("my-project", "us-west4-a").create(self.request)

    def ends(self, code=0, **fields):
        state = "failed" if code else "done"
        self.run.write_status(state=state, exit_code=code, final=True, launch=ID, **fields)

    def beats(self, start, end):
        for when in range(start, end, 60):
            text = f'{{"step": {when}}}'
            self.at(when, lambda text=text: self.run.write("heartbeat.json", text))

    def saves(self, step):
        self.run.write(f"manifests/{step}.json", "{}")

    def stored(self):
        return upload.record(self.run)


@pytest.fixture
def world(service, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(queue, "CALL_S", 5.0)
    return World(service, tmp_path)


def test_accepted_provisioning_active_and_the_run_finishes(world, service):
    world.create(["ACCEPTED", "PROVISIONING", "ACTIVE", "ACTIVE", world.ends, "ACTIVE"])
    done = world.watch()
    assert (done.outcome, done.reason) == (DONE, "done, exit code 0")
    assert service.resources == {}
    assert service.count("CreateQueuedResource") == 1
    assert service.count("DeleteQueuedResource") == 1  # worker 0 did not
    assert world.said == [
        *("pit: ACCEPTED", "pit: PROVISIONING", "pit: ACTIVE"),
        *("pit: the run has ended; it is deleted", "pit: DELETING", "pit: done, exit code 0"),
    ]


def test_worker_0_deletes_it_first(world, service):
    def gone():
        world.ends()
        service.resources.clear()

    world.create(["ACTIVE"])
    world.at(300, gone)
    assert world.watch().outcome == DONE
    assert service.count("DeleteQueuedResource") == 0


def test_a_run_that_fails_for_good_is_not_started_again(world, service):
    world.create(["ACTIVE"])
    world.at(120, lambda: world.ends(3, reason="the loss is not finite"))
    done = world.watch()
    assert done.reason == "failed, exit code 3, the loss is not finite"
    assert service.resources == {}
    assert service.count("CreateQueuedResource") == 1


def test_suspended_twice(world, service):
    """The same request is sent again, later the second time, and the pause starts anew after
    a new checkpoint."""
    lost = ["ACCEPTED", "ACTIVE", "SUSPENDING", "SUSPENDED"]
    world.create(lost, lost, ["ACTIVE", lambda: world.saves(5), *lost[1:]], ["ACTIVE", world.ends])
    assert world.watch().outcome == DONE
    sent = [r for r in service.requests if hasattr(r, "queued_resource_id")]
    assert len(sent) == 4
    assert [request.queued_resource for request in sent] == [sent[0].queued_resource] * 4
    assert len({request.request_id for request in sent}) == 4  # or the service takes it for one
    waits = [line.rpartition("again in ")[2] for line in world.said if "again in" in line]
    assert waits == ["1 min", "2 min", "1 min"]
    assert world.stored()["watch"] == {"recreations": 1, "step": 5, "pending": False}
    assert world.stored()["request"] == world.request.to_json()


def test_a_start_up_that_failed_for_a_while_is_tried_again(world, service):
    """Its first worker says so, and deletes the resource."""

    def gives_back():
        world.run.write_status(state="failed", exit_code=1, final=False, launch=ID, reason="no pip")
        service.resources.clear()

    world.create(["ACTIVE"], ["ACTIVE", world.ends, "ACTIVE"])
    world.at(600, gives_back)
    assert world.watch().outcome == DONE
    assert "pit: it failed (no pip); to be created again in 1 min" in world.said
    assert world.stored()["watch"]["recreations"] == 1
    assert service.count("CreateQueuedResource") == 2


def test_the_pause_is_kept(world, service):
    made = []
    world.create(["SUSPENDED"], [lambda: made.append(world.now), "SUSPENDED"], ["ACTIVE"])
    world.at(3600, world.ends)
    world.watch()
    assert made == [pytest.approx(120, abs=60)]


def test_the_pause_is_kept_after_a_creation_whose_answer_was_lost(world, service):
    made = []
    lost = [lambda: made.append(world.now), "ACTIVE", "SUSPENDED"]
    world.create(["SUSPENDED"], lost, [*lost[:2], world.ends, "ACTIVE"])
    unavailable = grpc.StatusCode.UNAVAILABLE
    service.fail("CreateQueuedResource", unavailable, "lost", times=1000, after=True)
    world.at(200, service._faults.clear)
    assert world.watch().outcome == DONE
    assert sum("again in" in line for line in world.said) == 2
    assert made[1] - made[0] >= 120


def test_without_a_new_checkpoint_it_is_given_up(world, service):
    world.create(*[["SUSPENDED"]] * 99)
    done = world.watch()
    assert done.outcome == GIVE_UP
    assert "created again 20 times without a new checkpoint" in done.reason
    assert service.count("CreateQueuedResource") == 21
    assert world.now < 20 * (1800 + 3 * 60)


def test_a_quota_that_is_used_up_is_waited_for(world, service):
    world.create(["SUSPENDED"], ["ACTIVE", world.ends])
    service.fail("CreateQueuedResource", grpc.StatusCode.RESOURCE_EXHAUSTED, "Quota limit", 3)
    assert world.watch().outcome == DONE
    assert service.count("CreateQueuedResource") == 5
    assert sum("the quota of my-project" in line for line in world.said) == 3


def test_a_quota_that_stays_used_up_is_given_up(world, service):
    world.create(["SUSPENDED"])
    service.fail("CreateQueuedResource", grpc.StatusCode.RESOURCE_EXHAUSTED, "Quota", 999)
    assert "asked 20 times" in world.watch().reason


def test_an_invalid_accelerator_is_given_up_at_once(world, service):
    world.create([("FAILED", 3, "v5litepod-16 is not offered here")])
    done = world.watch()
    assert done.reason == "it FAILED: v5litepod-16 is not offered here"
    assert service.count("CreateQueuedResource") == 1
    assert service.state("pit") == "DELETING"


def test_a_refused_recreation_is_given_up(world, service):
    world.create(["SUSPENDED"])
    service.fail("CreateQueuedResource", grpc.StatusCode.INVALID_ARGUMENT, "no such zone")
    assert "no such zone" in world.watch().reason


def test_a_deadline_is_waited_out(world, service):
    world.create([("FAILED", 4, "valid_until has passed")], ["ACTIVE", world.ends])
    service.fail("GetQueuedResource", grpc.StatusCode.DEADLINE_EXCEEDED, times=3)
    assert world.watch().outcome == DONE
    assert service.count("CreateQueuedResource") == 2


def test_a_server_that_is_gone_for_a_minute(world, service):
    world.create(["ACTIVE"])
    world.at(100, service.stop)
    world.at(160, service.start)
    world.at(400, world.ends)
    assert world.watch().outcome == DONE
    assert any("Cloud TPU was not reached" in line for line in world.said)
    assert any("reached again after" in line for line in world.said)
    assert service.count("CreateQueuedResource") == 1


def test_a_watcher_that_is_killed_is_followed_by_another(world, service):
    """Between deleting and creating: the next one creates it."""
    world.create(["SUSPENDED"], ["ACTIVE", world.ends])
    first = world.launch()
    first.look()
    assert world.stored()["watch"]["pending"]
    while service.resources:
        first.look()
    assert world.watch().outcome == DONE
    assert service.count("CreateQueuedResource") == 2


def test_what_somebody_deleted_is_not_created_again(world, service):
    world.create(["ACTIVE"])
    world.at(300, service.resources.clear)
    done = world.watch()
    assert done.outcome == GIVE_UP
    assert "is gone, though the run has not ended" in done.reason
    assert service.count("CreateQueuedResource") == 1


def test_what_was_stopped_is_not_created_again(world, service):
    world.create(["ACTIVE", "SUSPENDED"])
    world.at(30, lambda: upload.write_record(world.run, **world.stored(), stopped="2026-01-01"))
    done = world.watch()
    assert (done.outcome, done.reason) == (DONE, "stopped")
    assert service.count("CreateQueuedResource") == 1


def test_a_resource_of_another_launch_is_left_alone(world, service):
    service.add(dataclasses.replace(world.request, id="f" * 12))
    done = world.watch()
    assert done.outcome == GIVE_UP
    assert service.count("DeleteQueuedResource") == 0


def test_a_directory_that_another_launch_has_is_left_alone(world, service):
    world.create(["ACTIVE"])
    upload.write_record(world.run, **tpu.described(asked(id="f" * 12)))
    assert "now of the launch pit" in world.watch().reason
    assert service.count("DeleteQueuedResource") == 0


def test_a_damaged_request_is_not_sent(world, service):
    world.create(["SUSPENDED"])
    upload.write_record(world.run, **{**world.stored(), "request": {"name": "$(rm -rf /)"}})
    assert "holds no request" in world.watch().reason
    assert service.count("CreateQueuedResource") == 1


def test_the_end_is_noted_in_the_local_record(world, service):
    records.keep(world.record)
    world.create(["ACTIVE", world.ends, "ACTIVE"])
    world.watch()
    assert records.find("pit")["outcome"] == "done: done, exit code 0"


def test_several_are_looked_after_at_once(world, service, tmp_path):
    other = asked("other", id="a" * 12)
    run = RunDir(tmp_path / "other")
    record = upload.write_record(run, **tpu.described(other))
    world.create(["ACTIVE", world.ends, "ACTIVE"])
    service.add(other)
    world.at(600, lambda: run.write_status(state="done", exit_code=0, final=True, launch="a" * 12))
    words = (world.said.append, lambda: world.now, world.sleep, world.client)
    found = watch.watch([world.record, record], *words)
    assert [launch.outcome for launch in found] == [DONE, DONE]
    assert service.resources == {}


def test_ctrl_c_ends_watching_alone_and_says_so(world, service):
    def interrupted():
        raise KeyboardInterrupt

    world.create(["ACTIVE"])
    world.at(120, interrupted)
    with pytest.raises(Stopped, match=r"the launch goes on; pit-jax launch watch pit") as stopped:
        world.watch()
    assert stopped.value.exit_code == 130
    assert service.count("DeleteQueuedResource") == 0


def test_a_launch_needs_a_place(world):
    with pytest.raises(ConfigError):
        watch.Launch({**world.record, "workdir": ""}, print)
