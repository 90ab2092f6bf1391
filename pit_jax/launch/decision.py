"""What a watcher does about a launch, from what it saw and what it has done before."""

import dataclasses

from pit_jax.launch.queue import Resource

FIRST_PAUSE_S, LONGEST_PAUSE_S = 60.0, 1800.0
MOST = 20  # recreations without a new checkpoint between them
GRACE_S = 120.0  # for worker 0 to write its log and delete its resource by itself
STUCK_S = 1800.0  # without a new heartbeat, until an ACTIVE resource is reported
LOST_S = 7200.0  # and until it is created again; bringing its data may take an hour
_ABSENT = 3  # looks that find nothing, until that is believed
# Of google.rpc.Code: the same request would fail again. 3 invalid, 5 not found, 7 permission.
_FOR_GOOD = (3, 5, 7)

WAIT, STUCK, DELETE, RECREATE = "wait", "stuck", "delete", "recreate"
GIVE_UP, DONE = "give up", "done"


@dataclasses.dataclass(frozen=True)
class Seen:
    """What one look at a launch found.

    Attributes:
      resource: the queued resource, None if there is none.
      ended: status.json says that this launch has ended, or somebody stopped it; for
        `ended_s` seconds already.
      step: a measure of how far the run is that grows with what is saved.
      quiet_s: seconds since the heartbeat, or the resource's state, last changed.
      given_back: why its first worker deleted the resource of a run that has not ended, as it
        does where the start-up failed.
    """

    resource: Resource | None = None
    ended: bool = False
    ended_s: float = 0.0
    step: int = 0
    quiet_s: float = 0.0
    given_back: str = ""


@dataclasses.dataclass(frozen=True)
class History:
    """What this launch's watchers have done so far.

    Attributes:
      recreations: since `step` was reached.
      step: the newest that a recreation has seen.
      pending: whether it is to be created again, its old resource deleted.
      absent: looks in a row that found no resource.
    """

    recreations: int = 0
    step: int = 0
    pending: bool = False
    absent: int = 0


@dataclasses.dataclass(frozen=True)
class Decision:
    """What to do, why, and for RECREATE after how many seconds."""

    action: str
    reason: str = ""
    after_s: float = 0.0


def decide(seen: Seen, history: History) -> Decision:
    """What to do about a launch."""
    found = seen.resource
    if seen.ended:
        if found is None:
            return Decision(DONE)
        going = found.state == "DELETING" or seen.ended_s < GRACE_S
        return Decision(WAIT if going else DELETE, "the run has ended")
    if found is None:
        if history.pending:
            return _again(seen, history, "it is gone")
        if seen.given_back:
            return _again(seen, history, seen.given_back)
        if history.absent < _ABSENT:
            return Decision(WAIT)
        return Decision(GIVE_UP, "its resource is gone, though the run has not ended")
    if found.state == "FAILED":
        why = f"it FAILED: {found.reason or 'no reason given'}"
        if found.code in _FOR_GOOD:
            return Decision(GIVE_UP, why)
        return _again(seen, history, why)
    if found.state == "SUSPENDED":
        if found.by_user:
            return Decision(GIVE_UP, "somebody suspended it")
        return _again(seen, history, "it was SUSPENDED, as preempted ones are")
    quiet = f"no new heartbeat for {seen.quiet_s / 60:.0f} min"
    if found.state == "ACTIVE" and seen.quiet_s > LOST_S:
        return _again(seen, history, f"it is ACTIVE, with {quiet}")
    if found.state == "ACTIVE" and seen.quiet_s > STUCK_S:
        return Decision(STUCK, quiet)
    return Decision(WAIT)


def _again(seen: Seen, history: History, why: str) -> Decision:
    before = 0 if seen.step > history.step else history.recreations
    if not history.pending and before >= MOST:
        return Decision(GIVE_UP, f"{why}; created again {before} times without a new checkpoint")
    # A pending one is counted already.
    return Decision(RECREATE, why, pause_s(before - history.pending))


def pause_s(recreations: int) -> float:
    """Seconds before the next one."""
    return min(FIRST_PAUSE_S * 2.0 ** min(max(recreations, 0), 30), LONGEST_PAUSE_S)
