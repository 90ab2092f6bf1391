"""What tests of sweeps share: a study file, and runs that only play training."""

import json
import sys
from pathlib import Path

from pit_jax import configfile
from pit_jax.study import child, points, scheduler
from pit_jax.study.sweepdir import SweepDir

FAKE = Path(__file__).parent / "fake_train.py"
STUDY = '''"""Is it so?

More of it.
"""
from pit_jax.configfile import read
from pit_jax.study.search import choice, integer, log_uniform, uniform
from pit_jax.study.space import chain, grid, seeds, zipped
PUBLISHED = [{"label": "PiT", "metric": "eval/accuracy", "value": 0.5, "note": "table 1"}]
def get_config(arg="pit"):
    config = read(f"configs/digits.py:{arg}")
    config.optim.lr = 0.01
    return config
'''


def study(folder, sweep="return seeds(3)", more="") -> Path:
    """Writes a study file whose `sweep()` has this body."""
    path = folder / "study.py"
    path.write_text(f"{STUDY}def sweep():\n    {sweep}\n{more}\n")
    return path


def play(monkeypatch, plans=None, slow=1) -> None:
    """From here on runs are played, fast, and fail as `plans` say."""
    monkeypatch.setattr(scheduler, "TRAIN", (sys.executable, "-S", str(FAKE)))
    monkeypatch.setattr(scheduler, "POLL_S", 0.01)
    monkeypatch.setattr(scheduler, "LOOK_S", 0.02)
    monkeypatch.setattr(scheduler, "ELSEWHERE_S", 0.05)
    monkeypatch.setattr(scheduler, "PAUSE_S", 0.05)
    monkeypatch.setenv("FAKE", json.dumps(plans or {}))
    monkeypatch.setenv("FAKE_SLOW", str(slow))


# The same in a process of its own: `python -c PLAYED sweep FILE ...`.
PLAYED = f"""
import sys
from pit_jax import cli
from pit_jax.study import scheduler
scheduler.TRAIN = (sys.executable, "-S", {str(FAKE)!r})
scheduler.POLL_S, scheduler.ELSEWHERE_S, scheduler.PAUSE_S = 0.01, 0.05, 0.05
sys.exit(cli.run(sys.argv[1:]))
"""


class Lines:
    """A watcher that keeps what it is told: (index, state, note)."""

    def __init__(self):
        self.told = []
        self.most_at_once = 0

    def changed(self, job):
        self.told.append((job.point.index, job.state, job.note))

    def show(self, jobs):
        self.most_at_once = max(self.most_at_once, sum(j.state == "running" for j in jobs))

    def of(self, index):
        return [state for i, state, _ in self.told if i == index]

    def notes(self, state):
        return {i: note for i, s, note in self.told if s == state}


def points_of(folder, sweep) -> tuple[SweepDir, list[points.Point]]:
    """A study's points, and the directory folder/runs, made for them."""
    file = configfile.PythonFile(str(study(folder, sweep)))
    directory = SweepDir(folder / "runs")
    found = points.build(file, file.call("sweep"), (), directory.path)
    directory.write(file, found)
    return directory, found


def run(folder, sweep="return seeds(3)", jobs=1, retries=2, select=None, ended=lambda job: None):
    """Schedules a study's points; returns the watcher and the error that ended it, if any."""
    directory, found = points_of(folder, sweep)
    watcher, error = Lines(), None
    try:
        chosen = points.select(found, select)
        shares = [child.Share()] * jobs
        scheduler.Scheduler(directory, chosen, shares, retries, watcher, ended=ended).run()
    except (scheduler.Failed, scheduler.Stopped) as caught:
        error = caught
    return watcher, error


def starts(workdir) -> list[tuple[str, int]]:
    """(label, step that it started after) of every start, in order."""
    lines = (workdir / "starts.txt").read_text().splitlines()
    words = [line.split() for line in lines]
    return [(w[0].rpartition("-")[0], int(w[2])) for w in words if w[1] == "starts"]


def steps(workdir) -> dict[str, list[int]]:
    """Label → every step that was computed, by whatever start."""
    found: dict[str, list[int]] = {}
    for line in (workdir / "starts.txt").read_text().splitlines():
        name, what, number = line.split()[:3]
        if what == "step":
            found.setdefault(name.rpartition("-")[0], []).append(int(number))
    return found
