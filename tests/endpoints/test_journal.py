import pytest

from calibtune.endpoints.journal import Journal
from calibtune.errors import UserError


def test_journal_drops_an_incomplete_last_line(tmp_path):
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        journal.put("a", 1)
        journal.put("b", 2)
    path.write_bytes(path.read_bytes()[:-4])
    with Journal(path) as journal:
        assert (journal.get("a"), journal.get("b")) == (1, None)
        journal.put("c", 3)
    with Journal(path) as journal:
        assert len(journal) == 2


def test_damaged_journal_is_refused_with_the_line(tmp_path):
    path = tmp_path / "j.jsonl"
    path.write_text('{"key": "a", "value": 1}\n{"ke\n{"key": "b", "value": 1}\n')
    with pytest.raises(UserError, match="line 2"):
        Journal(path)
