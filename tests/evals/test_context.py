"""What evaluations are given: a way to be stopped between two batches."""

import signal

import pytest

from pit_jax.errors import StopAsked
from pit_jax.evals.context import Context

NOTHING = dict.fromkeys(("config", "task", "steps", "held_out", "training"))


def test_without_anybody_to_ask_all_batches_come():
    assert list(Context(**NOTHING).until_stopped(iter("abc"))) == ["a", "b", "c"]


@pytest.mark.parametrize("after", [0, 1, 2])
def test_the_batch_after_a_request_is_not_made(after):
    made, seen = [], []

    def batches():
        for batch in "abcd":
            made.append(batch)
            yield batch

    def stopped() -> int:
        return signal.SIGTERM if len(seen) == after else 0

    def evaluate() -> None:
        for batch in Context(**NOTHING, stopped=stopped).until_stopped(batches()):
            seen.append(batch)

    with pytest.raises(StopAsked) as stop:
        evaluate()
    assert stop.value.signal == signal.SIGTERM
    assert made == seen == list("abcd"[:after])
