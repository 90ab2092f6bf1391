"""Compiling for TPUs that are not here: what fits, what it is said to cost, how it ends.

The models are tiny, since compiling is all that is done with them.
"""

import json
import math
import os
import pathlib
import re
import subprocess
import sys

import jax
import pytest

from pit_jax import cli, configfile, installation, validation
from pit_jax.perf import preflight, preflight_run, topology

pytest.importorskip("libtpu", reason="libtpu is not installed (x86-64 Linux only)")
pytestmark = pytest.mark.usefixtures("cache_again")

DIGITS = ["preflight", "--config", "configs/digits.py:pit"]
SMALL = ["--config.model.width=128", "--config.model.depth=3"]


@pytest.fixture
def small(tiny):
    tiny.model.update(width=128, depth=3)
    return tiny


def refused(capsys, *words: str) -> str:
    """The one line on stderr of a command that ends with exit code 2."""
    code = cli.run([*DIGITS, *words])
    err = capsys.readouterr().err
    assert code == 2
    assert err.startswith("pit-jax: ")
    assert err.count("\n") == 1, err
    return err


def train_step(config, name, slices=1):
    """The compiled training step, as `measure` compiles it, and the mesh it is for."""
    mesh = topology.find(name, slices).mesh(config.mesh)
    programs, _ = preflight._programs(config, mesh)
    with jax.set_mesh(mesh):
        return programs["train"].function.lower(*programs["train"].arguments).compile()


def test_a_config_that_fits(capsys, tmp_path):
    words = ["--topology", "v5e-8", "--price-per-chip-hour", "1000", "--config.optim.ema=0.99"]
    words += ["--json"]
    code = cli.run([*DIGITS, *SMALL, *words, str(tmp_path / "out.json")])
    out = capsys.readouterr().out
    assert code == 0
    assert all(len(line) <= 80 for line in out.splitlines())
    assert "train step: fits" in out
    assert "eval step: fits" in out
    assert re.search(r"all-reduce of 8 +[\d.]+ MiB +\d+", out)
    assert "nothing was run" in out
    found = json.loads((tmp_path / "out.json").read_text())
    assert {"schema", "topology", "chips", "mesh", "steps", "chip_hours", "cost"} <= set(found)
    assert found["mesh"] == {"data": 8, "fsdp": 1, "seq": 1, "model": 1}
    assert found["cost"] == pytest.approx(1000 * found["chip_hours"])
    train = found["steps"]["train"]
    assert train["fits"]
    assert train["params_bytes"] == pytest.approx(4 * 605_000, rel=0.02)
    # Two moments and the moving average.
    assert train["optimizer_bytes"] == pytest.approx(3 * train["params_bytes"], rel=0.01)
    split = train["params_bytes"] + train["optimizer_bytes"] + train["activations_bytes"]
    assert split == train["hbm_peak_bytes"] < train["hbm_limit_bytes"] == 15.75 * 2**30
    # Gradients of all parameters are added up over the chips, in bfloat16 at the least.
    reduced = sum(c["bytes"] for c in train["collectives"] if c["kind"] == "all-reduce")
    assert train["params_bytes"] / 2 <= reduced <= 1.1 * train["params_bytes"]
    steps = 30 * 1437 / 64
    hours = steps * train["estimate_step_s"] * 8 / 3600
    assert hours < found["chip_hours"] < 1.2 * hours  # evaluations come on top
    # What is evaluated is the average; parameters and moments stay on the chip beside it.
    evaluated = found["steps"]["eval"]
    assert evaluated["params_bytes"] == train["params_bytes"]
    assert evaluated["optimizer_bytes"] == train["optimizer_bytes"]
    assert evaluated["hbm_peak_bytes"] >= 4 * train["params_bytes"]


@pytest.mark.slow
def test_masked_autoencoding_is_compiled_with_probes_among_its_evaluations(tmp_path):
    out = tmp_path / "out.json"
    words = ["--config", "configs/digits_mae.py:pit", "--topology", "v5e-8", *SMALL]
    assert cli.run(["preflight", *words, "--json", str(out)]) == 0
    train = json.loads(out.read_text())["steps"]["train"]
    assert train["fits"]
    kinds = {c["kind"] for c in train["collectives"]}
    assert "all-reduce" in kinds
    assert not kinds & {"all-gather", "all-to-all"}  # masking moves nothing between chips


def test_the_whole_loop_of_sampling_is_compiled_without_traffic(tmp_path):
    out = tmp_path / "out.json"
    words = ["--config", "configs/digits_diffusion.py:pit", "--topology", "v5e-8", *SMALL]
    assert cli.run(["preflight", *words, "--json", str(out)]) == 0
    steps = json.loads(out.read_text())["steps"]
    assert steps["train"]["fits"]
    assert steps["sample"]["fits"]
    # Only the finished images, 8 × 8 float32, are brought together; guidance moves nothing.
    (gathered,) = steps["sample"]["collectives"]
    assert (gathered["kind"], gathered["bytes"]) == ("all-gather", 128 * 8 * 8 * 4)
    passes = 100 * 2  # guided
    evaluated = steps["eval"]["model_flops"] / 64
    assert steps["sample"]["model_flops"] == pytest.approx(passes * 128 * evaluated)


def test_what_does_not_fit_ends_with_4_after_the_report(capsys, tmp_path):
    words = ["--topology", "v5e-4", "--config.train.batch_size=4194304", "--json"]
    code = cli.run([*DIGITS, *SMALL, *words, str(tmp_path / "out.json")])
    out, err = capsys.readouterr()
    assert code == 4
    assert "train step: DOES NOT FIT" in out
    assert re.search(r"pit-jax: the train step does not fit on v5e-4: \d+\.\d+ GiB of 15.75", err)
    train = json.loads((tmp_path / "out.json").read_text())["steps"]["train"]
    assert not train["fits"]
    assert train["hbm_peak_bytes"] > train["hbm_limit_bytes"]
    assert train["estimate_step_s"] is None


@pytest.mark.parametrize(("edge", "own"), [(100, 64), (100, 4096), (1, 4096), (700, 3000)])
def test_find_batch_brackets_the_edge_in_few_trials(resolved, monkeypatch, edge, own):
    """With a chip that holds `edge` images and says how much more it would have needed."""

    def measured(images: int) -> dict:
        return {"fits": images <= edge, "hbm_peak_bytes": images, "hbm_limit_bytes": edge}

    def pretend(config, where, changes):
        images = changes.get("train.batch_size", 8 * own) // 8
        return {"change": str(changes), "reason": "", **measured(images)}

    monkeypatch.setattr(preflight, "try_changes", pretend)
    resolved.train.batch_size = 8 * own
    where = topology.find("v5e-8")
    largest, tried = preflight.find_batch(resolved, where, measured(own), lambda line: None)
    assert edge * 8 / 9 - 1 <= largest <= edge
    assert sum("batch_size" in row["change"] for row in tried) <= 9
    remedies = [row["change"] for row in tried if "batch_size" not in row["change"]]
    assert bool(remedies) == (own > edge)
    if remedies:
        assert "model.remat" in remedies[0]
        assert "mesh.fsdp" in remedies[1]
        assert "mesh.seq" in remedies[-1]


def test_not_even_one_image_fits(resolved, monkeypatch):
    row = {"change": "", "fits": False, "hbm_peak_bytes": None, "reason": "never"}
    monkeypatch.setattr(preflight, "try_changes", lambda *_: row)
    own = {"fits": False, "hbm_peak_bytes": 3, "hbm_limit_bytes": 2}
    resolved.train.batch_size = 64
    where = topology.find("v5e-4")
    assert preflight.find_batch(resolved, where, own, lambda line: None)[0] == 0


@pytest.mark.slow
def test_find_batch_finds_the_edge_and_what_helps(capsys, tmp_path):
    words = ["--topology", "v5e-1", "--config.train.batch_size=32768", "--find-batch", "--json"]
    code = cli.run([*DIGITS, *SMALL, *words, str(tmp_path / "out.json")])
    out, err = capsys.readouterr()
    assert code == 4  # the config as it stands still does not fit
    found = json.loads((tmp_path / "out.json").read_text())
    largest = found["largest_batch_per_chip"]
    batches = {
        int(row["change"].partition("train.batch_size=")[2]): row["fits"]
        for row in found["tried"]
        if "train.batch_size" in row["change"]
    }
    assert batches[largest]
    above = min(size for size, fits in {**batches, 32768: False}.items() if not fits)
    assert largest < above <= largest * 9 / 8
    remat = next(row for row in found["tried"] if row["change"] == "--config.model.remat=full")
    assert remat["hbm_peak_bytes"] < found["steps"]["train"]["hbm_peak_bytes"]
    assert f"largest training batch: {largest} images a chip" in out
    assert "--config.model.remat=full: " in err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--topology", "v5e-7"], "there is no topology 'v5e-7'"),
        (["--topology", "v5e-8", "--config.mesh.fsdp=3"], "does not multiply to the 8 device(s)"),
        (["--topology", "v5e-16"], "config.train.batch_size = 60 does not divide"),
        (["--topology", "v5e-8", "--slices", "0"], "--slices 0: one slice or more"),
        (["--topology", "v5e-8", "--price-per-chip-hour", "-1"], "a price is 0 or more"),
        (["--topology", "v5e-8", "--json", "none/x.json"], "there is no directory none"),
        (["--all", "--topology", "v5e-8"], "--all: not allowed with argument --config"),
        ([], "required: --topology"),
    ],
)
def test_mistakes_are_one_line(capsys, words, sentence):
    batch = ["--config.train.batch_size=60"] if "v5e-16" in words else []
    assert sentence in refused(capsys, *words, *batch)


def test_without_libtpu_the_extra_is_named(capsys, monkeypatch):
    monkeypatch.setattr(topology, "has_libtpu", lambda: False)
    assert installation.extra("tpu") in refused(capsys, "--topology", "v5e-8")


@pytest.mark.parametrize("name", ["v4-8", "v5p-8", "v6e-4", "tpu7x-8"])
def test_every_generation_compiles(small, name):
    where = topology.find(name)
    config = validation.resolve(small)
    mesh = where.mesh(config.mesh)
    programs, _ = preflight._programs(config, mesh)
    result = preflight.measure(programs["eval"], mesh, where)
    assert result["fits"]
    assert result["hbm_limit_bytes"] == where.chip.hbm_limit
    assert 0 < result["estimate_step_s"] < 1e-3


def test_fsdp_gathers_the_weights_of_one_layer_at_a_time(small):
    small.model.depth = 5
    small.mesh.update(data=1, fsdp=-1)
    compiled = train_step(validation.resolve(small), "v5e-8")
    shapes = {"": [], "/while/body/": []}
    for line in compiled.as_text().splitlines():
        if gather := re.search(r" = \w+\[([\d,]+)\]\S* all-gather\(", line):
            for where, found in shapes.items():
                found += [[int(n) for n in gather[1].split(",")]] if where in line else []
    up = 128 * 512  # the MLP's first product, the largest weight of a layer
    sizes = [math.prod(shape) for shape in shapes["/while/body/"]]
    assert max(sizes) == up  # whole, inside the loop over layers
    # And nowhere a weight of all four layers at once.
    assert not [shape for shape in shapes[""] if len(shape) == 3 and shape[0] == 4]
    found = preflight.collectives.parse(compiled.as_text())
    gathers = [c for c in found if c.kind == "all-gather"]
    assert sum(c.in_loop for c in gathers) >= 4 * 6  # six weights, in each of four layers
    assert any(c.kind == "reduce-scatter" for c in found)


@pytest.mark.slow
def test_fsdp_gathers_pit_l_layer_by_layer():
    """The real thing, on sixteen chips: 23 scanned layers, never more than one whole."""
    words = ["mesh.data=1", "mesh.fsdp=-1", "train.batch_size=1024"]
    overrides = [f"--config.{word}" for word in words]
    config = configfile.load("configs/imagenet28.py:pit-l", overrides)
    text = train_step(config, "v5e-16").as_text()
    shapes = re.findall(r" = \w+\[([\d,]+)\]\S* all-gather\(", text)
    sizes = [math.prod(int(n) for n in shape.split(",")) for shape in shapes]
    assert 1024 * 4096 in sizes
    whole = [size for size in sizes if size >= 23 * 1024 * 1024]
    assert not whole
    gathers = [c for c in preflight.collectives.parse(text) if c.kind == "all-gather"]
    assert sum(c.in_loop for c in gathers) > 0.9 * sum(c.count for c in gathers)


def test_tensor_parallel_splits_the_parameters_and_slices_add_up_over_the_network(small):
    where = topology.find("v5e-4", slices=2)
    small.mesh.update(data=4, model=2)
    config = validation.resolve(small)
    mesh = where.mesh(config.mesh)
    programs, _ = preflight._programs(config, mesh)
    split = preflight.measure(programs["train"], mesh, where)
    whole = sum(4 * x.size for x in jax.tree.leaves(programs["train"].params))
    assert split["params_bytes"] == pytest.approx(whole / 2, rel=0.05)
    kinds = {(c["kind"], c["between"], c["group"]) for c in split["collectives"]}
    assert ("all-reduce", "chips", 2) in kinds
    assert ("all-reduce", "slices") in {kind[:2] for kind in kinds}


def test_all_gives_a_row_to_every_config(capsys, tmp_path, monkeypatch):
    text = pathlib.Path("configs/digits.py").read_text()
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "good.py").write_text(text)
    (tmp_path / "configs" / "odd.py").write_text(text.replace("batch_size=64", "batch_size=63"))
    monkeypatch.chdir(tmp_path)
    code = cli.run(["preflight", "--all", "--topology", "v5e-4", "--json", "all.json"])
    out, err = capsys.readouterr()
    assert code == 2
    assert all(len(line) <= 80 for line in out.splitlines())
    assert re.search(r"good.py +64 +0.0\d +0.0\d +15.75", out)
    assert re.search(r"odd.py +config.train.batch_size = 63 does not divide", out)
    assert "1 of 2 configs were refused" in err
    rows = json.loads((tmp_path / "all.json").read_text())["configs"]
    assert rows[0]["steps"]["train"]["fits"]
    assert "does not divide" in rows[1]["error"]


def test_what_the_compiler_cannot_do_is_a_row_too(capsys, monkeypatch):
    def broken(spec, *rest):
        raise jax.errors.JaxRuntimeError(f"INTERNAL: {spec}\n  in a fusion")

    monkeypatch.setattr(preflight_run, "_one", broken)
    assert cli.run(["preflight", "--all", "--topology", "v5e-4"]) == 2
    out, err = capsys.readouterr()
    assert "INTERNAL: configs/cifar100.py in a fusion" in " ".join(out.split())
    assert err.endswith("configs were refused\n")


def test_two_at_once(tmp_path):
    command = [sys.executable, "-m", "pit_jax.cli", *DIGITS, "--topology", "v5e-4"]
    command += ["--config.model.depth=1"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TPU_", "ALLOW_"))}
    running = [
        subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=environment) for _ in "12"
    ]
    for process in running:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert "train step: fits" in out
        # libtpu's own lines about a TPU that it does not find would drown ours
        assert err.splitlines() == [f"compiling the {s} step for v5e-4" for s in ("train", "eval")]
