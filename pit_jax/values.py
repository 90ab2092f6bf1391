"""The value of one field, from a file or the command line: type, range, choices.

Every number is finite and within limits, a tuple's elements are checked as single values are:
what passes overflows nowhere.
"""

import ast
import difflib
import math
from typing import Any

from absl import flags

from pit_jax.config import FIELDS, Field, plain
from pit_jax.errors import ConfigError
from pit_jax.lengths import Length

# Whose fields are meant first by a name that several groups have, such as steps or seed.
_GROUPS = ("train", "optim", "model", "data", "eval")

MOST_ELEMENTS = 1000  # of a tuple
_LONGEST = 100  # characters of a value in a message
_LONGEST_LENGTH = 1e12  # of training and its parts, in their unit

_PARSERS = {
    int: flags.IntegerParser(),
    float: flags.FloatParser(),
    bool: flags.BooleanParser(),
}
_TYPES = {
    int: "int, a whole number",
    float: "float, a number",
    bool: "bool, True or False",
    str: "str, a text",
}


def unknown_field(name: str) -> ConfigError:
    """The error for a field that does not exist, naming the nearest one that does."""
    return ConfigError(
        f"config.{_shortened(str(name))} is not a field; did you mean config."
        f"{nearest_field(str(name))}?"
    )


def nearest_field(name: str, group: str = "", sure: bool = False) -> str | None:
    """The field that was meant by `lr`, `optim.lrr` or `train.lr`.

    Args:
      name: what was written.
      group: whose fields are meant first, such as "sample".
      sure: None rather than a field that only looks a little like it.
    """
    first = (group, *_GROUPS)
    fields = sorted(FIELDS, key=lambda x: first.index(g) if (g := _group(x)) in first else 99)
    leaf = name.rpartition(".")[2]
    leaves = {}  # the last part of a field's name → the first field called so
    for field in fields:
        leaves.setdefault(field.rpartition(".")[2], field)
    if name in leaves:
        return leaves[name]
    if near := difflib.get_close_matches(name, fields, n=1, cutoff=0.75):
        return near[0]
    if near := difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.75):
        return leaves[near[0]]
    return None if sure else difflib.get_close_matches(name, fields, n=1, cutoff=0.0)[0]


def _group(field: str) -> str:
    return field.partition(".")[0]


def check_value(name: str, value: Any) -> Any:
    """`value` as the field's type, within its range.

    Raises:
      ConfigError: naming the field, the value and what may stand there.
    """
    field = FIELDS.get(name)
    if field is None:
        raise unknown_field(name)
    value = plain(value)
    if value is None and field.default is None:
        return None
    if field.type is not tuple:
        return _check(field, field.type, value, f"config.{name}={_shown(value)}")
    shown = f"config.{name}={_shown(value)}"
    if not isinstance(value, list | tuple):
        raise _wrong_type(field, tuple, shown)
    if len(value) > MOST_ELEMENTS:
        raise ConfigError(f"{shown} has {len(value)} elements: at most {MOST_ELEMENTS}")
    found = [_check(field, field.element, x, f"{shown}: {_shown(x)}") for x in value]
    # A whole number stays one: what names runs by their config tells 3 from 3.0.
    return tuple(x if type(x) is int else y for x, y in zip(value, found, strict=True))


def check_text(name: str, text: str) -> None:
    """Refuses the text of an override that is not of the field's type.

    Raises:
      ConfigError: naming the field, the text and what may stand there.
    """
    field = FIELDS[name]
    try:
        if field.type is tuple:
            value = _literal(text, field.element)
            check_value(name, value if isinstance(value, list | tuple) else (value,))
        elif field.type in _PARSERS:
            _PARSERS[field.type].parse(text)
    except (ValueError, TypeError, MemoryError, RecursionError):  # the last two: Python's parser
        raise _wrong_type(field, field.type, f"config.{name}={_shortened(text)}") from None


def _check(field: Field, kind: type, value: Any, shown: str) -> Any:
    """One value, of a field or an element of its tuple; `shown` is how errors begin."""
    types = int | float if kind is float else kind
    if not isinstance(value, types) or (isinstance(value, bool) and kind is not bool):
        raise _wrong_type(field, kind, shown)
    if field.choices and value not in field.choices:
        near = difflib.get_close_matches(value, field.choices, n=1) if kind is str else []
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{shown} is not one of {', '.join(map(str, field.choices))}{hint}")
    if kind is str:
        if any(ord(character) < 32 for character in value):
            raise ConfigError(f"{shown} should be one line of text: {field.doc}")
        if field.length:
            _check_length(value, shown)
        return value
    if kind is bool:
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{shown} must be finite: {field.doc}")
    low, high = field.limits
    if not low <= value <= high:
        limits = [f"at least {low}"] if value < low or field.low is not None else []
        limits += [f"at most {high}"] if value > high or field.high is not None else []
        raise ConfigError(f"{shown} must be {' and '.join(limits)}: {field.doc}")
    return kind(value)


def _check_length(text: str, shown: str) -> None:
    try:
        length = Length.parse(text)
    except ValueError as error:
        raise ConfigError(f"{shown}: {error}") from None
    if length.number > _LONGEST_LENGTH:
        raise ConfigError(f"{shown} must be at most {_LONGEST_LENGTH:g}")


def _wrong_type(field: Field, kind: type, shown: str) -> ConfigError:
    if kind is tuple:
        example = f", such as {field.default}" if field.default else ""
        wanted = f"tuple of {field.element.__name__}{example}"
    else:
        wanted = _TYPES[kind]
    return ConfigError(f"{shown} should be of type {wanted}: {field.doc}")


def _literal(text: str, element: type) -> Any:
    """The Python value that an override of a tuple says, the text itself if it says none.

    Of numbers, nan and inf are some too, so that they are refused as such.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
        if element is float:
            tree = _Numbers().visit(tree)
        return ast.literal_eval(tree)
    except (ValueError, TypeError, SyntaxError):
        return text


class _Numbers(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id.lower() in ("nan", "inf", "infinity"):
            return ast.copy_location(ast.Constant(float(node.id)), node)
        return node


def _shown(value: Any) -> str:
    """A value as a message says it, in one line, whatever it is."""
    try:
        return _shortened(repr(value))
    except Exception:  # a number of thousands of digits; somebody's own class
        return f"<{type(value).__name__}>"


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
