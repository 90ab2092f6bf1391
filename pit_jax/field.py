"""One field of a config: its default, its meaning, and which values it may take."""

import dataclasses
from collections.abc import Mapping
from typing import Any

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
