"""In which order an image's patches stand in the sequence.

An encoder that sees everything does not mind: its positions get other names. A model that
predicts pixel after pixel does, since the order decides what it knows before each.
"""

import functools

import numpy as np

NAMES = ("raster", "columns", "snake", "hilbert", "random")


@functools.lru_cache(maxsize=64)
def indices(name: str, side: int, seed: int = 0) -> np.ndarray:
    """Which patch stands where in the sequence.

    raster   row by row
    columns  column by column
    snake    row by row, every second one backwards: neighbours in the sequence are
             neighbours in the image
    hilbert  along Hilbert's curve, which stays near where it has been; on a side that is no
             power of two along that of the next one, without what lies outside
    random   one random order for all images

    Args:
      name: one of NAMES.
      side: of the image, in patches.
      seed: below 2³², of "random"; the same order on every machine and version of NumPy.

    Returns:
      (side²,) int32: the patch at place i of the sequence, counted row by row; read-only.
    """
    raster = np.arange(side**2, dtype=np.int32).reshape(side, side)
    match name:
        case "raster":
            found = raster
        case "columns":
            found = raster.T
        case "snake":
            found = raster.copy()
            found[1::2] = raster[1::2, ::-1]
        case "hilbert":
            whole = 1 << (side - 1).bit_length()
            rows, columns = np.divmod(_hilbert(whole), whole)
            inside = (rows < side) & (columns < side)
            found = raster[rows[inside], columns[inside]]
        case "random":
            # Raw numbers, which NumPy promises never to change.
            numbers = np.random.Philox(key=(seed, side)).random_raw(side**2)
            found = np.argsort(numbers, kind="stable").astype(np.int32)
        case _:
            raise ValueError(f"order {name!r} is not one of {', '.join(NAMES)}")
    found = np.ascontiguousarray(found).reshape(-1)
    found.setflags(write=False)  # it is shared by all who ask
    return found


def _hilbert(side: int) -> np.ndarray:
    """The raster indices of a square of 2^k along the curve (Hilbert 1891), (side²,).

    The curve of twice the side is four of the smaller: across the diagonal in the first
    quarter, as it is in two, across the other diagonal in the last.
    """
    rows = columns = np.zeros(1, np.int64)
    half = 1
    while half < side:
        top = half - 1
        rows, columns = (
            np.concatenate([columns, rows, rows + half, 2 * half - 1 - columns]),
            np.concatenate([rows, columns + half, columns + half, top - rows]),
        )
        half *= 2
    return rows * side + columns
