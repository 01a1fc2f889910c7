"""The committed count of mutants, why each survivor does, and the script that makes them."""

import json
from collections import Counter
from pathlib import Path

import mutants
import pytest
import yaml

RESULTS = Path(mutants.__file__).parent / "results"


@pytest.fixture(scope="module")
def counted():
    return json.loads((RESULTS / "mutants.json").read_text())


def test_the_tests_notice_95_percent_of_all_faults_and_90_percent_of_each_file(counted):
    assert counted.keys() == mutants.TESTS.keys()
    assert all(file["killed"] + len(file["survivors"]) == file["mutants"] for file in counted.values())
    assert [name for name, file in counted.items() if file["killed"] < 0.9 * file["mutants"]] == []
    assert sum(file["killed"] for file in counted.values()) >= 0.95 * sum(file["mutants"] for file in counted.values())


def test_each_survivor_is_explained_and_nothing_else(counted):
    explained = yaml.safe_load((RESULTS / "mutants.yaml").read_text())
    found = {name: Counter(each for kind in kinds for each in kind["survivors"]) for name, kinds in explained.items()}
    assert found == {name: Counter(file["survivors"]) for name, file in counted.items() if file["survivors"]}
    assert all(kind["why"] for kinds in explained.values() for kind in kinds)


def test_a_mutant_is_named_by_its_function_and_the_code_around_its_fault():
    source = "LEAST = 2\nclass Row:\n    def is_full(self, values: int) -> bool:\n        return any(values)\n"
    assert [what for what, _ in mutants.mutants(source)] == [
        "LEAST = 2 -> LEAST = 3",
        "Row.is_full: return any(values) -> return",
        "Row.is_full: any(values) -> all(values)",
    ]


def test_messages_types_and_docstrings_have_no_mutants():
    source = 'def check(rows: "1" = ()) -> "2":\n    """Do 3."""\n    logger.info("4", 5)\n    raise ValueError(6)\n'
    assert list(mutants.mutants(source)) == []
