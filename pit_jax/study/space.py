"""What a sweep varies: plain lists of override dictionaries, and how to combine them.

    def sweep():
        return grid({"model.patch": (1, 2)}, seeds(3))

is six points, {"model.patch": 1, "train.seed": 0} the first. Beside config fields a point may
hold two keys: "config", another FILE[:ARG] to start from, and "label", its name. The fields
in `RUNS` may have the value "run:LABEL", the directory of another point, which is then
trained first.
"""

import itertools
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pit_jax.config import FIELDS, plain
from pit_jax.errors import ConfigError

Overrides = dict[str, Any]
RUNS = ("init_from", "resume", "eval.features", "autoencoder.weights", "data.dir")
RUN = "run:"
T = TypeVar("T")


def grid(*parts: Mapping[str, Iterable[Any]] | Iterable[Overrides]) -> list[Overrides]:
    """Every combination of the parts; the last one varies fastest.

    Where a part's points have labels, the others' fields are added to them: the points "PiT"
    and "ViT" with `seeds(2)` are "PiT,seed=0", "PiT,seed=1", "ViT,seed=0", ...

    Args:
      *parts: {field: values}, whose fields are combined too, or a list of points.

    Raises:
      ConfigError: if two parts set the same field.
    """
    lists = [
        _product(part) if isinstance(part, Mapping) else _points(part, "grid") for part in parts
    ]
    for one, other in itertools.combinations(lists, 2):
        twice = {key for point in one for key in point} & {key for point in other for key in point}
        if twice - {"label"}:
            raise ConfigError(f"grid: {sorted(twice - {'label'})[0]} is set by two of its parts")
    points = [_merged(choice) for choice in itertools.product(*lists)]
    if any("label" in point for points in lists for point in points):
        described = [describe(points) for points in lists]
        for point, words in zip(points, itertools.product(*described), strict=True):
            point["label"] = ",".join(word for word in words if word)
    return points


def zipped(fields: Mapping[str, Sequence[Any]]) -> list[Overrides]:
    """The fields in step: the first values together, the second ones, ...

    Raises:
      ConfigError: if there are more values of one than of another.
    """
    if not isinstance(fields, Mapping):
        raise ConfigError(f"zipped: {fields!r} should be {{field: values, ...}}")
    fields = {name: _values(name, values, "zipped") for name, values in fields.items()}
    for (one, first), (other, second) in itertools.pairwise(fields.items()):
        if len(first) != len(second):
            raise ConfigError(
                f"zipped: {one} has {len(first)} values and {other} {len(second)}:"
                " they go in step, so give as many of each"
            )
    return [dict(zip(fields, values, strict=True)) for values in zip(*fields.values(), strict=True)]


def chain(*sweeps: Iterable[Overrides]) -> list[Overrides]:
    """One sweep after the other.

    Raises:
      ConfigError: for what is no list of points.
    """
    return [dict(point) for sweep in sweeps for point in _points(sweep, "chain")]


def seeds(number: int, first: int = 0) -> list[Overrides]:
    """The same run with `number` seeds, counted from `first`.

    Raises:
      ConfigError: if one is no whole number from 0 on.
    """
    number, first = plain((number, first))
    for value in (number, first):
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ConfigError(f"seeds: {value!r} should be a whole number from 0 on: seeds(3)")
    return [{"train.seed": seed} for seed in range(first, first + number)]


def scale_of(scale: str, choices: Mapping[str, T]) -> T:
    """What belongs to the scale that the user asks for, "tiny" or "paper".

    Raises:
      ConfigError: naming the scales that there are.
    """
    if scale not in choices:
        raise ConfigError(f"unknown scale {scale!r}: write one of {', '.join(choices)}")
    return choices[scale]


# Names ---------------------------------------------------------------------------------------


def describe(points: Sequence[Overrides]) -> list[str]:
    """What tells each point from the others: its label, or "patch=1,seed=0"."""
    names = varying(points)
    short = short_names(names)
    return [
        str(
            point.get(
                "label", ",".join(f"{short[n]}={text(point[n], n)}" for n in names if n in point)
            )
        )
        for point in points
    ]


def varying(points: Sequence[Overrides]) -> list[str]:
    """The fields that are not the same in all points, in order of appearance."""
    names = dict.fromkeys(name for point in points for name in point if name != "label")
    absent = object()
    return [
        name
        for name in names
        if any(point.get(name, absent) != points[0].get(name, absent) for point in points)
    ]


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Each field's last component, or as many as tell it from the other fields."""
    names = list(names)

    def last(name: str, count: int) -> str:
        return ".".join(name.split(".")[-count:])

    def shortest(name: str) -> str:
        for count in range(1, name.count(".") + 1):
            if [last(other, count) for other in names].count(last(name, count)) == 1:
                return last(name, count)
        return name

    return {name: shortest(name) for name in names}


def text(value: Any, name: str = "") -> str:
    """A value as labels and tables say it: 0.001, learned, (0.9 0.95), none.

    Args:
      name: the field, whose word for the value is taken where it has one.
    """
    if isinstance(value, list | tuple):
        value = tuple(value)
    if name in FIELDS and isinstance(value, Hashable) and value in FIELDS[name].words:
        return FIELDS[name].words[value]
    match value:
        case None | "" | ():
            return "none"
        case float():
            short = f"{value:g}"
            return short if float(short) == value or math.isnan(value) else repr(value)
        case (one,):
            return text(one)
        case tuple():
            return f"({' '.join(map(text, value))})"
    return str(value).removeprefix(RUN)


def file_and_argument(spec: str) -> tuple[str, str]:
    """("cifar100", "vit-t/2") of "configs/cifar100.py:vit-t/2"."""
    path, _, argument = spec.partition(".py:")
    file = path.rpartition("/")[2]
    return file.removesuffix(".py").removesuffix(".json"), argument


def _product(part: Mapping[str, Iterable[Any]]) -> list[Overrides]:
    values = [_values(name, values, "grid") for name, values in part.items()]
    return [dict(zip(part, choice, strict=True)) for choice in itertools.product(*values)]


def _points(part: Any, what: str) -> list[Overrides]:
    """A list of points, of whatever a study file hands over."""
    known = isinstance(part, Iterable) and not isinstance(part, str | bytes | Mapping)
    points = list(part) if known else [None]
    if not all(isinstance(point, Mapping) for point in points):
        fields = "{field: values} or " if what == "grid" else ""
        raise ConfigError(
            f"{what}: {part!r} should be {fields}a list of points such as seeds(3) or"
            " [{'model.patch': 2}]"
        )
    return points


def _values(name: str, values: Any, what: str) -> list[Any]:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise ConfigError(
            f"{what}: {name}={values!r} should be several values, such as ({values!r},)"
        )
    return list(values)


def _merged(points: Iterable[Overrides]) -> Overrides:
    return {name: value for point in points for name, value in point.items()}
