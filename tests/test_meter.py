"""What the progress line says of speed and of the time that is left, by a clock of our own."""

import pytest

from pit_jax import meter


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(meter.time, "perf_counter", lambda: now[0])

    def passes(seconds):
        now[0] += seconds

    return passes


def trained(clock, steps=10):
    """A meter after a first step of 60 seconds, which compiled, and so many of 2."""
    made = meter.Meter(batch_size=8, devices=1, flops_per_image=1.0, device_kind="cpu")
    clock(60)
    made.step()
    for _ in range(steps):
        clock(2)
        made.step()
    return made


def aside(made, clock, name, seconds):
    with made.aside(name):
        clock(seconds)


def test_what_is_left_is_steps_evaluations_and_checkpoints(clock):
    made = trained(clock)
    assert made.left(100) == pytest.approx(200)
    assert made.left(100, evaluations=5, checkpoints=5) == pytest.approx(200)  # not timed yet
    aside(made, clock, "eval", 50)
    aside(made, clock, "checkpoint", 1)
    assert made.left(100, evaluations=5, checkpoints=5) == pytest.approx(200 + 250 + 5)
    assert made.row()["perf/eval_s"] == 50


def test_the_evaluation_that_compiled_is_not_the_measure_of_those_to_come(clock):
    made = trained(clock)
    for seconds in (50, 20, 20):
        aside(made, clock, "eval", seconds)
    assert made.left(100, evaluations=5) == pytest.approx(200 + 100)


def test_nothing_is_said_before_a_step_was_timed(clock):
    made = trained(clock, steps=0)
    aside(made, clock, "eval", 50)
    assert made.left(100, evaluations=5) == 0


@pytest.mark.parametrize("total", [20, 23])
@pytest.mark.parametrize("every", [1, 5, 7, 40])
def test_what_is_due_is_counted_as_the_loop_does_it(total, every):
    for step in range(total + 1):
        done = [n for n in range(step + 1, total + 1) if n % every == 0 or n == total]
        assert meter.due(step, total, every) == len(done)
