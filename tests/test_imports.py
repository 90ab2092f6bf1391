"""Imports point one way, and nothing slow is imported before it is needed."""

import ast
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent / "pit_jax"

# Each room may import those before it and itself: the house is read from the bottom up.
ORDER = [
    {"errors", "installation", "__init__", "__version__", "beat"},
    {"printing", "signals"},
    {"waiting"},
    {"files", "runvalues"},
    {"sums"},
    {"diffusion"},
    {"lengths", "field", "fields", "config", "data.known", "judge"},
    {"parallel"},
    {"values", "validation", "derived", "demands", "generative_demands"}
    | {"models.sizes", "models.mask"},
    {"configfile"},
    {"rundir", "rows", "mirror"},
    {"lease", "lease_holder", "lease_store"},
    {"models", "perf.flops"},
    # Files of networks that measure and decode samples.
    {"weights.tensors", "weights.torch_file", "weights.inception"}
    | {"weights.autoencoder", "weights.autoencoder_names"},
    {"data", "metrics", "meter"},
    {"evals"},
    {"tasks"},
    {"optim", "state", "step", "checkpoint", "weights"} | {"claim", "outcome"},
    {"restored", "classifier", "image_files"},
    {"evaluate", "encode", "train", "sample", "reference_statistics", "sample_metrics"}
    | {"perf", "study"},
    {"launch"},
    {"launch_grammar"},
    {"grammar"},
    {"cli"},
]


def room(module: str) -> int:
    """The place of `models.vit` in ORDER; the longest name that fits decides."""
    parts = module.split(".")
    for length in (2, 1):
        name = ".".join(parts[:length])
        for place, names in enumerate(ORDER):
            if name in names:
                return place
    raise AssertionError(f"pit_jax/{module} stands in no room of ORDER")


def imported(path: pathlib.Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("pit_jax.") for name in found if name.startswith("pit_jax.")}


def test_imports_point_one_way():
    wrong = []
    for path in ROOT.rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for other in imported(path):
            if room(other) > room(module):
                wrong.append(f"{module} imports {other}")
    assert not wrong


def test_help_imports_nothing_heavy():
    program = (
        "import sys; from pit_jax import cli; cli.parser().format_help();"
        "print([m for m in ('jax', 'flax', 'numpy', 'orbax', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT.parent
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_models_hold_no_mesh_and_parallel_knows_no_model():
    for path in (ROOT / "models").glob("*.py"):
        assert not {name for name in imported(path) if name.startswith(("tasks", "data"))}
    for path in (ROOT / "parallel").glob("*.py"):
        below = {"errors.ConfigError", "errors.StorageError", "installation"}
        assert imported(path) <= below | {n for n in imported(path) if n.startswith("parallel")}
