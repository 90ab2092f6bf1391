"""Whose examples a run learns: what its directory keeps of the data, and what must agree.

A label is a number, and a folder's classes are numbered by their names in order: rename one, and
the same number means another class. So a run keeps the names, how many examples there were, and of
latents whose they are. Where the set lies may change between starts; what it holds may not.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pit_jax import demands
from pit_jax.data import latent_origin, latents, sources
from pit_jax.errors import ConfigError, PitError, StorageError
from pit_jax.rundir import RunDir

FILE = "data.json"  # in a run's directory
_LATENTS_FILE = "latents.json"  # where a run of old keeps what is "latents" in it
_SCHEMA = 1
_NAMED = 3  # classes of a kind that a message names


@dataclasses.dataclass(frozen=True)
class Split:
    """Its name, and the examples that are read of it, be they decodable or not."""

    split: str
    examples: int


@dataclasses.dataclass(frozen=True)
class Identity:
    """Attributes:
    name: of the set.
    classes: their names in the order of their numbers; () where the set does not say them.
    training, evaluation: its splits.
    latents: whose they are, of a run on latents.
    """

    name: str
    classes: tuple[str, ...]
    training: Split
    evaluation: Split
    latents: latent_origin.Origin | None = None

    def __str__(self) -> str:
        named = f"{len(self.classes)} classes, " if self.classes else ""
        return (
            f"{named}{self.training.examples:,} examples of {self.training.split} and"
            f" {self.evaluation.examples:,} of {self.evaluation.split}"
        )


class Opened(NamedTuple):
    """The two sources that a run reads; where they were checked also what they are, and lines to
    say of it."""

    training: sources.Source
    held_out: sources.Source
    identity: Identity | None = None
    remarks: Sequence[str] = ()


def open_both(config: Any) -> Opened:
    """The sources that a config names.

    Raises:
      ConfigError: as `sources.load`.
    """
    read = demands.reads_labels(config)
    held_out = sources.load(config.data, config.data.eval_split, read)
    return Opened(sources.training(config.data, read), held_out)


def open_checked(config: Any, run: RunDir, labelled: bool) -> Opened:
    """The same, refused where they are not what the run in `run` learns.

    Args, Raises: as `check_start` and `check_counts`.
    """
    origin = check_start(config, run, labelled)
    opened = open_both(config)
    found = of_sources(config.data, opened.training, opened.held_out, origin)
    return opened._replace(identity=found, remarks=check_counts(found, config, run))


def of_sources(
    data: Any, training: sources.Source, held_out: sources.Source, origin: Any = None
) -> Identity:
    """Of the two splits that a config's `data` group names."""
    return Identity(
        data.name,
        tuple(training.classes),
        Split(data.split, len(training)),
        Split(data.eval_split, len(held_out)),
        origin,
    )


def of_run(run: RunDir) -> Identity | None:
    """What a run's directory keeps; None if it keeps nothing, as runs of old.

    Raises:
      StorageError: if the file is damaged.
    """
    values = _read(run, FILE)
    if values is None:
        return None
    with _told(run, FILE):
        classes = values["classes"]
        if not isinstance(classes, list) or not all(isinstance(x, str) for x in classes):
            raise TypeError("its classes are no list of names")
        origin = values.get("latents")
        return Identity(
            str(values["name"]),
            tuple(classes),
            *(
                Split(str(values[role]["split"]), int(values[role]["examples"]))
                for role in ("training", "evaluation")
            ),
            latent_origin.of_json(origin) if origin else None,
        )


def latents_of(run: RunDir) -> latent_origin.Origin | None:
    """Whose latents a run learnt; None if its directory does not say it.

    Raises:
      StorageError: if the file is damaged.
    """
    if kept := of_run(run):
        return kept.latents
    values = _read(run, _LATENTS_FILE)
    if values is None:
        return None
    with _told(run, _LATENTS_FILE):
        return latent_origin.of_json(values)


def keep(run: RunDir, found: Identity) -> None:
    """Writes it into the run's directory, unless it lies there already.

    Raises:
      StorageError: if it cannot be written.
    """
    if (run.path / FILE).exists():
        return
    values = {"schema": _SCHEMA} | dataclasses.asdict(found)
    if found.latents is None:
        del values["latents"]
    run.write(FILE, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def check_start(config: Any, run: RunDir, labelled: bool) -> latent_origin.Origin | None:
    """Refuses a training that cannot be, before anything of it is written.

    Reads the autoencoder's whole file where the config names one.

    Args:
      config: resolved.
      run: where it shall be trained, new or begun.
      labelled: whether the task learns labels, as `learns_labels` of tasks says.

    Returns:
      Whose latents it learns, if it learns latents.

    Raises:
      ConfigError: if the set has other classes than the run, or that of `config.resume`, was
        trained on; of latents also if there is no store, or it is not of the same ones, or not of
        `config.autoencoder.weights`.
      StorageError: if a file is damaged.
    """
    resumed = (RunDir(config.resume),) if config.resume else ()
    origin = None
    if config.data.name == "latents":
        origin = latent_origin.of_manifest(latents.read(config.data.dir))
        for other in (run, *resumed):
            if known := latents_of(other):
                origin.check_same(known, config.data.dir, str(other.path))
        if config.autoencoder.weights:
            latent_origin.load_autoencoder(config, origin)
    for other in (run, *(resumed if labelled else ())):
        check_classes(config.data, other)
    return origin


def check_counts(found: Identity, config: Any, run: RunDir) -> list[str]:
    """Refuses to go on with a training set of another size: its order would be another, too.

    Returns:
      Lines about what may have changed.

    Raises:
      ConfigError: if there are more or fewer training examples than before.
      StorageError: if a file is damaged.
    """
    if known := of_run(run):
        now, before = found.training, known.training
        if now.examples != before.examples:
            raise ConfigError(
                f"{_place(config.data)} has {now.examples:,} training examples in {now.split}, but"
                f" {run.path} was trained on {before.examples:,}: bring the set back to what it"
                " was, or start another run in another --workdir"
            )
        now, before = found.evaluation, known.evaluation
        if now.examples != before.examples:
            return [
                f"{_place(config.data)} has {now.examples:,} evaluation examples in {now.split},"
                f" earlier evaluations of {run.path} were on {before.examples:,}"
            ]
        return []
    if run.exists():
        return [f"{run.path} did not record what it learns from; from now on {FILE} does: {found}"]
    if config.resume and (known := of_run(RunDir(config.resume))):
        now, before = found.training.examples, known.training.examples
        if now != before:
            return [f"{config.resume} was trained on {before:,} examples, this run is on {now:,}"]
    return []


def check_restored(config: Any, run: RunDir, labelled: bool) -> latent_origin.Origin | None:
    """Refuses to ask a trained run about another set, if a set is there.

    How many examples it has may differ: it may be evaluated on another split or directory.

    Args:
      config: resolved.
      run: the trained one.
      labelled: as `check_start` takes it.

    Returns:
      What it knows of its latents, if it was trained on latents.

    Raises:
      ConfigError: if there is a set, and of other classes or latents.
      StorageError: if a file is damaged.
    """
    known = None
    if config.data.name == "latents":
        stored, known = latent_origin.of_store(config.data), latents_of(run)
        if stored and known:
            stored.check_same(known, config.data.dir, str(run.path))
        known = known or stored
    if labelled:
        check_classes(config.data, run)
    return known


def check_classes(data: Any, run: RunDir) -> None:
    """Refuses a set whose classes are not those that a run learnt, by name.

    Where either does not say its classes, or the set is not here, nothing is compared.

    Raises:
      ConfigError: naming the classes that are new, missing, or have another number.
      StorageError: if the run's file is damaged.
    """
    known = of_run(run)
    if known is None or not known.classes:
        return
    try:
        classes = tuple(sources.open_split(data, data.eval_split).classes)
    except PitError:  # whoever needs the set will say so
        return
    if classes and (differ := difference(known.classes, classes)):
        raise ConfigError(
            f"{_place(data)} has other classes than {run.path} was trained on: {differ}. Give the"
            " classes their names back, or name the set that it was trained on"
        )


def difference(before: Sequence[str], now: Sequence[str]) -> str:
    """Which classes are new, missing, or at another number, in words; "" if none is."""
    moved = [
        f"{name!r} was number {before.index(name)} and is {number}"
        for number, name in enumerate(now)
        if name in before and before[number : number + 1] != (name,)
    ]
    new, missing = ([repr(x) for x in a if x not in b] for a, b in ((now, before), (before, now)))
    found = [("new", new), ("missing", missing), ("", moved)]
    return "; ".join(f"{word} {_some(names)}".strip() for word, names in found if names)


def renumbered(before: Sequence[str], now: Sequence[str]) -> bool:
    """Whether a name that both know has another number."""
    places: dict[str, set[int]] = {}
    for number, name in enumerate(before):  # some names stand for two classes, as ImageNet's crane
        places.setdefault(name, set()).add(number)
    return any(number not in places.get(name, {number}) for number, name in enumerate(now))


def latents_differ(config: Any) -> str | None:
    """A warning where a run starts from the weights of one on latents of another kind.

    Fine-tuning may mean to do that, so it is no refusal. Of a file of weights nothing is known.
    """
    if config.data.name != "latents" or not config.init_from:
        return None
    ours, theirs = latent_origin.of_store(config.data), latents_of(RunDir(config.init_from))
    if ours is None or theirs is None:
        return None
    same = ours.is_of(theirs.autoencoder_sha256, theirs.weights_sha256)
    if same and ours.normalisation == theirs.normalisation:
        return None
    return (
        f"config.init_from={config.init_from} learned latents of {theirs}; config.data.dir="
        f"{config.data.dir} holds those of {ours}: what it knows may help little"
    )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _place(data: Any) -> str:
    return f"config.data.dir={data.dir}" if data.dir else f"config.data.name={data.name}"


def _read(run: RunDir, name: str) -> dict[str, Any] | None:
    path = run.path / name
    if not path.exists():
        return None
    with _told(run, name):
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise TypeError("it holds no JSON object")
        return values


@contextlib.contextmanager
def _told(run: RunDir, name: str) -> Iterator[None]:
    """Says in one line which file of a run is damaged."""
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, ConfigError) as error:
        text = " ".join(str(error).split())
        raise StorageError(f"{run.path / name} cannot be read: {text}") from None
