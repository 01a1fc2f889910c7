import json
import zlib

import pytest

from calibtune.tuning.checkpoints import WHOLE, last_checkpoint, remove_unfinished, seal


def checkpoint(folder, step, sealed=True):
    made = folder / f"checkpoint-{step}"
    (made / "deep").mkdir(parents=True)
    for name in ("weights", "deep/state"):
        (made / name).write_bytes(name.encode() + bytes(range(100)))
    if sealed:
        seal(made, step)
    return made


def test_newest_checkpoint_that_is_sealed_is_found(tmp_path):
    for step in (2, 10):
        checkpoint(tmp_path, step)
    checkpoint(tmp_path, 12, sealed=False)
    assert last_checkpoint(tmp_path).name == "checkpoint-10"
    assert last_checkpoint(tmp_path / "none") is None


def test_a_mark_holds_each_files_own_sum_and_files_may_be_added(tmp_path):
    made = checkpoint(tmp_path, 2)
    sums = {name: zlib.crc32((made / name).read_bytes()) for name in ("deep/state", "weights")}
    assert json.loads((made / WHOLE).read_text())["files"] == sums
    (made / "a-note").write_text("looked at")
    assert last_checkpoint(tmp_path) == made


@pytest.mark.parametrize("name", ["weights", "deep/state"])
@pytest.mark.parametrize("content", [bytes(100), b"", None], ids=["zeroed", "cut", "gone"])
def test_checkpoint_whose_files_changed_is_skipped_and_removed(tmp_path, name, content):
    checkpoint(tmp_path, 2)
    last = checkpoint(tmp_path, 4)
    (last / name).unlink()
    if content is not None:
        (last / name).write_bytes(content)
    assert last_checkpoint(tmp_path).name == "checkpoint-2"
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


@pytest.mark.parametrize(
    "whole",
    [
        "{}",
        "0",
        "[" * 1500,
        '{"step": 4}',
        '{"step": 4, "files": [[["-1", "False"]]]}',
        '{"step": 4, "files": {"../checkpoint-2/weights": "0"}}',
        '{"step": 4, "files": {"/dev/zero": "0"}}',
        '{"step": 2, "files": {}}',
        f'{{"step": {"9" * 5000}, "files": {{}}}}',
    ],
    ids=lambda text: text[:30],
)
def test_checkpoint_with_a_hostile_mark_is_skipped(tmp_path, whole):
    checkpoint(tmp_path, 2)
    (checkpoint(tmp_path, 4) / WHOLE).write_text(whole)
    assert last_checkpoint(tmp_path).name == "checkpoint-2"


def test_what_is_no_checkpoint_is_skipped(tmp_path):
    (tmp_path / "checkpoint-x").mkdir()
    (tmp_path / "checkpoint-7").write_text("")
    (tmp_path / "checkpoint-8").symlink_to(tmp_path / "checkpoint-8")
    checkpoint(tmp_path, 2)
    assert last_checkpoint(tmp_path).name == "checkpoint-2"
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    mark = json.loads((tmp_path / "checkpoint-2" / WHOLE).read_text())
    assert sorted(mark["files"]) == ["deep/state", "weights"]
