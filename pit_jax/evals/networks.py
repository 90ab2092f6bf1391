"""Networks whose features tell how alike two sets of images are, and sets described by them."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pit_jax.errors import ConfigError
from pit_jax.evals.comparison import Collector, Description
from pit_jax.evals.generator import mesh_ways
from pit_jax.models.inception import POOL_DIM, Inception
from pit_jax.parallel.mesh import batch_spec
from pit_jax.weights import inception as weights

AT_ONCE = 32  # images on a device
REFERENCE_FEATURES = 10_000  # rows of a reference that precision and recall look at, as in ADM


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A frozen network: images (n, S, S, C) uint8 → its outputs, each whole on every process.

    Attributes:
      name: "inception", or what metrics begin with.
      path: where it came from.
      sha256: of its weights.
      dim: of its features, called "pool".
      function: a batch of images on the devices → outputs as `Collector.add` takes them.
      sharding: of that batch.
      image_shape: (S, S, C) that images must have; None takes any size, of 3 channels.
      resize: how Inception's input is resized; None for others.
    """

    name: str
    path: str
    sha256: str
    dim: int
    function: Callable[[jax.Array], dict[str, jax.Array]]
    sharding: NamedSharding
    image_shape: tuple[int, int, int] | None = None
    resize: str | None = None

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs of any number of images, in their order.

        Raises:
          ConfigError: if they are of another size or colour than the network's.
        """
        images = self._fitting(images)
        ways = mesh_ways(self.sharding.mesh)
        # Powers of two: at most six programs are compiled, whatever numbers come.
        rows = min(AT_ONCE, 1 << (-(-len(images) // ways) - 1).bit_length())
        size = ways * rows
        parts = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            padded = np.pad(part, ((0, size - len(part)), (0, 0), (0, 0), (0, 0)))
            batch = jax.make_array_from_callback(padded.shape, self.sharding, padded.__getitem__)
            outputs = jax.device_get(self.function(batch))
            parts.append({name: x[: len(part)] for name, x in outputs.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def check(self, image_shape: tuple[int, ...], whose: str) -> None:
        """Refuses images of a shape (S, S, C) that the network was not made for.

        Raises:
          ConfigError: saying whose they are.
        """
        size, channels = image_shape[:2], image_shape[2]
        if self.image_shape is None:
            if channels not in (1, 3):
                raise ConfigError(f"{whose} have {channels} channels, Inception takes 1 or 3")
            return
        *wanted, wanted_channels = self.image_shape
        if tuple(size) != tuple(wanted) or channels not in (wanted_channels, 3):
            raise ConfigError(
                f"{whose} are {' × '.join(map(str, image_shape))}, but {self.path} classifies"
                f" {' × '.join(map(str, self.image_shape))}: name a classifier of such images"
            )

    def provenance(self) -> dict[str, Any]:
        """Which network it is, as JSON knows it."""
        names = ("name", "path", "sha256", "resize")
        return {name: getattr(self, name) for name in names}

    def _fitting(self, images: np.ndarray) -> np.ndarray:
        self.check(images.shape[1:], "the images")
        wanted = 3 if self.image_shape is None else self.image_shape[2]
        if images.shape[-1] == wanted:
            return images
        if wanted == 3:
            return images.repeat(3, axis=-1)
        if (images != images[..., :1]).any():
            raise ConfigError(
                f"the images are coloured, but {self.path} classifies grey ones: name a"
                " classifier of such images"
            )
        return images[..., :1]  # grey, as files of three channels hold it


@functools.lru_cache(maxsize=1)
def inception(path: epath.PathLike, resize: str, mesh: Mesh) -> Network:
    """FID's Inception over the devices of a mesh.

    Args:
      path: the public file, see weights/inception.py.
      resize: "tensorflow" or "pytorch", see `models.inception.preprocess`.

    Raises:
      ConfigError: if there is no such file or it holds something else.
      StorageError: if it is damaged.
    """
    loaded = weights.load(path)
    model = Inception(resize)
    whole = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, batch_spec())

    def outputs(params: Any, images: jax.Array) -> dict[str, jax.Array]:
        found = model.apply({"params": params}, images)
        return {name: found[name] for name in ("pool", "spatial", "probabilities")}

    jitted = jax.jit(outputs, in_shardings=(whole, split), out_shardings=whole)
    params = jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, whole, x.__getitem__), loaded.params
    )
    function = functools.partial(jitted, params)
    return Network("inception", str(path), loaded.sha256, POOL_DIM, function, split, resize=resize)


def describe(
    network: Network,
    batches: Iterable[np.ndarray],
    count: int,
    features: int | None = REFERENCE_FEATURES,
) -> Description:
    """A set of images described by a network, batch by batch.

    Args:
      network: looks at them.
      batches: (n, S, S, C) uint8 each.
      count: images of all batches together, at most.
      features: rows kept for precision and recall, at even distances from all over the set,
        as sets may be sorted by class; None keeps all.

    Raises:
      ConfigError: if they do not fit the network, or are fewer than two.
    """
    collector = Collector(features=0)
    rows = count if features is None else min(features, count)
    kept, seen = [np.zeros((0, network.dim), np.float32)], 0
    for images in batches:
        if not len(images):  # a batch of which nothing could be decoded
            continue
        outputs = network(images)
        collector.add(outputs)
        at = np.arange(seen, seen + len(images))
        chosen = at * rows // count != (at - 1) * rows // count
        kept.append(np.asarray(outputs["pool"], np.float32)[chosen])
        seen += len(images)
    return dataclasses.replace(collector.description(), features=np.concatenate(kept))
