"""The table of chips and topologies; what is not in it is refused by name."""

import re

import pytest

from pit_jax import installation
from pit_jax.errors import ConfigError
from pit_jax.perf import topology

libtpu = pytest.mark.skipif(
    not topology.has_libtpu(), reason="libtpu is not installed (x86-64 Linux only)"
)


def test_names_count_chips_or_cores_as_cloud_tpu_does():
    assert topology.find("v5e-256").shape == (16, 16)
    assert topology.find("v5e-256").chips == 256
    assert topology.find("v5p-256").chips == 128
    assert topology.find("v4-8", slices=2).chips == 8
    assert topology.find("tpu7x-16").chips == 8


def test_every_chip_has_a_published_peak():
    peaks = {name: chip.peak_flops / 1e12 for name, chip in topology.CHIPS.items()}
    assert peaks == {"v4": 275, "v5e": 197, "v5p": 459, "v6e": 918, "tpu7x": 1153.5}


@pytest.mark.parametrize("name", ["v5e-7", "v5e", "v5e-", "h100-8", "", "v5e-٨"])
def test_an_unknown_topology_lists_those_there_are(name):
    with pytest.raises(ConfigError) as error:
        topology.find(name)
    assert f"there is no topology '{name}'" in str(error.value)
    for kind in topology.CHIPS:
        assert f"{kind}-" in str(error.value)


def test_near_misses_are_named():
    with pytest.raises(ConfigError, match=r"did you mean v5e-256\?"):
        topology.find("v5e-255")


def test_slices_below_one_are_refused():
    with pytest.raises(ConfigError, match="--slices 0"):
        topology.find("v5e-8", slices=0)


def test_a_missing_libtpu_names_the_extra(monkeypatch):
    monkeypatch.setattr(topology, "has_libtpu", lambda: False)
    with pytest.raises(ConfigError, match=re.escape(installation.extra("tpu"))):
        topology.find("v5e-8").devices()


@libtpu
@pytest.mark.parametrize(
    ("name", "slices", "devices"),
    [("v4-8", 1, 4), ("v5e-1", 1, 1), ("v5e-256", 2, 512), ("v5p-16", 1, 8), ("v6e-4", 1, 4)]
    + [("tpu7x-8", 1, 8)],
)
def test_devices_are_those_of_the_table(name, slices, devices):
    where = topology.find(name, slices)
    found = where.devices()
    assert len(found) == devices == where.chips * where.chip.devices_a_chip
    assert {device.device_kind for device in found} == {where.chip.kind}


@libtpu
def test_only_examples_are_shared_out_between_slices():
    sizes = {"data": 2, "fsdp": 4, "seq": 1, "model": 2}
    mesh = topology.find("v5e-8", slices=2).mesh(sizes)
    slices = [{device.slice_index for device in part.flat} for part in mesh.devices]
    assert slices == [{0}, {1}]
    with pytest.raises(ConfigError, match=r"mesh.data=1 does not divide over the 2 slices"):
        topology.find("v5e-8", slices=2).mesh({**sizes, "data": 1, "fsdp": 8})
