"""What makes a training step fast on a CPU, one change after the other?

    python -m experiments.speed
    python -m experiments.readme

Question: how much of PiT-T's speed at 32×32 (3 heads, batch 8, float32) each measure
brings. What varies: the measures, added in the order of `VARIANTS`; rounds alternate, each
measurement is a process of its own. Cost: about five minutes on two CPU cores. Writes
experiments/results/speed.json.
"""

import argparse
import datetime
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

OUTPUT = Path(__file__).parent / "results" / "speed.json"
SPEC = "configs/cifar100.py:pit-t"
WORDS = ["--config.model.heads=3", "--config.train.batch_size=8"]
ONE_DEVICE = "--xla_force_host_platform_device_count=1"

# What each line still lacks: attention by blocks, our gradients of GELU and layer norm, a
# device for every core, huge pages, our gradients of dense layers.
VARIANTS = {
    "XLA's attention": {"blocks", "gradients", "devices", "pages", "products"},
    "+ attention by blocks": {"gradients", "devices", "pages", "products"},
    "+ GELU and layer norm that keep less": {"devices", "pages", "products"},
    "+ a device for every core": {"pages", "products"},
    "+ huge pages": {"products"},
    "+ dense layers' gradients without transposed copies": set(),
}
ROUNDS, STEPS = 3, 3


def child(lacks: set[str], cache: str) -> list[float]:
    """Seconds of some steps in this process, after two that are not counted."""
    import flax.linen as nn
    import jax

    from pit_jax import configfile
    from pit_jax.models import transformer
    from pit_jax.perf import bench_ours

    if "gradients" in lacks:
        transformer.ACTIVATIONS = {"gelu": functools.partial(nn.gelu, approximate=False)}
        transformer.LayerNorm = lambda eps, dtype, name: nn.LayerNorm(eps, dtype, name=name)
    if "products" in lacks:
        transformer.product = jax.lax.dot_general
    attention = "xla" if "blocks" in lacks else "auto"
    config = configfile.load(SPEC, [*WORDS, f"--config.model.attention={attention}"])
    bench_ours.start(configfile.to_json(config), cache)
    bench_ours.compile_step()
    bench_ours.prepare()
    return bench_ours.run(2 + STEPS)[2:]


def measure(lacks: set[str], cache: str) -> list[float]:
    """The same in a process that has or lacks what is set before one starts."""
    from pit_jax.parallel import processes

    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    if "devices" in lacks:
        environment["XLA_FLAGS"] = ONE_DEVICE
    if "pages" not in lacks:
        environment |= processes.huge_pages()
    command = [sys.executable, "-m", "experiments.speed", "--child", cache, *sorted(lacks)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measures all variants in turn and writes the medians."""
    import jax

    from pit_jax.perf.bench import processor

    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory() as cache:
        for number in range(ROUNDS):
            for name, lacks in VARIANTS.items():
                times[name] += measure(lacks, cache)
                print(f"round {number + 1}: {name}: {statistics.median(times[name]):.3f} s")
    result = {
        "command": "python -m experiments.speed",
        "machine": processor(),
        "versions": {"python": platform.python_version(), "jax": jax.__version__},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "step_s": {name: statistics.median(t) for name, t in times.items()},
    }
    OUTPUT.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    given = argparse.ArgumentParser()
    given.add_argument("--child", nargs="+")
    words = given.parse_args().child
    if words:
        print(json.dumps(child(set(words[1:]), words[0])))
    else:
        main()
