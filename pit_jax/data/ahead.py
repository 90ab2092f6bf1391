"""Batches before they are asked for: by grain's processes, or by a thread."""

import contextlib
import queue
import threading
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
from absl import flags

_THREADS = 8


class _Numbered:
    """Batches first, first + 1, ... as the random-access source that grain wants."""

    def __init__(self, batches: Any, first: int, count: int):
        self._batches, self._first, self._count = batches, first, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        return self._batches[self._first + int(number)]


def batches(
    numbered: Any, first: int, last: int | None, streamed: bool, workers: int
) -> Iterator[dict[str, np.ndarray]]:
    """Batches first, ..., last − 1 (None: without end); streamed ones are decoded ahead.

    Args:
      numbered: numbered[i] is batch i.
      workers: processes that decode; 0 = threads of this one.
    """
    if not streamed:
        numbers = range(first, last) if last is not None else _count_from(first)
        return (numbered[number] for number in numbers)
    import grain

    count = (last if last is not None else 1 << 40) - first
    # One element is a whole batch: workers and threads then share out steps, and the
    # order of the batches stays what it was.
    source = grain.MapDataset.source(_Numbered(numbered, first, count))
    threads = max(2, _THREADS // max(workers, 1))  # of each process; each reads a batch ahead
    reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    dataset = source.to_iter_dataset(reading)
    if workers:
        if not flags.FLAGS.is_parsed():  # grain's workers look at absl's flags
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return (batch for batch in dataset)


def _count_from(first: int) -> Iterator[int]:
    while True:
        yield first
        first += 1


def in_background(iterator: Generator, ahead: int = 2) -> Iterator:
    """`iterator`, evaluated in a thread that stays up to `ahead` elements ahead."""
    ready: queue.Queue = queue.Queue(ahead)
    stop = threading.Event()
    end = object()

    def put(item: Any) -> bool:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return True
        return False

    def run() -> None:
        try:
            for item in iterator:
                if not put((item, None)):
                    return
            put((end, None))
        except BaseException as error:  # raised again where the batch is asked for
            put((end, error))
        finally:
            iterator.close()

    thread = threading.Thread(target=run, name="input", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is end:
                return
            yield item
    finally:
        stop.set()
        # A thread that is inside JAX when the interpreter ends takes the process down.
        thread.join()
