"""Writes a store (see store.py) shard by shard, and goes on where it stopped."""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pit_jax import files
from pit_jax.data import store
from pit_jax.data.store import LABEL, Kind, facts_of, read_manifest
from pit_jax.errors import ConfigError

# One record a group: read at random. Uncompressed: neither float16 noise nor pixels shrink much.
_OPTIONS = "group_size:1,uncompressed"


class Writer:
    """Writes one split of a store, shard by shard, in any order and by any process.

        for shard in writer.missing():
            writer.write(shard, (example(i) for i in writer.span(shard)))
        writer.finish()

    Several processes share the shards out, and one of them finishes. Stopped anywhere, a new
    Writer with the same arguments goes on: shards that are finished and intact are kept, others
    are written again. A kind of store says in `record` what its records are.

    Args:
      root: directory, made if it is not there.
      kind: of the store.
      manifest: what is written, as JSON says it.
      split: its name.
      count: examples of the split.
      shards: files that they are shared out to.

    Raises:
      ConfigError: if the directory holds others than the manifest says, naming the field, or
        more shards are asked for than there are examples.
      StorageError: if it cannot be written.
    """

    def __init__(
        self, root: Path, kind: Kind, manifest: dict[str, Any], split: str, count: int, shards: int
    ):
        if not 1 <= shards <= count:
            raise ConfigError(
                f"{count} example(s) cannot be shared out to {shards} shards: use 1 to {count}"
            )
        self.root, self.kind, self.split = root, kind, split
        self.count, self.shards = count, shards
        here = {"count": count, "shards": shards}
        whole = manifest | {"splits": {}}
        if (root / kind.manifest).exists():
            whole = read_manifest(root, kind)
        self._check_same(root, self.compared(manifest, whole), whole)
        if split in whole["splits"]:
            self._check_same(root / split, here, whole["splits"][split])
        else:
            whole["splits"][split] = here | {"files": {}}
            files.write(root / kind.manifest, json.dumps(whole, indent=2) + "\n")

    def compared(self, wanted: dict[str, Any], there: dict[str, Any]) -> dict[str, Any]:
        """What of a manifest decides whether a store may be gone on with."""
        free = {"versions"} if "classes" in there else {"versions", "classes"}  # old say none
        return {name: value for name, value in wanted.items() if name not in free}

    def record(self, array: Any, label: int, name: str) -> bytes:
        """A record: its label as LABEL, then what it holds.

        Raises:
          ConfigError: if they do not fit the store, naming the file `name`.
        """
        raise NotImplementedError

    def span(self, shard: int) -> range:
        """The numbers of the examples of a shard."""
        return store.span(self.count, self.shards, shard)

    def missing(self, shards: Iterable[int] | None = None) -> list[int]:
        """The shards still to write: not there, or not what their checksums say.

        Args:
          shards: which are asked for, all by default; those that are there are read whole.
        """
        known = read_manifest(self.root, self.kind)["splits"][self.split]["files"]
        asked = range(self.shards) if shards is None else shards
        notes = {shard: self._finished(shard, known) for shard in asked}
        return [i for i, note in notes.items() if not (note and _intact(self._path(i), note))]

    def write(self, shard: int, examples: Iterable[tuple[Any, int]]) -> None:
        """Writes a shard as a whole or not at all.

        Args:
          shard: its number.
          examples: (array, label) of each of `span(shard)`, as `record` takes them.

        Raises:
          ConfigError: if one does not fit, or they are not as many as the shard should have.
          StorageError: if it cannot be written.
        """
        from array_record.python import array_record_module

        path = self._path(shard)
        # Its own name: a process of an earlier start may not have noticed yet that it should end.
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        labels: list[int] = []
        with _storing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            writer = array_record_module.ArrayRecordWriter(str(temporary), _OPTIONS)
        try:
            for array, label in examples:
                record = self.record(array, label, path.name)
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
            with contextlib.suppress(OSError):  # also where the disk took no more at the close
                temporary.unlink(missing_ok=True)
        files.write(self._note(shard), json.dumps(facts))

    def finish(self) -> None:
        """Writes the labels and completes the manifest; done before, it does nothing.

        One process does this, after all have written their shards.

        Raises:
          ConfigError: if shards are missing.
          StorageError: if a file cannot be written.
        """
        whole = read_manifest(self.root, self.kind)
        known = whole["splits"][self.split]["files"]
        labels = self.root / store.labels_name(self.split)
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
        files.write(self.root / self.kind.manifest, json.dumps(whole, indent=2) + "\n")
        for shard in range(self.shards):
            self._note(shard).unlink(missing_ok=True)
        for left in self.root.glob(f".{self.split}-*.tmp"):  # by processes that were killed
            left.unlink(missing_ok=True)

    def _path(self, shard: int) -> Path:
        return self.root / store.shard_name(self.split, shard, self.shards)

    def _note(self, shard: int) -> Path:
        return self._path(shard).with_suffix(".json")

    def _finished(self, shard: int, known: dict[str, Any]) -> dict[str, Any] | None:
        """What was noted of a shard when it was finished, lately or before `finish`."""
        try:
            return json.loads(self._note(shard).read_text())
        except (OSError, ValueError):  # not there, or cut short
            return known.get(self._path(shard).name)

    def _check_same(self, where: Path, wanted: dict[str, Any], there: dict[str, Any]) -> None:
        for name, value in wanted.items():
            if there.get(name) != value:
                raise ConfigError(
                    f"{where} holds other {self.kind.noun}: {name} {there.get(name)!r}, not"
                    f" {value!r}; name another directory, or remove it"
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
    except RuntimeError as error:  # of the writer in C++, which says where once more
        text = " ".join(str(error).split()).partition("; ")[0]
        raise files.storage_error(path, OSError(text[:200])) from None
