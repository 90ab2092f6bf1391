"""How far a run is, read from its directory while it runs."""

import contextlib
import dataclasses
import os
import time
from typing import Any

from pit_jax import files, judge, runvalues
from pit_jax.errors import StorageError
from pit_jax.rundir import RunDir


@dataclasses.dataclass
class Progress:
    """Follows one run; `read` looks again.

    Attributes:
      step: the newest that was logged or saved.
      total: steps in all, 0 as long as it is not known.
      loss: of training, the newest.
      evaluation: the newest value of every evaluation.
    """

    run: RunDir
    step: int = 0
    total: int = 0
    loss: float | None = None
    evaluation: dict[str, float] = dataclasses.field(default_factory=dict)
    status: dict[str, Any] = dataclasses.field(default_factory=dict)
    _left: tuple[float, float] | None = None  # seconds left, and when that was written
    _offset: int = 0

    def read(self) -> "Progress":
        """Takes in what was written since."""
        with contextlib.suppress(StorageError):  # on a network it may be back at the next look
            self.status = self.run.status()
        self.total = self.status.get("total") or self.total
        for row in self._new_rows():
            self.step = row["step"]
            self.loss = row.get("train/loss", self.loss)
            self.evaluation |= {k: v for k, v in row.items() if k.startswith("eval/")}
            if "perf/left_s" in row and "time" in row:
                self._left = row["perf/left_s"], row["time"]
        self.step = max(self.step, self.status.get("step") or 0)
        if self.status.get("state") == "done":
            self.evaluation |= self.status.get("result") or {}
        return self

    def left_s(self) -> float | None:
        """Seconds until it is done, as far as the run can tell."""
        if self._left is None:
            return None
        left, when = self._left
        return max(0.0, left - (time.time() - when))

    def main(self) -> tuple[str, float] | None:
        """The number that a table shows, of what judges the run or else any: ("accuracy", 0.97)."""
        names = [*judge.ordered(self.evaluation), *self.evaluation]
        return (names[0].removeprefix("eval/"), self.evaluation[names[0]]) if names else None

    def _new_rows(self) -> list[dict[str, Any]]:
        """The whole lines since the last look; all of them again if the file was cut."""
        path = self.run.path / "metrics.jsonl"
        try:
            if not path.exists():
                return []
            with path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._offset:  # it resumed
                    self._offset = self.step = 0
                    self.evaluation, self._left = {}, None
                file.seek(self._offset)
                new = file.read()
        except OSError:
            return []
        new = new[: new.rfind(b"\n") + 1]
        self._offset += len(new)
        rows = []
        for line in new.splitlines():
            try:
                row = files.parse_json(line)
            except ValueError:
                continue
            if runvalues.is_row(row):
                rows.append(runvalues.row(row)[0])
        return rows
