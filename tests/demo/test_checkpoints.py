from calibtune.demo import ALIGNED, CHECKPOINTS, PRETRAINED
from calibtune.reading import read_json


def test_checkpoints_are_under_5_mb_and_float32():
    assert sum(path.stat().st_size for path in CHECKPOINTS.rglob("*") if path.is_file()) < 5e6
    for folder in (PRETRAINED, ALIGNED):
        assert read_json(folder / "config.json")["dtype"] == "float32"
