"""Keeps a run going: starts its processes, watches them, starts them again.

What a trainer's exit code means: 0 is done; those in errors.FINAL would end the same way again; a
stop (errors.ASKED) that nobody asked us for goes on; anything else, 134 of jax.distributed among
it, is a crash, after which it is started again with growing pauses, and given up after
`Limits.retries` crashes without a new checkpoint between them. A stop that has saved nothing new
counts as a crash: whatever stops it would do so for ever.
"""

import contextlib
import dataclasses
import datetime
import json
import math
import platform
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pit_jax import beat, lease, printing, signals
from pit_jax.errors import ASKED, EXIT_BUG, EXIT_DONE, EXIT_PREEMPTED, FINAL, PitError
from pit_jax.launch import verdict
from pit_jax.launch.group import Group, Plan
from pit_jax.launch.limits import Limits
from pit_jax.launch.log import Log
from pit_jax.rundir import RunDir

HEARTBEAT = "heartbeat.json"


def supervise(
    plan: Plan,
    run: RunDir,
    limits: Limits,
    worker: str,
    launch: str,
    leads: bool,
    out: Callable[[str], None] | None = None,
    owner: str = "",
) -> int:
    """Runs the processes of `plan` on this machine until the run has ended.

    Args:
      plan: the processes of an attempt, by its number.
      run: its directory; held by a lease meanwhile if this supervisor leads.
      limits: see there.
      worker: what its log is called.
      launch: the launch's id, written into status.json.
      leads: whether process 0 is among them: then status.json and heartbeat.json are kept.
      out: takes every line that is printed; standard output by default.
      owner: of the lease; a new one by default.

    Returns:
      The exit code that it all ended with: 0, 2, 3, 4, 75 or 130 as in errors.py, else that of
      the crash after which it was given up.

    Raises:
      ConfigError: if another process writes the directory.
      StorageError: if the directory cannot be read or written.
    """
    owner = owner or lease.new_owner()
    with contextlib.ExitStack() as stack:
        if leads:
            stack.enter_context(lease.held(run, owner))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pit-jax-")))
        log = Log(run, worker, out or _print)
        supervisor = _Supervisor(plan, run, limits, worker, log, launch, leads, owner, folder)
        with supervisor.listening(), supervisor.reporting():
            return supervisor.run()


@dataclasses.dataclass
class _Supervisor:
    plan: Plan
    rundir: RunDir
    limits: Limits
    worker: str
    log: Log
    launch: str
    leads: bool
    owner: str
    folder: Path

    def __post_init__(self) -> None:
        self._signals: list[int] = []
        self._asked = -math.inf  # when the last one of them came
        self._woken = threading.Event()
        self._attempt = 0
        self._group: Group | None = None
        self._elsewhere: tuple[int, str] | None = None  # how another worker ended the run
        self._heard_at = 0.0

    # The run ----------------------------------------------------------------------------

    def run(self) -> int:
        crashes, saved = 0, self.rundir.newest_saved()
        self._begin()
        while True:
            self._attempt += 1
            code, reason = self._try()
            newest = self.rundir.newest_saved()
            goes_on = code in ASKED and newest > saved
            if newest > saved:
                crashes, saved = 0, newest
            if code == EXIT_DONE and self._leader_starts_again():
                code, reason, goes_on = EXIT_PREEMPTED, "the leader starts again", True
            if code == EXIT_DONE or code in FINAL:
                return self._ended(code, reason)
            if self._heard():
                code, reason = self._elsewhere
                return self._ended(code, reason, f"ended by {reason}")
            if self._signals:
                return self._stopped(code, reason, newest)
            crashes += not goes_on
            left = self.limits.retries - crashes
            if left < 0:
                kind = "stop" if code in ASKED else "crash"
                kinds = "stops" if code in ASKED else "crashes"
                times = f"after {crashes} {kinds}" if crashes > 1 else f"after a {kind}"
                since = (
                    f" since the checkpoint of step {saved}" if saved else " before a checkpoint"
                )
                final = EXIT_BUG if code in ASKED else code  # who reads 75 would start it again
                return self._ended(final, reason, f"given up {times}{since}: {reason}")
            pause, tries = self.limits.pause_s, ""
            if not goes_on:
                pause = min(pause * 2 ** (crashes - 1), self.limits.longest_pause_s)
                word = "try is" if left == 1 else "tries are"
                tries = f"; {left or 'no'} more {word} left after that"
            self.log.say(f"{reason}. Starting again in {pause:g} s{tries}")
            self._status(state="restarting", exit_code=code, final=False, reason=reason)
            self._woken.wait(pause)
            if self._signals:
                return self._stopped(code, reason, newest)
            if not self.leads and (found := self._leader_says()).get("final"):
                self.log.say(f"the run has ended with exit code {found['exit_code']}")
                return found["exit_code"]

    def _try(self) -> tuple[int, str]:
        """One attempt: its exit code, and in one line how it ended."""
        environment = {lease.OWNER: self.owner}
        planned = self.plan(self._attempt)
        try:
            group = Group(planned, self.log, self.folder, environment)
        except OSError as error:  # too many processes, no memory: perhaps not in a while
            return EXIT_BUG, f"no process could be started: {error.strerror or error}"
        self._group = group
        passed_on, since, why = 0, 0.0, ""
        try:
            while not group.ended:
                self._woken.wait(self.limits.poll_s)
                self._woken.clear()
                group.look()
                if len(self._signals) > passed_on:
                    passed_on, since = len(self._signals), time.monotonic()
                    self.log.say(_passing_on(self._signals))
                    # Ctrl-C, too, as SIGTERM: a Python that is starting may miss a SIGINT.
                    group.send(signal.SIGTERM) if passed_on == 1 else group.kill()
                elif passed_on and time.monotonic() - since > self.limits.grace_s:
                    why = f"did not save within {self.limits.grace_s:g} s and was killed"
                    group.kill()
                elif group.alone_s() > self._patience(group, bool(passed_on)) or self._is_over():
                    group.kill()
                elif not passed_on and self._hangs(group):
                    why = f"no step for {self.limits.hang_s:g} s"
                    self._print_stacks(group)
                    group.kill()
        except BaseException:
            group.kill()
            raise
        code, how = group.close()
        return code, (why or how).rstrip(".")

    def _patience(self, group: Group, told: bool) -> float:
        """Seconds for the others once one has ended, perhaps because all were `told` to stop."""
        if group.ends_together(told):
            return math.inf if told else self.limits.finish_s  # `grace_s` bounds the first
        return self.limits.settle_s

    def _hangs(self, group: Group) -> bool:
        limit = self.limits.hang_s
        return bool(limit) and time.monotonic() - group.last_beat > limit

    def _print_stacks(self, group: Group) -> None:
        self.log.say(f"no step for {self.limits.hang_s:g} s; where every thread is:")
        if beat.STACKS:
            group.send(beat.STACKS)
            time.sleep(self.limits.stacks_s)

    # Its end ----------------------------------------------------------------------------

    def _leader_starts_again(self) -> bool:
        """Ours is done; process 0, elsewhere, writes the last checkpoint, and may have to again."""
        deadline = time.monotonic() + self.limits.finish_s
        while not (self.leads or self._signals) and time.monotonic() < deadline:
            found = self._leader_says()
            if found.get("final") or found.get("state") == "restarting":
                return not found.get("final")
            self._woken.wait(self.limits.ask_s)
        return False

    def _begin(self) -> None:
        """What status.json says of a run that is done stays until it trains again."""
        fields: dict[str, Any] = {"final": False, "reason": ""}
        with contextlib.suppress(PitError):
            if self.rundir.status().get("state") != "done":
                fields |= {"state": "starting", "exit_code": None}
        self._status(**fields)

    def _ended(self, code: int, reason: str, conclusion: str = "") -> int:
        """For good."""
        state = "done" if code == EXIT_DONE else "failed"
        if state == "failed":
            again = f"exit code {code}: it would end the same way again, so it is not retried"
            self.log.say(conclusion or again)
            if not self.leads and code in FINAL:
                with contextlib.suppress(PitError):
                    verdict.write(self.rundir, self.worker, self.launch, code, reason)
        reason = reason if state == "failed" else ""
        self._status(state=state, exit_code=code, final=True, reason=reason)
        return code

    def _stopped(self, code: int, reason: str, newest: int) -> int:
        """Because of a signal to us; saved, unless it crashed or was killed before."""
        if code not in ASKED:
            left = (
                f"the checkpoint of step {newest} is the last one" if newest else "nothing is saved"
            )
            self.log.say(f"{reason}; {left}")
        number = self._signals[0]
        told, name = signals.exit_code(number), signal.Signals(number).name
        self._status(state="preempted", exit_code=told, final=False, reason=f"stopped by {name}")
        return told

    def _heard(self) -> bool:
        """Whether another worker has ended the run; only the leader acts on it."""
        if self.leads and self._elsewhere is None:
            self._heard_at = time.monotonic()
            self._elsewhere = verdict.read(self.rundir, self.launch)
        return self._elsewhere is not None

    def _is_over(self) -> bool:
        """Whether another worker ended the run so long ago that ours would have ended, too."""
        since = time.monotonic() - self._heard_at
        return self._elsewhere is not None and since > self.limits.finish_s

    def _leader_says(self) -> dict[str, Any]:
        """What the supervisor of process 0 wrote into status.json, empty before it has."""
        with contextlib.suppress(PitError):
            found = self.rundir.status()
            return found if found.get("launch") == self.launch else {}
        return {}

    def _status(self, **fields: Any) -> None:
        """Written while no trainer lives; what cannot be written is no reason to end."""
        if self.leads:
            try:
                self.rundir.write_status(**fields, launch=self.launch)
            except PitError as error:
                self.log.say(str(error))

    # Signals and reports ------------------------------------------------------------------

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """The first signal is passed on, the second one kills."""

        def note(number: int, frame: Any) -> None:
            now = time.monotonic()
            if now - self._asked > signals.together_s(number):
                self._signals.append(number)
                self._asked = now
            self._woken.set()

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, note) for number in signals.that_stop()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """A thread that writes heartbeat.json and the log, so that no slow disk delays a signal."""
        ended = threading.Event()

        def report() -> None:
            beaten = -self.limits.heartbeat_s
            while not ended.wait(min(1.0, self.limits.heartbeat_s)):
                self.log.flush()
                if self.leads and time.monotonic() - beaten >= self.limits.heartbeat_s:
                    beaten = time.monotonic()
                    self._heartbeat()
                    self._heard()

        thread = threading.Thread(target=report, name="report", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(10)
            self.log.flush(now=True)

    def _heartbeat(self) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        said = {"step": self._group.step() if self._group else None, "time": now}
        said |= {"host": platform.node(), "attempt": self._attempt, "launch": self.launch}
        with contextlib.suppress(PitError):
            self.rundir.write(HEARTBEAT, json.dumps(said) + "\n")


def _passing_on(signals: list[int]) -> str:
    name = signal.Signals(signals[-1]).name
    if len(signals) > 1:
        return f"{name} again: killing the run"
    return f"{name}: waiting for the run to save; once more kills it"


def _print(line: str) -> None:
    printing.line(line, sys.stdout)
