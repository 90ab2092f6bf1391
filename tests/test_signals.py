"""Signals: the first is noted, a later one ends the process, and many at once are one."""

import ctypes
import signal
import sys

import pytest

from pit_jax import signals


def test_signals_at_once_are_one():
    with signals.StopRequest(None) as request:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert request.asked() == signal.SIGTERM


def test_a_later_signal_ends_the_process(monkeypatch):
    ends = []
    monkeypatch.setattr(signals.signal, "raise_signal", ends.append)
    monkeypatch.setattr(signals, "_TOGETHER_S", 0.0)
    with signals.StopRequest(None) as request:
        before = signal.getsignal(signal.SIGTERM)
        before(signal.SIGTERM, None)
        before(signal.SIGTERM, None)
        assert request.asked() == signal.SIGTERM
    assert ends == [signal.SIGTERM]


@pytest.mark.skipif(sys.platform != "linux", reason="a death of the parent tells on Linux alone")
def test_the_end_of_whoever_inherits_a_run_is_no_second_signal():
    def death_signal():
        found = ctypes.c_int()
        ctypes.CDLL(None).prctl(2, ctypes.byref(found))  # PR_GET_PDEATHSIG
        return found.value

    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    assert death_signal() == signal.SIGTERM
    with signals.StopRequest(None):
        signal.raise_signal(signal.SIGTERM)
        assert death_signal() == 0
