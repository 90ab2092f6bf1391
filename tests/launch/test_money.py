"""What a launch takes, refused or confirmed before it is booked."""

import io
import shlex

import pytest

from pit_jax.errors import ConfigError, DoesNotFit
from pit_jax.launch import accelerators, money
from pit_jax.perf import topology

GIB = 2**30


def found(peak: float = 4.0, hours: float | None = 100.0) -> dict:
    limit = int(15.75 * GIB)
    step = {
        "fits": peak * GIB <= limit,
        "hbm_peak_bytes": int(peak * GIB),
        "hbm_limit_bytes": limit,
    }
    return {"steps": {"train": step}, "chip_hours": hours}


@pytest.fixture
def v5e():
    return accelerators.find("v5litepod-64", 2)


def test_chips_memory_hours_and_price_of_all_slices(v5e):
    text = money.table(v5e, 2, True, found(), 1.2)
    assert max(map(len, text.splitlines())) <= 80
    for part in (
        "2 slices of v5litepod-64, 8x8, spot",
        "128 on 32 hosts",
        "2,016 GiB, 15.75 a chip",
        "fits, 4.00 of 15.75 GiB a device",
        "100 at least, 47 min on this slice",
        "120.00 at least, at 1.2 a chip-hour",
        "153.60, from ACTIVE",
    ):
        assert part in text


def test_what_is_not_known_is_not_shown(v5e):
    assert "chip-hours" not in money.table(v5e, 2, False, None, None)
    assert "price" not in money.table(v5e, 2, False, found(), None)
    assert "not known" in money.table(v5e, 2, False, found(hours=None), 1.2)
    long = money.table(accelerators.find("v5litepod-1"), 1, False, found(hours=72.0), None)
    assert "1 on 1 host\n" in long
    assert "3.0 days" in long


def test_what_is_hardly_anything_is_said_in_words(v5e):
    least = found(hours=5.76e-5)
    text = money.table(v5e, 2, False, least, 1.2)
    assert "chip-hours    under 0.01, under a minute on this slice\n" in text
    assert "price         under 0.01, at 1.2 a chip-hour\n" in text
    more = money.table(accelerators.find("v5litepod-1"), 1, False, found(hours=0.0221), 10.0)
    assert "chip-hours    0.0221 at least, 1 min on this slice\n" in more
    assert "price         0.22 at least" in more


def test_the_same_preflight_by_hand(v5e):
    command = money.preflight_command("configs/digits.py:pit", v5e, 2, ["--config.x=a b"])
    assert command.count(" \\\n    ") == 1  # in lines that a shell takes as one
    assert max(map(len, command.splitlines())) <= 78
    assert shlex.split(command.replace("\\\n", "")) == [
        *("pit-jax", "preflight", "--config", "configs/digits.py:pit"),
        *("--topology", "v5e-64", "--slices", "2", "--config.x=a b"),
    ]
    assert money.preflight_command("x.py", v5e, 1, []) == (
        "  pit-jax preflight --config x.py --topology v5e-64"
    )


def test_a_note_keeps_its_words_whole():
    place = "gs://" + "a" * 100
    lines = money.refused_later(f"config.init_from={place} is not on the workers").splitlines()
    assert [line for line in lines if len(line) > 78] == [f"  config.init_from={place}"]
    assert " ".join(line.strip() for line in lines).endswith(f"{place} is not on the workers")


def test_what_does_not_fit_is_refused_unless_told_otherwise(v5e, capsys):
    money.check_fits(found(), v5e, False)
    with pytest.raises(DoesNotFit, match=r"20\.00 GiB of 15\.75 GiB.*--anyway") as refused:
        money.check_fits(found(peak=20.0), v5e, False)
    assert refused.value.exit_code == 4
    money.check_fits(found(peak=20.0), v5e, True)
    assert "does not fit" in capsys.readouterr().err
    money.check_fits(None, v5e, False)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("answer", ["y\n", "Yes\n", "YES \n"])
def test_a_yes_goes_on(answer, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    money.confirm("create it?", yes=False)
    assert capsys.readouterr().out == "create it? [y/N] "


@pytest.mark.parametrize("answer", ["\n", "n\n", "", "yeah\n"])
def test_all_else_creates_nothing(answer, monkeypatch):
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    with pytest.raises(ConfigError, match="nothing was created"):
        money.confirm("create it?", yes=False)
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    with pytest.raises(ConfigError, match="nothing was stopped"):
        money.confirm("stop it?", yes=False, done="stopped")


def test_without_a_terminal_nobody_is_asked(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(ConfigError, match=r"nobody is here to ask .* add --yes"):
        money.check_answer(yes=False)
    money.check_answer(yes=True)
    money.confirm("create it?", yes=True)
    monkeypatch.setattr("sys.stdin", Terminal())
    money.check_answer(yes=False)
    assert capsys.readouterr().out == ""


def test_without_libtpu_only_anyway_goes_on(v5e, resolved, monkeypatch, capsys):
    monkeypatch.setattr(topology, "has_libtpu", lambda: False)
    with pytest.raises(ConfigError, match=r"pip install .*\[tpu\].*--anyway"):
        money.preflight(resolved, v5e, None, anyway=False)
    assert money.preflight(resolved, v5e, None, anyway=True) is None
    assert "left out" in capsys.readouterr().err


@pytest.mark.slow
def test_the_real_preflight_refuses_a_batch_that_the_slice_cannot_share_out(resolved):
    pytest.importorskip("libtpu")
    small = accelerators.find("v5litepod-8")
    kept = money.preflight(resolved, small, 1.0, anyway=False)
    assert kept["chips"] == 8
    assert kept["cost"] == pytest.approx(kept["chip_hours"])
    with pytest.raises(ConfigError, match="does not divide over"):
        money.preflight(resolved, accelerators.find("v5litepod-64"), None, anyway=False)
