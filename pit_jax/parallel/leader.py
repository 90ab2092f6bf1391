"""What process 0 does for all: everybody gets its result, or its error."""

import threading
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from pit_jax.errors import ConfigError, StorageError

_BYTES = 2048  # of an answer
_AGAIN_S = 5.0  # collectives give up on processes that are silent for longer than 40 s
_RESULT, _NOT_YET, _BUG = 0, 1, 2
_ERRORS = (ConfigError, StorageError)


def several() -> bool:
    """Whether there are other processes."""
    return jax.process_count() > 1


def leads() -> bool:
    """Whether this is process 0."""
    return jax.process_index() == 0


def by_process_0(action: Callable[[], bytes]) -> bytes:
    """Calls `action` on process 0 and returns on all what it returned there.

    Call it on every process. The action may take its time and has at most 2 kB to say.

    Raises:
      ConfigError, StorageError: on all processes, if `action` does.
    """
    if not several():
        return action()
    outcome: list[tuple[int, bytes]] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            outcome.append((_RESULT, action()))
        except BaseException as error:
            kinds = [k for k, kind in enumerate(_ERRORS) if isinstance(error, kind)]
            failure.append(error)
            outcome.append((_BUG + 1 + kinds[0] if kinds else _BUG, str(error).encode()))

    if leads():
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
    while True:
        mine = (_NOT_YET, b"")
        if leads():
            thread.join(_AGAIN_S)
            mine = outcome[0] if outcome else mine
        code, answer = _broadcast(*mine)
        if code != _NOT_YET:
            break
    if failure:
        raise failure[0]
    if code == _BUG:
        raise StorageError(f"process 0 failed: {answer.decode(errors='replace')[:300]}")
    if code > _BUG:
        raise _ERRORS[code - _BUG - 1](answer.decode(errors="replace"))
    return answer


def on_all(mine: bool) -> list[bool]:
    """What every process says, by its number; the same list on all of them."""
    if not several():
        return [mine]
    return multihost_utils.process_allgather(np.asarray(mine)).reshape(-1).astype(bool).tolist()


def _broadcast(code: int, answer: bytes) -> tuple[int, bytes]:
    packed = np.zeros(_BYTES, np.uint8)
    answer = answer[: _BYTES - 3]
    packed[:3] = code, len(answer) // 256, len(answer) % 256
    packed[3 : 3 + len(answer)] = np.frombuffer(answer, np.uint8)
    found = np.asarray(multihost_utils.broadcast_one_to_all(packed))
    length = int(found[1]) * 256 + int(found[2])
    return int(found[0]), found[3 : 3 + length].tobytes()
