"""Each architecture through every command: the outcomes are those that docs/models.md shows."""

import json
from pathlib import Path

import pytest
from architectures import ARCHITECTURES

DATA = Path(__file__).resolve().parents[1] / "docs" / "data" / "models.json"
COMMITTED = {row["model"]: row for row in json.loads(DATA.read_text(encoding="utf-8"))["matrix"]["rows"]}
#: What cannot be done, with the reason; a refusal of anything else is a fault.
REFUSED = {("Falcon", "nf4"): "its linear layers are of a class of its own, which bitsandbytes does not know"}


def test_the_table_has_every_architecture_and_no_fault():
    assert list(COMMITTED) == list(ARCHITECTURES)
    refused = set()
    for name, row in COMMITTED.items():
        outcomes = {cell: row[cell] for cell in row.keys() - {"model", "says"}}
        assert set(outcomes.values()) <= {"equal", "refused"}, name
        refused |= {(name, cell) for cell, outcome in outcomes.items() if outcome == "refused"}
        assert all(f"{cell}: " in row["says"] for cell, outcome in outcomes.items() if outcome == "refused")
    assert refused == REFUSED.keys()


@pytest.fixture(scope="module")
def folder():
    from model_matrix import mirror

    with mirror() as folder:
        yield folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_gives_a_plain_passes_letters_or_is_refused(name, folder):
    from model_matrix import outcomes

    found = outcomes(name, folder / name)
    said = found.pop("says")
    assert found == {cell: outcome for cell, outcome in COMMITTED[name].items() if cell != "says"}, said
