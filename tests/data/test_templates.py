import shutil
import threading

import pytest
from tiny import CHAT_TEMPLATE

from calibtune.__main__ import main
from calibtune.data import templates
from calibtune.errors import UserError

LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (LOOP + CHAT_TEMPLATE, "did not end in 1 s; mend or replace the template"),
        ("{{ 'x' * 20000000 }}", "made 20000000 characters of it"),
        ("{{ 'x' * 10000000000 }}", "cannot render it (MemoryError"),
        ("{% include 'x' %}", "cannot render it (TypeError: no loader"),
    ],
)
def test_chat_template_that_loops_or_fails_is_one_sentence(
    template, said, model, mirror, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(templates, "TEMPLATE_SECONDS", 1)
    copy = shutil.copytree(model, tmp_path / "copy")
    (copy / "chat_template.jinja").write_text(template)
    words = ["--model", str(copy), "--tasks", "mc_calib_arc", "--device", "cpu", "--apply-chat-template"]
    for command in (["eval", "--output", "out"], ["fit", "--method", "temperature", "--output", "fitted"]):
        assert main([*command, *words]) == 2
        assert said in capsys.readouterr().err


def test_template_is_rendered_without_a_limit_outside_the_main_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(templates.limited(lambda text: text)("a")))
    thread.start()
    thread.join()
    assert found == ["a"]


def test_time_limit_leaves_an_outer_one_in_place(monkeypatch):
    monkeypatch.setattr(templates, "TEMPLATE_SECONDS", 0.05)

    def endless(_):
        while True:
            pass

    inner = templates.limited(endless)
    with pytest.raises(UserError, match=r"did not end in 0\.05 s"):
        templates.limited(lambda _: inner([{"role": "user"}]))([])
