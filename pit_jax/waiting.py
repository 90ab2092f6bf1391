"""Services on the network that are silent, said: their clients try for a minute without a word."""

import contextlib
import sys
import threading
from collections.abc import Iterator

from pit_jax import printing

SILENT_S = 4.0
_HEARD: set[str] = set()  # those that have answered this process, or were said not to


@contextlib.contextmanager
def announced(service: str, answers: bool = True) -> Iterator[None]:
    """Says once that a service is waited for, where a block with its calls takes seconds.

    Args:
      service: its name; nothing is said of "".
      answers: whether the block ending well, or finding nothing, means that the service is there.
    """
    if not service or service in _HEARD:
        yield
        return
    line = f"waiting for {service} to answer: is there a network, and are there credentials?"
    timer = threading.Timer(SILENT_S, lambda: printing.line(line, sys.stderr))
    timer.daemon = True
    timer.start()
    heard = answers
    try:
        yield
    except FileNotFoundError:
        raise
    except BaseException:
        heard = False
        raise
    finally:
        if heard or not timer.is_alive():  # answered, or said: once is enough
            _HEARD.add(service)
        timer.cancel()
