"""What a watcher decides from what it saw."""

import pytest

from pit_jax.launch import watch
from pit_jax.launch.decision import DELETE, DONE, GIVE_UP, RECREATE, STUCK, WAIT, History, Seen
from pit_jax.launch.queue import Resource

from .test_queue import ID


def of(state: str, **fields) -> Resource:
    return Resource("pit", state, ID, **fields)


GONE, HOUR = None, 3600.0


@pytest.mark.parametrize(
    ("seen", "history", "action", "after_s"),
    [
        # On its way, or at work.
        (Seen(resource=of("CREATING")), History(), WAIT, 0),
        (Seen(resource=of("ACCEPTED")), History(), WAIT, 0),
        (Seen(resource=of("WAITING_FOR_RESOURCES"), quiet_s=90 * HOUR), History(), WAIT, 0),
        (Seen(resource=of("PROVISIONING")), History(), WAIT, 0),
        (Seen(resource=of("ACTIVE"), quiet_s=60), History(), WAIT, 0),
        (Seen(resource=of("ACTIVE"), quiet_s=HOUR), History(), STUCK, 0),
        (Seen(resource=of("ACTIVE"), quiet_s=1.9 * HOUR), History(), STUCK, 0),
        (Seen(resource=of("ACTIVE"), quiet_s=2.1 * HOUR), History(), RECREATE, 60),
        (Seen(resource=of("ACTIVE"), quiet_s=2.1 * HOUR), History(2), RECREATE, 240),
        (Seen(resource=of("ACTIVE"), quiet_s=2.1 * HOUR), History(20), GIVE_UP, 0),
        (Seen(resource=of("SUSPENDING")), History(), WAIT, 0),
        (Seen(resource=of("DELETING")), History(pending=True), WAIT, 0),
        # The run has ended.
        (Seen(resource=of("ACTIVE"), ended=True, ended_s=10), History(), WAIT, 0),
        (Seen(resource=of("ACTIVE"), ended=True, ended_s=HOUR), History(), DELETE, 0),
        (Seen(resource=of("SUSPENDED"), ended=True, ended_s=HOUR), History(), DELETE, 0),
        (Seen(resource=of("DELETING"), ended=True, ended_s=HOUR), History(), WAIT, 0),
        (Seen(resource=GONE, ended=True), History(), DONE, 0),
        (Seen(resource=GONE, ended=True), History(pending=True), DONE, 0),
        # Suspended and failed ones come again, later and later.
        (Seen(resource=of("SUSPENDED")), History(), RECREATE, 60),
        (Seen(resource=of("SUSPENDED")), History(1), RECREATE, 120),
        (Seen(resource=of("SUSPENDED")), History(4), RECREATE, 960),
        (Seen(resource=of("SUSPENDED")), History(5), RECREATE, 1800),
        (Seen(resource=of("SUSPENDED")), History(19), RECREATE, 1800),
        (Seen(resource=of("SUSPENDED")), History(20), GIVE_UP, 0),
        (Seen(resource=of("SUSPENDED"), step=7), History(20, step=7), GIVE_UP, 0),
        (Seen(resource=of("SUSPENDED"), step=8), History(20, step=7), RECREATE, 60),
        (Seen(resource=of("SUSPENDED", by_user=True)), History(), GIVE_UP, 0),
        (Seen(resource=of("FAILED", code=8, reason="none free")), History(), RECREATE, 60),
        (Seen(resource=of("FAILED", code=13)), History(2), RECREATE, 240),
        (Seen(resource=of("FAILED")), History(), RECREATE, 60),
        (Seen(resource=of("FAILED", code=3)), History(), GIVE_UP, 0),
        (Seen(resource=of("FAILED", code=7)), History(), GIVE_UP, 0),
        # Gone: deleted by us in order to create it again, or by somebody.
        (Seen(resource=GONE), History(2, pending=True), RECREATE, 120),
        (Seen(resource=GONE), History(20, pending=True), RECREATE, 1800),
        (Seen(resource=GONE), History(absent=1), WAIT, 0),
        (Seen(resource=GONE), History(absent=3), GIVE_UP, 0),
        (Seen(resource=GONE, given_back="it failed"), History(1), RECREATE, 120),
        (Seen(resource=GONE, given_back="it failed"), History(20), GIVE_UP, 0),
    ],
)
def test_what_is_decided(seen, history, action, after_s):
    decision = watch.decide(seen, history)
    assert (decision.action, decision.after_s) == (action, after_s)


def test_pauses_are_bounded():
    pauses = [watch.pause_s(n) for n in range(100_000)]
    assert pauses[:6] == [60, 120, 240, 480, 960, 1800]
    assert set(pauses[5:]) == {1800.0}


@pytest.mark.parametrize("found", [None, 7, {"recreations": "x", "step": 1}, {"recreations": -1}])
def test_a_history_that_is_none_is_a_new_one(found):
    assert watch._history(found) == History()
