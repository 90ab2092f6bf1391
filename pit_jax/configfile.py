"""From the command line to a config: `FILE.py[:ARG]` or a resolved config.json, and overrides.

The overrides are parsed by ml_collections' config_flags, so `--config.optim.lr=1e-3`,
`--config.train.deterministic` and `--config.optim.betas='(0.9, 0.95)'` work as its users
expect, in any order; its errors are turned into one line that names the field.
"""

import importlib.util
import json
import os
import re
from collections.abc import Sequence

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
    if spec.endswith(".json"):
        config = from_json(_read(spec))
    else:
        config = _from_python(spec)
    return resolve(override(config, overrides))


def override(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """`config` with `--config.field=value` words applied; the given train length wins."""
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


def _from_python(spec: str) -> ConfigDict:
    path, _, argument = spec.partition(".py:")
    path = path if path.endswith(".py") else f"{path}.py"
    if not spec.endswith(".py") and not argument:
        raise ConfigError(f"config {spec!r}: write FILE.py, FILE.py:ARGUMENT or config.json")
    if not os.path.isfile(path):
        raise ConfigError(f"there is no config file {path}")
    module_spec = importlib.util.spec_from_file_location("pit_jax_config", path)
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise ConfigError(f"{path} defines no get_config(arg)")
        return module.get_config(argument) if argument else module.get_config()
    except PitError as error:
        raise ConfigError(f"{spec}: {error}") from None
    except Exception as error:  # the user's own Python file: say what is wrong with it
        raise ConfigError(f"{spec}: {type(error).__name__}: {_one_line(error)}") from None


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
