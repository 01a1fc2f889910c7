import shlex

import pytest
from fitting import small_fit

from calibtune.artifacts.card import summary

pytestmark = pytest.mark.usefixtures("mirror")


def test_summary_quotes_paths_with_spaces(model, tmp_path):
    artifact = small_fit(model, tmp_path / "a b", "temperature")
    line = summary(artifact, tmp_path / "a b").splitlines()[-1]
    words = shlex.split(line.removeprefix("next: "))
    assert words[words.index("--artifact") + 1] == str(tmp_path / "a b")
    assert words[words.index("--output") + 1] == f"{tmp_path / 'a b'}-eval"
