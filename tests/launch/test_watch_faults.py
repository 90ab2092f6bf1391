"""The watcher where something is in its way: hangs, logins, limits, others who write."""

import grpc
import pytest
from google.auth.exceptions import RefreshError, TransportError

from pit_jax.errors import StorageError
from pit_jax.launch import queue, records, upload, watch
from pit_jax.launch.decision import DONE, GIVE_UP
from pit_jax.lease_store import Disk

from .fake_tpu import Login
from .fake_tpu import service as service
from .test_queue import ID
from .test_watch import world as world

# Hanging ---------------------------------------------------------------------------------


def test_a_heartbeat_that_stops_is_reported_once_and_waited_for(world, service):
    world.create(["ACTIVE"])
    world.beats(0, 3600)
    world.beats(2 * 3600, 4 * 3600)
    world.at(4 * 3600, world.ends)
    assert world.watch().outcome == DONE
    [line] = [line for line in world.said if "stuck" in line]
    assert "no new heartbeat for 31 min; after 2 h it is created again" in line
    assert service.count("DeleteQueuedResource") == 1  # at the end


def test_what_has_no_heartbeat_for_two_hours_is_created_again(world, service):
    """From when it became ACTIVE, as bringing the data takes its time."""
    made = []
    world.create(["PROVISIONING"] * 90 + ["ACTIVE"], [lambda: made.append(world.now), "ACTIVE"])
    world.at(8 * 3600, world.ends)
    assert world.watch().outcome == DONE
    assert made == [pytest.approx(90 * 60 + 7200 + 120, abs=180)]
    assert service.count("CreateQueuedResource") == 3  # and a second time after two hours
    assert world.said[3:7] == [
        "pit: it is ACTIVE, with no new heartbeat for 121 min; to be created again in 1 min",
        *("pit: DELETING", "pit: created again", "pit: ACTIVE"),
    ]
    assert world.stored()["watch"]["recreations"] == 2


def test_one_that_hangs_whatever_is_done_is_given_up_and_deleted(world, service):
    world.create(["ACTIVE"])
    upload.note(world.run, ID, watch={"recreations": 20, "step": 0, "pending": False})
    done = world.watch()
    assert done.outcome == GIVE_UP
    assert "created again 20 times without a new checkpoint" in done.reason
    assert service.state("pit") == "DELETING"
    assert world.said[-2] == "pit: its ACTIVE resource is deleted"


def test_one_that_hangs_and_cannot_be_deleted_counts_once(world, service):
    world.create(["ACTIVE"], ["ACTIVE", world.ends, "ACTIVE"])
    service.fail("DeleteQueuedResource", grpc.StatusCode.UNAVAILABLE, times=25)
    assert world.watch().outcome == DONE
    assert service.count("CreateQueuedResource") == 2
    assert world.stored()["watch"]["recreations"] == 1
    assert sum("to be created again" in line for line in world.said) == 1


def test_a_run_that_could_not_be_looked_at_is_not_taken_for_hanging(world, service, monkeypatch):
    def away(self, name):
        if 600 < world.now < 5 * 3600:
            raise queue.Unreachable("Cloud TPU was not reached")
        return get(self, name)

    get = queue.Client.get
    monkeypatch.setattr(queue.Client, "get", away)
    world.create(["ACTIVE"])
    world.at(6 * 3600, world.ends)
    assert world.watch().outcome == DONE
    assert service.count("CreateQueuedResource") == 1


# Logins and limits on calls --------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (TransportError("Network is unreachable"), "Cloud TPU was not reached"),
        (RefreshError("invalid_grant: expired"), "gcloud auth application-default login"),
    ],
)
def test_a_login_that_fails_for_a_while_gives_nothing_up(world, service, error, told):
    """The network of a laptop is away when its token runs out, or its owner has to log in."""
    world.create(["ACTIVE"])
    world.beats(0, 7200)
    world.login, world.patience_s = Login(), 0.02
    world.at(600, lambda: world.login.errors.extend([error] * 100_000))
    world.at(2400, world.login.errors.clear)
    world.at(7200, world.ends)
    assert world.watch().outcome == DONE
    assert sum(told in line for line in world.said) == 1
    assert any("reached again after" in line for line in world.said)
    assert service.count("CreateQueuedResource") == 1


def test_a_new_login_is_found_and_looked_for_later_and_later(world, service):
    world.create(["ACTIVE"])
    world.login = revoked = Login()
    world.at(600, lambda: revoked.errors.extend([RefreshError("invalid_grant")] * 10_000))
    world.at(4 * 3600, lambda: setattr(world, "login", Login()))
    world.at(5 * 3600, world.ends)
    world.beats(0, 5 * 3600)
    assert world.watch().outcome == DONE
    assert 10_000 - len(revoked.errors) == 12  # at 1, 3, 7, 15, 31 min, and each half an hour
    [line] = [line for line in world.said if "reached again" in line]
    assert 4 * 3600 - 660 <= float(line.split()[-2]) <= 4.5 * 3600


def test_a_watcher_that_begins_without_a_login_waits_for_one(world, service, monkeypatch):
    def none(project, zone):
        if world.now < 1200:
            raise queue.NoLogin("there are no Google Cloud credentials here")
        return client(project, zone)

    client, world.client = world.client, none
    service.add(world.request)
    world.at(2400, world.ends)
    assert world.watch().outcome == DONE
    assert sum("no Google Cloud credentials" in line for line in world.said) == 1


def test_a_limit_on_calls_gives_nothing_up_and_counts_as_no_recreation(world, service):
    world.create(["ACTIVE"])
    world.beats(0, 7200)
    said = "Quota exceeded for quota metric 'Read requests' and limit 'Read requests per minute'"
    exhausted = grpc.StatusCode.RESOURCE_EXHAUSTED
    service.fail("GetQueuedResource", exhausted, said, times=100)
    world.patience_s = 0.02
    world.at(7200, world.ends)
    assert world.watch().outcome == DONE
    assert "watch" not in world.stored()


# Others who write ------------------------------------------------------------------------


def test_a_stop_while_the_watcher_writes_is_not_lost(world, service, monkeypatch):
    """Between its reading and its writing, wherever it does so."""
    world.create(["SUSPENDED"], ["ACTIVE"])
    replace = Disk.replace

    def stopped_meanwhile(store, content, version):
        monkeypatch.setattr(Disk, "replace", replace)
        upload.note(world.run, ID, stopped="2026-01-01")
        return store.replace(content, version)

    monkeypatch.setattr(Disk, "replace", stopped_meanwhile)
    done = world.watch()
    assert (done.outcome, done.reason) == (DONE, "stopped")
    assert world.stored()["watch"]["pending"]  # both were written
    assert service.count("CreateQueuedResource") == 1


def test_a_stop_just_before_a_creation_prevents_it(world, service, monkeypatch):
    world.create(["SUSPENDED"])
    launch = world.launch()
    while launch.look() == "" and service.resources:
        pass
    world.now += 3600

    def stopped_meanwhile(seen, history):
        upload.note(world.run, ID, stopped="2026-01-01")
        return decide(seen, history)

    decide = watch.decide
    monkeypatch.setattr(watch, "decide", stopped_meanwhile)
    assert [launch.look(), launch.look()] == ["", DONE]
    assert service.count("CreateQueuedResource") == 1


def test_a_directory_that_cannot_be_written_is_waited_for(world, service, monkeypatch):
    """After a refusal too, which counts."""

    def full(*words, **fields):
        if world.now < 1800:
            raise StorageError("launch.json could not be written")
        return note(*words, **fields)

    note = upload.note
    world.create(["SUSPENDED"], ["ACTIVE", world.ends, "ACTIVE"])
    service.fail("CreateQueuedResource", grpc.StatusCode.RESOURCE_EXHAUSTED, "Quota", 2)
    world.at(100, lambda: monkeypatch.setattr(upload, "note", full))
    assert world.watch().outcome == DONE


def test_an_end_that_cannot_be_noted_is_one_all_the_same(world, service, monkeypatch, capsys):
    def full(*words):
        raise StorageError("the disk is full")

    records.keep(world.record)
    monkeypatch.setattr("pit_jax.files.write", full)
    world.create(["ACTIVE"])
    world.at(60, service.resources.clear)
    assert world.watch().outcome == GIVE_UP
    assert "record of pit is not written: the disk is full" in capsys.readouterr().err
