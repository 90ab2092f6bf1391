"""Fields that follow from others go along when those change, wherever the config comes from."""

import pytest

from pit_jax import configfile, derived, tasks, validation
from pit_jax.config import assign, flatten
from pit_jax.errors import ConfigError
from pit_jax.models import sizes
from pit_jax.study import points

FINE = {"model.width": 96, "mae.decoder_width": 64}  # a value of each source


def test_every_field_that_follows_has_a_source_that_a_test_changes():
    assert {d.source for d in derived.DERIVED.values()} == set(FINE)


@pytest.mark.parametrize(
    "named",
    [sizes.parse_name(f"vit-{size}/2", sizes="tsblh") for size in sizes.SIZES]
    + [sizes.parse_dit_name(f"dit-{size}/2", tuple(sizes.DIT_SIZES)) for size in sizes.DIT_SIZES]
    + [sizes.parse_decoder(f"pit-{size}") for size in sizes.DECODERS],
)
def test_a_named_size_gives_no_number_to_a_field_that_follows(named):
    follow = {name.partition(".")[2] for name in derived.DERIVED}
    assert follow & set(named)
    assert all(named[name] == 0 for name in follow & set(named))


@pytest.mark.parametrize("name", derived.DERIVED)
@pytest.mark.parametrize("spec", ["configs/cifar100_mae.py:pit-t", "json"])
def test_an_override_of_the_source_takes_what_follows_along(tmp_path, spec, name):
    if spec == "json":  # of a run directory, where it is filled in already
        c = configfile.load("configs/cifar100_mae.py:pit-t")
        spec = str(tmp_path / "config.json")
        (tmp_path / "config.json").write_text(configfile.to_json(c))
        assert flatten(configfile.load(spec)) == flatten(c)
    what = derived.DERIVED[name]
    word = f"--config.{what.source}={FINE[what.source]}"
    expected = what.rule(FINE[what.source])
    heads = [f"--config.model.heads={FINE['model.width'] // 8}"]
    assert flatten(configfile.load(spec, [word, *heads]))[name] == expected
    given = [word, *heads, f"--config.{name}={2 * expected}"]
    assert flatten(configfile.load(spec, given))[name] == 2 * expected


def test_a_diffusion_made_unconditional_is_not_guided():
    spec, word = "configs/digits_diffusion.py:pit", "--config.diffusion.conditional=False"
    assert configfile.load(spec).sample.guidance > 1
    assert configfile.load(spec, [word]).sample.guidance == 1
    file = configfile.PythonFile(spec)
    found = points.build(file, [{"diffusion.conditional": False}], [], "runs")
    assert found[0].config.sample.guidance == 1
    with pytest.raises(ConfigError, match="needs a network that knows classes"):
        configfile.load(spec, [word, "--config.sample.guidance=4"])


def test_a_sweep_over_the_width_of_a_named_size_is_not_confounded():
    file = configfile.PythonFile("configs/cifar100.py:pit-t")
    found = points.build(file, [{"model.width": w} for w in (192, 384)], [], "runs")
    assert [p.config.model.mlp for p in found] == [768, 1536]


def test_a_number_that_a_run_directory_holds_and_follows_from_nothing_stays(tmp_path):
    c = configfile.load("configs/digits.py:pit", ["--config.model.mlp=100"])
    (tmp_path / "config.json").write_text(configfile.to_json(c))
    word = "--config.model.width=96"
    assert configfile.load(str(tmp_path / "config.json"), [word]).model.mlp == 100


@pytest.mark.parametrize(("width", "heads"), [(512, 16), (48, 2), (40, 1), (8, 1), (66, 2)])
def test_heads_of_a_decoder_have_as_nearly_32_channels_as_can_be(width, heads):
    words = [f"--config.mae.decoder_width={width}", "--config.mae.decoder_heads=0"]
    assert configfile.load("configs/digits_mae.py:pit", words).mae.decoder_heads == heads


@pytest.mark.parametrize("name", derived.DERIVED)
def test_nothing_is_built_of_a_config_that_was_not_resolved(tiny, name):
    c = validation.resolve(tiny)
    assign(c, name, 0)
    with pytest.raises(ConfigError, match=rf"config\.{name} is 0, which only a resolved"):
        tasks.build(c)
