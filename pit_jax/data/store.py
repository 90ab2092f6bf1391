"""A store: one kind of record in numbered ArrayRecord files, with a manifest and checksums.

    NAME.json                             the manifest: what lies here, and checksums
    train-00000-of-00016.array_record     one record an example: its label, then its numbers
    train-labels.npy                      all labels, so that they are read without the rest
    train-00003-of-00016.json             of a shard finished while others are not yet

`store_writer.Writer` writes it. Stored latents (latents.py) and resized copies of images
(copies.py) are such stores; what their records mean is theirs.
"""

import dataclasses
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from pit_jax.errors import ConfigError, StorageError
from pit_jax.files import check_text, sha256

SCHEMA = 1
LABEL = np.dtype("<i4")


@dataclasses.dataclass(frozen=True)
class Kind:
    """What lies in a store, for its files and for messages.

    Attributes:
      manifest: name of that file.
      noun: what the records are, in the plural, and
      one: a single one.
      verb: how they are made.
    """

    manifest: str
    noun: str
    one: str
    verb: str


class Split:
    """The records of a finished split, read at random.

    Args:
      root: directory of the store.
      kind: of the store.
      split: of it.
      name: for messages.
      again: what to do about a split that is not finished or damaged, "encode it again".

    Attributes:
      count, shards: records, and files that they are shared out to.
      again: as above.
      files: by name the checksum and size of each.

    Raises:
      ConfigError: if there is no such split, or it is not finished.
      StorageError: if a file is missing or not as long as it was, or the labels are others.
    """

    def __init__(self, root: Path, kind: Kind, split: str, name: str, again: str):
        self._root, self._kind, self._split = root, kind, split
        self._name, self.again = name, again
        splits = read_manifest(root, kind)["splits"]
        if split not in splits:
            listed = ", ".join(sorted(splits)) or "none"
            raise ConfigError(f"{root} has no split {split!r} of {kind.noun}, but: {listed}")
        self.files: dict[str, dict[str, Any]] = splits[split]["files"]
        if not self.files:
            raise ConfigError(
                f"{root}: split {split!r} is not finished: {again}, which goes on where it stopped"
            )
        for file, facts in self.files.items():
            try:
                size = (root / file).stat().st_size
            except OSError as error:
                raise StorageError(
                    f"{root / file} cannot be read: {error.strerror or error}"
                ) from None
            if size != facts["bytes"]:
                raise StorageError(f"{root / file} has {size} bytes, not {facts['bytes']}: {again}")
        self.labels()  # small, and what a class is told by: damage should not be trained on
        self.count, self.shards = splits[split]["count"], splits[split]["shards"]
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        paths = []
        for shard in range(self.shards):
            length = len(span(self.count, self.shards, shard))
            # With the counts in the name no file is opened before it is read.
            paths.append(f"{self.path(shard)}[0:{length}]")
        self._records = ArrayRecordDataSource(paths)

    def digest(self) -> str:
        """A SHA-256 sum that two splits share only if all their files are the same."""
        facts = sorted((name, facts["sha256"]) for name, facts in self.files.items())
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def path(self, shard: int) -> Path:
        return self._root / shard_name(self._split, shard, self.shards)

    def record(self, index: int) -> tuple[int, bytes]:
        """The label of a record, and its bytes behind that.

        Raises:
          StorageError: if it cannot be read; ArrayRecord keeps checksums of its own.
        """
        try:
            record = self._records[index]
        except (OSError, RuntimeError, ValueError) as error:
            text = " ".join(str(error).split())[:200]
            raise StorageError(
                f"{self._name}: {self._kind.one} {index} cannot be read: {text}"
            ) from None
        return int(np.frombuffer(record, LABEL, 1)[0]), record[LABEL.itemsize :]

    def labels(self) -> np.ndarray:
        """(count,) int32.

        Raises:
          StorageError: if they are not what was written.
        """
        path = self._root / labels_name(self._split)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror or error}") from None
        written = self.files.get(path.name, {}).get("sha256")
        if hashlib.sha256(content).hexdigest() != written:
            raise StorageError(
                f"{path} is not what was written: {self.again}, which reads the labels off its"
                " other files"
            )
        return np.load(io.BytesIO(content), allow_pickle=False)

    def verify(self) -> None:
        """Reads every file and compares its checksum.

        Raises:
          StorageError: naming the first that differs, and how many do.
        """
        wrong = [name for name, facts in self.files.items() if facts_of(self._root / name) != facts]
        if wrong:
            raise StorageError(
                f"{self._root}: {len(wrong)} of {len(self.files)} files are not what was"
                f" written, {wrong[0]} first: {self.again}"
            )


def span(count: int, shards: int, shard: int) -> range:
    """The numbers of the examples of a shard, where `count` are shared out to `shards` files."""
    return range(shard * count // shards, (shard + 1) * count // shards)


def shard_name(split: str, shard: int, shards: int) -> str:
    """As TensorFlow Datasets names them."""
    return f"{split}-{shard:05d}-of-{shards:05d}.array_record"


def labels_name(split: str) -> str:
    return f"{split}-labels.npy"


def local(directory: str | Path, kind: Kind) -> Path:
    """The directory of a store.

    Raises:
      ConfigError: for a URL, of which a path would be a folder beside the program; and for a
        name that ArrayRecord cannot be given.
    """
    check_text(directory, "the directory")
    if "://" in str(directory):
        raise ConfigError(
            f"{directory} is no local directory, and {kind.noun} are read and written in one only:"
            " mount the bucket, or copy the store, and name its path"
        )
    return Path(directory)


def read_manifest(root: Path, kind: Kind) -> dict[str, Any]:
    """What the manifest says.

    Raises:
      ConfigError: if there is none, or of another schema.
      StorageError: if it is damaged.
    """
    path = root / kind.manifest
    try:
        whole = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{root} holds no {kind.noun}: it has no {kind.manifest}") from None
    except (OSError, ValueError) as error:
        raise StorageError(f"{path} cannot be read: {error}") from None
    if not isinstance(whole, dict) or whole.get("schema") != SCHEMA:
        raise ConfigError(f"{path} is not of schema {SCHEMA}, the one that is read here")
    return {"splits": {}} | whole


def check_says(root: Path, kind: Kind, whole: dict[str, Any], names: list[str]) -> None:
    """Refuses a manifest without these fields.

    Raises:
      ConfigError: naming those that lack.
    """
    if lacking := [name for name in names if name not in whole]:
        raise ConfigError(
            f"{root / kind.manifest} does not say its {', '.join(lacking)}: {kind.verb} the images"
            " again"
        )


def facts_of(path: Path) -> dict[str, Any]:
    """What the manifest keeps of a file: its SHA-256 sum and size."""
    return {"sha256": sha256(path), "bytes": path.stat().st_size}
