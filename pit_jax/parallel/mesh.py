"""The device mesh: four named axes, always all four; one device is a mesh of ones.

    data    examples, parameters repeated
    fsdp    examples, parameters split
    seq     tokens
    model   heads and the MLP's hidden units

Models never hold a mesh: they name axes in `constrain`, which reads the ambient one.
"""

import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import AxisType, Mesh, PartitionSpec

from pit_jax.errors import ConfigError

AXES = ("data", "fsdp", "seq", "model")
BATCH_AXES = ("data", "fsdp")


def mesh_shape(sizes: Mapping[str, int], devices: int) -> tuple[int, ...]:
    """Resolves the −1 of a mesh ("what is left") against the number of devices.

    Raises:
      ConfigError: if the axes do not multiply to `devices`.
    """
    shape = [sizes[axis] for axis in AXES]
    given = math.prod(n for n in shape if n != -1)
    if -1 in shape and devices % given == 0:
        shape[shape.index(-1)] = devices // given
    if math.prod(shape) != devices:
        asked = " × ".join(f"mesh.{axis}={sizes[axis]}" for axis in AXES)
        raise ConfigError(
            f"{asked} does not multiply to the {devices} device(s) here:"
            " set one axis to -1 to let it take what is left"
        )
    return tuple(shape)


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices` (all of them by default) with `AXES` as its axes.

    Over several TPU slices only `data` reaches from one to the other: the network between
    them is a hundred times slower than the links inside. The compiler places the
    collectives (Auto axes): flax.linen knows no explicit ones.

    Raises:
      ConfigError: if the axes do not multiply to the devices, or `data` does not divide
        over the slices.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(sizes, len(devices))
    axis_types = (AxisType.Auto,) * len(AXES)
    tpu = devices[0].platform == "tpu"  # on GPUs every host calls itself a slice
    slices = len({getattr(d, "slice_index", 0) for d in devices}) if tpu else 1
    if slices == 1:
        return jax.make_mesh(shape, AXES, axis_types, devices=devices)
    from jax.experimental import mesh_utils

    data, *inside = shape
    if data % slices:
        raise ConfigError(
            f"mesh.data={data} does not divide over the {slices} slices: only examples are"
            " shared out between slices"
        )
    grid = mesh_utils.create_hybrid_device_mesh(
        (data // slices, *inside), (slices, 1, 1, 1), devices
    )
    return Mesh(grid, AXES, axis_types=axis_types)


def batch_spec() -> PartitionSpec:
    """How a batch is laid out: its first dimension over data and fsdp."""
    return PartitionSpec(BATCH_AXES)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Lays an activation out over the ambient mesh; without one it does nothing.

    Args:
      x: any array.
      *names: for each dimension "batch", "seq", "model" or None. A dimension that its
        axes do not divide (1025 tokens over 2) is left to the compiler.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    spec = []
    for size, name in zip(x.shape, names, strict=True):
        axes = BATCH_AXES if name == "batch" else (name,) if name else ()
        fits = axes and size % math.prod(mesh.shape[a] for a in axes) == 0
        spec.append(axes if fits else PartitionSpec.UNCONSTRAINED if axes else None)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def ambient_platform() -> str:
    """ "cpu", "gpu" or "tpu": where the code being traced will run.

    Under a mesh of devices that are not here (compiling ahead for a TPU) the default
    backend would be the wrong answer, so the ambient mesh is asked first.
    """
    mesh = jax.sharding.get_abstract_mesh()
    platform = jax.default_backend() if mesh.empty else mesh.abstract_device.platform
    return "gpu" if platform in ("cuda", "rocm") else platform


def compute_capability() -> tuple[int, int] | None:
    """Of the NVIDIA GPUs of this process, such as (9, 0); None where none is here, such as
    when compiling ahead for some.
    """
    device = jax.local_devices()[0]
    if device.platform != "gpu":
        return None
    major, _, minor = device.compute_capability.partition(".")
    return int(major), int(minor)
