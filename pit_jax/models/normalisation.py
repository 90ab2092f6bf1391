"""How an autoencoder's latents are shifted and scaled for a diffusion model to see.

Latents have whatever spread their autoencoder gave them; a diffusion model is trained on
numbers of about unit variance. The factor belongs to the weights of the autoencoder and is
kept beside them, here as `(latents − shift) · scale` (Rombach et al. 2022, section G).
"""

import dataclasses
from typing import Any

import numpy as np

from pit_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """(latents − shift) · scale, and back.

    Attributes:
      shift, scale: one number, or one a channel of the latents (their last dimension).

    Raises:
      ConfigError: if a number is not finite, a scale not positive, or they are not as many.
    """

    shift: float | tuple[float, ...] = 0.0
    scale: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        for name in ("shift", "scale"):
            value = getattr(self, name)
            numbers = np.atleast_1d(_floats(name, value))
            if numbers.ndim != 1 or not len(numbers) or not np.isfinite(numbers).all():
                raise ConfigError(
                    f"normalisation.{name}={value!r} is not a finite number or a list of them"
                )
            if name == "scale" and (numbers <= 0).any():
                raise ConfigError(f"normalisation.scale={value!r} is not above 0")
            plain = float(numbers[0]) if np.ndim(value) == 0 else tuple(map(float, numbers))
            object.__setattr__(self, name, plain)
        counts = {len(x) for x in (self.shift, self.scale) if isinstance(x, tuple)}
        if len(counts) > 1:
            raise ConfigError(
                f"normalisation.shift has {len(self.shift)} channels, normalisation.scale has"
                f" {len(self.scale)}"
            )

    def apply(self, latents: Any) -> Any:
        """Latents (..., c), a NumPy or jax array, as the diffusion model sees them."""
        return (latents - np.float32(self.shift)) * np.float32(self.scale)

    def invert(self, latents: Any) -> Any:
        """What `apply` was given."""
        return latents / np.float32(self.scale) + np.float32(self.shift)

    def check_channels(self, channels: int) -> None:
        """Raises ConfigError unless it fits latents of so many channels."""
        for name in ("shift", "scale"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != channels:
                raise ConfigError(
                    f"normalisation.{name} has {len(value)} channels, the latents have {channels}"
                )


def _floats(name: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise ConfigError(
            f"normalisation.{name}={value!r} is not a finite number or a list of them"
        ) from (None)
