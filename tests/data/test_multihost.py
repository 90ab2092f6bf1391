"""One, two and four real processes, over loopback: who reads what, and who goes on where."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from pit_jax.data import order

from ..parallel.test_processes import MESH, alone, finish, group, losses

EXAMPLES, BATCH, SEED = 101, 16, 5
STEPS = -(-2 * EXAMPLES // BATCH)  # two epochs, of which none ends with a batch
STOPPED = 5  # steps done before the number of processes changes

# Every example is its own number. A process says which it holds of every batch, and which it
# has read for that.
READING = """
import contextlib, itertools, json, sys
import numpy as np
from pit_jax.parallel import processes
processes.start(60)
import jax
from jax.sharding import NamedSharding
from pit_jax import config
from pit_jax.data import pipeline, sources
from pit_jax.parallel import mesh as meshes

examples, batch, seed, first, last = map(int, sys.argv[1:])
read = []

class Numbers(sources.Source):
    native_shape = (1, 1)

    def __len__(self):
        return examples

    def __getitem__(self, index):
        read.append(index)
        return np.zeros((1, 1, 1), np.uint8), index

mesh = meshes.make_mesh({"data": -1, "fsdp": 1, "seq": 1, "model": 1})
sharding = NamedSharding(mesh, meshes.batch_spec())
data = config.base().data
data.update(image_size=1, channels=1, in_memory_gb=0.0, num_classes=examples)
reader = pipeline.Reader(Numbers(), data, train=True)
input = pipeline.Pipeline(reader, sharding, batch, 0)

def held(number, found):
    shards = sorted((s.index[0].start or 0, s.data) for s in found.addressable_shards)
    for start, values in shards:
        for row, value in enumerate(np.asarray(values)):
            yield number * batch + start + row, int(value)

def of(batches, numbers):
    with contextlib.closing(batches):
        return [x for n, found in zip(numbers, batches) for x in held(n, found["index"])]

rows = pipeline.local_rows(sharding, batch)
exactly = pipeline.TrainBatches(reader, seed, batch, rows)  # none ahead
for step in range(first, last):
    exactly[step]
result = {"read": list(read)}
read.clear()
result["evaluation"] = of(input.evaluate(), itertools.count())
result["read_evaluation"] = list(read)
# Last: what is read ahead here is read without end.
result["train"] = of(input.train(seed, first), range(first, last))
print(json.dumps(result))
"""


def start(script, count: int, first: int, last: int) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", f"count={8 // count}"),
        "PYTHONPATH": os.getcwd(),
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(count),
    }
    numbers = map(str, (EXAMPLES, BATCH, SEED, first, last))
    words = [sys.executable, str(script), *numbers]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [
        subprocess.Popen(words, env=environment | {"JAX_PROCESS_ID": str(number)}, **pipes)
        for number in range(count)
    ]


def results(processes: list[subprocess.Popen]) -> list[dict]:
    found = [process.communicate(timeout=120) for process in processes]
    assert not any(process.returncode for process in processes), found
    return [json.loads(out.splitlines()[-1]) for out, _ in found]


@pytest.fixture(scope="module")
def read(tmp_path_factory) -> dict[int, list[dict]]:
    """What every process of one, two and four says: four are stopped, and two go on there."""
    script = tmp_path_factory.mktemp("reading") / "reading.py"
    script.write_text(READING)
    spans = {1: (0, STEPS), 4: (0, STOPPED), 2: (STOPPED, STEPS)}
    started = {count: start(script, count, *span) for count, span in spans.items()}
    return {count: results(processes) for count, processes in started.items()}


def in_order(parts: list[dict], what: str) -> list[int]:
    """Examples by their position in the epochs, each held by one process alone."""
    found = list(itertools.chain.from_iterable(part[what] for part in parts))
    positions = [position for position, _ in found]
    assert len(set(positions)) == len(positions)
    return [example for _, example in sorted(found)]


def test_a_pass_is_every_example_once(read):
    (alone,) = read[1]
    examples = [example for _, example in alone["train"]]
    for epoch in range(2):
        assert sorted(examples[epoch * EXAMPLES :][:EXAMPLES]) == list(range(EXAMPLES))
    np.testing.assert_array_equal(examples, order.examples(SEED, EXAMPLES, np.arange(208)))


@pytest.mark.parametrize("count", [2, 4])
def test_each_process_reads_its_own_part_and_no_more(read, count):
    for part in read[count]:
        assert sorted(part["read"]) == sorted(example for _, example in part["train"])
        assert len(part["read"]) * count == len(in_order(read[count], "train"))


def test_stopped_on_four_processes_it_goes_on_at_the_same_example_on_two(read):
    whole = in_order(read[1], "train")
    on_four, on_two = in_order(read[4], "train"), in_order(read[2], "train")
    assert len(on_four) == STOPPED * BATCH
    assert on_four + on_two == whole
    epoch = on_four + on_two[: EXAMPLES - len(on_four)]
    assert sorted(epoch) == list(range(EXAMPLES))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_evaluation_is_every_example_once_on_any_number_of_processes(read, count):
    """Behind the last example the batch is filled up with the first, which is masked."""
    rows = in_order(read[count], "evaluation")
    assert rows == list(range(EXAMPLES)) + [0] * (-EXAMPLES % BATCH)
    everything = sorted(itertools.chain(*(part["read_evaluation"] for part in read[count])))
    assert everything == sorted(rows)


@pytest.mark.slow
def test_a_run_stopped_on_four_processes_goes_on_with_two(tmp_path):
    """The whole trainer: the losses are those of a run that one process made."""
    one, run = tmp_path / "one", tmp_path / "run"
    alone(one)
    four = group(run, 4, **MESH)
    deadline = time.time() + 240
    while len(losses(run)) < 3 and time.time() < deadline:
        time.sleep(0.02)
    four[2].send_signal(signal.SIGTERM)
    finish(four, code=75)
    assert len(losses(run)) < 20
    finish(group(run, 2, **MESH))
    np.testing.assert_allclose(losses(run), losses(one), rtol=1e-5)
    assert len(losses(run)) == 20
