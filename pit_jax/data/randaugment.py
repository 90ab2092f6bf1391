"""RandAugment (Cubuk et al. 2020) of one image, as timm's `rand-m9-mstd0.5-inc1`.

Of fifteen operations `layers` are drawn with replacement, and each is applied with
probability 0.5. How far an operation goes is its magnitude, 0 to 10, of the "increasing"
set: 0 changes nothing or least. Each operation is PIL's to within one grey level.

Images are (H, W, C) float32 in [0, 255], C = 1 or 3. Shapes are static and nothing is
gathered: under vmap every example computes all operations in every layer and keeps one, so
the five that move pixels share one resampling, and tables are looked up as products.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from pit_jax.data.colour import (
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    blend,
    round_levels,
    solarize,
)

OPERATIONS = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd"),
    *("Color", "Contrast", "Brightness", "Sharpness"),
    *("ShearX", "ShearY", "TranslateX", "TranslateY"),
)
HIGHEST = 10.0  # magnitude
APPLIED = 0.5  # probability
EXACT = jax.lax.Precision.HIGHEST  # a TPU would round positions and weights to bfloat16


def randaugment(
    image: jax.Array,
    key: jax.Array,
    magnitude: float,
    std: float,
    layers: int,
    fill: Sequence[float],
) -> jax.Array:
    """A changed copy of the image, in whole grey levels.

    Args:
      image: (H, W, C) in [0, 255]; fractions are rounded first.
      key: of this image.
      magnitude, std: of the Gaussian that each layer's magnitude is drawn from.
      layers: operations drawn.
      fill: grey levels of what comes in from outside the image, one or one a channel.
    """

    def layer(x: jax.Array, drawn: tuple) -> tuple[jax.Array, None]:
        operation, magnitude, sign, applied = drawn
        changed = operate(x, operation, argument(operation, magnitude, sign), fill)
        return jnp.where(applied, changed, x), None

    # As a loop two layers compile in the time of one.
    return jax.lax.scan(layer, round_levels(image), sample(key, magnitude, std, layers))[0]


def sample(
    key: jax.Array, magnitude: float, std: float, layers: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Draws (layers,) each: operation int32, magnitude, sign ±1 float32, whether it applies."""
    choice_key, magnitude_key = jax.random.split(key)
    draws = jax.random.uniform(choice_key, (3, layers))
    operation = (draws[0] * len(OPERATIONS)).astype(jnp.int32)
    magnitudes = magnitude + std * jax.random.normal(magnitude_key, (layers,))
    sign = jnp.where(draws[1] < 0.5, -1.0, 1.0)
    return operation, jnp.clip(magnitudes, 0.0, HIGHEST), sign, draws[2] < APPLIED


def argument(operation: jax.Array, magnitude: jax.Array, sign: jax.Array) -> jax.Array:
    """What `operate` takes for an operation of this magnitude, a float32 number.

    Degrees of rotation, bits that posterising keeps, the level from which solarising
    inverts, the levels that SolarizeAdd adds, the factor of an enhancement (1 changes
    nothing), the slope of a shear, the share of the side of a translation; else unused.
    """
    factor = 1 + sign * 0.09 * magnitude
    shear = sign * 0.03 * magnitude
    share = sign * 0.045 * magnitude
    zero = jnp.zeros_like(magnitude)
    table = {
        "Rotate": sign * 3 * magnitude,
        "Posterize": 4 - jnp.floor(0.4 * magnitude),
        "Solarize": 256 - jnp.floor(25.6 * magnitude),
        "SolarizeAdd": jnp.floor(11 * magnitude),
        **dict.fromkeys(("Color", "Contrast", "Brightness", "Sharpness"), factor),
        **dict.fromkeys(("ShearX", "ShearY"), shear),
        **dict.fromkeys(("TranslateX", "TranslateY"), share),
    }
    return jax.lax.select_n(operation, *(table.get(name, zero) for name in OPERATIONS))


def operate(
    image: jax.Array, operation: jax.Array, amount: jax.Array, fill: Sequence[float]
) -> jax.Array:
    """The image (H, W, C), whole grey levels, after the operation of that number.

    Args:
      operation: place in OPERATIONS, int32.
      amount: as `argument` says.
      fill: as `randaugment` takes it.
    """
    moved = affine(image, *_positions(*image.shape[:2], operation, amount), fill)
    results = {
        "AutoContrast": autocontrast(image),
        "Equalize": equalize(image),
        "Invert": 255 - image,
        "Posterize": posterize(image, amount),
        "Solarize": solarize(image, amount),
        "SolarizeAdd": jnp.where(image < 128, jnp.minimum(image + amount, 255), image),
        "Color": jnp.floor(adjust_saturation(image, amount)),
        "Contrast": jnp.floor(adjust_contrast(image, amount)),
        "Brightness": jnp.floor(adjust_brightness(image, amount)),
        "Sharpness": jnp.floor(blend(smooth(image), image, amount)),
    }
    return jax.lax.select_n(operation, *(results.get(name, moved) for name in OPERATIONS))


# Levels


def autocontrast(image: jax.Array) -> jax.Array:
    """Each channel stretched to [0, 255] (PIL ImageOps); one of a single level stays."""
    low, high = image.min((0, 1)), image.max((0, 1))
    # Quotients of whole numbers up to 255 are 1/255 apart, so 1/1000 only repairs division.
    stretched = jnp.floor((image - low) * 255 / jnp.maximum(high - low, 1) + 1e-3)
    return jnp.where(high > low, stretched, image)


def equalize(image: jax.Array) -> jax.Array:
    """Each channel with its histogram levelled (PIL ImageOps).

    A channel with fewer than 255 pixels below its highest level stays as it is.
    """

    def one_channel(x: jax.Array) -> jax.Array:  # (H, W)
        # A level is 16 · i + j, two one-hot vectors: counting levels and looking them up are
        # products of matrices. Whole numbers up to 256 are exact in bfloat16, sums in float32.
        level, digit = x.reshape(-1, 1).astype(jnp.int32), jnp.arange(16)
        tens = (level // 16 == digit).astype(jnp.float32)  # (H · W, 16)
        ones = (level % 16 == digit).astype(jnp.float32)
        counts = (tens.T @ ones).reshape(256).astype(jnp.int32)
        below = jnp.cumsum(counts) - counts
        step = (x.size - (x == x.max()).sum()) // 255
        table = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
        found = ((tens @ table.astype(jnp.float32).reshape(16, 16)) * ones).sum(1)
        return jnp.where(step > 0, found.reshape(x.shape), x)

    # One after the other, so that on a CPU the one-hot vectors stay in its cache.
    return jnp.moveaxis(jax.lax.map(one_channel, jnp.moveaxis(image, -1, 0)), 0, -1)


def posterize(image: jax.Array, bits: jax.Array) -> jax.Array:
    """The highest `bits` of each level, 0 to 8; 0 is black, which newer PILs refuse."""
    drop = 8 - bits.astype(jnp.int32)
    return ((image.astype(jnp.int32) >> drop) << drop).astype(jnp.float32)


def smooth(image: jax.Array) -> jax.Array:
    """PIL's ImageFilter.SMOOTH: 3×3 ones about a 5, over 13; the border stays as it is."""
    height, width, _ = image.shape
    padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)))
    rows = sum(padded[i : i + height] for i in range(3))
    total = sum(rows[:, i : i + width] for i in range(3)) + 4 * image
    row, column = np.arange(height)[:, None], np.arange(width)
    inner = (row > 0) & (row < height - 1) & (column > 0) & (column < width - 1)
    return jnp.where(inner[..., None], round_levels(total / 13), image)


# Movements


def _positions(
    height: int, width: int, operation: jax.Array, amount: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Where each output pixel is read: row and column (H, W), centres at half pixels.

    An operation that moves nothing reads every pixel where it is.
    """

    def only(name: str) -> jax.Array:
        return jnp.where(operation == OPERATIONS.index(name), amount, 0.0)

    y, x = jnp.arange(height)[:, None] + 0.5, jnp.arange(width) + 0.5
    angle = jnp.radians(only("Rotate"))  # counterclockwise about the middle of the image
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    down, right = y - height / 2, x - width / 2
    row = height / 2 + sin * right + cos * down
    column = width / 2 + cos * right - sin * down
    row += only("ShearY") * x + only("TranslateY") * height
    column += only("ShearX") * y + only("TranslateX") * width
    return row, column


def affine(image: jax.Array, row: jax.Array, column: jax.Array, fill: Sequence[float]) -> jax.Array:
    """The image (H, W, C) read at row and column (H, W) by bicubic interpolation.

    PIL's Image.transform: taps beyond the border repeat it, what is read from outside the
    image becomes `fill`, fractions are cut off. Its kernel is Keys' (1981) with a = −1,
    while its resize has −0.5.

    Each output pixel is a weighted sum over all columns, a product of matrices, and then
    over all rows. That is S⁴ · C products an image of side S, where the sixteen taps need
    16 · S² · C. But those would be gathered, which on a TPU is the slower way by far.
    """
    height, width, _ = image.shape
    padded = jnp.pad(image, ((2, 2), (2, 2), (0, 0)), mode="edge")

    def one_row(place: tuple[jax.Array, jax.Array]) -> jax.Array:
        row, column = place  # (W,)
        rows = _cubic(row[:, None] - np.arange(-1.5, height + 2))  # (W, H + 4)
        columns = _cubic(column[:, None] - np.arange(-1.5, width + 2))  # (W, W + 4)
        strips = jnp.einsum("ox,yxc->oyc", columns, padded, precision=EXACT)
        return (strips * rows[..., None]).sum(1)  # (W, C)

    # A row at a time: the strips of all rows are S times as large as the image.
    read = jax.lax.map(one_row, (row, column))
    # Weights add up to 1 only to within rounding: flat areas must not fall to the next level.
    read = jnp.clip(jnp.floor(read + 2**-9), 0, 255)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return jnp.where(inside[..., None], read, jnp.asarray(fill, jnp.float32))


def _cubic(x: jax.Array) -> jax.Array:
    x = jnp.abs(x)
    near = (x - 2) * x * x + 1
    far = ((-x + 5) * x - 8) * x + 4
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0))
