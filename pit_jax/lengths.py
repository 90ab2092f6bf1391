"""Lengths of training as people write them: "500 steps", "20 epochs", "4096 examples", "5%"."""

import dataclasses
import re

_LENGTH = re.compile(
    r"(?P<number>\d+(\.\d+)?([eE][+-]?\d+)?) ?(?P<unit>steps?|epochs?|examples?|%)"
)


@dataclasses.dataclass(frozen=True)
class Clock:
    """What converts lengths to steps: the batch, the training set and the whole length."""

    batch_size: int
    num_examples: int
    total_steps: int = 0


@dataclasses.dataclass(frozen=True)
class Length:
    """A number and its unit: "step", "epoch", "example" or "%"."""

    number: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> "Length":
        """Raises ValueError with the accepted forms for anything else."""
        match = _LENGTH.fullmatch(text.strip())
        if not match:
            raise ValueError('write a length as "500 steps", "20 epochs", "4096 examples" or "5%"')
        return cls(float(match["number"]), match["unit"].rstrip("s"))

    def steps(self, clock: Clock) -> int:
        """The length in whole steps, rounded to the nearest."""
        examples = {
            "step": self.number * clock.batch_size,
            "epoch": self.number * clock.num_examples,
            "example": self.number,
            "%": self.number / 100 * clock.total_steps * clock.batch_size,
        }[self.unit]
        return round(examples / clock.batch_size)


def total_steps(train, num_examples: int) -> int:
    """The whole length of a run in steps; an unfinished last step counts as one.

    Args:
      train: the config's `train` group, with one of steps, epochs and examples given.
      num_examples: size of the training set.
    """
    if train.steps is not None:
        return train.steps
    examples = train.examples if train.examples is not None else train.epochs * num_examples
    return max(1, -int(-examples // train.batch_size))


def every(text: str, clock: Clock) -> int:
    """The period of something that happens again and again; at least one step."""
    return max(1, Length.parse(text).steps(clock))
