"""From the command line to a config: `FILE.py[:ARG]` or a resolved config.json, and overrides.

The overrides are parsed by ml_collections' config_flags, so `--config.optim.lr=1e-3`,
`--config.train.deterministic` and `--config.optim.betas='(0.9, 0.95)'` work as its users
expect, in any order; its errors are turned into one line that names the field.
"""

import contextlib
import difflib
import hashlib
import importlib.util
import inspect
import itertools
import json
import os
import re
import sys
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from pit_jax import derived
from pit_jax.config import FIELDS, assign, base, flatten
from pit_jax.errors import ConfigError, PitError
from pit_jax.validation import check_meant, resolve
from pit_jax.values import check_text, check_value, unknown_field

_LENGTHS = ("train.steps", "train.epochs", "train.examples")
# What config_flags raises where it cannot make sense of a word.
_OF_FLAGS = (flags.Error, AttributeError, LookupError, SyntaxError, TypeError, ValueError)
_OF_FLAGS += (RecursionError,)
_LONGEST = 400  # characters of somebody else's message


def load(spec: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The resolved config of `FILE.py[:ARG]` or `config.json` with overrides applied.

    Args:
      spec: path of a file that defines `get_config(arg)`, with its argument after a
        colon, or a JSON file that a run directory holds (local or gs://).
      overrides: command-line words such as `--config.optim.lr=1e-3`.

    Raises:
      ConfigError: for whatever does not exist, does not parse or does not fit together.
    """
    config = resolve(override(read(spec), overrides))
    if not spec.endswith(".json"):  # of a run that was begun with it
        check_meant(config)
    return config


def override(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """`config` with `--config.field=value` words applied; the given train length wins."""
    if not overrides:  # config_flags would write the whole config out as YAML first
        return config
    given = _given(overrides)
    for name, text in given:
        if name not in FIELDS:
            raise unknown_field(name)
        if text is not None:
            check_text(name, text)
    values = flags.FlagValues()
    argv = ["pit-jax", *overrides]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        rest = values(argv)[1:]
    except _OF_FLAGS as error:
        raise ConfigError(_one_line(error)) from None
    if rest:
        raise ConfigError(f"unexpected argument {rest[0]!r}: overrides are --config.FIELD=VALUE")
    lengths = [name for name in _LENGTHS if name in dict(given)]
    if lengths:
        for name in set(_LENGTHS) - set(lengths):
            assign(values.config, name, None)
    derived.leave_out(values.config, dict(given))
    return values.config


def from_json(text: str) -> ConfigDict:
    """The config in a run directory's config.json; every field is checked.

    What it does not say is at its default, or as it was before there was such a field.
    """
    try:
        tree = json.loads(text)
        if not isinstance(tree, dict):
            raise ConfigError("not a config: the JSON file should hold an object")
        fields = flatten(tree)
        return _checked(fields_before(fields) | fields)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not a config: {_one_line(error)}") from None


def fields_before(said: Iterable[str]) -> dict[str, Any]:
    """The fields that a config.json which says only these was written before, as they were then."""
    return {
        name: field.before
        for name, field in FIELDS.items()
        if field.before is not None and name not in said
    }


def said(spec: str) -> Iterable[str]:
    """The names of the fields that a config.json says; all of one that `load` cannot read."""
    try:
        return flatten(json.loads(_read(spec)))
    except (ValueError, RecursionError, AttributeError):
        return FIELDS


def to_json(config: ConfigDict) -> str:
    """The text of config.json; `from_json` reads it back to an equal config."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def read(spec: str) -> ConfigDict:
    """What `FILE.py[:ARG]` or `config.json` says, not resolved yet.

    Also for files that start from another config: those in experiments/.
    """
    if not spec.endswith(".json"):
        return PythonFile(spec).config()
    text = _read(spec)
    try:
        config = from_json(text)
    except ConfigError as error:
        raise ConfigError(f"{spec}: {error}") from None
    derived.release(config)
    return config


class PythonFile:
    """A Python file about runs, executed: `FILE.py[:ARG]`.

    Raises:
      ConfigError: if there is no such file, or it cannot be executed.
    """

    def __init__(self, spec: str):
        path, _, self.argument = spec.partition(".py:")
        self.spec, self.path = spec, path if path.endswith(".py") else f"{path}.py"
        if not spec.endswith(".py") and not self.argument:
            line = f"config {spec!r}: write FILE.py, FILE.py:ARGUMENT or config.json"
            raise ConfigError(line + _meant(spec))
        if not os.path.isfile(self.path):
            raise ConfigError(f"there is no config file {self.path}{_meant(spec)}")
        with self._told():
            self.module = _executed(os.path.abspath(self.path))

    def config(self) -> ConfigDict:
        """What `get_config` returns, a new one every time.

        Raises:
          ConfigError: if there is none, or it fails.
        """
        if not hasattr(self.module, "get_config"):
            raise ConfigError(f"{self.spec}: {self.path} defines no get_config(arg)")
        found = self.call("get_config")
        if not isinstance(found, ConfigDict):
            raise ConfigError(
                f"{self.spec}: get_config() should return a ConfigDict made by"
                " pit_jax.config.base()"
            )
        with self._told():
            return _checked(flatten(found))

    def call(self, name: str, optional: bool = False) -> Any:
        """What the function `name` returns, given the argument if there is one.

        Args:
          optional: whether the function may do without the argument.

        Raises:
          ConfigError: if it fails; of a generator all has been yielded by then.
        """
        function = getattr(self.module, name)
        with self._told():
            takes = not optional or inspect.signature(function).parameters
            result = function(self.argument) if self.argument and takes else function()
            return list(result) if isinstance(result, Iterator) else result

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """The user's own Python file: says in one line what is wrong with it."""
        try:
            yield
        except PitError as error:
            raise ConfigError(f"{self.spec}: {error}") from None
        except SystemExit:
            raise ConfigError(
                f"{self.spec}: the file calls sys.exit(): it should only say what a run is"
            ) from None
        except Exception as error:
            message = f"{self.spec}: {type(error).__name__}: {_one_line(error)}"
            raise ConfigError(message) from None


def _executed(path: str) -> types.ModuleType:
    """The module of a Python file, a new one every time.

    It stands in `sys.modules` as imported ones do: dataclasses, pickle and string annotations
    look a class's module up there. Its folder is its package, so that it can import what lies
    beside it by `from . import` or `from .other import`; the name holds the path, which two
    files of one name do not share.
    """
    folder, file = os.path.split(path)
    package = f"pit_jax_config_{hashlib.sha256(folder.encode(errors='replace')).hexdigest()[:16]}"
    if package not in sys.modules:
        sys.modules[package] = types.ModuleType(package)
        sys.modules[package].__path__ = [folder]
    name = f"{package}.{file.removesuffix('.py')}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
        raise
    return module


def _meant(spec: str) -> str:
    """The nearest file of runs there is, as the end of a message; "" if none is near."""
    if os.path.isfile(f"{spec}/config.json"):
        return f"; did you mean {spec}/config.json?"
    path, argument = re.fullmatch(r"(.*?)(?:\.py)?(:.*)?", spec, re.DOTALL).groups()
    folder, name = os.path.split(path)
    found = {}  # a file's name without its suffix → the file
    for place in (folder, "configs", "experiments"):
        with contextlib.suppress(OSError):
            names = sorted(os.listdir(place or "."))
            for file in names:
                if file.endswith(".py") and not file.startswith("_"):
                    found.setdefault(file.removesuffix(".py"), os.path.join(place, file))
    near = difflib.get_close_matches(name, found, n=1)
    return f"; did you mean {found[near[0]]}{argument or ''}?" if near else ""


def _read(path: str) -> str:
    from etils import epath  # knows gs://; a config in Python needs none of it

    from pit_jax import files

    files.check_place(path, "config")
    try:
        return epath.Path(path).read_text()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or _one_line(error)
        raise ConfigError(f"config {path} cannot be read: {reason}") from None


def _checked(fields: Mapping[str, Any]) -> ConfigDict:
    """A config of these fields, the others at their default; each is checked by itself."""
    config = base()
    for name, value in fields.items():
        assign(config, name, check_value(name, value))
    return config


def _given(words: Sequence[str]) -> list[tuple[str, str | None]]:
    """The fields that command-line words override, and the text of their new values.

    `--config.a.b=v` and `--config.a.b v`; None where nothing follows, as in `--noconfig.a.b`.
    """
    found = []
    for word, after in itertools.zip_longest(words, words[1:]):
        match = re.match(r"--?(no)?config\.([^=]*)(=)?", word)
        if match:
            switch = match[2] in FIELDS and FIELDS[match[2]].type is bool
            text = word[match.end() :] if match[3] else None if switch or match[1] else after
            found.append((match[2], text))
    return found


def _one_line(error: Exception) -> str:
    try:
        text = " ".join(str(error).split()).removeprefix("flag ")
    except Exception:  # of somebody's own class
        return "no message"
    # ml_collections lists every other field.
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
