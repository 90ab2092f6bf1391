"""What a run starts from: fields that must agree, positions that are computed, averages."""

import re

import jax
import numpy as np
import pytest

from pit_jax import checkpoint, rundir, step, validation
from pit_jax.data import identity
from pit_jax.errors import ConfigError
from pit_jax.lengths import Clock
from pit_jax.models import order
from pit_jax.models.embed import sincos2d
from pit_jax.parallel import mesh as meshes
from pit_jax.tasks import build
from pit_jax.weights import initial, otherwise, tensors

from ..saved_runs import diffusion, save_run
from ..short_runs import change


@pytest.fixture
def make(tiny):
    """A resolved config of a small masked autoencoder; what was changed once stays so."""
    tiny.task = "mae"
    tiny.mae.update(decoder_width=8, decoder_depth=1, decoder_heads=2)
    tiny.eval.what = ()

    def config(**fields):
        change(tiny, {name.replace("__", "."): value for name, value in fields.items()})
        return validation.resolve(tiny)

    return config


def started(config, classes=()) -> tuple[jax.Array, str]:
    """The state that a run begins with, and what it says about it."""
    mesh = meshes.make_mesh(config.mesh, jax.devices()[:1])
    steps = step.build(build(config), config, mesh, Clock(32, 1, 1))
    said: list[str] = []
    with jax.set_mesh(mesh):
        return initial.state(config, steps, said.append, classes), "\n".join(said)


def weights_of(path) -> dict:
    saved = checkpoint.Checkpoints(rundir.RunDir(path))
    return saved.read_weights(saved.steps()[-1])


def tokens(config, params) -> np.ndarray:
    """What the model makes of every patch of some images."""
    rng = np.random.default_rng(1)
    size, channels = config.data.image_size, config.data.channels
    batch = {"image": rng.integers(0, 256, (3, size, size, channels), dtype=np.uint8)}
    batch |= {"label": np.arange(3, dtype=np.int32)}
    task = build(config)
    say = jax.jit(lambda params: task.tokens(params, task.normalise(batch), batch))
    return np.asarray(say(params))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            {"model__patch": 2, "mae__decoder_position": "sincos2d"},
            {"task": "classification", "init_task": "mae", "model__pool": "patches"},
        ),
        ({"task": "classification", "model__order": "hilbert", "model__pool": "mean"}, {}),
        ({"task": "diffusion", "model__name": "dit", "sample__steps": 3}, {}),
    ],
    ids=["an encoder", "a classifier along a curve", "a diffusion"],
)
def test_positions_that_were_computed_become_the_first_learned_ones(make, tmp_path, before, after):
    """The table of a run that computed it is where the new one begins: both say the same."""
    old = make(model__position="sincos2d", **before)
    save_run(old, tmp_path / "run")
    new = make(model__position="learned", init_from=str(tmp_path / "run"), **after)
    state, said = started(new)
    assert "  computed embed (1)" in said
    assert not any("embed" in line for line in said.splitlines() if line.startswith("  new"))
    side, table = new.data.image_size // new.model.patch, state.params["embed"]["position"]
    where = order.indices(new.model.order, side)
    np.testing.assert_array_equal(table[len(table) - side**2 :], sincos2d((side, side), 16)[where])
    np.testing.assert_array_equal(table[: len(table) - side**2], 0)  # [CLS] has no place
    expected = tokens(old, weights_of(tmp_path / "run"))
    np.testing.assert_allclose(tokens(new, state.params), expected, rtol=1e-5, atol=1e-5)
    params = jax.device_get(state.params)
    params["embed"]["position"] = 0 * table
    assert not np.allclose(tokens(new, params), expected, atol=1e-2)  # they matter


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("learned", "sincos2d"), ("none", "learned"), ("sincos2d", "none"), ("learned", "none")],
)
def test_other_positions_are_refused(make, tmp_path, theirs, ours):
    save_run(make(model__position=theirs), tmp_path / "run")
    config = make(model__position=ours, init_from=str(tmp_path / "run"))
    with pytest.raises(ConfigError, match=f"position='{theirs}', the config has '{ours}'"):
        initial.check(config)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mae.decoder_width", 16),
        ("mae.decoder_depth", 2),
        ("mae.decoder_heads", 4),
        ("mae.decoder_position", "sincos2d"),
        ("mae.normalise_target", True),
    ],
)
def test_another_decoder_is_refused_between_masked_autoencoders_alone(make, tmp_path, field, value):
    """Some of its fields have no shape, and of others half a decoder would be taken."""
    save_run(make(model__patch=2), tmp_path / "run")
    config = make(init_from=str(tmp_path / "run"))
    change(config, {field: value})
    found = value if isinstance(value, bool) else repr(value)
    with pytest.raises(ConfigError, match=rf"with {field}=\S+, the config has {found}"):
        initial.check(config)
    config.task = "classification"  # which has no decoder
    initial.check(config)


def test_the_same_decoder_is_loaded(make, tmp_path):
    save_run(make(model__patch=2), tmp_path / "run")
    same, said = started(make(init_from=str(tmp_path / "run")))
    assert "decoder (24)" in said.splitlines()[1]
    assert said.splitlines()[2] == "  new      nothing"
    for path, value in tensors.flatten(weights_of(tmp_path / "run")).items():
        np.testing.assert_array_equal(tensors.flatten(same.params)[path], value, err_msg=path)


def test_another_autoencoder_is_refused(make, tmp_path):
    sizes = {"channels": (4, 8), "layers": 1, "latent": 2, "groups": 2, "attends": False}
    words = {f"autoencoder__{name}": value for name, value in sizes.items()}
    words |= {"task": "autoencoder", "model__name": "autoencoder"}
    save_run(make(**words), tmp_path / "run")
    start = {"init_from": str(tmp_path / "run")}
    initial.check(make(**start))
    for name, value in {"groups": 4, "layers": 2, "attends": True}.items():
        config = make(**start, **{f"autoencoder__{name}": value})
        with pytest.raises(ConfigError, match=rf"with autoencoder\.{name}=\S+, the config has"):
            initial.check(config)
        make(**{f"autoencoder__{name}": sizes[name]})


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, ()),
        ({"predict": "v"}, ("predict='epsilon', now 'v'",)),
        ({"schedule": "cosine"}, ("schedule='linear', now 'cosine'",)),
        ({"timesteps": 100}, ("timesteps=1000, now 100",)),
        (
            {"family": "flow", "predict": "v", "timesteps": 100, "schedule": "cosine"},
            ("family='gaussian', now 'flow'", "predict='epsilon', now 'v'"),
        ),
    ],
)
def test_a_diffusion_that_was_asked_something_else_is_said_in_one_line(tmp_path, fields, named):
    """To go over is a way of fine-tuning; done unawares it looks like a run that will not learn."""
    old = diffusion(diffusion__learn_sigma=False)
    save_run(old, tmp_path / "run")
    new = old.copy_and_resolve_references()
    new.diffusion.update(fields)
    new.sample.sampler = "euler" if new.diffusion.family == "flow" else "ddpm"
    new.init_from = str(tmp_path / "run")
    new = validation.resolve(new)
    said = otherwise.asked(initial.find(new.init_from, new).fields, new)
    if not named:
        assert said is None
        return
    parts = ", ".join(f"config.diffusion.{name}" for name in named)
    assert said.startswith(f"config.init_from={new.init_from} learned with {parts}: what its")
    assert "\n" not in said
    if "predict" in fields and "family" not in fields:
        assert started(new)[1].startswith(f"{said}\nweights from {new.init_from}")


def test_a_fine_tuning_run_may_go_on_from_the_whole_state_of_another(make, tmp_path):
    """`init_task` asks for weights where a run starts from weights."""
    tuned = make(task="classification", init_task="mae")
    save_run(tuned, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"config\.init_from is empty"):
        initial.check(tuned)
    again = make(resume=str(tmp_path / "run"))
    initial.check(again)
    state, said = started(again)
    assert said == f"starts from the whole state of {tmp_path / 'run'} at step 7"
    assert int(state.step) == 7


@pytest.mark.parametrize(
    ("decay", "advice"), [(1.0, ""), (0.65, " --config.optim.layer_decay=1.0")]
)
def test_from_scratch_every_layer_is_to_learn(make, decay, advice):
    config = make(task="classification", init_task="mae", optim__layer_decay=decay)
    with pytest.raises(ConfigError) as refusal:
        initial.check(config)
    assert str(refusal.value).endswith(f"train from scratch with --config.init_task={advice}")


@pytest.mark.parametrize(("theirs", "ours"), [(0.9, 0.5), (0.0, 0.5), (0.9, 0.0)])
def test_the_average_starts_as_the_weights_that_were_loaded(make, tmp_path, theirs, ours):
    """And those are the other run's average, where it has one."""
    save_run(make(optim__ema=theirs), tmp_path / "run")
    state, _ = started(make(optim__ema=ours, init_from=str(tmp_path / "run")))
    saved = checkpoint.Checkpoints(rundir.RunDir(tmp_path / "run")).read(7)
    expected = tensors.flatten(saved["ema" if theirs else "params"])
    assert bool(jax.tree.leaves(state.ema)) == bool(ours)
    for group in (state.params, *((state.ema,) if ours else ())):
        found = tensors.flatten(group)
        assert set(found) == set(expected)
        for path, value in found.items():
            np.testing.assert_array_equal(value, expected[path], err_msg=path)
    if ours:  # buffers of their own: a step donates both
        both = zip(jax.tree.leaves(state.params), jax.tree.leaves(state.ema), strict=True)
        assert all(x.unsafe_buffer_pointer() != y.unsafe_buffer_pointer() for x, y in both)


# Weights that know other classes -------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "ours", "group", "sentence"),
    [
        ("ab", "ab", None, None),
        ("", "ab", None, None),  # nobody knows
        ("ab", "", None, None),
        ("abc", "ab", None, None),  # its head has another shape, and is new already
        ("ab", "ba", "head", "'b' was number 1 and is 0, 'a' was number 0 and is 1. What it"),
        ("abc", "bcd", "head", "new 'd'; missing 'a'; 'b' was number 1 and is 0"),
        ("ab", "cd", None, r"\(0 is 'c' here and 'a' there\): its head is taken number by number"),
    ],
)
def test_a_head_for_other_classes_is_said(make, theirs, ours, group, sentence):
    config = make(task="classification", init_from="there")
    found = otherwise.classes({"task": "classification"}, theirs, config, ours)
    assert found[0] == group
    assert (found[1] is None) == (sentence is None)
    if sentence:
        assert re.search(sentence, found[1])
        assert "\n" not in found[1]
    assert otherwise.classes({"task": "mae"}, theirs, config, ours) == (None, None)


@pytest.mark.parametrize(
    ("task", "group", "leaf"),
    [("classification", "head", "kernel"), ("diffusion", "label", "table")],
)
def test_what_was_learnt_of_renumbered_classes_starts_afresh(make, tmp_path, task, group, leaf):
    """A head, and a table of labels; what else there is comes along."""
    fields = {"task": task, "eval__what": ()}
    if task == "diffusion":
        fields |= {"model__name": "dit", "sample__steps": 3}
    save_run(make(**fields), tmp_path / "run")
    digits = tuple("0123456789")
    kept = identity.Identity("x", digits, identity.Split("a", 1), identity.Split("b", 1))
    identity.keep(rundir.RunDir(tmp_path / "run"), kept)
    new, learnt = make(init_from=str(tmp_path / "run")), weights_of(tmp_path / "run")
    for classes in (digits, digits[::-1]):
        state, said = started(new, classes)
        params = jax.device_get(state.params)
        assert ("starts afresh" in said) == (classes != digits)
        same = np.array_equal(params[group][leaf], learnt[group][leaf])
        assert same == (classes == digits)
        np.testing.assert_array_equal(
            params["embed"]["patch"]["bias"], learnt["embed"]["patch"]["bias"]
        )
