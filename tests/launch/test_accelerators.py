"""What can be booked: names, shapes, hosts."""

import math

import pytest

from pit_jax.errors import ConfigError
from pit_jax.launch import accelerators
from pit_jax.perf import topology


@pytest.mark.parametrize(
    ("name", "shape", "chips", "hosts", "chips_a_host"),
    [  # from the tables of docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}
        ("v5litepod-1", "1x1", 1, 1, 1),
        ("v5litepod-4", "2x2", 4, 1, 4),
        ("v5litepod-8", "2x4", 8, 1, 8),
        ("v5litepod-16", "4x4", 16, 4, 4),
        ("v5litepod-64", "8x8", 64, 16, 4),
        ("v5litepod-256", "16x16", 256, 64, 4),
        ("v6e-8", "2x4", 8, 1, 8),
        ("v6e-32", "4x8", 32, 8, 4),
        ("v4-8", "2x2x1", 4, 1, 4),
        ("v4-32", "2x2x4", 16, 4, 4),
        ("v5p-8", "2x2x1", 4, 1, 4),
        ("v5p-128", "4x4x4", 64, 16, 4),
        ("v5p-256", "4x4x8", 128, 32, 4),
        ("tpu7x-128", "4x4x4", 64, 16, 4),
    ],
)
def test_shapes_and_hosts_are_those_of_the_documentation(name, shape, chips, hosts, chips_a_host):
    found = accelerators.find(name)
    assert found.name == name
    assert found.shape == shape
    assert (found.chips, found.hosts, found.chips_a_host) == (chips, hosts, chips_a_host)


@pytest.mark.parametrize("name", accelerators.names())
def test_every_name_is_complete_and_one_that_preflight_knows(name):
    found = accelerators.find(name, 2)
    assert found.hosts * found.chips_a_host == found.chips == math.prod(found.topology.shape)
    assert topology.find(found.topology.name, 2) == found.topology
    assert found.topology.chips == 2 * found.chips
    assert found.gke_accelerator.startswith("tpu")
    cores = 1 if name.startswith(("v5litepod", "v6e")) else 2
    assert name.endswith(f"-{cores * found.chips}")


def test_generations():
    """docs.cloud.google.com/tpu/docs/runtimes, and GKE's labels."""
    known = {
        "v4-8": ("tpu-ubuntu2204-base", "tpu-v4-podslice"),
        "v5litepod-8": ("v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice"),
        "v5p-8": ("v2-alpha-tpuv5", "tpu-v5p-slice"),
        "v6e-8": ("v2-alpha-tpuv6e", "tpu-v6e-slice"),
        "tpu7x-8": (None, "tpu7x"),
    }
    for name, expected in known.items():
        found = accelerators.find(name)
        assert (found.runtime_version, found.gke_accelerator) == expected


def test_memory_is_a_chips_and_not_a_devices():
    assert accelerators.find("v5litepod-8").hbm_bytes == int(15.75 * 2**30)
    assert accelerators.find("tpu7x-8").hbm_bytes == 2 * int(94.75 * 2**30)


@pytest.mark.parametrize("name", ["v5e-64", "V5LITEPOD-64", "v5Litepod-64"])
def test_the_name_of_preflight_and_capitals_are_taken_too(name):
    assert accelerators.find(name) == accelerators.find("v5litepod-64")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("v5litepod-63", "did you mean v5litepod-64?"),
        ("v5litepod-512", "(did you mean v5litepod-256?): v5litepod has -256, -128, -64, -32, "),
        ("v5p-12", "(did you mean v5p-8?): v5p has -8, -16, -32, "),
        ("V5P-999999999", "did you mean v5p-1024?"),
        ("v5p-9999999999", "'v5p-9999999999': v5p has -8, -16"),
        ("v5-8", "did you mean v5p-8?"),
        ("V5-8", "did you mean v5p-8?"),
        ("h100", "'h100': there are v4-N, v5litepod-N, v5p-N, v6e-N, tpu7x-N, such as v5lite"),
        ("v5litepod", "'v5litepod': v5litepod has -1, -4, -8"),
        ("v5litepod-08", "did you mean v5litepod-8?"),
        ("v5litepod-\u00b2", "there is no accelerator"),
        (f"v5litepod-{'x' * 50}", "there is no accelerator"),
        ("$(reboot)" * 50, "there is no accelerator"),
        (None, "--accelerator is missing"),
        ("", "--accelerator is missing"),
    ],
)
def test_other_names_are_refused_in_one_line(name, hint):
    with pytest.raises(ConfigError) as refused:
        accelerators.find(name)
    assert hint in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) <= 160
