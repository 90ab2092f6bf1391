"""One writer a run directory: the lease that a run holds while it writes there.

lease.json says who writes, and is written again every few seconds. Whoever finds another's
takes it over only once it has run out: its processes are dead, or it was not renewed for its
time to live. Clocks of people jump and differ, so nobody compares dates: on the machine of
the holder the clock that counts from its start is shared, and anywhere else the lease is
watched to see whether it changes.

Only one of several that want it gets it: in gs:// an object is replaced if its generation is
the one that was read, on a disk under a lock (flock) that ends with its process. s3:// offers
neither here: there is no lease there.
"""

import contextlib
import datetime
import json
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from pit_jax import files
from pit_jax.errors import ConfigError, StorageError
from pit_jax.lease_holder import TTL_S, Holder, me
from pit_jax.lease_store import Bucket, Disk
from pit_jax.rundir import RunDir

FILE = "lease.json"
OWNER = "PIT_JAX_OWNER"  # variable with the owner's token, for the processes of a supervisor
RENEW_S = 10.0
_LONGEST_TTL_S = 600.0  # whatever a file says


def new_owner() -> str:
    """What $PIT_JAX_OWNER says, or else a token that nobody has."""
    return os.environ.get(OWNER) or secrets.token_hex(16)


class Lease:
    """A lease that this process holds, renewed by a thread of its own."""

    def __init__(self, store: Disk | Bucket, owner: str, renew_s: float, ttl_s: float):
        self._store, self._owner = store, owner
        self._renew_s, self._ttl_s = renew_s, ttl_s
        self._version: Any = None
        self._renewed = 0.0  # by the monotonic clock, before it was written
        self._lost = ""
        self._busy = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_renewing, name="lease", daemon=True)

    def check(self) -> None:
        """Returns while nobody else can have taken the lease. Call before every write.

        Raises:
          StorageError: once another run took it, or it could not be renewed for so long that
            another may have.
        """
        if not self._lost and self._runs_out():
            with contextlib.suppress(Exception):  # this process may have slept: once more
                self._renew()
            if not self._lost and self._runs_out():
                self._lost = (
                    f"{self._store.path} could not be renewed for {self._age():.0f} s:"
                    " another run may have taken the directory over, so this one ends"
                )
        if self._lost:
            raise StorageError(self._lost)

    def _age(self) -> float:
        return time.monotonic() - self._renewed

    def _runs_out(self) -> bool:
        return self._age() > self._ttl_s

    # Taking ---------------------------------------------------------------------------

    def take(self, say: Callable[[str], None]) -> None:
        """Waits while it cannot be told whether the holder lives.

        Raises:
          ConfigError: if it does.
          StorageError: if the file cannot be read or written.
        """
        seen, since = None, 0.0
        while True:
            content, version = self._store.read()
            holder = Holder.of(content)
            if version is None or holder.owner == self._owner or holder.is_dead():
                if self._write(holder, version):
                    return
                continue
            ttl = min(holder.ttl_s, _LONGEST_TTL_S)
            age = holder.age()
            if age is None:  # another machine's
                if version != seen and seen is not None:
                    self._refuse(holder, 0.0)
                if seen is None:
                    say(
                        f"{self._store.path}: {holder} holds the directory; it is taken over"
                        f" unless that renews its lease within {ttl:.0f} s"
                    )
                    seen, since = version, time.monotonic()
                age = time.monotonic() - since
            elif age < ttl:
                self._refuse(holder, age)
            if age >= ttl:
                if self._write(None, version):
                    return
                continue
            time.sleep(min(ttl / 60, 1.0))

    def _refuse(self, holder: Holder, age: float) -> None:
        raise ConfigError(
            f"{self._store.path.parent} is being written by {holder}, which renewed its lease"
            f" {age:.0f} s ago: end that run, or name another directory"
        )

    def start(self) -> None:
        self._thread.start()

    # Renewing -------------------------------------------------------------------------

    def _keep_renewing(self) -> None:
        while not self._ended.wait(self._renew_s) and not self._lost:
            with contextlib.suppress(Exception):  # tried again, until `check` finds it run out
                self._renew()

    def _renew(self) -> None:
        with self._busy:
            if self._ended.is_set():
                return
            content, version = self._store.read()
            holder = Holder.of(content)
            if holder.owner != self._owner and (holder.owner or self._runs_out()):
                # What is gone or unreadable before its time was not taken over by a run.
                by = f"by {holder}" if holder.owner else "while this process could not renew it"
                self._lost = f"{self._store.path} was taken over {by}: this run ends"
                return
            self._write(holder, version)

    def _write(self, before: Holder | None, version: Any) -> bool:
        """Writes it as renewed now; whether nobody else had changed it from `version`."""
        now = time.monotonic()
        others = before.living() if before and before.owner == self._owner else []
        made = {
            "owner": self._owner,
            "processes": [*(p for p in others if p != me()), me()],
            "renewed": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "monotonic": now,
            "ttl_s": self._ttl_s,
            "write": secrets.token_hex(8),  # so that no two are the same
        }
        if not self._store.replace((json.dumps(made) + "\n").encode(), version):
            return False
        self._renewed = now
        return True

    def release(self) -> None:
        """Ends the thread, and deletes the file unless others of the same owner need it."""
        with self._busy:
            self._ended.set()
        with contextlib.suppress(Exception):  # then it runs out
            while not self._lost:
                content, version = self._store.read()
                holder = Holder.of(content)
                if holder.owner != self._owner:
                    return
                left = [p for p in holder.living() if p != me()]
                kept = json.dumps(holder.content | {"processes": left}) + "\n"
                if self._store.replace(kept.encode() if left else None, version):
                    return


@contextlib.contextmanager
def held(
    run: RunDir,
    owner: str | None = None,
    *,
    renew_s: float = RENEW_S,
    ttl_s: float = TTL_S,
    say: Callable[[str], None] | None = None,
) -> Iterator[Lease | None]:
    """Holds the directory of a run for one writer, this process, and makes it if need be.

    Meanwhile every write through `run` checks first that the lease was not lost.

    Args:
      owner: who asks; processes of the same owner share a lease. By default what
        $PIT_JAX_OWNER says, or else nobody but this call.
      renew_s, ttl_s: seconds from one renewal to the next, and until it runs out without.
      say: takes the line that says that another's lease is being watched.

    Yields:
      The lease; None on s3://.

    Raises:
      ConfigError: while another holds it, with host, process and how long ago it renewed; or if
        no checkpoint could be written under its name.
      StorageError: if the directory cannot be read or written.
    """
    files.check_name(run.path, "--workdir")
    if str(run.path).startswith("s3://"):
        yield None
        return
    in_bucket = files.in_bucket(run.path)
    place = run.path / FILE
    store = Bucket(place, max(renew_s, 1.0)) if in_bucket else Disk(place)
    owner = owner or new_owner()
    lease = Lease(store, owner, renew_s, ttl_s)
    lease.take(say or _to_stderr)
    lease.start()
    before, run.guard = run.guard, lease.check
    try:
        yield lease
    finally:
        run.guard = before
        lease.release()


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
