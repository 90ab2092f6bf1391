"""configs/README.md is what the configs and their preflights say."""

import pytest

from experiments import config_table


def test_the_table_of_configs_is_current():
    text = config_table.README.read_text()
    assert config_table.render() == text, "run `python -m experiments.config_table`"


def test_a_row_is_out_of_date_once_its_config_changes(monkeypatch):
    row = config_table.ROWS[0]
    (chips, _) = row.chips
    found = {f"{row.name} on {chips}": {"digest": config_table.digest(row), "fits": True}}
    assert config_table.compiled(row, chips, found)
    changed = config_table.dataclasses.replace(row, changes="model.depth=3")
    renamed = {f"{changed.name} on {chips}": found[f"{row.name} on {chips}"]}
    assert config_table.compiled(changed, chips, renamed) is None


@pytest.mark.parametrize(
    "file", sorted({row.config.partition(":")[0] for row in config_table.ROWS})
)
def test_what_is_published_stands_in_the_configs_docstring_too(file):
    text = (config_table.ROOT / "configs" / file).read_text()
    for row in config_table.ROWS:
        if row.config.startswith(file) and row.published:
            number = next(w for w in row.published.split() if w[0].isdigit())
            assert number in text, f"{row.name}: {number}"
