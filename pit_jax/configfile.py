"""From the command line to a config: `FILE.py[:ARG]` or a resolved config.json, and overrides.

The overrides are parsed by ml_collections' config_flags, so `--config.optim.lr=1e-3`,
`--config.train.deterministic` and `--config.optim.betas='(0.9, 0.95)'` work as its users
expect, in any order; its errors are turned into one line that names the field.
"""

import contextlib
import importlib.util
import inspect
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from pit_jax.config import FIELDS, assign, base, flatten
from pit_jax.errors import ConfigError, PitError
from pit_jax.validation import check_value, resolve, unknown_field

_LENGTHS = ("train.steps", "train.epochs", "train.examples")


def load(spec: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The resolved config of `FILE.py[:ARG]` or `config.json` with overrides applied.

    Args:
      spec: path of a file that defines `get_config(arg)`, with its argument after a
        colon, or a JSON file that a run directory holds (local or gs://).
      overrides: command-line words such as `--config.optim.lr=1e-3`.

    Raises:
      ConfigError: for whatever does not exist, does not parse or does not fit together.
    """
    return resolve(override(read(spec), overrides))


def override(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """`config` with `--config.field=value` words applied; the given train length wins."""
    if not overrides:  # config_flags would write the whole config out as YAML first
        return config
    names = [name for word in overrides if (name := _overridden(word))]
    for name in names:
        if name not in FIELDS:
            raise unknown_field(name)
    values = flags.FlagValues()
    argv = ["pit-jax", *overrides]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        rest = values(argv)[1:]
    except (flags.Error, AttributeError, TypeError, ValueError, KeyError) as error:
        raise ConfigError(_one_line(error)) from None
    if rest:
        raise ConfigError(f"unexpected argument {rest[0]!r}: overrides are --config.FIELD=VALUE")
    lengths = [name for name in _LENGTHS if name in names]
    if lengths:
        for name in set(_LENGTHS) - set(lengths):
            assign(values.config, name, None)
    return values.config


def from_json(text: str) -> ConfigDict:
    """The config in a run directory's config.json; every field is checked."""
    try:
        tree = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"not a config: {error}") from None
    config = base()
    if not isinstance(tree, dict):
        raise ConfigError("not a config: the JSON file should hold an object")
    for name, value in flatten(ConfigDict(tree)).items():
        assign(config, name, check_value(name, value))
    return config


def to_json(config: ConfigDict) -> str:
    """The text of config.json; `from_json` reads it back to an equal config."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def read(spec: str) -> ConfigDict:
    """What `FILE.py[:ARG]` or `config.json` says, not resolved yet.

    Also for files that start from another config: those in experiments/.
    """
    return from_json(_read(spec)) if spec.endswith(".json") else PythonFile(spec).config()


class PythonFile:
    """A Python file about runs, executed: `FILE.py[:ARG]`.

    Raises:
      ConfigError: if there is no such file, or it cannot be executed.
    """

    def __init__(self, spec: str):
        path, _, self.argument = spec.partition(".py:")
        self.spec, self.path = spec, path if path.endswith(".py") else f"{path}.py"
        if not spec.endswith(".py") and not self.argument:
            raise ConfigError(f"config {spec!r}: write FILE.py, FILE.py:ARGUMENT or config.json")
        if not os.path.isfile(self.path):
            raise ConfigError(f"there is no config file {self.path}")
        module_spec = importlib.util.spec_from_file_location("pit_jax_config", self.path)
        self.module = importlib.util.module_from_spec(module_spec)
        with self._told():
            module_spec.loader.exec_module(self.module)

    def config(self) -> ConfigDict:
        """What `get_config` returns, a new one every time.

        Raises:
          ConfigError: if there is none, or it fails.
        """
        if not hasattr(self.module, "get_config"):
            raise ConfigError(f"{self.spec}: {self.path} defines no get_config(arg)")
        return self.call("get_config")

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
        except Exception as error:
            message = f"{self.spec}: {type(error).__name__}: {_one_line(error)}"
            raise ConfigError(message) from None


def _read(path: str) -> str:
    from etils import epath  # knows gs://; a config in Python needs none of it

    try:
        return epath.Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {path} cannot be read: {_one_line(error)}") from None


def _overridden(word: str) -> str | None:
    """The field that a command-line word overrides: `--config.a.b=v`, `--noconfig.a.b`."""
    match = re.match(r"--?(?:no)?config\.([^=]*)", word)
    return match[1] if match else None


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text.removeprefix("flag ")
