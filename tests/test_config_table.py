"""configs/README.md is what the configs and their preflights say."""

import re

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


@pytest.mark.parametrize("file", sorted({row.config.split(":")[0] for row in config_table.ROWS}))
def test_a_docstring_gives_the_chip_hours_that_preflight_found(file):
    words = " ".join((config_table.ROOT / "configs" / file).read_text().split('"""')[1].split())
    said = re.search(r"at least (\S+) chip-hours for `(\S+)` on (\S+) and (\S+) on (\S+),", words)
    hours, argument, one, other_hours, other = said.groups()
    kept = config_table.results()
    for chips, number in ((one, hours), (other, other_hours)):
        found = kept[f"{file}:{argument} on {chips}"]
        assert config_table.rounded(found["chip_hours"]) == number
    assert (one, other) in {row.chips for row in config_table.ROWS if row.config.startswith(file)}


def docstring_rows(file: str) -> dict[str, list[str]]:
    """The table of a config's docstring: {argument or changed fields: the row's cells}."""
    text = (config_table.ROOT / "configs" / file).read_text().split('"""')[1]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    return {" ".join(re.findall(r"`([^`]+)`", row[0])): row[1:] for row in rows if row}


@pytest.mark.parametrize(
    "file", sorted({row.config.partition(":")[0] for row in config_table.ROWS})
)
def test_what_is_published_stands_in_the_configs_docstring_too(file):
    """In the row of its argument, where there is a table; with the FLOP of the generated one."""
    text = (config_table.ROOT / "configs" / file).read_text()
    table = docstring_rows(file)
    made = config_table.README.read_text().splitlines()
    for row in config_table.ROWS:
        if not row.config.startswith(file):
            continue
        number = next((w for w in row.published.split() if w[0].isdigit()), "")
        cells = table.get(row.config.partition(":")[2]) if not row.changes else None
        if cells is None:
            assert number in text, f"{row.name}: {number}"
            continue
        assert any(number in re.split(r"[ ,]+", cell) for cell in cells) or not number, row.name
        (line,) = [line for line in made if line.startswith(f"| `{row.config}` | ")]
        flop = line.split("|")[6].strip().replace("+", "")
        said = [cell for cell in cells if re.fullmatch(r"\d\.\de\d+", cell)]
        assert said in ([], [flop]), f"{row.name}: {said} for {flop}"
