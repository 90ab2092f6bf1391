"""The side of a bench that runs this project's training step, in a process of its own."""

import os
import time
from typing import Any

import numpy as np

from pit_jax import configfile, validation
from pit_jax.parallel import processes
from pit_jax.perf import worker

_state: dict[str, Any] = {}


def start(config: str, cache: str) -> dict:
    """Builds the step of a resolved config's JSON; compilations go to the folder `cache`."""
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU is shared
    c = configfile.from_json(config)
    processes.start(c.launch.heartbeat_s, c.train.deterministic, validation.cpu_devices(c))
    import jax

    from pit_jax import step, tasks
    from pit_jax.lengths import Clock
    from pit_jax.parallel import mesh as meshes

    mesh = meshes.make_mesh(c.mesh)
    validation.check_batch(c, dict(mesh.shape))
    task = tasks.build(c)
    size = c.train.batch_size
    steps = step.build(task, c, mesh, Clock(size, 100 * size, 1000))
    rng = np.random.default_rng(0)
    batch = {}
    for name, x in task.batch_shapes(size).items():
        high = 256 if x.dtype == np.uint8 else c.data.num_classes
        whole = np.issubdtype(x.dtype, np.integer)
        numbers = rng.integers(0, high, x.shape) if whole else rng.random(x.shape)
        batch[name] = numbers.astype(x.dtype)
    cost = task.flops()
    with jax.set_mesh(mesh):
        attends = task.attends()
    _state.update(config=c, mesh=mesh, task=task, steps=steps, batch=batch)
    return {
        "attention": attends,
        "platform": jax.default_backend(),
        "device_kind": jax.devices()[0].device_kind,
        "devices": mesh.size,
        "tokens": cost.tokens,
        "flops": cost.training,
        "flops_full": 3 * cost.forward,
        "start_bytes": worker.resident_peak(),
    }


def compile_step() -> float:
    """Traces and compiles the training step; seconds."""
    import jax

    steps = _state["steps"]
    shapes = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=steps.batch_sharding)
        for name, x in _state["batch"].items()
    }
    start = time.perf_counter()
    with jax.set_mesh(_state["mesh"]):
        _state["compiled"] = steps.train.lower(steps.shapes, shapes).compile()
    return time.perf_counter() - start


def export(path: str) -> None:
    """Writes weights for the other side, a batch as the model sees it, and our results on
    it in float32, to an .npz file."""
    import jax
    import jax.numpy as jnp

    from pit_jax import tasks
    from pit_jax.config import assign
    from pit_jax.weights import counterpart

    c = validation.resolve(_state["config"])
    assign(c, "model.dtype", "float32")
    task = tasks.build(c)
    with jax.set_mesh(_state["mesh"]), jax.default_matmul_precision("highest"):
        params = task.init(jax.random.key(c.train.seed))
        params = counterpart.awake(params)
        ready = jax.jit(task.augment)(_state["batch"], jax.random.key(1))
        outputs, loss = jax.jit(task.outputs)(params, ready)
        if "time" in ready:
            outputs = jnp.moveaxis(outputs, -1, 1)  # (B, C, H, W)
        arrays = {"outputs": outputs, "loss": loss} | counterpart.inputs(task, ready)
        theirs = counterpart.tensors(params, c)
    arrays |= {f"weight/{name}": value for name, value in theirs.items()}
    np.savez(path, **{name: np.asarray(value) for name, value in arrays.items()})


def prepare() -> None:
    """The state and the batch on the devices."""
    import jax

    steps = _state["steps"]
    with jax.set_mesh(_state["mesh"]):
        _state["batch"] = jax.device_put(_state["batch"], steps.batch_sharding)
        _state["now"] = steps.init(jax.random.key(0))
        jax.block_until_ready(_state["now"])


def run(count: int) -> list[float]:
    """Seconds of each of `count` training steps."""
    import jax

    seconds = []
    with jax.set_mesh(_state["mesh"]):
        for _ in range(count):
            start = time.perf_counter()
            _state["now"], metrics = _state["compiled"](_state["now"], _state["batch"])
            jax.block_until_ready(metrics)
            seconds.append(time.perf_counter() - start)
    return seconds


def memory() -> int:
    """Peak bytes: of the fullest device, on a CPU of the process."""
    import jax

    stats = [device.memory_stats() for device in jax.local_devices()]
    if not all(stats):
        return worker.resident_peak()
    return max(s["peak_bytes_in_use"] for s in stats)


def matmul_peak() -> float:
    """FLOP/s of one large matrix product on all devices at once, the best of several.

    float32 on a CPU, bfloat16 elsewhere: what the training step multiplies in.
    """
    import jax
    import jax.numpy as jnp

    on_cpu = jax.default_backend() == "cpu"
    n, dtype = (2048, jnp.float32) if on_cpu else (8192, jnp.bfloat16)
    devices = jax.devices()
    key = jax.random.key(0)
    pairs = [
        tuple(jax.device_put(jax.random.normal(key, (n, n), dtype), d) for _ in range(2))
        for d in devices
    ]
    multiply = jax.jit(jnp.matmul)
    best = float("inf")
    for _ in range(24):
        start = time.perf_counter()
        jax.block_until_ready([multiply(a, b) for a, b in pairs])
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 * len(devices) / best


if __name__ == "__main__":
    functions = (start, compile_step, export, prepare, run, memory, matmul_peak)
    worker.serve({function.__name__: function for function in functions})
