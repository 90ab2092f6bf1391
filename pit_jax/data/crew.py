"""Processes that work a list of tasks off, each taking the next one when it is done.

A process ends with the one that started it, however that ends: it finds nobody at the other
end of its pipe.
"""

import contextlib
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from multiprocessing.connection import Connection
from typing import Any

from pit_jax.errors import PitError, StorageError


def each(
    function: Callable[[Any, Callable[[Any], None]], Any],
    tasks: Sequence[Any],
    workers: int,
    report: Callable[[Any], None],
) -> Iterator[Any]:
    """`function(task, report)` of every task, as they are done.

    Args:
      function: is sent to the processes, as are the tasks and its results. What it tells its
        own `report` meanwhile reaches the caller's.
      workers: processes; of one task, or by one worker, all is done here.

    Raises:
      StorageError: if a process was killed, for want of memory for instance.
      Exception: what `function` raises; the other processes are ended then.
    """
    if min(workers, len(tasks)) <= 1:
        for task in tasks:
            yield function(task, report)
        return
    # Not forked: ArrayRecord has threads.
    context = multiprocessing.get_context("spawn")
    waiting, processes = deque(tasks), {}
    try:
        for _ in range(min(workers, len(tasks))):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(function, theirs), daemon=True)
            processes[ours] = process
            process.start()
            theirs.close()
            ours.send(waiting.popleft())
        while processes:
            for pipe in connection.wait(list(processes)):
                try:
                    kind, value = pipe.recv()
                    if kind == "done" and waiting:
                        pipe.send(waiting.popleft())
                    elif kind == "done":
                        pipe.close()  # it ends
                        processes.pop(pipe).join()
                except (EOFError, ConnectionError):
                    raise _ended(processes[pipe]) from None
                if kind == "failed":
                    raise value
                if kind == "told":
                    report(value)
                else:
                    yield value
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            process.join()


def _work(function: Callable, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the other process's business
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            task = pipe.recv()
            try:
                result = function(task, lambda words: pipe.send(("told", words)))
            except PitError as error:
                pipe.send(("failed", error))
            else:
                pipe.send(("done", result))


def _ended(process: Any) -> Exception:
    process.join()
    if process.exitcode < 0:
        return StorageError(
            f"a process was ended by signal {-process.exitcode}, perhaps for want of memory:"
            " start again, perhaps with fewer --workers"
        )
    return RuntimeError(f"a process ended with exit code {process.exitcode}")
