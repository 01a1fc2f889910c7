from calibtune.tuning.checkpoints import WHOLE, last_checkpoint


def test_incomplete_checkpoint_is_skipped(tmp_path):
    for step, whole in ((2, True), (4, True), (6, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if whole:
            (tmp_path / f"checkpoint-{step}" / WHOLE).write_text("{}")
    assert last_checkpoint(tmp_path).name == "checkpoint-4"
    assert last_checkpoint(tmp_path / "none") is None
