"""A run directory claimed by all processes of a run: one of them writes, and all see it."""

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator

from pit_jax import files, lease
from pit_jax.errors import ConfigError
from pit_jax.parallel import leader
from pit_jax.rundir import RunDir

_SHARED_S = 10.0  # for a new file to be seen by other machines


@contextlib.contextmanager
def of_all(run: RunDir, start: Callable[[], None]) -> Iterator[None]:
    """Holds a run's directory for its processes: process 0 has the lease, and all are told.

    Args:
      start: called on process 0, before anything is written, to refuse what may not be started,
        and to make the directory.

    Raises:
      ConfigError: on all processes, if `start` or `lease.held` does, or if they do not all see the
        directory that process 0 writes.
      StorageError: on all processes, if the directory cannot be read or written.
    """
    nonce = secrets.token_hex(8)
    with contextlib.ExitStack() as stack:

        def claim() -> bytes:
            stack.callback(run.leave)  # of what is refused nothing stays
            start()
            stack.enter_context(lease.held(run))
            if leader.several():
                run.write(f".shared-{nonce}", "")
            return nonce.encode()

        found = leader.by_process_0(claim).decode()
        if leader.several():
            _check_shared(run, f".shared-{found}")
        yield


def _check_shared(run: RunDir, name: str) -> None:
    """Whether all processes see what process 0 wrote; it is deleted afterwards."""
    path = run.path / name
    deadline = time.monotonic() + _SHARED_S
    seen = False
    while not seen and time.monotonic() < deadline:
        with contextlib.suppress(Exception):  # not seen
            seen = path.exists()
        if not seen:
            time.sleep(0.2)
    blind = [str(number) for number, sees in enumerate(leader.on_all(seen)) if not sees]
    if leader.leads():
        with files.told(path):
            path.unlink(missing_ok=True)
    if blind:
        which = "processes {} do" if blind[1:] else "process {} does"
        raise ConfigError(
            f"--workdir {run.path} is not shared: {which.format(', '.join(blind[:8]))} not see what"
            " process 0 writes there. Name a directory that all machines share, or one on gs://"
        )
