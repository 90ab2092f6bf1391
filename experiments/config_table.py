"""What does each published result take? configs/README.md, the table of all recipes.

    python -m experiments.config_table --compile     # what is not compiled yet, about an hour
    python -m experiments.config_table               # writes configs/README.md

Question: tokens, parameters, FLOPs, memory a chip and chip-hours of every published row, on
v5e and on v5p, beside the published number. What varies: the config. Cost: two minutes of
compiling a row on two CPU cores, no TPU. Results lie in experiments/results/configs.json; a
row whose config has changed since is compiled again, and until then said to be out of date.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

from pit_jax import configfile, files

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "configs.json"
README = ROOT / "configs" / "README.md"
GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Row:
    """A published result: the command that would reproduce it, and where it is from.

    `published` is empty where there is no number; `chips` names the sizes of v5e and v5p that it
    is meant for.
    """

    config: str
    published: str
    source: str
    chips: tuple[str, str]
    changes: str = ""

    @property
    def words(self) -> list[str]:
        return [f"--config.{change}" for change in self.changes.split()]

    @property
    def name(self) -> str:
        return f"{self.config} {self.changes}".strip()


SMALL, MIDDLE, LARGE = ("v5e-8", "v5p-16"), ("v5e-64", "v5p-64"), ("v5e-256", "v5p-256")
SCRATCH = "PiT paper, supervised"
ROWS = [
    Row("cifar100.py:pit-t", "85.1 %", SCRATCH, SMALL),
    Row("cifar100.py:vit-t/2", "83.6 %", SCRATCH, SMALL),
    Row("cifar100.py:pit-s", "86.4 %", SCRATCH, SMALL),
    Row("cifar100.py:vit-s/2", "83.7 %", SCRATCH, SMALL),
    Row("imagenet28.py:pit-s", "74.1 %", SCRATCH, MIDDLE),
    Row("imagenet28.py:vit-s/2", "72.9 %", SCRATCH, MIDDLE),
    Row("imagenet28.py:pit-b", "76.1 %", SCRATCH, MIDDLE),
    Row("imagenet28.py:vit-b/2", "75.7 %", SCRATCH, MIDDLE),
    Row("imagenet28.py:pit-l", "76.9 %", f"{SCRATCH}, v2", MIDDLE),
    Row("imagenet28.py:vit-l/2", "75.6 %", f"{SCRATCH}, v2", MIDDLE),
    Row(
        "imagenet28.py:pit-b",
        "76.6 %",
        f"{SCRATCH}, v2, a vector for every colour",
        MIDDLE,
        "model.embed=dictionary mesh.data=1 mesh.fsdp=-1"
        " data.augmentation.mixup=0.0 data.augmentation.cutmix=0.0",
    ),
    *(
        Row(
            "imagenet224.py:vit-b/16",
            published,
            "PiT paper, fixed length",
            MIDDLE,
            f"model.patch={patch} data.image_size={14 * patch}" if patch < 16 else "",
        )
        for patch, published in ((16, "82.8 %"), (8, ""), (4, ""), (2, ""), (1, "63.4 %"))
    ),
    *(
        Row(f"imagenet64.py:{model}", published, "PiT paper, fixed input", chips)
        for model, published, chips in (
            ("vit-s/16", "63.7 %", MIDDLE),
            ("vit-s/8", "", MIDDLE),
            ("vit-s/4", "", MIDDLE),
            ("vit-s/2", "81.0 %", MIDDLE),
            ("pit-s", "81.8 %", LARGE),
        )
    ),
    Row("flowers102.py:pit-t", "46.3 %", "PiT paper, v2, Oxford-102-Flower", SMALL),
    Row("flowers102.py:vit-t/2", "45.8 %", "PiT paper, v2, Oxford-102-Flower", SMALL),
    Row("nyu_depth.py:pit-s", "RMSE 0.72 m", "PiT paper, v2, NYU-v2 depth", SMALL),
    Row("nyu_depth.py:vit-s/2", "RMSE 0.80 m", "PiT paper, v2, NYU-v2 depth", SMALL),
    *(
        Row(f"cifar100_mae.py:{model}", "", "PiT paper, MAE: pre-training", SMALL)
        for model in ("pit-t", "vit-t/2", "pit-s", "vit-s/2")
    ),
    *(
        Row(f"cifar100_finetune.py:{model}", published, "PiT paper, MAE: fine-tuning", SMALL)
        for model, published in (
            ("pit-t", "86.0 %"),
            ("vit-t/2", "85.7 %"),
            ("pit-s", "87.7 %"),
            ("vit-s/2", "87.4 %"),
        )
    ),
    Row("imagenet_mae.py:vit-b/16", "67.8 % by a linear probe", "public MAE", MIDDLE),
    Row("imagenet_finetune.py:vit-b/16", "83.6 %", "public MAE", MIDDLE),
    Row("imagenet256_latent.py:pit-l", "FID 4.05", "PiT paper, diffusion", LARGE),
    Row("imagenet256_latent.py:dit-l/2", "FID 4.16", "PiT paper, diffusion", LARGE),
    Row("imagenet256_latent.py:dit-xl/2", "FID 2.27", "public DiT", LARGE),
    *(
        Row("imagenet224.py:vit-b/16", published, f"PiT paper, {what}", MIDDLE, change)
        for change, published, what in (
            ("model.position=sincos2d", "82.7 %", "positions"),
            ("model.position=none", "81.2 %", "positions"),
            ("data.permutation.swaps=25000", "57.6 %", "permutation"),
        )
    ),
    *(
        Row(f"patch_scaling.py:{model}", published, "arXiv 2502.03738", chips)
        for model, published, chips in (
            ("vit-b/16", "68.2 %", MIDDLE),
            ("vit-b/8", "76.9 %", MIDDLE),
            ("vit-b/4", "80.1 %", MIDDLE),
            ("vit-b/2", "80.8 %", LARGE),
            ("pit-b", "81.3 %", LARGE),
        )
    ),
]


def load(row: Row) -> Any:
    """The resolved config of a row."""
    return configfile.load(str(ROOT / "configs" / row.config), row.words)


def results() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def digest(row: Row) -> str:
    """What a row's config is, whatever fields are added to the schema later: those that changed
    what runs are changed how weights start and what is drawn, and no program's size."""
    from pit_jax.study import points

    return points.identity(points.without_later(load(row)), (), {})[:16]


def compiled(row: Row, topology: str, found: dict[str, Any]) -> dict[str, Any] | None:
    """What was found of a row on a topology, if its config is still the same."""
    kept = found.get(f"{row.name} on {topology}")
    return kept if kept and kept["digest"] == digest(row) else None


def compile_missing() -> None:
    """Compiles row after row for both topologies; each is written as soon as it is known."""
    from pit_jax.perf import preflight, topology

    for row in ROWS:
        for chips in row.chips:
            found = results()
            if compiled(row, chips, found):
                continue
            print(f"{row.name} on {chips}", file=sys.stderr, flush=True)
            got = preflight.preflight(load(row), topology.find(chips, 1), None, lambda line: None)
            step = got["steps"]["train"]
            found[f"{row.name} on {chips}"] = {
                "digest": digest(row),
                "fits": all(one["fits"] for one in got["steps"].values()),
                "hbm_peak_bytes": step["hbm_peak_bytes"],
                "hbm_limit_bytes": step["hbm_limit_bytes"],
                "chip_hours": got["chip_hours"],
                "step_s": step["estimate_step_s"],
                "jax": importlib.metadata.version("jax"),
            }
            files.write(RESULTS, json.dumps(found, indent=1, sort_keys=True) + "\n")


def cells(row: Row, found: dict[str, Any]) -> list[str]:
    """One line of the table."""
    import jax

    from pit_jax import tasks
    from pit_jax.data import sources
    from pit_jax.lengths import total_steps

    config = load(row)
    task = tasks.build(config)
    cost = task.flops()
    params = jax.eval_shape(task.init, jax.random.key(0))
    count = sum(x.size for x in jax.tree.leaves(params))
    examples = sources.num_examples(config.data, config.data.split)
    total = "?"
    if examples or config.train.epochs is None:
        steps = total_steps(config.train, examples or 0)
        total = f"{steps * config.train.batch_size * cost.training:.1e}"
    line = [f"`{row.config}`" + "".join(f" `{c}`" for c in row.changes.split())]
    line += [row.source, row.published or "–", f"{cost.tokens:,}", f"{count / 1e6:.1f} M", total]
    for chips in row.chips:
        got = compiled(row, chips, found)
        if got is None:
            line += [chips, "not compiled", "–"]
            continue
        size = f"{got['hbm_peak_bytes'] / GIB:.2f} of {got['hbm_limit_bytes'] / GIB:.2f}"
        hours = "–" if got["chip_hours"] is None else rounded(got["chip_hours"])
        line += [chips, size if got["fits"] else f"{size}: does not fit", hours]
    return line


def rounded(hours: float) -> str:
    """ "1,637", "3.2", "0.048"."""
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"


HEAD = """# Configs

Every published row that a config here is meant to reproduce, with the command's `--config` and
the fields that it changes. None of the numbers has been reproduced yet: that takes TPUs.
Memory (GiB a chip, of the training step) and chip-hours are what `pit-jax preflight` finds
for the named slice: the program is compiled for that TPU, and its time is a roofline, which no
real run reaches. Each file's docstring holds the recipe and what is assumed of it.
Written by `python -m experiments.config_table`.
"""


def render() -> str:
    """configs/README.md."""
    found = results()
    heads = ["config", "from", "published", "tokens", "parameters", "training FLOP"]
    heads += ["v5e", "GiB a chip", "chip-hours, at least", "v5p", "GiB a chip"]
    heads += ["chip-hours, at least"]
    lines = [heads, ["---"] * len(heads), *(cells(row, found) for row in ROWS)]
    versions = sorted({kept["jax"] for kept in found.values()})
    made = f"\nCompiled with jax {', '.join(versions)}.\n" if versions else ""
    return HEAD + "\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n" + made


if __name__ == "__main__":
    from pit_jax.parallel import processes

    processes.choose_platform()
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--compile", action="store_true", help="compile what is missing first")
    if words.parse_args().compile:
        compile_missing()
    README.write_text(render())
