"""Checkpoints that are intact or refused.

    checkpoints/<step>/         one orbax checkpoint
    manifests/<step>.json       size and checksum of its every file (sums.py), and the metrics then
    corrupt/<step>-<n>/         what failed the check, set aside

Orbax writes in the background and renames when it is done; only then is it asked which arrays
it finds there, are the files summed, the manifest written and older checkpoints deleted, so a
kill at any moment leaves the one before whole. A checkpoint without a manifest was cut off and
does not count, nor does one in which orbax finds other arrays than were to be saved.
Orbax itself restores flipped bits without a word, which is why the sums are compared
before every restore, by process 0 for all.
"""

import concurrent.futures
import contextlib
import json
import math
import shutil
import time
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from pit_jax import files, judge, sums
from pit_jax.errors import ConfigError, PitError, StorageError
from pit_jax.parallel.rules import path_of
from pit_jax.rundir import RunDir

_OWN = "ocdbt.process_{}"  # where orbax puts what one process of several writes
_PATIENCE_S = 60.0  # for the others' sums, before process 0 makes them itself

# What orbax writes beside the numbers: 0.2 MB measured for a hundred arrays, and room for
# the pieces that it merges at the end.
_OVERHEAD = 1 << 19


class Checkpoints:
    """Saves, verifies and restores the checkpoints of one run directory."""

    def __init__(self, rundir: RunDir, keep: int = 1, keep_best: int = 0):
        self._rundir = rundir
        self._root = rundir.checkpoints
        self._manifests = rundir.path / "manifests"
        self._keep, self._keep_best = keep, keep_best
        self._checkpointer = ocp.StandardCheckpointer()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending: concurrent.futures.Future | None = None
        # Kept here and not read from the manifests, which process 0 writes in the
        # background: all processes must decide alike whether to save.
        self._best_saved: dict[str, float] = {}  # by what judged it

    # Saving ---------------------------------------------------------------------------

    def save(self, step: int, state: Any, metrics: dict[str, float]) -> None:
        """Starts to write `state`; returns once it is copied off the devices.

        Raises:
          StorageError: if this save, or the one before it, could not be written.
        """
        self.finish()
        self._rundir.guard()
        self._check_space(step, state)
        if jax.process_index() == 0:  # of a save of this step that was cut off
            self._forget_shares(step)
        try:
            self._checkpointer.save(self._root / str(step), state)
        except Exception as error:  # orbax wraps a full disk in many types
            raise self._failed(step, error) from None
        if found := judge.score(metrics):
            name, value = found
            self._best_saved[name] = max(value, self._best_saved.get(name, -math.inf))
        self._pending = self._thread.submit(self._commit, step, _shapes(state), metrics)

    def poll(self) -> None:
        """Raises the StorageError of a save that failed in the background, if one did."""
        if self._pending is not None and self._pending.done():
            self.finish()

    def finish(self) -> None:
        """Waits until the last save is on disk with its manifest."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Ends the background threads; a save that failed has been reported before."""
        self._thread.shutdown()
        with contextlib.suppress(Exception):  # orbax raises a failed save's error again
            self._checkpointer.close()

    def _commit(self, step: int, shapes: dict[str, tuple], metrics: dict[str, float]) -> None:
        try:
            self._checkpointer.wait_until_finished()
            if jax.process_index() != 0:
                self._sum_share(step)
            else:
                self._check_saved(step, shapes)
                self._rundir.flush_rows()  # or the rows before this step would be lost for good
                self._write_manifest(step, metrics)
                self._prune()
        except PitError:
            raise
        except Exception as error:
            raise self._failed(step, error) from None

    def _check_saved(self, step: int, shapes: dict[str, tuple]) -> None:
        """Whether the arrays are there: their names and shapes are read back, not their bytes."""
        try:
            wrong = self._difference(step, shapes, "it should be")
        except StorageError as error:
            wrong = str(error)
        if wrong:
            raise self._failed(step, OSError(f"read back it is not what was saved: {wrong}"))

    def _check_space(self, step: int, state: Any) -> None:
        """Refuses a save that cannot fit, rather than have orbax find out half-way."""
        if files.in_bucket(self._root):
            return
        free = shutil.disk_usage(self._rundir.path).free
        needed = 1.1 * sum(x.nbytes for x in jax.tree.leaves(state)) + _OVERHEAD
        if needed > free:
            sizes = f"it needs {needed / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free"
            raise self._failed(step, OSError(f"no space left on the disk ({sizes})"))

    def _failed(self, step: int, error: Exception) -> StorageError:
        reason = _line(error)
        if "No space left" in str(error) or "RESOURCE_EXHAUSTED" in str(error):
            reason = "no space left on the disk"
        message = f"the checkpoint of step {step} could not be written to {self._root}: {reason}"
        before = [s for s in self.steps() if s != step]
        return StorageError(message + (f"; step {before[-1]} is intact" if before else ""))

    def _write_manifest(self, step: int, metrics: dict[str, float]) -> None:
        content = sums.of_folder(self._root / str(step), self._shares(step))
        manifest = {"step": step, "metrics": metrics, "files": content}
        self._rundir.write(f"manifests/{step}.json", json.dumps(manifest, indent=1) + "\n")
        self._forget_shares(step)

    # On a disk that several processes share each sums the files that it wrote, which it has at
    # hand, and process 0 takes its word. Buckets make sums by themselves.

    def _share(self, step: int, process: int) -> epath.Path:
        return self._manifests / f"{step}.process-{process}.json"

    def _sum_share(self, step: int) -> None:
        """Leaves the sums of this process's files for process 0, which does without if it must."""
        if files.in_bucket(self._root):
            return
        own = _OWN.format(jax.process_index())
        with contextlib.suppress(OSError, PitError):
            found = sums.of_folder(self._root / str(step) / own)
            found = {f"{own}/{name}": says for name, says in found.items()}
            files.write(self._share(step, jax.process_index()), json.dumps(found))

    def _shares(self, step: int) -> dict[str, dict[str, Any]]:
        """The sums that the other processes made, of those that have within `_PATIENCE_S`."""
        if files.in_bucket(self._root):
            return {}
        others = [
            process
            for process in range(1, jax.process_count())
            if (self._root / str(step) / _OWN.format(process)).exists()
        ]
        found, deadline = {}, time.monotonic() + _PATIENCE_S
        while others and time.monotonic() < deadline:
            for process in list(others):
                with contextlib.suppress(OSError, ValueError):
                    found |= json.loads(self._share(step, process).read_text())
                    others.remove(process)
            time.sleep(0.05 if others else 0)
        return found

    def _forget_shares(self, step: int) -> None:
        for process in range(1, jax.process_count()):
            self._share(step, process).unlink(missing_ok=True)

    def _prune(self) -> None:
        """Deletes all but the newest and the best: manifest first, then the files."""
        steps, scores = self.steps(), self._scores()
        ranked = sorted(scores, key=lambda s: (scores[s], s))
        best = ranked[-self._keep_best :] if self._keep_best else []
        for step in set(steps) - set(steps[-self._keep :]) - set(best):
            (self._manifests / f"{step}.json").unlink()
            (self._root / str(step)).rmtree()

    # Restoring ------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """Steps that were saved whole (not yet: verified), oldest first."""
        with files.told(self._manifests, "read"):
            if not self._manifests.exists():
                return []
            return sorted(int(p.stem) for p in self._manifests.iterdir() if p.stem.isdigit())

    def best_step(self) -> int | None:
        """The step of the best evaluation among those that are kept."""
        scores = self._scores()
        return max(scores, key=lambda s: (scores[s], s)) if scores else None

    def would_be_best(self, evaluation: dict[str, float]) -> bool:
        """Whether a checkpoint with this evaluation would be kept for being the best."""
        found = judge.score(evaluation)
        if not self._keep_best or found is None:
            return False
        name, value = found
        return value > self._best_saved.get(name, -math.inf)

    def _scores(self) -> dict[int, float]:
        """Those by what judges the newest: a run may have been resumed with other evaluations."""
        judged = self._judged()
        newest = judged[max(judged)][0] if judged else ""
        return {s: value for s, (name, value) in judged.items() if name == newest}

    def _judged(self) -> dict[int, tuple[str, float]]:
        manifests = {s: self._manifest(s) or {} for s in self.steps()}
        scores = {s: judge.score(m.get("metrics", {})) for s, m in manifests.items()}
        return {s: found for s, found in scores.items() if found}

    def verify(self, step: int) -> list[str]:
        """What is wrong with the checkpoint of `step`; empty if it is intact."""
        manifest = self._manifest(step)
        if manifest is None:
            return [f"manifests/{step}.json is unreadable"]
        return sums.problems(self._root / str(step), manifest["files"])

    def require_intact(self, step: int) -> None:
        """Raises StorageError, naming what is wrong, unless `step` passes verification."""
        if problems := self.verify(step):
            raise StorageError(f"checkpoint {step} in {self._root}: {'; '.join(problems)}")

    def newest_intact(self, report: Any = print, repair: bool = True) -> int | None:
        """The newest step that passes verification; None if nothing was ever saved.

        Process 0 looks and decides for all. What fails is named through `report` and,
        with `repair`, set aside in corrupt/, as are the remains of a cut-off save.

        Raises:
          StorageError: if there are checkpoints and none is intact.
        """
        found = self._agree_on_newest(report, repair)
        self._best_saved = {}
        for name, value in self._judged().values():
            self._best_saved[name] = max(value, self._best_saved.get(name, -math.inf))
        return found

    def _agree_on_newest(self, report: Any, repair: bool) -> int | None:
        if jax.process_count() == 1:
            return self._newest_intact(report, repair)
        found, failure = -2, None
        if jax.process_index() == 0:
            try:
                step = self._newest_intact(report, repair)
                found = -1 if step is None else step
            except StorageError as error:
                failure = error
        found = int(multihost_utils.broadcast_one_to_all(np.int32(found)))
        if found == -2:
            raise failure or StorageError(f"process 0 found no intact checkpoint in {self._root}")
        return None if found == -1 else found

    def _newest_intact(self, report: Any, repair: bool) -> int | None:
        with files.told(self._root, "read"):
            return self._verified(report, repair)

    def _verified(self, report: Any, repair: bool) -> int | None:
        if repair:
            self._rundir.guard()
        steps = self.steps()
        for step in reversed(steps):
            problems = self.verify(step)
            if not problems:
                break
            report(f"checkpoint {step} is damaged and not used: {'; '.join(problems)}")
            if repair:
                self._set_aside(step)
        else:
            if steps:
                raise StorageError(
                    f"no checkpoint in {self._root} is intact (all of them: {steps}):"
                    " restore the files, or start again in a new --workdir"
                )
            step = None
        if repair and self._root.exists():
            for path in self._root.iterdir():  # what a kill cut off
                if not path.name.isdigit() or int(path.name) not in self.steps():
                    path.rmtree()
        return step

    def _set_aside(self, step: int) -> None:
        aside = self._rundir.path / "corrupt"
        number = sum(1 for _ in aside.iterdir()) if aside.exists() else 0
        if (self._root / str(step)).exists():
            files.move(self._root / str(step), aside / f"{step}-{number}")
        (self._manifests / f"{step}.json").unlink()

    def restore(self, step: int, shapes: Any) -> Any:
        """The state of `step`, laid out as the shardings of `shapes` say.

        Raises:
          ConfigError: if it is the state of another model or optimiser.
          StorageError: if the files cannot be read.
        """
        self._check_shapes(step, shapes)
        try:
            return self._checkpointer.restore(self._root / str(step), shapes)
        except Exception as error:
            raise StorageError(
                f"checkpoint {step} in {self._root} cannot be restored: {_line(error)}"
            ) from None

    def _check_shapes(self, step: int, shapes: Any) -> None:
        """Compares before orbax does, whose many errors TensorStore adds its own to."""
        if wrong := self._difference(step, _shapes(shapes), "the config makes it"):
            raise ConfigError(f"checkpoint {step} in {self._root} is of another model: {wrong}")

    def _difference(self, step: int, wanted: dict[str, tuple], whose: str) -> str:
        """Where the arrays that a checkpoint holds have other names or shapes; "" if nowhere."""
        saved = _shapes(self._metadata(step))
        for path in (*wanted, *saved):
            if saved.get(path) != wanted.get(path):
                there = saved.get(path, "missing")
                return f"{path} is {there}, {whose} {wanted.get(path, 'missing')}"
        return ""

    def _metadata(self, step: int) -> Any:
        """The tree of what was saved, without its numbers."""
        path = self._root / str(step)
        with files.told(path, "read"):
            try:
                found = self._checkpointer.metadata(path).item_metadata
            except (RuntimeError, ValueError) as error:  # names that TensorStore cannot take
                raise StorageError(f"{path} could not be read: {_line(error)}") from None
        if found is None:
            raise StorageError(f"{path} could not be read: orbax finds no arrays there")
        return found.tree

    def read(self, step: int) -> dict:
        """The tree that was saved at `step`, whole, as nested dicts of NumPy arrays."""
        path = self._root / str(step)
        saved = self._metadata(step)
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), saved
        )
        return jax.tree.map(np.asarray, self._checkpointer.restore(path, shapes))

    def read_weights(self, step: int) -> dict:
        """The weights that are evaluated: the moving average where there is one."""
        tree = self.read(step)
        return tree["ema"] or tree["params"]

    def _manifest(self, step: int) -> dict[str, Any] | None:
        try:
            manifest = json.loads((self._manifests / f"{step}.json").read_text())
            return manifest if isinstance(manifest["files"], dict) else None
        except (ValueError, KeyError, TypeError, OSError):
            return None


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Of every array, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_of(keys): tuple(x.shape) for keys, x in leaves}


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
