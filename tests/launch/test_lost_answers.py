"""Points whose creation was asked for, and nobody knows whether it came to be."""

import grpc
import pytest

from pit_jax.launch import decision, queue

from .fake_tpu import service as service
from .test_fleet import quick as quick
from .test_fleet import study as study
from .test_fleet import world as world


@pytest.fixture
def impatient(monkeypatch):
    """A client for which one answer that is lost is the end of its patience."""
    monkeypatch.setattr(queue, "PATIENCE_S", 0.0)


def test_a_creation_whose_answer_was_lost_is_taken_up(world, service, capsys, impatient):
    unavailable = grpc.StatusCode.UNAVAILABLE
    service.fail("CreateQueuedResource", unavailable, "lost", times=3, after=True)
    world.fleet.run()
    assert world.states() == ["done"] * 4
    assert world.created() == ["s-0", "s-1", "s-2", "s-3"]
    assert world.most == 2
    assert [len(ids) for ids in world.ids().values()] == [1] * 4
    assert not any("failed" in line for line in world.said)


def test_a_creation_that_was_lost_itself_is_asked_for_again(world, service, capsys, impatient):
    """By the same launch, which is counted all the while."""
    service.fail("CreateQueuedResource", grpc.StatusCode.UNAVAILABLE, "lost", times=2)
    world.fleet = world.make(at_once=1)
    world.fleet.run()
    assert world.states() == ["done"] * 4
    assert world.created() == ["s-0", "s-0", "s-0", "s-1", "s-2", "s-3"]
    assert [len(ids) for ids in world.ids().values()] == [1] * 4


def test_a_lost_creation_is_never_given_up(world, service, capsys, impatient):
    """Neither while it may not be looked at, nor while nothing answers for half a day."""
    world.life = 24 * 3600
    service.fail("CreateQueuedResource", grpc.StatusCode.UNAVAILABLE, "lost", after=True)
    service.fail("GetQueuedResource", grpc.StatusCode.PERMISSION_DENIED, "not now", times=2)
    service.fail("GetQueuedResource", grpc.StatusCode.UNAVAILABLE, "away", decision.MOST)
    world.fleet = world.make(at_once=1)
    world.fleet.run()
    assert world.states() == ["done"] * 4
    assert world.created() == ["s-0", "s-1", "s-2", "s-3"]
    assert sum("again in" in line for line in world.said) == decision.MOST + 3


def test_what_ended_before_its_answer_came_is_not_created_again(world, service, capsys, impatient):
    service.fail("CreateQueuedResource", grpc.StatusCode.UNAVAILABLE, "lost", after=True)
    sleep = world.sleep

    def quickly(seconds):
        if not world.now:
            world.finish(0)
            del service.resources["s-0"]
        sleep(seconds)

    world.fleet._sleep = quickly
    world.fleet.run()
    assert world.states() == ["done"] * 4
    assert world.created() == ["s-0", "s-1", "s-2", "s-3"]
