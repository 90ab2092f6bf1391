"""The README says what the results say."""

import re
from pathlib import Path

import pytest

from experiments import preflights, readme
from pit_jax import configfile

TEXT = (Path(__file__).parent.parent / "README.md").read_text()


def test_its_tables_are_those_of_the_results():
    assert readme.render(TEXT) == TEXT, "run `python -m experiments.readme`"


def test_a_missing_result_is_said_to_be_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    assert "not measured" in readme.bench()
    assert "not compiled" in readme.preflight()


def test_marks_must_be_there():
    with pytest.raises(ValueError, match="lacks <!-- bench -->"):
        readme.render("nothing")


@pytest.mark.parametrize("row", preflights.ROWS)
def test_commands_of_the_preflight_table_are_commands(row):
    words = preflights.words(preflights.ROWS[row])
    fields = [word for word in words if word.startswith("--config.")]
    assert configfile.load(words[words.index("--config") + 1], fields).model.patch == 1


def test_no_path_of_a_machine_stands_in_it():
    assert not re.search(r"/(home|root|work|tmp)/\w", TEXT)
