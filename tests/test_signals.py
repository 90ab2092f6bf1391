"""Signals: the first is noted, a later one ends the process, and many at once are one."""

import ctypes
import signal
import sys

import pytest

from pit_jax import outcome, rundir, signals


def test_signals_at_once_are_one():
    with signals.StopRequest(None) as request:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert request.asked() == signal.SIGTERM


def test_a_later_signal_ends_the_process(monkeypatch):
    ends = []
    monkeypatch.setattr(signals.signal, "raise_signal", ends.append)
    monkeypatch.setattr(signals, "together_s", lambda number: 0.0)
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


@pytest.mark.parametrize("name", ["SIGHUP", "SIGXCPU", "SIGUSR1", "SIGUSR2"])
def test_what_a_terminal_or_a_batch_system_sends_is_a_stop(name, monkeypatch):
    number = getattr(signal, name)
    monkeypatch.delenv("PIT_JAX_BEAT", raising=False)
    with signals.StopRequest(None) as request:
        signal.raise_signal(number)
        assert request.asked() == number
    assert signal.getsignal(number) == signal.SIG_DFL
    stop = signals.stopped(number, "saved at step 7")
    assert (stop.exit_code, str(stop)) == (75, f"{name}: saved at step 7; start again to go on")


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.StopRequest(None) as request:
            signal.raise_signal(signal.SIGHUP)
            assert request.asked() == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_supervisor_s_question_is_no_stop(monkeypatch):
    monkeypatch.setenv("PIT_JAX_BEAT", "x")
    assert signal.SIGUSR1 not in signals.that_stop()


def test_before_a_second_signal_ends_it_the_status_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(signals.signal, "raise_signal", lambda number: None)
    monkeypatch.setattr(signals, "together_s", lambda number: 0.0)
    run = rundir.RunDir(tmp_path)
    with signals.StopRequest(None) as request, outcome.Outcome(run, 7, writes=True) as status:
        status.running(total=9)
        assert run.status()["state"] == "running"
        request.last_words = status.killed
        note = signal.getsignal(signal.SIGINT)
        note(signal.SIGINT, None)
        note(signal.SIGINT, None)
        found = run.status()
        assert (found["state"], found["exit_code"], found["step"]) == ("failed", 130, 7)
