"""Writes a store of latents (see latents.py), shard by shard, and goes on where it stopped."""

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pit_jax import files
from pit_jax.data.latents import (
    DTYPE,
    LABEL,
    MANIFEST,
    Manifest,
    facts_of,
    local,
    read_manifest,
    shard_name,
)
from pit_jax.errors import ConfigError

# One record a group: read at random. Uncompressed: float16 noise does not shrink.
_OPTIONS = "group_size:1,uncompressed"


class Writer:
    """Writes one split of a store, shard by shard, in any order and by any process.

        for shard in writer.missing():
            writer.write(shard, (encoded(i) for i in writer.span(shard)))
        writer.finish()

    Several processes share the shards out by their numbers (`shard % processes`), and one of
    them finishes. Stopped anywhere, a new Writer with the same arguments goes on: shards that
    are finished and intact are kept, others are written again.

    Args:
      directory: made if it is not there.
      manifest: what is written.
      split: its name.
      count: examples of the split.
      shards: files that they are shared out to.

    Raises:
      ConfigError: if the directory is a URL or holds other latents than the manifest says,
        naming the field, or more shards are asked for than there are examples.
      StorageError: if it cannot be written.
    """

    def __init__(
        self, directory: str | Path, manifest: Manifest, split: str, count: int, shards: int
    ):
        if not 1 <= shards <= count:
            raise ConfigError(
                f"{count} example(s) cannot be shared out to {shards} shards: use 1 to {count}"
            )
        manifest.normalisation.check_channels(manifest.shape[-1])
        self.root, self.manifest, self.split = local(directory), manifest, split
        self.count, self.shards = count, shards
        wanted, here = manifest.as_json(), {"count": count, "shards": shards}
        whole = wanted | {"splits": {}}
        if (self.root / MANIFEST).exists():
            whole = read_manifest(self.root)
        _check_same(self.root, _compared(wanted, whole), whole)
        if split in whole["splits"]:
            _check_same(self.root / split, here, whole["splits"][split])
        else:
            whole["splits"][split] = here | {"files": {}}
            files.write(self.root / MANIFEST, json.dumps(whole, indent=2) + "\n")

    def span(self, shard: int) -> range:
        """The numbers of the examples of a shard."""
        return range(shard * self.count // self.shards, (shard + 1) * self.count // self.shards)

    def missing(self, shards: Iterable[int] | None = None) -> list[int]:
        """The shards still to write: not there, or not what their checksums say.

        Args:
          shards: which are asked for, all by default; those that are there are read whole.
        """
        known = read_manifest(self.root)["splits"][self.split]["files"]
        asked = range(self.shards) if shards is None else shards
        notes = {shard: self._finished(shard, known) for shard in asked}
        return [i for i, note in notes.items() if not (note and _intact(self._path(i), note))]

    def write(self, shard: int, examples: Iterable[tuple[np.ndarray, int]]) -> None:
        """Writes a shard as a whole or not at all.

        Args:
          shard: its number.
          examples: (array, label) of each of `span(shard)`; arrays as `record_shape` says.

        Raises:
          ConfigError: if an array is of another shape or not finite in float16, a label is
            no class, or they are not as many as the shard should have.
          StorageError: if it cannot be written.
        """
        from array_record.python import array_record_module

        path = self._path(shard)
        temporary = path.with_name(f".{path.name}.tmp")
        labels: list[int] = []
        with _storing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            writer = array_record_module.ArrayRecordWriter(str(temporary), _OPTIONS)
        try:
            for array, label in examples:
                record = self._record(array, label, path.name)
                with _storing(path):
                    writer.write(record)
                labels.append(int(label))
            if len(labels) != len(self.span(shard)):
                raise ConfigError(
                    f"{path.name} was given {len(labels)} examples, not {len(self.span(shard))}"
                )
            with _storing(path):
                writer.close()
                facts = facts_of(temporary) | {"labels": labels}
                temporary.replace(path)
        finally:
            with contextlib.suppress(OSError, RuntimeError):
                if writer.is_open():
                    writer.close()
                temporary.unlink(missing_ok=True)
        files.write(self._note(shard), json.dumps(facts))

    def finish(self) -> None:
        """Writes the labels and completes the manifest; done before, it does nothing.

        One process does this, after all have written their shards.

        Raises:
          ConfigError: if shards are missing.
          StorageError: if a file cannot be written.
        """
        whole = read_manifest(self.root)
        known = whole["splits"][self.split]["files"]
        labels = self.root / f"{self.split}-labels.npy"
        noted = any(self._note(shard).exists() for shard in range(self.shards))
        if not noted and labels.name in known and _intact(labels, known[labels.name]):
            return
        notes = [self._finished(shard, known) for shard in range(self.shards)]
        absent = [shard for shard, note in enumerate(notes) if note is None]
        if absent:
            raise ConfigError(
                f"{self.root} still lacks {len(absent)} of {self.shards} shards of {self.split}:"
                f" {self._path(absent[0]).name} first"
            )
        numbers = [note.get("labels") or _labels(self._path(i)) for i, note in enumerate(notes)]
        with files.whole(labels) as temporary, temporary.open("wb") as file:
            np.save(file, np.concatenate([np.asarray(x, LABEL) for x in numbers]))
        entries = {labels.name: facts_of(labels)}
        for shard, note in enumerate(notes):
            entries[self._path(shard).name] = {k: note[k] for k in ("sha256", "bytes")}
        whole["splits"][self.split]["files"] = entries
        files.write(self.root / MANIFEST, json.dumps(whole, indent=2) + "\n")
        for shard in range(self.shards):
            self._note(shard).unlink(missing_ok=True)

    def _path(self, shard: int) -> Path:
        return self.root / shard_name(self.split, shard, self.shards)

    def _note(self, shard: int) -> Path:
        return self._path(shard).with_suffix(".json")

    def _finished(self, shard: int, known: dict[str, Any]) -> dict[str, Any] | None:
        """What was noted of a shard when it was finished, lately or before `finish`."""
        try:
            return json.loads(self._note(shard).read_text())
        except (OSError, ValueError):  # not there, or cut short
            return known.get(self._path(shard).name)

    def _record(self, array: np.ndarray, label: int, name: str) -> bytes:
        if array.shape != self.manifest.record_shape():
            raise ConfigError(
                f"{name}: latents of shape {array.shape}, the manifest says"
                f" {self.manifest.record_shape()}"
            )
        if not 0 <= label < self.manifest.num_classes:
            raise ConfigError(f"{name}: label {label} is none of {self.manifest.num_classes}")
        with np.errstate(over="ignore"):
            half = np.asarray(array).astype(DTYPE)
        if not np.isfinite(half).all():
            raise ConfigError(
                f"{name}: latents up to {np.abs(array).max():g} are not finite in float16"
            )
        return np.asarray(label, LABEL).tobytes() + half.tobytes()


def _compared(wanted: dict[str, Any], there: dict[str, Any]) -> dict[str, Any]:
    """What of a manifest decides whether a store may be gone on with."""
    # Equal weights make equal latents, whichever file they came from; a store of old does not
    # say its weights, and is known by the file.
    said = there.get("weights_sha256") or ""
    free = {"versions"}
    if not said:
        free |= {"weights_sha256"}
    elif said == wanted["weights_sha256"]:
        free |= {"autoencoder", "autoencoder_sha256"}
    return {name: value for name, value in wanted.items() if name not in free}


def _check_same(where: Path, wanted: dict[str, Any], there: dict[str, Any]) -> None:
    for name, value in wanted.items():
        if there.get(name) != value:
            raise ConfigError(
                f"{where} holds other latents: {name} {there.get(name)!r}, not {value!r}; name"
                " another directory, or remove it"
            )


def _intact(path: Path, note: dict[str, Any]) -> bool:
    try:
        return facts_of(path) == {k: note[k] for k in ("sha256", "bytes")}
    except OSError:
        return False


def _labels(path: Path) -> list[int]:
    """The labels in a shard's records."""
    from array_record.python import array_record_module

    reader = array_record_module.ArrayRecordReader(str(path))
    return [int(np.frombuffer(record, LABEL, 1)[0]) for record in reader.read_all()]


@contextlib.contextmanager
def _storing(path: Path) -> Iterator[None]:
    """Tells what goes wrong inside as one line about `path`."""
    try:
        yield
    except OSError as error:
        raise files.storage_error(path, error) from None
    except RuntimeError as error:  # of the writer in C++
        raise files.storage_error(path, OSError(" ".join(str(error).split())[:200])) from None
