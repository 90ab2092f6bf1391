"""The table of a running sweep: 80 columns, whatever the labels."""

import io
import re
import types

import rich.console

from pit_jax.study import board
from pit_jax.study.progress import Progress
from pit_jax.study.scheduler import DONE, FAILED, RUNNING, WAITING, Job


def job(index, label, state, step=1234, seconds=60.0, note=""):
    point = types.SimpleNamespace(index=index, label=label)
    progress = Progress(None, step=step, total=120000, loss=1.2345)
    progress.evaluation = {"eval/accuracy": 0.987}
    return Job(point, progress, state=state, note=note, seconds=seconds)


def drawn(jobs, height=24, terminal=True, at_once=2):
    output = io.StringIO()
    console = rich.console.Console(
        file=output, width=80, height=height, force_terminal=terminal, color_system=None
    )
    shown = board.Board(at_once, console)
    with shown:
        for one in jobs:
            shown.changed(one)
        shown.show(jobs)
    frame = output.getvalue().split("\r")[0]  # what follows draws it again, and takes it away
    live = re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", frame)
    output.truncate(0)
    output.seek(0)
    shown.end(jobs)
    return live, output.getvalue()


def test_long_labels_fit_into_eighty_columns():
    label = "position=sincos2d,image_size=224,window_layers=12,per_image=True,seed="
    jobs = [job(i, f"{label}{i}", RUNNING if i < 2 else WAITING) for i in range(12)]
    live, end = drawn(jobs)
    for text in (live, end):
        assert max(map(len, text.splitlines())) <= 80
    assert ",seed=0 " in live or "seed=0" in live  # the end of a label is kept
    assert "…" in live
    assert len(live.splitlines()) == 12 + 5  # a row a point
    assert "".join(end.split()).count("seed=11") == 1
    assert label[:20] in end


def test_more_points_than_rows_shows_what_runs_and_counts_the_rest():
    jobs = [job(i, f"seed={i}", DONE) for i in range(50)]
    jobs += [job(50, "seed=50", RUNNING), *(job(i, f"seed={i}", WAITING) for i in range(51, 99))]
    live, end = drawn(jobs)
    assert len(live.splitlines()) <= 24
    assert "seed=50" in live
    assert "50 done, 1 running, 48 waiting (81 not shown)" in live
    assert all(f"seed={i} " in end for i in range(99))


def test_without_a_terminal_it_prints_a_line_a_change_and_the_reasons():
    live, end = drawn(
        [job(0, "a[b]", DONE), job(1, "b", FAILED, note="exit code 3: NaN")], terminal=False
    )
    assert live.splitlines() == [
        "point 0 (a[b]): done, 98.7 %, 1:00",
        "point 1 (b): failed, exit code 3: NaN",
    ]
    assert "a[b]" in end
    assert "point 1 (b) failed: exit code 3: NaN" in end


def test_the_time_left_is_that_of_what_runs_and_of_what_waits(monkeypatch):
    jobs = [job(0, "a", DONE), job(1, "b", RUNNING), job(2, "c", RUNNING), job(3, "d", WAITING)]
    monkeypatch.setattr(Progress, "left_s", lambda self: 30.0)
    assert "about 1:00 left" in drawn(jobs, at_once=2)[0]  # (30 + 30 + 60) / 2
    assert "about 2:00 left" in drawn(jobs, at_once=1)[0]
    # None has ended: one that runs tells how long d will take, 60 so far and 30 more.
    monkeypatch.setattr(board.time, "monotonic", lambda: 1060.0)
    for one in jobs:
        one.began = 1000.0
    assert "about 2:30 left" in drawn(jobs[1:], at_once=1)[0]  # 30 + 30 + 90


def test_without_a_terminal_a_sweep_says_what_is_left_of_it_when_a_run_ends(monkeypatch):
    monkeypatch.setattr(Progress, "left_s", lambda self: 30.0)
    jobs = [job(0, "a", DONE), job(1, "b", RUNNING), job(2, "c", WAITING)]
    live, _ = drawn(jobs, terminal=False, at_once=1)
    assert live.splitlines()[-1] == "1 done, 1 running, 1 waiting; about 1:30 left"


def test_a_label_is_cropped_in_the_middle():
    assert board.crop("short", 5) == "short"
    assert board.crop("abcdefghij", 7) == "abc…hij"
    assert board.crop("abcdefghij", 6) == "abc…ij"
