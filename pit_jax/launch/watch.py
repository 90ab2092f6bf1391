"""The watcher: recreates what was suspended, failed, preempted or hangs, deletes what is done.

A queued resource knows no "finished" and does not come back once it is SUSPENDED. So somebody
looks, from any machine that stays on: whether a run has ended stands in its status.json, and
what is created again is the very request of its launch.json. decision.py says what to do from
what was seen; this looks and does it. Killed at any moment, a watcher that is started
again goes on: what it was about to create again is noted in <workdir>/launch.json.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pit_jax import files
from pit_jax.errors import EXIT_INTERRUPTED, ConfigError, PitError, Stopped
from pit_jax.launch import queue, records, upload
from pit_jax.launch.decision import (
    DELETE,
    DONE,
    GIVE_UP,
    LOST_S,
    MOST,
    RECREATE,
    STUCK,
    STUCK_S,
    Decision,
    History,
    Seen,
    decide,
    pause_s,
)
from pit_jax.launch.queue import Client, Exhausted, NoLogin
from pit_jax.launch.request import Request
from pit_jax.launch.supervisor import HEARTBEAT
from pit_jax.rundir import RunDir

POLL_S = 60.0
_ALIVE = ("CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")


def saved(run: RunDir, record: Mapping[str, Any]) -> int:
    """How far a launch is: the newest step that was saved whole; of a shard, its runs done."""
    with contextlib.suppress(OSError, PitError, ValueError):
        if record.get("sweep"):
            sweep = RunDir(record["sweep"]).path
            runs = [RunDir(sweep / directory) for directory in record.get("points", ())]
            return sum(one.status().get("state") == "done" for one in runs)
        names = [path.name.removesuffix(".json") for path in (run.path / "manifests").iterdir()]
        return max((int(name) for name in names if name.isdecimal()), default=0)
    return 0


class Launch:
    """One launch that is watched.

    Args:
      record: of launch.json, or of records.py.
      say: takes what there is to tell, a line at a time.
      client: makes the client of a project and zone.
    """

    def __init__(
        self,
        record: Mapping[str, Any],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        client: Callable[[str, str], Client] | None = None,
    ):
        self.record, self.name = record, record["name"]
        self.run = RunDir(record["workdir"])
        self.outcome = ""  # DONE or GIVE_UP, once it is over
        self.reason = ""
        self.state = ""
        self._say, self._clock = say, clock
        self._connect = lambda: (client or queue.Client)(record["project"], record["zone"])
        self._client: Client | None = None
        with contextlib.suppress(NoLogin):  # `look` says so
            self._client = self._connect()
        self._history: History | None = None  # read at the first look
        self._due: float | None = None
        self._changed: tuple[Any, float] = (None, clock())
        self._seen_at = clock()
        self._stuck = False
        self._deleting = False  # an ACTIVE one, which may be seen as such once more
        self._ended_at: float | None = None
        self._out_since: float | None = None
        self._out_for: set[type] = set()
        self._logins, self._not_before = 0, clock()

    def look(self) -> str:
        """Looks and acts once; returns the outcome, "" while there is none."""
        if self.outcome or self._clock() < self._not_before:
            return self.outcome
        try:
            if self._client is None:
                self._client = self._connect()
            seen = self._seen()
            self._reachable()
            decision = decide(seen, self._history)
            self._tell(seen, decision)
            self._act(seen, decision)
        except NoLogin as error:
            self._client = None  # what its owner logged in with meanwhile, only a new one finds
            self._not_before = self._clock() + pause_s(self._logins)
            self._logins += 1
            self._unreachable(error)
        except ConfigError as error:
            self._over(GIVE_UP, str(error))
        except PitError as error:  # unreachable, or storage that is: it waits
            self._unreachable(error)
        return self.outcome

    def _seen(self) -> Seen:
        if self._history is None:
            with files.told(self.run.path, "read"):
                self._history = _history(upload.record(self.run).get("watch"))
        resource = self._client.get(self.name)
        if resource is not None and resource.launch != self.record["id"]:
            if not self._history.pending:
                raise ConfigError(f"{self.name} is now of another launch: it was left alone")
            resource = None
        absent = 0 if resource else self._history.absent + 1
        self._history = dataclasses.replace(self._history, absent=absent)
        with files.told(self.run.path, "read"):
            now = upload.record(self.run)
            ended = upload.ended(self.run, now or self.record)
            step = saved(self.run, self.record)
            given_back = self._given_back() if resource is None and not ended else ""
        if now and now.get("id") != self.record["id"]:
            raise ConfigError(f"{self.run.path} is now of the launch {now.get('name')}")
        beat = (self._heartbeat(), resource.state if resource else None)
        unseen_s, self._seen_at = self._clock() - self._seen_at, self._clock()
        if beat != self._changed[0] or unseen_s > STUCK_S:  # it may have been at work meanwhile
            self._changed, self._stuck, self._deleting = (beat, self._clock()), False, False
        alive = resource is not None and resource.state in _ALIVE and not self._deleting
        if self._history.pending and alive:
            self._due = None
            self._remember(dataclasses.replace(self._history, pending=False))
        if not ended:
            self._ended_at = None
        elif self._ended_at is None:
            self._ended_at = self._clock()
        ended_s = self._clock() - self._ended_at if ended else 0.0
        quiet_s = self._clock() - self._changed[1]
        return Seen(resource, ended, ended_s, step, quiet_s, given_back)

    def _given_back(self) -> str:
        status = self.run.status()
        if status.get("state") != "failed" or status.get("launch") != self.record["id"]:
            return ""
        return f"it failed ({status.get('reason') or 'no reason given'})"

    def _heartbeat(self) -> Any:
        """What heartbeat.json says: that it changes counts, since clocks differ."""
        path = self.run.path / HEARTBEAT
        with contextlib.suppress(ValueError, PitError, OSError):
            return files.read_json(path)
        return None

    # Acting ---------------------------------------------------------------------------

    def _act(self, seen: Seen, decision: Decision) -> None:
        if decision.action == DELETE:
            self._client.delete(self.name, self.record["id"])
        elif decision.action == DONE:
            self._over(DONE, self._how_it_ended())
        elif decision.action == GIVE_UP:
            if seen.resource and seen.resource.state in ("FAILED", "ACTIVE"):
                self._say(f"{self.name}: its {seen.resource.state} resource is deleted")
                self._client.delete(self.name, self.record["id"])
            self._over(GIVE_UP, decision.reason)
        elif decision.action == RECREATE:
            self._recreate(seen, decision)

    def _recreate(self, seen: Seen, decision: Decision) -> None:
        """Deletes what is left, and creates it again once the pause is over."""
        if self._due is None:
            self._due = self._clock() + decision.after_s
        if not self._history.pending:
            fresh = seen.step > self._history.step
            count = 1 if fresh else self._history.recreations + 1
            self._remember(History(count, max(seen.step, self._history.step), True))
        if seen.resource is not None:
            self._deleting = True
            self._client.delete(self.name, self.record["id"])
        elif self._clock() >= self._due:
            found = upload.record(self.run) or self.record
            if found.get("stopped"):  # since it was looked at
                return
            try:
                self._client.create(Request.from_json(found.get("request")))
            except Exhausted as error:
                self._refused(str(error))
                return
            self._due = None
            self._remember(dataclasses.replace(self._history, pending=False, absent=0))
            self._say(f"{self.name}: created again")

    def _refused(self, why: str) -> None:
        """No quota now: it counts as a recreation that failed at once."""
        self._say(f"{self.name}: {why}")
        count = self._history.recreations + 1
        if count > MOST:
            self._over(GIVE_UP, f"{why}; asked {MOST} times")
            return
        self._due = self._clock() + pause_s(count - 1)
        self._remember(dataclasses.replace(self._history, recreations=count))

    def _remember(self, history: History) -> None:
        """Before it is acted on, so that a watcher that is killed is followed by another."""
        kept = {"recreations": history.recreations, "step": history.step}
        kept["pending"] = history.pending
        upload.note(self.run, self.record["id"], watch=kept)
        self._history = history

    # Telling --------------------------------------------------------------------------

    def _tell(self, seen: Seen, decision: Decision) -> None:
        state = seen.resource.state if seen.resource else "none"
        if state != self.state:
            self.state = state
            if seen.resource:
                self._say(f"{self.name}: {state}")
        if decision.action == RECREATE and self._due is None:
            after = decision.after_s / 60
            self._say(f"{self.name}: {decision.reason}; to be created again in {after:.0f} min")
        if decision.action == DELETE:
            self._say(f"{self.name}: {decision.reason}; it is deleted")
        if decision.action == STUCK and not self._stuck:
            self._stuck = True
            self._say(
                f"{self.name} seems stuck: {decision.reason}; after {LOST_S / 3600:.0f} h it is"
                f" created again; see pit-jax launch logs {self.name}"
            )

    def _over(self, outcome: str, reason: str) -> None:
        self.outcome, self.reason = outcome, reason
        self._say(f"{self.name}: {reason}" + ("; given up" if outcome == GIVE_UP else ""))
        records.note(self.record, outcome=f"{outcome}: {reason}")

    def _how_it_ended(self) -> str:
        status = self.run.status()
        if not status.get("final"):
            return "stopped"
        reason = f", {status['reason']}" if status.get("reason") else ""
        return f"{status.get('state')}, exit code {status.get('exit_code')}{reason}"

    def _unreachable(self, error: PitError) -> None:
        if self._out_since is None:
            self._out_since = self._clock()
        if type(error) not in self._out_for:
            self._out_for.add(type(error))
            self._say(f"{self.name}: {error}; it is looked at again")

    def _reachable(self) -> None:
        if self._out_since is not None:
            gone = self._clock() - self._out_since
            self._out_since, self._logins = None, 0
            self._out_for.clear()
            self._say(f"{self.name}: reached again after {gone:.0f} s")


def _history(found: Any) -> History:
    """What launch.json says of earlier watchers."""
    found = found if isinstance(found, dict) else {}
    numbers = [found.get(name) for name in ("recreations", "step")]
    if any(type(number) is not int or number < 0 for number in numbers):
        return History()
    return History(*numbers, pending=found.get("pending") is True)


def watch(
    found: Sequence[Mapping[str, Any]],
    say: Callable[[str], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    client: Callable[[str, str], Client] | None = None,
) -> list[Launch]:
    """Looks after launches until all have ended; returns them.

    Args:
      found: their launch.json.

    Raises:
      Stopped: after Ctrl-C.
    """
    say = say or _print
    launches = [Launch(record, say, clock, client) for record in found]
    left = launches
    try:
        while left := [one for one in left if not one.look()]:
            sleep(POLL_S)
    except KeyboardInterrupt:
        names = " ".join(one.name for one in left)
        goes = "the launch goes" if len(left) == 1 else f"{len(left)} launches go"
        raise Stopped(
            EXIT_INTERRUPTED,
            f"interrupted: {goes} on; pit-jax launch watch {names} looks after it again",
        ) from None
    return launches


def _print(line: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}", flush=True)
