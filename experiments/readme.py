"""Writes the README's tables of results from the JSON under experiments/results/.

    python -m experiments.readme

What stands between `<!-- name -->` and `<!-- end name -->` is replaced; no figure in these
tables is typed by hand. A result that is not there is said to be not measured.
"""

import json
import re
import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
GIB, MIB = 2**30, 2**20

# What the bench table holds, in order, whether it was measured or not.
BENCHES = {
    "digits-96": "PiT, width 96, depth 6, 3 heads, 8×8 digits",
    "vit-t-2": "ViT-T/2, 32×32, 12 heads",
    "pit-t-3-heads": "PiT-T, 32×32, 3 heads",
    "pit-t-12-heads": "PiT-T, 32×32, 12 heads",
    "pit-t-4097": "PiT-T, 64×64, 3 heads, remat",
    "mae-pit-t": "PiT-T, 32×32, 12 heads, masked autoencoding",
    "dit-s-1": "DiT-S/1 (PiT-S), 16×16×4 latents",
    "dit-s-2": "DiT-S/2, 32×32×4 latents",
    "pit-b-gpu": "PiT-B, 32×32, bfloat16, one GPU",
    "pit-l-gpu": "PiT-L, 32×32, bfloat16, one GPU",
    "dit-xl-2-gpu": "DiT-XL/2, 32×32×4 latents, bfloat16, one GPU",
}
GPU = (
    "pit-jax bench --config configs/imagenet28.py:{} --config.data.image_size=32"
    " --config.model.remat=none --config.train.batch_size={} --against torch"
)
COMMANDS = {
    "pit-b-gpu": GPU.format("pit-b", 128),
    "pit-l-gpu": GPU.format("pit-l", 64),
    "dit-xl-2-gpu": "pit-jax bench --config configs/imagenet256_latent.py:dit-xl/2",
}


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def load(kind: str, name: str) -> dict[str, Any] | None:
    """A result, or None where there is none."""
    path = RESULTS / kind / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


# Machines whose ratios stand beside those of `bench`, and where their results are.
OTHERS = ("bench/xeon", "bench/slow-epyc")


def bench() -> str:
    """The table of benches, and what they ran on."""
    kinds = ["bench", *OTHERS]
    measured = {kind: [one for name in BENCHES if (one := load(kind, name))] for kind in kinds}
    head = ["training step", "tokens", "batch", "step", "PyTorch", "times as fast"]
    head += [f"on {core_of(measured[kind])}" for kind in OTHERS]
    head += ["of matrix peak", "peak memory", "PyTorch"]
    rows, commands = [], []
    for name, title in BENCHES.items():
        found = load("bench", name)
        if command := found["command"] if found else COMMANDS.get(name):
            commands.append(f"- {title}: `{command}`")
        if found is None:
            rows.append([title, *["not measured"] * (len(head) - 1)])
            continue
        ours, theirs = found["ours"], found["torch"]
        elsewhere = [load(kind, name) for kind in OTHERS]
        rows.append(
            [
                title,
                f"{found['tokens']}",
                f"{found['config']['train']['batch_size']}",
                *(f"{side['step_s'] * 1e3:,.0f} ms" for side in (ours, theirs)),
                f"**{found['ratio_to_torch']:.2f}**",
                *(f"{one['ratio_to_torch']:.2f}" if one else "not measured" for one in elsewhere),
                f"{ours['share_of_measured_peak']:.0%}",
                *(f"{side['peak_bytes'] / MIB:,.0f} MiB" for side in (ours, theirs)),
            ]
        )
    about = []
    for found in measured.values():
        if found:
            days = "; ".join(dict.fromkeys(map(ran_on, found)))
            about.append(f"- {core_of(found)}: {days}")
    ran = ["Where and when, the first for all columns that name no machine:", "", *about]
    ran += ["", *products(measured["bench"])]
    return "\n".join([table(head, rows), "", *ran, "", "The commands:", "", *commands])


def products(found: list[dict[str, Any]]) -> list[str]:
    """What both sides reach in nothing but a large matrix product."""
    peaks = [[one[side]["matmul_flops_per_s"] for one in found] for side in ("ours", "torch")]
    if not found:
        return []
    ours, theirs = (statistics.median(side) / 1e9 for side in peaks)
    what = "In one product of two 2048×2048 matrices, float32, on all cores"
    return [f"{what}, XLA reaches {ours:.0f} GFLOP/s on the first, PyTorch {theirs:.0f}."]


def core_of(found: list[dict[str, Any]]) -> str:
    """What tells one machine of the bench from another: name and speed of a core."""
    if not found:
        return "another machine"
    about = found[0]["machine"]
    name = next((n for n in ("EPYC", "Xeon") if n in about["cpu"]), about["cpu"])
    peak = statistics.median(one["machine"]["matmul_peak_flops_per_s"] for one in found)
    return f"{name}, {peak / about['cores'] / 1e9:.0f} GFLOP/s a core"


def ran_on(found: dict[str, Any]) -> str:
    """Machine, versions and day of a bench."""
    machine, versions = found["machine"], found["versions"]
    about = f"{machine['cores']} cores of {machine['cpu']}"
    if vectors := machine.get("vectors"):
        about += f" with {vectors}"
    if machine["platform"] != "cpu":
        about = f"{machine['devices']} × {machine['device']}"
    about += f", Python {versions['python']}, jax {versions['jax']}, torch {versions['torch']}"
    return f"{about}, {found['date']}"


def inputs() -> str:
    """The table of input benches: what a core decodes, crops and resizes."""
    head = ["random resized crops of", "an image", "images/s a core", "PIL alone", "times as fast"]
    rows, about = [], []
    for side in (224, 64, 28):
        found = load("bench/input", f"imagenet{side}")
        if found is None:
            rows.append([f"{side}×{side}", *["not measured"] * 4])
            continue
        ours, pil = found["ours"], found["pil"]
        rows.append(
            [
                f"{side}×{side}",
                f"{1e3 * ours['image_s']:.2f} ms",
                f"{ours['images_per_s']:,.0f}",
                f"{pil['images_per_s']:,.0f}",
                f"**{found['ratio_to_pil']:.2f}**",
            ]
        )
        files, machine = found["files"], found["machine"]
        what = f"{files['count']} JPEGs of {files['width']:g}×{files['height']:g} pixels,"
        what += f" {files['bytes'] / 1e3:.0f} kB each, {'made ' * files['made']}of {files['of']};"
        about.append(f"{what} one core of {machine['cpu']}, {found['date']}")
    named = [
        f"`{c['command']}`" for s in (224, 64, 28) if (c := load("bench/input", f"imagenet{s}"))
    ]
    return f"{table(head, rows)}\n\nOf {'; '.join(dict.fromkeys(about))}: {', '.join(named)}."


def mae_speed() -> str:
    """Pre-training against classification, in images/s."""
    found = load("bench", "mae-against-classification")
    if found is None:
        return "Not measured."
    ours, other = found["ours"], found["other"]
    machine, shape = found["machine"], found["config"]
    about = f"{machine['cores']} cores of {machine['cpu']}, {found['date']}"
    return (
        f"A pre-training step of PiT-T at 32×32 and mask ratio {shape['mae']['mask_ratio']:g}"
        f" takes {ours['step_s']:.2f} s, a classification step {other['step_s']:.2f} s, at batch"
        f" {shape['train']['batch_size']}: **{found['ratio_to_other']:.2f}** times the images/s"
        f" (on {about}: `{found['command']}`)."
    )


def mae_digits() -> str:
    """The table of pre-training on digits: a column a seed, and mean and deviation."""
    path = RESULTS / "digits-mae.json"
    if not path.exists():
        return "Not measured."
    found = json.loads(path.read_text())
    runs = found["runs"]
    head = ["test accuracy, %", *(f"seed {run['seed']}" for run in runs), "mean ± deviation"]
    rows = []
    for name, title in (
        ("scratch", "from scratch, 100 labels"),
        ("tuned", "pre-trained, then 100 labels"),
        ("knn_of_pretrained", "pre-trained, frozen: 20 neighbours, all labels"),
    ):
        values = [100 * run[name] for run in runs]
        mean, spread = statistics.mean(values), statistics.stdev(values)
        rows.append([title, *(f"{v:.1f}" for v in values), f"**{mean:.1f} ± {spread:.1f}**"])
    minutes = sum(run["seconds"] for run in runs) / 60
    machine = found["machine"]
    about = f"Python {machine['python']}, jax {machine['versions']['jax']}, {machine['time'][:10]}"
    about += f", {minutes:.0f} minutes of training on two x86-64 cores"
    return "\n".join([table(head, rows), "", f"{about}: `{found['command']}`."])


def digits_diffusion() -> str:
    """The table of generated digits beside real ones."""
    path = RESULTS / "digits-diffusion.json"
    if not path.exists():
        return "Not measured."
    found = json.loads(path.read_text())
    metrics = ("distance", "precision", "recall")
    head = [f"{found['samples']} images", *metrics, "held-out loss", "minutes of training"]
    rows = []
    for name, run in found["results"].items():
        trained = ["", ""]
        if "training_seconds" in run:
            trained = [f"{run['held_out_loss']:.3f}", f"{run['training_seconds'] / 60:.1f}"]
        rows.append([name, *(f"{run[m]:.2f}" for m in metrics), *trained])
    machine = found["machine"]
    about = f"Python {machine['python']}, jax {machine['versions']['jax']}, {machine['time'][:10]}"
    right = 100 * found["classifier_accuracy"]
    about += f", two x86-64 cores; the classifier is right on {right:.1f} % of the held-out digits"
    return "\n".join([table(head, rows), "", f"{about}: `{found['command']}`."])


STUDIES = ("pixels_vs_patches", "scenes", "position_embedding", "pixel_permutation")
STUDIES += ("attention_window", "locality_spectrum")
METRICS = {
    "eval/accuracy": "test accuracy, %",
    "eval/linear_accuracy": "test accuracy of a linear classifier, %",
    "eval/rmse": "error of depth, root mean square, m",
}


def studies() -> str:
    """What the studies gave at tiny scale: a table and a plot each."""
    parts = []
    for name in STUDIES:
        found = load("studies", name)
        if found is None:
            parts.append(f"**{name}**: not measured.")
            continue
        metric = found["metric"]
        head = [METRICS[metric], "seeds", "mean [95 % interval]", f"from {found['baseline']}"]
        rows = [
            [
                group["label"],
                " ".join(_number(metric, value) for value in group["seeds"].values()),
                f"**{_number(metric, group['mean'])}** {_between(metric, group['interval'])}",
                _difference(metric, group["difference"]),
            ]
            for group in found["groups"]
        ]
        for feature in found["handmade"]:
            value = _number(metric, feature["value"])
            rows.append([f"{feature['label']}, by hand", "", f"**{value}**", ""])
        plot = f"![{name}: {METRICS[metric]}](experiments/results/studies/{name}.svg)"
        parts.append("\n".join([f"**{name}**", "", table(head, rows), "", plot, "", _made(found)]))
    return "\n\n".join(parts)


def _made(found: dict[str, Any]) -> str:
    """What a study's runs were made by and took."""
    runs = [run for group in found["groups"] for run in group["runs"]]
    made, hours = found["made"], sum(run["device_hours"] or 0 for run in runs)
    jax = next(word for word in made["packages"].split(", ") if word.startswith("jax "))
    commits = ", ".join(commit[:10] for commit in made["commit"].split(", "))
    return (
        f"{len(runs)} runs, {60 * hours:.0f} device-minutes on {made['devices']} a run, Python"
        f" {made['python']}, {jax}, {made['date']}, commit {commits}:"
        f" `{found['studies'][0]['command']}`."
    )


def _number(metric: str, value: float, sign: str = "") -> str:
    return f"{100 * value:{sign}.1f}" if "accuracy" in metric else f"{value:{sign}.3f}"


def _between(metric: str, interval: list[float] | None, sign: str = "") -> str:
    ends = ", ".join(_number(metric, end, sign) for end in interval or ())
    return f"[{ends}]" if interval else ""


def _difference(metric: str, difference: dict[str, Any] | None) -> str:
    if difference is None:
        return ""
    told = f"{_number(metric, difference['mean'], '+')}"
    told += f" {_between(metric, difference['interval'], '+')}"
    p = difference["p_permutation_holm"]
    return told if p is None else f"{told}, p = {p:.2g}"


def speed() -> str:
    """The table of what makes a step fast on a CPU."""
    found = json.loads((RESULTS / "speed.json").read_text())
    rows, before = [], None
    for name, seconds in found["step_s"].items():
        share = f"{seconds / before:.2f}" if before else ""
        rows.append([name, f"{seconds:.2f} s", share])
        before = seconds
    about = f"{found['machine']['cores']} cores of {found['machine']['cpu']}, {found['date']}"
    head = ["PiT-T, 32×32, 3 heads, batch 8, float32", "step", "times the one before"]
    return "\n".join([table(head, rows), "", f"On {about}: `{found['command']}`."])


def preflight() -> str:
    """The table of what fits where."""
    from experiments.preflights import ROWS

    head = ["compiled for", "mesh", "tokens", "batch", "peak HBM a chip", "of", "step, at least"]
    head += ["bound by", "chip-hours, at least"]
    rows, commands = [], []
    for name in ROWS:
        found = load("preflight", name)
        if found is None:
            rows.append([name, *["not compiled"] * 8])
            continue
        step = found["steps"]["train"]
        words = found["command"]
        model = re.search(r"imagenet28.py:pit-(\w)", words).group(1).upper()
        size = re.search(r"image_size=(\d+)", words)
        side = int(size.group(1)) if size else 28
        mesh = " × ".join(f"{axis} {n}" for axis, n in found["mesh"].items() if n > 1)
        slices = f"{found['slices']} × " if found["slices"] > 1 else ""
        rows.append(
            [
                f"PiT-{model}, {side}×{side}, on {slices}{found['topology']}",
                mesh,
                f"{side * side + 1:,}",
                f"{found['batch_size']:,}",
                f"{step['hbm_peak_bytes'] / GIB:.2f} GiB",
                f"{step['hbm_limit_bytes'] / GIB:.2f}",
                f"{step['estimate_step_s']:.3g} s",
                step["bound"],
                f"{found['chip_hours']:,.0f}",
            ]
        )
        commands.append(f"- `{words}`")
    return "\n".join([table(head, rows), "", "The commands, in the same order:", "", *commands])


def faults() -> str:
    """The table of faults, and the command that made it."""
    found = load("", "faults")
    if found is None:
        return "Not measured."
    rows = []
    for one in found["faults"]:
        held = ["yes" if one[key] else "**no**" for key in ("same_bits", "steps_once")]
        if one["note"]:
            rows.append([one["fault"], one["note"], "–", "–", "–", "–"])
        else:
            left = str(one["left_running"])
            rows.append([one["fault"], one["when"], str(one["starts"]), *held, left])
    head = ["fault", "when", "starts", "same bits", "every step once", "left running"]
    machine = found["machine"]
    made = f"Python {machine['python']}, jax {machine['versions']['jax']}, {machine['time'][:10]}"
    return f"{table(head, rows)}\n\n{made}, {found['cores']} cores: `{found['command']}`."


def render(text: str) -> str:
    """The README with its tables written anew.

    Raises:
      ValueError: if a table's marks are missing.
    """
    for write in (
        bench,
        inputs,
        speed,
        preflight,
        mae_speed,
        mae_digits,
        digits_diffusion,
        studies,
        faults,
    ):
        name = write.__name__
        marks = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        if not marks.search(text):
            raise ValueError(f"README.md lacks <!-- {name} --> and <!-- end {name} -->")
        body = write()
        text = marks.sub(lambda m, body=body: f"{m[1]}\n{body}\n\n{m[2]}", text)
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(render(readme.read_text()))
