"""Generated images as numbered PNG files of a directory."""

import concurrent.futures
import io

import jax
import numpy as np
from etils import epath

from pit_jax import files
from pit_jax.errors import StorageError

THREADS = 8  # that read, compress and write images; a large one takes 10 ms


def intact(target: epath.Path, count: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Which images are there, whole and of this shape: (count,) bool."""
    found = np.zeros(count, bool)
    folder = target / "images"
    if jax.process_index() == 0 and folder.exists():
        names = {path.name for path in folder.iterdir()}
        there = [index for index in range(count) if path_of(target, index).name in names]
        with concurrent.futures.ThreadPoolExecutor(THREADS, "sample") as pool:
            found[there] = list(pool.map(lambda i: _is_image(path_of(target, i), shape), there))
    return found


def _is_image(path: epath.Path, shape: tuple[int, int, int]) -> bool:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            fits = image.size == (shape[1], shape[0]) and image.mode == _mode(shape)
            image.verify()  # every chunk's checksum, and that it ends
            return fits
    except (OSError, SyntaxError, ValueError):
        return False


def path_of(target: epath.Path, index: int) -> epath.Path:
    return target / "images" / f"{index:06d}.png"


def write(target: epath.Path, indices: np.ndarray, images: np.ndarray) -> None:
    """One file an image, each as a whole or not at all."""

    def one(index: int, image: np.ndarray) -> None:
        files.write(path_of(target, index), _png(image))

    with concurrent.futures.ThreadPoolExecutor(THREADS, "sample") as pool:
        list(pool.map(one, indices, images))  # raises what one of them raised


def _mode(shape: tuple[int, ...]) -> str:
    return "L" if shape[-1] == 1 else "RGB"


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(content, "png")
    return content.getvalue()


def read(path: epath.Path) -> np.ndarray:
    """(S, S, 3) uint8."""
    from pit_jax.data.decode import decode

    try:
        return decode(path.read_bytes(), 3)
    except (OSError, ValueError) as error:
        raise StorageError(
            f"{path} cannot be read back ({error}): start again, it will be made anew"
        ) from None
