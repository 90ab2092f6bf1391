"""A run's directory: the one writer and reader of the files that describe a run.

config.json     the resolved config
env.json        commit, versions, devices, mesh, command line; one entry a start
metrics.jsonl   one row a logged step; the source of truth
data.json       which classes and how many examples it learns, see data/identity.py
status.json     state, exit code, step, total, time, attempt, result
wandb.json      the id of the run at Weights & Biases, which every start goes on with
checkpoints/    see checkpoint.py
events/         TensorBoard
pictures/       what evaluations draw, <name>-<step>.png
records/        what evaluations measured and what it depends on, <name>-<step>.json

and, of a run that was launched or is running, launch.json, launch/, logs/, heartbeat.json and
lease.json (see lease.py).

On gs:// nothing can be added to a file. There rows are kept in memory and metrics.jsonl is
rewritten at most once a minute, before a checkpoint counts, and at the end; what libraries
write by themselves (events, profiles) lies in a temporary folder and is copied then.
"""

import contextlib
import datetime
import importlib.metadata
import io
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from pit_jax import configfile, files, runvalues
from pit_jax.config import assign, flatten
from pit_jax.errors import ConfigError, StorageError
from pit_jax.mirror import Mirror
from pit_jax.rows import Rows

# What may differ between the config a run was started with and the one it goes on with.
# Everything else would make the second half of the run a different experiment.
MAY_DIFFER = ("mesh.", "train.steps", "train.epochs", "train.examples", "train.log_every")
MAY_DIFFER += ("train.tensorboard", "train.wandb", "eval.", "checkpoint.", "launch.")
MAY_DIFFER += ("model.attention", "model.exchange", "model.remat")
MAY_DIFFER += ("data.dir", "data.latents_of", "data.workers", "data.in_memory_gb")
MAY_DIFFER += ("data.corrupt",)  # what is whole keeps its place; what is not ended the run
MAY_DIFFER += ("data.eval_crop",)
MAY_DIFFER += ("sample.", "autoencoder.weights")

# What may lie in a directory before its run was started there.
_BEFORE = {"launch.json", "launch", "logs", "lease.json", "heartbeat.json", "status.json"}
# Of a start that was killed before it had written its config.
_BEFORE |= {"wandb.json", "events"}

_PACKAGES = ("pit_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain")


class RunDir:
    """The directory of one run, local or gs://. Reading never creates anything.

    What is read has the types that it should have, see runvalues.py. Methods that take `notes`
    add a line to it for what they left out.

    Raises:
      ConfigError: if the path can be none.
      StorageError: from every method, if a file is there and cannot be read.
    """

    def __init__(self, path: str | os.PathLike):
        files.check_place(path, "the directory")
        # Orbax wants absolute paths; what is on gs:// is absolute already.
        self.path = (
            epath.Path(path) if files.in_bucket(path) else epath.Path(path).expanduser().absolute()
        )
        # Called before every write: raises once another run may be writing here, see lease.py.
        self.guard: Callable[[], None] = lambda: None
        self._rows = Rows(
            self.path / "metrics.jsonl",
            lambda content: self.write("metrics.jsonl", content),
            lambda: self.guard(),
        )
        self._mirror = Mirror(self.path)
        self._made: list[str] = []

    @property
    def checkpoints(self) -> epath.Path:
        return self.path / "checkpoints"

    # Starting -------------------------------------------------------------------------

    def create(self) -> None:
        """Makes the directory and tries that it can be written.

        Raises:
          ConfigError: with the reason when it cannot.
        """
        files.check_name(self.path, "--workdir")
        self._made = [] if files.in_bucket(self.path) else files.absent(self.path)
        probe = self.path / f".writable-{os.getpid()}"
        try:
            if not files.in_bucket(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
            with files.told(self.path):
                probe.write_text("")
                found = {p.name for p in self.path.iterdir()}
                probe.unlink()
        except (OSError, StorageError) as error:
            reason = str(error).partition(" could not be written: ")[2]
            reason = reason or getattr(error, "strerror", None) or error
            raise ConfigError(f"--workdir {self.path} cannot be written: {reason}") from None
        other = {name for name in found if not name.startswith(".")} - _BEFORE
        if other and not self.exists():
            raise ConfigError(
                f"--workdir {self.path} holds no run but other files ({sorted(other)[0]}, ...):"
                " name an empty or new directory"
            )

    def leave(self) -> None:
        """Deletes what `create` made, if nothing was written there since."""
        for folder in self._made:
            with contextlib.suppress(OSError):
                os.rmdir(folder)

    def exists(self) -> bool:
        """Whether a run was started here."""
        with files.told(self.path, "read"):
            return (self.path / "config.json").exists()

    def check_same(self, config: ConfigDict, free: tuple[str, ...] = ()) -> None:
        """Refuses to go on with another config than the one the run was started with.

        Args:
          config: resolved.
          free: fields that may differ, too.

        Raises:
          ConfigError: naming every field that differs and may not.
        """
        old, new = flatten(self.config()), flatten(self.as_begun(config))
        differs = [
            f"config.{name} was {old[name]!r}, now {new[name]!r}"
            for name in new
            if old[name] != new[name] and not name.startswith(MAY_DIFFER + free)
        ]
        if differs:
            raise ConfigError(
                f"{self.path} already holds another run: {'; '.join(differs)}."
                " Use another --workdir, or the config it was started with"
            )

    def as_begun(self, config: ConfigDict) -> ConfigDict:
        """`config` with what came after this run was begun as it was then.

        A field that config.json does not say, because there was none, is not for the config file
        to decide, which may say another value today. Of a directory without a run `config`.
        """
        if not self.exists():
            return config
        said = configfile.said(str(self.path / "config.json"))
        if before := configfile.fields_before(said):
            config = config.copy_and_resolve_references()
            for name, value in before.items():
                assign(config, name, value)
        return config

    def config(self) -> ConfigDict:
        """The resolved config of the run that was started here.

        Raises:
          ConfigError: if there is none.
        """
        path = self.path / "config.json"
        if not self.exists():
            raise ConfigError(f"{self.path} is no run directory: it has no config.json")
        try:
            return configfile.load(str(path))
        except ConfigError as error:
            named = str(path) in str(error)
            raise ConfigError(str(error) if named else f"{path}: {error}") from None

    def write_config(self, config: ConfigDict) -> None:
        self.write("config.json", configfile.to_json(config))

    def add_environment(self, environment: dict[str, Any]) -> int:
        """Appends what this start runs on to env.json; returns how many starts there were."""
        before = self._json("env.json")
        entries = [*(before if isinstance(before, list) else []), environment]
        self.write("env.json", json.dumps(entries, indent=2) + "\n")
        return len(entries)

    def environments(self, notes: list[str] | None = None) -> list[dict[str, Any]]:
        """What each start ran on, in order; see `environment`."""
        found = self._json("env.json", notes)
        if not isinstance(found, list | None):
            self._note(notes, "env.json is not what a run writes: it was left unread")
        entries = []
        for number, entry in enumerate(found if isinstance(found, list) else (), 1):
            known, lost = runvalues.environment(entry)
            self._lost(notes, f"env.json, start {number}", lost)
            entries += [known] if isinstance(entry, dict) else []
        return entries

    def machine(self) -> dict[str, Any]:
        """What the first start ran on, as results that are kept elsewhere say it."""
        kept = ("time", "commit", "versions", "python", "platform", "devices")
        first = (self.environments() or [{}])[0]
        return {key: first[key] for key in kept if key in first}

    # Status ---------------------------------------------------------------------------

    def status(self, notes: list[str] | None = None) -> dict[str, Any]:
        """What status.json says, {} before a run was started."""
        found = self._json("status.json", notes)
        known, lost = runvalues.status({} if found is None else found)
        self._lost(notes, "status.json", lost)
        return known

    def write_status(self, **fields: Any) -> None:
        """Changes fields of status.json.

        On a full disk there is no room for a new file, but for the new words in the old one.
        """
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        content = json.dumps({**self.status(), **fields, "time": now}) + "\n"
        try:
            self.write("status.json", content)
        except StorageError:
            self.guard()
            there = files.replaceable(self.path / "status.json")
            if files.in_bucket(there):
                raise
            try:
                with open(there, "r+b") as file:
                    file.write(content.encode())
                    file.truncate()
            except OSError:
                pass
            else:
                return
            raise

    def newest_saved(self) -> int:
        """The newest step that has a checkpoint, 0 for none, or if that cannot be told."""
        folder = self.path / "manifests"
        with contextlib.suppress(StorageError), files.told(folder, "read"):
            names = [path.name.removesuffix(".json") for path in folder.iterdir()]
            return max((int(name) for name in names if name.isdecimal()), default=0)
        return 0

    # Metrics --------------------------------------------------------------------------

    def wandb_id(self) -> str | None:
        """The run's id at Weights & Biases; None before there is one."""
        found = self._json("wandb.json")
        known = found.get("id") if isinstance(found, dict) else None
        return known if isinstance(known, str) and known else None

    def write_wandb_id(self, known: str) -> None:
        self.write("wandb.json", json.dumps({"id": known}) + "\n")

    def append_row(self, row: dict[str, Any]) -> None:
        """Adds one row to metrics.jsonl; see `flush`."""
        if self._rows.append(row):
            self.flush()

    def flush_rows(self) -> None:
        """Writes the rows that were kept back, if any; from any thread."""
        self._rows.flush()

    def flush(self) -> None:
        """Writes all that was kept back because the directory is in a bucket."""
        self.guard()
        self._rows.flush()
        self._mirror.flush()

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl; it ends at the first line that is cut off or no row."""
        return self.read_rows()[0]

    def read_rows(self, notes: list[str] | None = None) -> tuple[list[dict[str, Any]], int | None]:
        """The rows, and the number of the line they end at because it is no row, if one is."""
        lines, broken = self._rows.read()
        rows, lost = zip(*map(runvalues.row, lines), strict=True) if lines else ((), ())
        self._lost(notes, "metrics.jsonl", sorted({name for names in lost for name in names}))
        return list(rows), broken

    def evaluation(self, step: int) -> dict[str, float]:
        """What was evaluated at `step`: {"eval/accuracy": ..., ...}."""
        rows = [row for row in self.rows() if row["step"] == step]
        return {k: v for row in rows for k, v in row.items() if k.startswith("eval/")}

    def cut_rows(self, step: int) -> None:
        """Forgets what was logged after `step`, and notes that the run resumed there."""
        kept = [row for row in self._rows.read()[0] if row["step"] <= step]
        self._rows.replace([*kept, {"event": "resume", "step": step}])

    # Files ----------------------------------------------------------------------------

    def write_picture(self, step: int, name: str, picture: Any) -> None:
        """Writes pictures/<name>-<step>.png, of (H, W, 3) uint8 pixels.

        Raises:
          StorageError: if the file cannot be written.
        """
        from PIL import Image

        png = io.BytesIO()
        Image.fromarray(picture).save(png, "png")
        self.write(f"pictures/{name}-{step}.png", png.getvalue())

    def write_record(self, step: int, name: str, record: dict[str, Any]) -> None:
        """Writes records/<name>-<step>.json.

        Raises:
          StorageError: if the file cannot be written.
        """
        self.write(f"records/{name}-{step}.json", json.dumps(record, indent=2) + "\n")

    def write(self, name: str, content: str | bytes) -> None:
        """Replaces a file as a whole: a reader sees the old content or the new one.

        Raises:
          StorageError: if the file cannot be written, or another run took the directory over.
        """
        self.guard()
        files.write(self.path / name, content)

    def local(self, name: str) -> str:
        """A folder of this machine for a library that writes files by itself.

        It is <directory>/<name>; of a directory in a bucket a temporary one, which `flush`
        copies there.
        """
        in_bucket = files.in_bucket(self.path)
        return self._mirror.folder(name) if in_bucket else str(self.path / name)

    def _json(self, name: str, notes: list[str] | None = None) -> Any:
        """What a file holds; None where it is missing or no JSON."""
        path = self.path / name
        try:
            with files.told(path, "read"):
                there = path.exists()
            return files.read_json(path) if there else None
        except ValueError:
            self._note(notes, f"{name} is not JSON: it was left unread")
            return None

    def _lost(self, notes: list[str] | None, where: str, names: Sequence[str]) -> None:
        if names:
            told = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
            self._note(notes, f"{where}: {told} is not of the type it should be: left unread")

    def _note(self, notes: list[str] | None, line: str) -> None:
        if notes is not None:
            notes.append(f"{self.path.name}: {line}")


def version(package: str) -> str | None:
    """Of an installed package; None if it runs from a checkout."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment(mesh: Any, processes: int) -> dict[str, Any]:
    """What a start of a run ran on, for env.json."""
    git = ("git", "-C", os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

    def run(*command: str) -> str | None:
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": run(*git, "rev-parse", "HEAD"),
        "uncommitted": run(*git, "diff", "HEAD"),
        "versions": {package: version(package) for package in _PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": sorted({device.device_kind for device in mesh.devices.flat}),
        "device_count": mesh.size,
        "processes": processes,
        "mesh": dict(mesh.shape),
        "command": sys.argv,
    }
