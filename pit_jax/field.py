"""One field of a config: its default, its meaning, and which values it may take."""

import dataclasses
from collections.abc import Mapping
from typing import Any

_PLAIN = {bool, int, float, str, type(None)}
MOST = 10**9  # size of a number whose field says no other limit


@dataclasses.dataclass(frozen=True)
class Field:
    """One field: default, what it means, and which values it may take.

    Of a tuple `low`, `high` and `choices` are each element's.
    """

    default: Any
    doc: str
    low: float | None = None
    high: float | None = None
    choices: tuple = ()
    kind: type | None = None  # only where the default is None: the type once it is given
    elements: type | None = None  # only where the default is (): the type of a tuple's elements
    place: bool = False  # a file or directory; a resolved config holds it with `~` spelled out
    # Values that do not say what they mean, and the word that labels and tables have for them.
    words: Mapping[Any, str] = dataclasses.field(default_factory=dict)
    length: bool = False  # a string that `Length` reads: "500 steps", "20 epochs", "5%"
    # Of a field that came later and that a new run has otherwise: what a config.json that does
    # not say it means. A run that was begun before goes on as it was begun.
    before: Any = None

    @property
    def type(self) -> type:
        return self.kind or type(self.default)

    @property
    def element(self) -> type:
        """The type of a tuple's elements."""
        return self.elements or type(self.default[0])

    @property
    def limits(self) -> tuple[float, float]:
        """The smallest and the largest number; there always are some."""
        return (
            -MOST if self.low is None else self.low,
            MOST if self.high is None else self.high,
        )


def plain(value: Any) -> Any:
    """A value with Python's own numbers where it has those of NumPy or JAX, as sweeps over
    `np.arange` do; arrays of one dimension become tuples, and all else stays what it is.

    Of fewer bits than Python's, a float is the shortest one that rounds to it: a learning rate
    of `np.float32(0.1)` is 0.1.
    """
    if type(value) in _PLAIN:  # first: sweeps have many
        return value
    if isinstance(value, tuple | list):
        kind = list if isinstance(value, list) else tuple
        return kind(plain(x) for x in value)
    if isinstance(value, dict):
        return {key: plain(x) for key, x in value.items()}
    if not (hasattr(value, "dtype") and getattr(value, "ndim", 2) < 2):
        return value
    import numpy as np  # whoever has such a value has imported it

    found = np.asarray(value)
    if found.ndim:
        return tuple(plain(x) for x in found)
    narrow = isinstance(found.item(), float) and found.dtype != np.float64
    return float(str(found)) if narrow else found.item()
