"""The .npz files that generated images are compared by, as ADM's evaluator reads them.

Dhariwal and Nichol 2021 (guided-diffusion, evaluations/). A file holds images, statistics, or
both:

    arr_0           (N, H, W, 3) uint8
    arr_1           (N,) their labels, in files of samples; not read
    mu, sigma       (d,) and (d, d), of Inception's pool features
    mu_s, sigma_s   the same of the spatial features; pytorch-fid's files have none
    features        (n, d) float32, ours: pool features, for precision and recall
    count           (), ours: images that the statistics are of
    provenance      (), ours: JSON, where they come from

Other readers pass over the last three. Names that are not listed are passed over here.
Nothing is unpickled. Images are read and written as they stream by,
and the same content makes the same bytes.
"""

import contextlib
import dataclasses
import json
import math
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any

import numpy as np
from etils import epath

from pit_jax import files
from pit_jax.errors import ConfigError, StorageError
from pit_jax.evals.comparison import Description
from pit_jax.evals.statistics import Gaussian

_IMAGES, _LABELS = "arr_0", "arr_1"


@dataclasses.dataclass(frozen=True)
class Reference:
    """A file that was read.

    Attributes:
      path: of the file.
      sha256: of its bytes, hexadecimal.
      images: (N, H, W, 3), the shape of its images, to be had from `image_batches`; or None.
      description: its statistics and features; or None.
      provenance: what was written of where they come from; or None.
    """

    path: epath.Path
    sha256: str
    images: tuple[int, int, int, int] | None
    description: Description | None
    provenance: dict[str, Any] | None


def read(path: epath.PathLike) -> Reference:
    """Reads all of a file but its images.

    Args:
      path: local or gs://.

    Raises:
      ConfigError: if there is no such file, or it is not in this format.
      StorageError: if it is damaged.
    """
    with _opened(path) as archive:
        source, names = _Members(path, archive), _names(archive)
        images = source.image_shape() if _IMAGES in names else None
        pool = source.gaussian("mu", "sigma") if names & {"mu", "sigma"} else None
        if images is None and pool is None:
            raise ConfigError(
                f"{path} has neither images (arr_0) nor statistics (mu, sigma), but"
                f" {', '.join(sorted(names)) or 'nothing'}: give a file in the format of ADM's"
                " evaluator"
            )
        description = None
        if pool is not None:
            both = "mu_s", "sigma_s"
            spatial = source.gaussian(*both) if names & set(both) else None
            features = source.features(len(pool.mean)) if "features" in names else None
            count = int(source.array("count", "iu", ())) if "count" in names else None
            description = Description(pool, spatial, features, count=count)
        provenance = source.provenance() if "provenance" in names else None
    return Reference(epath.Path(path), files.sha256(path), images, description, provenance)


def image_batches(path: epath.PathLike, batch_size: int) -> Iterator[np.ndarray]:
    """Yields the images of a file in order, (B, H, W, 3) uint8, the last batch as it comes.

    Raises:
      ConfigError: if there is no such file, or it has no images.
      StorageError: if it is damaged, at the latest after the last batch.
    """
    with _opened(path) as archive:
        source = _Members(path, archive)
        if _IMAGES not in _names(archive):
            raise ConfigError(f"{path} has statistics but no images (arr_0)")
        with source.member(_IMAGES) as (file, header):
            count, *shape = source.image_shape(header)
            for start in range(0, count, batch_size):
                batch = (min(batch_size, count - start), *shape)
                yield np.frombuffer(_exactly(file, math.prod(batch)), np.uint8).reshape(batch)
            _nothing_left(file)


def write_images(
    path: epath.PathLike,
    batches: Iterable[np.ndarray],
    shape: tuple[int, int, int, int],
    provenance: Mapping[str, Any] | None = None,
    labels: np.ndarray | None = None,
) -> None:
    """Writes images as they come; the file appears when all are there, or not at all.

    Args:
      path: local or gs://.
      batches: (B, H, W, 3) uint8 each.
      shape: (N, H, W, 3) of all together.
      provenance: anything JSON knows.
      labels: (N,), written as arr_1.

    Raises:
      ConfigError: if the batches are not what `shape` says.
      StorageError: if the file cannot be written.
    """

    def content(archive: zipfile.ZipFile) -> None:
        seen = 0
        with _new_member(archive, _IMAGES, shape, np.dtype(np.uint8)) as file:
            for batch in batches:
                if batch.dtype != np.uint8 or batch.shape[1:] != tuple(shape[1:]):
                    raise ConfigError(
                        f"{path}: a batch of {batch.dtype} {batch.shape} does not belong to"
                        f" uint8 images of {tuple(shape)}"
                    )
                file.write(np.ascontiguousarray(batch).data)
                seen += len(batch)
        if seen != shape[0]:
            raise ConfigError(f"{path}: {seen} images came, {shape[0]} were to be written")
        _add(archive, {_LABELS: labels, "provenance": _json(provenance)})

    _write(path, content)


def write_description(
    path: epath.PathLike, description: Description, provenance: Mapping[str, Any] | None = None
) -> None:
    """Writes statistics and features, as a whole or not at all.

    Args:
      path: local or gs://.
      description: its Inception score is not kept.
      provenance: anything JSON knows.

    Raises:
      StorageError: if the file cannot be written.
    """
    pool, spatial = description.pool, description.spatial
    arrays = {"mu": pool.mean, "sigma": pool.covariance}
    if spatial is not None:
        arrays |= {"mu_s": spatial.mean, "sigma_s": spatial.covariance}
    ours = {"features": description.features, "provenance": _json(provenance)}
    if description.count is not None:
        ours["count"] = np.array(description.count, np.int64)
    _write(path, lambda archive: _add(archive, arrays | ours))


# Reading --------------------------------------------------------------------------------


class _Members:
    """The arrays of an open file, each checked before it is read."""

    def __init__(self, path: epath.PathLike, archive: zipfile.ZipFile):
        self.path, self.archive = path, archive

    @contextlib.contextmanager
    def member(self, name: str) -> Iterator[tuple[IO[bytes], tuple]]:
        """The opened array, at its data; and its shape, whether columns come first, dtype."""
        if f"{name}.npy" not in self.archive.namelist():
            raise ConfigError(f"{self.path} has no {name}, though it has what belongs to it")
        with self.archive.open(f"{name}.npy") as file:
            version = np.lib.format.read_magic(file)
            if version == (1, 0):
                header = np.lib.format.read_array_header_1_0(file)
            elif version == (2, 0):
                header = np.lib.format.read_array_header_2_0(file)
            else:
                raise ConfigError(f"{self.path}: {name} is not a plain array")
            yield file, header

    def array(self, name: str, kinds: str, shape: tuple[int | None, ...]) -> np.ndarray:
        """A whole array, of a dtype of these kinds; None stands for any length."""
        with self.member(name) as (file, (found, fortran, dtype)):
            fits = len(found) == len(shape) and all(
                b in (None, a) for a, b in zip(found, shape, strict=True)
            )
            if dtype.kind not in kinds or not fits:
                wanted = {"f": "float", "iu": "int", "U": "text"}[kinds]
                sizes = ", ".join("any" if n is None else str(n) for n in shape)
                raise ConfigError(
                    f"{self.path}: {name} is {dtype} {found}, it should be {wanted} ({sizes})"
                )
            data = _exactly(file, math.prod(found) * dtype.itemsize)
            _nothing_left(file)
        return np.frombuffer(data, dtype).reshape(found, order="F" if fortran else "C")

    def image_shape(self, header: tuple | None = None) -> tuple[int, int, int, int]:
        if header is None:
            with self.member(_IMAGES) as (_, header):
                pass
        shape, fortran, dtype = header
        if dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3 or fortran or not all(shape):
            raise ConfigError(
                f"{self.path}: arr_0 is {dtype} {shape}, images should be uint8 (N, H, W, 3)"
            )
        return shape

    def gaussian(self, mean_name: str, covariance_name: str) -> Gaussian:
        mean = self.array(mean_name, "f", (None,)).astype(np.float64)
        covariance = self.array(covariance_name, "f", 2 * mean.shape).astype(np.float64)
        for name, x in ((mean_name, mean), (covariance_name, covariance)):
            if not np.isfinite(x).all():
                raise ConfigError(f"{self.path}: {name} is not finite")
        return Gaussian(mean, covariance)

    def features(self, dim: int) -> np.ndarray:
        return self.array("features", "f", (None, dim)).astype(np.float32, copy=False)

    def provenance(self) -> dict[str, Any]:
        try:
            found = json.loads(str(self.array("provenance", "U", ())))
        except json.JSONDecodeError as error:
            raise ConfigError(f"{self.path}: provenance is not JSON: {error}") from None
        if not isinstance(found, dict):
            raise ConfigError(
                f"{self.path}: provenance is JSON of a {type(found).__name__}, it should be an"
                " object with names, as `pit-jax data stats` and `sample` write it"
            )
        return found


@contextlib.contextmanager
def _opened(path: epath.PathLike) -> Iterator[zipfile.ZipFile]:
    """The archive; whatever is wrong with its bytes becomes one line."""
    try:
        file = epath.Path(path).open("rb")
    except OSError as error:
        raise ConfigError(f"reference {path}: {error.strerror or error}") from None
    try:
        with file, zipfile.ZipFile(file) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise StorageError(f"{path} is no intact .npz file: {error}") from None


def _names(archive: zipfile.ZipFile) -> set[str]:
    return {name.removesuffix(".npy") for name in archive.namelist()}


def _exactly(file: IO[bytes], size: int) -> bytes:
    pieces, left = [], size
    while left:
        piece = file.read(left)
        if not piece:
            raise EOFError(f"an array ends {left} bytes too early")
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def _nothing_left(file: IO[bytes]) -> None:
    if file.read(1):  # at the end the checksum is compared, too
        raise EOFError("an array goes on after its end")


# Writing --------------------------------------------------------------------------------


def _json(provenance: Mapping[str, Any] | None) -> np.ndarray | None:
    return None if provenance is None else np.array(json.dumps(provenance, sort_keys=True))


def _add(archive: zipfile.ZipFile, arrays: Mapping[str, np.ndarray | None]) -> None:
    for name, x in arrays.items():
        if x is not None:
            with _new_member(archive, name, x.shape, x.dtype) as file:
                file.write(x.tobytes())


@contextlib.contextmanager
def _new_member(
    archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: np.dtype
) -> Iterator[IO[bytes]]:
    # A ZipInfo of its own has a fixed date, so the bytes do not depend on the day.
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
        description = np.lib.format.dtype_to_descr(dtype)
        header = {"descr": description, "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(file, header)
        yield file


def _write(path: epath.PathLike, content: Callable[[zipfile.ZipFile], None]) -> None:
    with (
        files.whole(path) as temporary,
        temporary.open("wb") as file,
        zipfile.ZipFile(file, "w") as archive,
    ):
        content(archive)
