"""FID's kin of generated images: by which network, against what, and under which name."""

import dataclasses
import json
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax.sharding import NamedSharding, PartitionSpec

from pit_jax import files
from pit_jax.config import base
from pit_jax.data import pipeline, sources
from pit_jax.errors import ConfigError, StopAsked
from pit_jax.evals import comparison, generation, networks, real_images, reference
from pit_jax.evals.context import Context
from pit_jax.evals.networks import Network
from pit_jax.parallel import mesh as meshes

SIZES = {"data": -1, "fsdp": 1, "seq": 1, "model": 1}


def features(x: np.ndarray) -> np.ndarray:
    """(n, 4) of images: what the stub network says, in float64."""
    x = x[..., :1].astype(np.float64)
    halves = [x[:, :4].mean((1, 2, 3)), x[:, 4:].mean((1, 2, 3))]
    return np.stack([*halves, x[:, :, :3].mean((1, 2, 3)), x[:, 2, 5, 0]], -1)


def network(mesh, **fields) -> Network:
    split = NamedSharding(mesh, meshes.batch_spec())
    whole = NamedSharding(mesh, PartitionSpec())

    def function(images):
        x = images[..., :1].astype(jnp.float32)
        halves = [x[:, :4].mean((1, 2, 3)), x[:, 4:].mean((1, 2, 3))]
        pool = jnp.stack([*halves, x[:, :, :3].mean((1, 2, 3)), x[:, 2, 5, 0]], -1)
        logits = pool / 50
        return {"pool": pool, "spatial": pool[:, :2], "probabilities": jax.nn.softmax(logits)}

    given = {"name": "inception", "path": "fid.pth", "sha256": "1" * 64, "dim": 4}
    given |= {"resize": "tensorflow", "sharding": split}
    jitted = jax.jit(function, in_shardings=split, out_shardings=whole)
    return Network(**given | {"function": jitted} | fields)


def classifier(mesh) -> Network:
    name = {"name": "classifier_pit", "path": "runs/pit", "sha256": "2" * 64}
    found = network(mesh, **name, resize=None, image_shape=(8, 8, 1))
    function = found.function
    return dataclasses.replace(found, function=lambda x: {"pool": function(x)["pool"]})


class Stub:
    """A task whose samples are the digits, somewhat darker."""

    def __init__(self):
        self.digits = jnp.asarray(sources._digits()[0], jnp.float32)
        self.calls = 0

    def generate(self, params, batch, extra):
        self.calls += 1
        return self.digits[batch["index"]] * params + 7.0 * batch["label"][:, None, None, None]

    def levels(self, x):
        return x


def generated(count: int, labels: np.ndarray) -> np.ndarray:
    x = sources._digits()[0][:count] * 0.75 + 7.0 * labels[:, None, None, None]
    return np.clip(np.rint(x.astype(np.float32)), 0, 255).astype(np.uint8)


@pytest.fixture
def config():
    c = base()
    c.task = "diffusion"
    c.data.update(name="digits", image_size=8, channels=1, num_classes=10)
    c.sample.update(num=200, batch_size=64, steps=50, guidance=1.5)
    c.eval.features = "fid.pth"
    return c


@dataclasses.dataclass
class Said:
    records: dict = dataclasses.field(default_factory=dict)
    lines: list = dataclasses.field(default_factory=list)
    loads: list = dataclasses.field(default_factory=list)


def context(config, load=network, devices=8) -> tuple[Context, Said]:
    mesh = meshes.make_mesh(SIZES, jax.devices()[:devices])
    whole = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, meshes.batch_spec())
    said, task = Said(), Stub()

    def read(function):
        return jax.jit(function, in_shardings=(whole, split, whole), out_shardings=whole)

    def network_of(features, resize, mesh):
        said.loads.append((features, resize))
        return load(mesh)

    def training():
        reader = pipeline.Reader(sources.training(config.data), config.data, train=False)
        return pipeline.Pipeline(reader, split, 128, 0)

    params = jnp.float32(0.75)
    state = types.SimpleNamespace(step=np.int32(40), eval_params=params)
    steps = types.SimpleNamespace(read=read, batch_sharding=split)
    made = Context(
        config=config,
        task=task,
        steps=steps,
        held_out=None,
        training=training,
        state=state,
        record=said.records.__setitem__,
        say=said.lines.append,
        network=network_of,
    )
    return made, said


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """As everybody computes it."""
    first, second = np.cov(a.T), np.cov(b.T)
    cross = scipy.linalg.sqrtm(first @ second).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * cross))


def covered(a: np.ndarray, b: np.ndarray, k: int = 3) -> float:
    """The share of b within the k-th neighbour's distance of some a."""
    radii = np.sort(np.linalg.norm(a[:, None] - a[None], axis=-1))[:, k]
    return float((np.linalg.norm(b[:, None] - a[None], axis=-1) <= radii).any(1).mean())


def real(config) -> np.ndarray:
    source = sources.training(config.data)
    return np.stack([source[i][0] for i in range(len(source))])


@pytest.mark.parametrize("devices", [1, 8])
def test_numbers_are_those_of_the_training_set_and_the_samples(config, devices):
    made, said = context(config, devices=devices)
    found = dict(generation.evaluate(made))
    names = ["fid", "sfid", "inception_score", "inception_score_std", "precision", "recall"]
    assert list(found) == names
    a, b = features(real(config)), features(generated(200, np.arange(200) % 10))
    assert found["fid"] == pytest.approx(distance(a, b), rel=1e-4)
    assert found["sfid"] == pytest.approx(distance(a[:, :2], b[:, :2]), rel=1e-4)
    p = scipy.special.softmax(b / 50, axis=1)
    score = np.exp((p * np.log(p / p.mean(0))).sum(1).mean())
    assert found["inception_score"] == pytest.approx(score, rel=1e-5)
    assert found["precision"] == pytest.approx(covered(a, b), abs=0.01)
    assert found["recall"] == pytest.approx(covered(b, a), abs=0.01)
    assert all(0.1 < found[name] < 0.9 for name in ("precision", "recall"))
    record = said.records["generation"]
    assert json.loads(json.dumps(record)) == record
    assert record["metrics"] == found
    assert record["reference"] == dict(data="digits", split="train", per_class=0, images=1437)
    expected = {
        "samples": 200, "checkpoint_step": 40, "ema": False, "sampler": "ddpm", "steps": 50,
        "guidance": 1.5, "guidance_interval": [0.0, 1.0], "guidance_channels": 0, "eta": 0.0,
        "seed": 0, "labels": "balanced", "decoder": None, "neighbourhood": 3,
    }  # fmt: skip
    assert {name: record[name] for name in expected} == expected
    assert record["features"]["sha256"] == "1" * 64
    assert record["features"]["resize"] == "tensorflow"
    (text,) = said.lines
    assert "generation: 200 samples of step 40, weights without EMA, ddpm 50 steps" in text
    assert "reference 1437 images of digits, train" in text
    assert "fid.pth (111111111111), resized as tensorflow does" in text


def test_a_classifiers_distance_never_is_called_fid(config):
    config.eval.features = "runs/pit"
    made, said = context(config, classifier)
    found = dict(generation.evaluate(made))
    names = ["classifier_pit_distance", "classifier_pit_precision", "classifier_pit_recall"]
    assert list(found) == names
    a, b = features(real(config)), features(generated(200, np.arange(200) % 10))
    assert found["classifier_pit_distance"] == pytest.approx(distance(a, b), rel=1e-4)
    assert "fid" not in said.records["generation"]["metrics"]
    assert "resized" not in said.lines[0]


def test_what_does_not_change_is_made_once_a_run(config):
    made, said = context(config)
    first = dict(generation.evaluate(made))
    later = dataclasses.replace(
        made,
        state=types.SimpleNamespace(step=np.int32(80), eval_params=jnp.float32(0.5)),
        training=lambda: pytest.fail("the training set was read again"),
    )
    second = dict(generation.evaluate(later))
    assert said.loads == [("fid.pth", "tensorflow")]
    assert second["fid"] != first["fid"]
    assert said.records["generation"]["checkpoint_step"] == 80


def test_a_reference_file_of_images_counts_as_its_images(config, tmp_path):
    config.eval.reference = str(tmp_path / "images.npz")
    x = real(config)[:300].repeat(3, -1)
    reference.write_images(config.eval.reference, [x[:100], x[100:]], x.shape)
    made, said = context(config)
    found = dict(generation.evaluate(made))
    a, b = features(x), features(generated(200, np.arange(200) % 10))
    assert found["fid"] == pytest.approx(distance(a, b), rel=1e-4)
    assert found["recall"] == pytest.approx(covered(b, a), abs=0.02)
    origin = said.records["generation"]["reference"]
    assert origin["sha256"] == files.sha256(config.eval.reference)
    assert origin["path"] == config.eval.reference
    assert origin["sha256"][:12] in said.lines[0]


def test_a_file_of_statistics_with_some_images_as_adm_publishes_them(config, tmp_path):
    """FID of the statistics, precision and recall of the images."""
    x = real(config)
    a, few = features(x), x[::10].repeat(3, -1)
    path = tmp_path / "adm.npz"
    spatial = {"mu_s": a[:, :2].mean(0), "sigma_s": np.cov(a[:, :2].T)}
    np.savez(path, few, mu=a.mean(0), sigma=np.cov(a.T), **spatial)
    config.eval.reference = str(path)
    found = dict(generation.evaluate(context(config)[0]))
    b = features(generated(200, np.arange(200) % 10))
    assert found["fid"] == pytest.approx(distance(a, b), rel=1e-4)
    assert found["precision"] == pytest.approx(covered(features(few), b), abs=0.02)


def test_our_own_statistics_belong_to_one_network(config, tmp_path):
    made, _ = context(config)
    mesh = made.steps.batch_sharding.mesh
    ours = network(mesh)
    x = real(config)
    path = str(tmp_path / "stats.npz")
    described = networks.describe(ours, [x], len(x))
    reference.write_description(path, described, {"features": ours.provenance()})
    config.eval.reference = path
    a, b = features(x), features(generated(200, np.arange(200) % 10))
    found = dict(generation.evaluate(made))
    assert found["fid"] == pytest.approx(distance(a, b), rel=1e-4)
    assert found["precision"] == pytest.approx(covered(a, b), abs=0.01)
    for load, sentence in (
        (lambda mesh: network(mesh, resize="pytorch"), "write config.eval.resize='tensorflow'"),
        (lambda mesh: network(mesh, sha256="3" * 64), "its statistics are of fid.pth, not of"),
        (classifier, r"not of runs/pit: make statistics with `pit-jax data stats"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            dict(generation.evaluate(context(config, load)[0]))


def test_statistics_of_nobody_knows_what_are_inceptions(config, tmp_path):
    config.eval.reference = str(tmp_path / "stats.npz")
    a = features(real(config))
    np.savez(config.eval.reference, mu=a.mean(0), sigma=np.cov(a.T))
    found = dict(generation.evaluate(context(config)[0]))
    assert list(found) == ["fid", "inception_score", "inception_score_std"]
    with pytest.raises(ConfigError, match="its statistics are not said to be of runs/pit"):
        dict(generation.evaluate(context(config, classifier)[0]))
    np.savez(config.eval.reference, mu=np.zeros(5), sigma=np.eye(5))
    with pytest.raises(ConfigError, match=r"have 5 dimensions, fid.pth has 4"):
        dict(generation.evaluate(context(config)[0]))


def test_mistakes_are_found_before_anything_is_generated(config, tmp_path):
    def refused(**fields) -> str:
        changed = config.copy_and_resolve_references()
        for name, value in fields.items():
            group, leaf = name.split("__")
            changed[group][leaf] = value
        load = classifier if fields.get("eval__features") == "runs/pit" else network
        made, _ = context(changed, load)
        with pytest.raises(ConfigError) as error:
            list(generation.evaluate(made))
        assert made.task.calls == 0
        return str(error.value)

    line = refused(eval__features="")
    assert "pt_inception-2015-12-05-6726825d.pth" in line
    assert "or the run directory of a classifier" in line
    assert "are too few for 3 neighbours" in refused(sample__num=3)
    path = tmp_path / "few.npz"
    reference.write_images(path, [np.zeros((3, 8, 8, 3), np.uint8)], (3, 8, 8, 3))
    assert "too few for config.eval.neighbourhood=3" in refused(eval__reference=str(path))
    line = refused(eval__reference=str(tmp_path / "none.npz"))
    assert "No such file" in line
    assert "generated images are 4 × 4 × 1, but runs/pit classifies 8 × 8 × 1" in refused(
        eval__features="runs/pit", data__image_size=4
    )


def test_a_stop_ends_the_looking_at_a_file_of_images(config, tmp_path, monkeypatch):
    """And each of its batches is a sign of life."""
    monkeypatch.setattr(real_images, "_BATCH", 100)
    config.eval.reference = str(tmp_path / "images.npz")
    x = real(config)[:600].repeat(3, -1)
    reference.write_images(config.eval.reference, [x], x.shape)
    made, _ = context(config)
    looked, asked = [], []

    def counted(features, resize, mesh):
        found = network(mesh)
        return dataclasses.replace(found, function=lambda x: looked.append(1) or found.function(x))

    def stopped() -> int:
        asked.append(len(looked))
        return signal.SIGTERM if len(looked) >= 3 else 0

    with pytest.raises(StopAsked, match="signal 15"):
        list(generation.evaluate(dataclasses.replace(made, network=counted, stopped=stopped)))
    assert asked == [0, 1, 2, 3]  # of six batches
    assert made.task.calls == 0


@pytest.mark.parametrize("split", [50, 60])
def test_what_numbers_depend_on_is_kept_and_printed(config, monkeypatch, split):
    for module in (generation, comparison):
        monkeypatch.setattr(module, "SPLIT", split)
    monkeypatch.setattr(networks.describe, "__defaults__", (70,))
    config.eval.neighbourhood = 5
    made, said = context(config)
    list(generation.evaluate(made))
    record, (text,) = said.records["generation"], said.lines
    assert (record["neighbourhood"], record["reference_features"]) == (5, 70)
    assert (record["inception_score_split"], record["dtype"]) == (split, "float32")
    assert "seed 0, in float32\n" in text
    last = ", the last of 20" if split == 60 else ""
    assert (
        "  measured  precision and recall within 5 neighbours, of 70 reference features; " in text
    )
    assert text.endswith(f"; Inception score in splits of {split}{last}")


def test_what_was_not_measured_depends_on_nothing(config, tmp_path):
    config.eval.reference = str(tmp_path / "stats.npz")
    np.savez(config.eval.reference, mu=np.zeros(4), sigma=np.eye(4))
    made, said = context(config)
    list(generation.evaluate(made))
    assert said.records["generation"]["reference_features"] is None
    assert said.lines[0].endswith("  measured  Inception score in splits of 5000, the last of 200")
    config.eval.features, config.eval.reference = "runs/pit", ""
    made, said = context(config, classifier)
    list(generation.evaluate(made))
    assert said.records["generation"]["inception_score_split"] is None
    assert said.lines[0].endswith("within 3 neighbours, of 1437 reference features")
