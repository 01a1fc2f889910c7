import errno
import json
import os
import stat
import subprocess
import sys

import pytest

from calibtune import files, reading
from calibtune.errors import UserError, WorkFailed


def test_replacing_keeps_the_old_file_on_error(tmp_path):
    path = tmp_path / "report.txt"
    path.write_text("old")

    def half_write():
        with files.replacing(path) as temporary:
            temporary.write_text("half of the n")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        half_write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_replacing_shows_the_old_file_until_it_ends(tmp_path):
    path = tmp_path / "report.txt"
    path.write_text("old")
    with files.replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_replacing_keeps_the_old_file_when_killed(tmp_path):
    path = tmp_path / "report.txt"
    path.write_text("old")
    code = (
        "import os, pathlib\nfrom calibtune import files\n"
        f"with files.replacing(pathlib.Path({str(path)!r})) as temporary:\n"
        "    temporary.write_text('half')\n    os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 9
    assert path.read_text() == "old"


def test_write_text_makes_folders_and_a_readable_file(tmp_path):
    path = tmp_path / "a" / "b" / "c.txt"
    files.write_text(path, "Größe ≥ 1\n")
    assert path.read_bytes() == "Größe ≥ 1\n".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_json_is_sorted_and_round_trips(tmp_path):
    path = tmp_path / "x.json"
    files.write_json(path, {"b": [1, 2.5], "a": "ä"})
    assert path.read_text().startswith('{\n  "a": "ä",\n  "b"')
    assert reading.read_json(path) == {"b": [1, 2.5], "a": "ä"}


def test_unserializable_json_keeps_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    files.write_json(path, 1)
    with pytest.raises(TypeError):
        files.write_json(path, object())
    assert json.loads(path.read_text()) == 1


def test_full_disk_is_reported(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "report.txt"
    path.write_text("old")
    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(WorkFailed, match=r"no space is left to write .*report\.txt; free some") as caught:
        files.write_text(path, "new")
    assert caught.value.exit_code == 1
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_device_is_reported(tmp_path):
    def write():
        with files.replacing(tmp_path / "x.txt"), open("/dev/full", "w") as device:
            device.write("x" * 100_000)

    with pytest.raises(WorkFailed, match="no space is left"):
        write()


def test_file_in_place_of_a_folder_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkFailed, match=r"file/report\.txt cannot be written: .*; choose another --output"):
        files.write_text(tmp_path / "file" / "report.txt", "x")


def test_missing_or_invalid_json_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"gone\.json does not exist"):
        reading.read_json(tmp_path / "gone.json")
    (tmp_path / "x.json").write_text('{"a": 1,\n')
    with pytest.raises(UserError, match=r"x\.json is not JSON \(.*line 2"):
        reading.read_json(tmp_path / "x.json")
    (tmp_path / "x.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is not JSON"):
        reading.read_json(tmp_path / "x.json")


def test_nonempty_output_folder_is_refused_and_kept(tmp_path):
    (tmp_path / "out").mkdir()
    files.refuse_existing(tmp_path / "out", overwrite=False)
    files.refuse_existing(tmp_path / "new", overwrite=False)
    (tmp_path / "out" / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="is not empty; give another folder or --overwrite") as caught:
        files.refuse_existing(tmp_path / "out", overwrite=False)
    assert caught.value.exit_code == 2
    assert (tmp_path / "out" / "manifest.json").exists()


def test_overwrite_removes_a_folder_but_not_a_file(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text("{}")
    files.refuse_existing(tmp_path / "out", overwrite=True)
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file; give a folder"):
        files.refuse_existing(tmp_path / "file", overwrite=True)
    assert (tmp_path / "file").read_text() == "mine"


def test_folder_in_place_of_json_is_refused(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path} is a folder, not a file"):
        reading.read_json(tmp_path)
