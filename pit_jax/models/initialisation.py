"""How fresh weights are drawn: as the public code draws them whose recipe a config follows.

Public code differs in little that matters at width 768 and more in what does: queries, keys and
values come from one matrix there, d → 3d, and xavier-uniform looks at the sides of that matrix.
What is not named here is the same everywhere: biases 0, norms 1, [CLS], mask token and learned
positions of standard deviation 0.02.
"""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax

_FUSED = nn.initializers.variance_scaling(0.5, "fan_avg", "uniform")  # ±√(6 / (d + 3d))
_XAVIER = nn.initializers.xavier_uniform()
_ZEROS = nn.initializers.zeros
# timm cuts it off at ±2, which is a hundred standard deviations. JAX's truncated normal is cut
# off at two of them, and 12 % narrower than it is called.
_NORMAL = nn.initializers.normal


def _of_torch(inputs: int) -> jax.nn.initializers.Initializer:
    """What torch gives a layer that nothing else is said of: ±1 / √inputs, uniform."""
    limit = inputs**-0.5
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -limit, limit)


@dataclasses.dataclass(frozen=True)
class Scheme:
    """Initialisers: `dense` of a layer's kernel, `attention` of queries', keys' and values',
    d × d each. `patch` and `patch_bias` make those of the patch projection, given how many
    numbers a patch has; `head` that of what reads the tokens, given a standard deviation."""

    dense: jax.nn.initializers.Initializer
    attention: jax.nn.initializers.Initializer
    patch: Callable[[int], jax.nn.initializers.Initializer]
    patch_bias: Callable[[int], jax.nn.initializers.Initializer]
    head: Callable[[float], jax.nn.initializers.Initializer] = _NORMAL


# Public DiT's, then MAE's, which leaves the patch projection's bias as torch made it; DeiT's
# and timm's ViT, which leaves the whole projection so; and the JAX code of ViT, which knows no
# fused matrix.
SCHEMES = {
    "xavier": Scheme(_XAVIER, _FUSED, lambda _: _XAVIER, lambda _: _ZEROS),
    "mae": Scheme(_XAVIER, _FUSED, lambda _: _XAVIER, _of_torch),
    "timm": Scheme(_NORMAL(0.02), _NORMAL(0.02), _of_torch, _of_torch),
    "separate": Scheme(
        _XAVIER, _XAVIER, lambda _: _XAVIER, lambda _: _ZEROS, nn.initializers.truncated_normal
    ),
}
