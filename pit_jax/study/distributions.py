"""Where a search looks for a field's values, as a file declares it and as Optuna knows it."""

import dataclasses
import math
import numbers
from collections.abc import Mapping
from typing import Any

from pit_jax import validation
from pit_jax.config import FIELDS, plain
from pit_jax.errors import ConfigError
from pit_jax.study import space

_LARGEST_WHOLE = 2**53  # that databases and JSON keep exactly


@dataclasses.dataclass(frozen=True)
class Distribution:
    """Where a field's values are looked for: an interval, or a few values."""

    low: float = 0
    high: float = 0
    log: bool = False
    whole: bool = False
    values: tuple = ()

    def ends(self) -> tuple:
        """Values that a config must accept for all the others to be fine."""
        return self.values or (self.low, self.high)


def uniform(low: float, high: float) -> Distribution:
    """Real numbers from `low` to `high`."""
    return Distribution(_real(low), _real(high))


def log_uniform(low: float, high: float) -> Distribution:
    """Positive real numbers whose logarithm is uniform."""
    return Distribution(_real(low), _real(high), log=True)


def integer(low: int, high: int) -> Distribution:
    """Whole numbers from `low` to `high`, both included."""
    return Distribution(*plain((low, high)), whole=True)


def choice(*values: Any) -> Distribution:
    """One of the values."""
    return Distribution(values=plain(values))


def _real(end: Any) -> Any:
    """The number as Python's; `check` refuses what is none."""
    try:
        end = plain(end)
        return float(end) if isinstance(end, numbers.Real) else end
    except OverflowError:
        return math.inf


def check(spec: str, declared: Any) -> None:
    """Refuses a space with fields or values that no config has."""
    if not isinstance(declared, Mapping) or not declared:
        raise ConfigError(f"{spec}: space() should return {{field: distribution, ...}}")
    for name, where in declared.items():
        if not isinstance(name, str):
            raise ConfigError(f"{spec}: space(): {name!r} should be a field such as 'optim.lr'")
        if not isinstance(where, Distribution):
            raise ConfigError(
                f"{spec}: space(): {name}={where!r} is no distribution: write uniform(low, high),"
                " log_uniform(low, high), integer(low, high) or choice(...)"
            )
        if wrong := _wrong_end(where):
            raise ConfigError(f"{spec}: space(): {name}: {wrong}")
        if not where.values and (not where.low < where.high or (where.log and where.low <= 0)):
            raise ConfigError(
                f"{spec}: space(): {name} has no values from {where.low} to {where.high}"
            )
        for value in where.ends():
            try:
                validation.check_value(name, value)
            except ConfigError as error:
                raise ConfigError(f"{spec}: space(): {error}") from None
        if FIELDS[name].type is int and not where.whole and not where.values:
            raise ConfigError(
                f"{spec}: space(): config.{name} is a whole number: write integer(...)"
            )


def _wrong_end(where: Distribution) -> str:
    """What is wrong with the ends of an interval as numbers, "" where nothing is."""
    for end in () if where.values else (where.low, where.high):
        if not isinstance(end, int | float) or isinstance(end, bool):
            return f"{end!r} should be a number"
        if where.whole and (not isinstance(end, int) or abs(end) > _LARGEST_WHOLE):
            return "integer(low, high) should have whole numbers of at most 2**53"
    return ""


def of_optuna(optuna: Any, where: Distribution) -> Any:
    kinds = optuna.distributions
    if where.values:
        return kinds.CategoricalDistribution([_encoded(value) for value in where.values])
    if where.whole:
        return kinds.IntDistribution(where.low, where.high)
    return kinds.FloatDistribution(where.low, where.high, log=where.log)


def _encoded(value: Any) -> Any:
    """A value as the database takes it: a tuple becomes its text."""
    return value if isinstance(value, bool | int | float | str) else repr(value)


def decoded(where: Distribution, value: Any) -> Any:
    return next((v for v in where.values if _encoded(v) == value), value)


def listed(name: str, where: Distribution) -> str:
    if where.values:
        return f"one of {', '.join(space.text(value, name) for value in where.values)}"
    kind = "whole numbers" if where.whole else "logarithmic" if where.log else "uniform"
    return f"{space.text(where.low)} to {space.text(where.high)}, {kind}"
