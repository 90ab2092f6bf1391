"""From a point's dictionary of overrides to its resolved config; quick, as sweeps have many."""

import os
import pickle
from collections.abc import Sequence

from ml_collections import ConfigDict

from pit_jax import configfile, derived, validation
from pit_jax.config import assign
from pit_jax.errors import ConfigError
from pit_jax.study import space

LENGTHS = ("train.steps", "train.epochs", "train.examples")


class Resolver:
    """The resolved config of a dictionary of overrides, of one file and command line.

    Raises:
      ConfigError: naming the field that is wrong.
    """

    def __init__(self, file: configfile.PythonFile, words: Sequence[str]):
        self._file, self._words = file, words
        self._bases: dict[str, bytes] = {}  # pickled: the quickest way to copy a config
        self._resolved: dict[str, bytes] = {}
        # No field follows from a run's seed, so that points which differ in it alone are
        # resolved once: there are many of these.
        self._alike = not any("train.seed" in word for word in words)

    def __call__(self, entry: space.Overrides) -> ConfigDict:
        if not self._alike or "train.seed" not in entry:
            return self._resolve(entry)
        others = {name: value for name, value in entry.items() if name != "train.seed"}
        key = repr(sorted(others.items(), key=lambda item: item[0]))
        if key not in self._resolved:
            self._resolved[key] = pickle.dumps(self._resolve(others))
        config = pickle.loads(self._resolved[key])
        assign(config, "train.seed", validation.check_value("train.seed", entry["train.seed"]))
        return config

    def _resolve(self, entry: space.Overrides) -> ConfigDict:
        config = self._base(entry)
        given = {name: value for name, value in entry.items() if name not in ("config", "label")}
        if any(name in LENGTHS for name in given):
            for name in LENGTHS:
                assign(config, name, None)
        for name, value in given.items():
            assign(config, name, validation.check_value(name, value))
        derived.leave_out(config, given)
        resolved = validation.resolve(configfile.override(config, self._words))
        validation.check_meant(resolved)
        return resolved

    def _base(self, entry: space.Overrides) -> ConfigDict:
        """A copy of the file's config, or of the one that the entry names."""
        key = repr(entry.get("config", ""))
        if key not in self._bases:
            named = "config" in entry
            config = configfile.read(_spec(self._file, entry)) if named else self._file.config()
            self._bases[key] = pickle.dumps(config)
        return pickle.loads(self._bases[key])


def _spec(file: configfile.PythonFile, entry: space.Overrides) -> str:
    """The other config of a point: relative to the sweep's file, or else where we are."""
    spec = entry["config"]
    if not isinstance(spec, str):
        raise ConfigError(f"config={spec!r} should be FILE[:ARG] of another config")
    beside = os.path.join(os.path.dirname(file.path), spec)
    path = beside.partition(".py:")[0]
    found = any(os.path.isfile(name) for name in (path, f"{path}.py"))
    return beside if found else spec
