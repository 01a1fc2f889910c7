import shlex
from pathlib import Path

import pytest

from calibtune.__main__ import build_parser
from calibtune.errors import UserError
from calibtune.mending import plan
from calibtune.mending.plan import IN, OUT, Options
from calibtune.spec import ModelSpec, QuestionSpec

SPEC = ModelSpec("M", revision="v1", quantization="nf4", device="cpu", apply_chat_template=True, add_bos_token=False)


@pytest.mark.parametrize(
    "options",
    [
        Options(ModelSpec("M"), Path("out")),
        Options(
            SPEC,
            Path("o ut"),
            QuestionSpec(data="quiz.csv", columns="answer=a", skip_bad_rows=True),
            (),
            limit=9,
            orders="all",
        ),
    ],
    ids=["plain", "everything"],
)
def test_every_step_is_a_command_that_its_parser_takes(options):
    adapter = plan.adapter(options, 2)
    steps = [
        plan.doctor(options),
        plan.evaluation(options, "base"),
        adapter,
        plan.orders(options, None),
        plan.orders(options, adapter.output / "adapter", "--held-out", "9"),
        plan.evaluation(options, "adapter-orders", adapter.output),
        plan.pairs(options, "adapter", adapter.output / "adapter"),
        plan.report(options, [Path("a"), Path("b")]),
    ]
    for step in steps:
        words = shlex.split(str(step))[3:]
        assert words == list(step.words)
        found = build_parser(words[0]).parse_args(words)
        if hasattr(found, "model"):
            assert found.model == "M"


def test_what_is_fitted_is_measured_beside_the_tasks_out_of_domain():
    options = Options(ModelSpec("M"), Path("out"), QuestionSpec((IN,)), (OUT,))
    assert plan.evaluation(options, "base").tasks == (IN, OUT)
    assert OUT not in " ".join(plan.adapter(options, 4).words)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"budget": -1.0}, "--budget is -1"),
        ({"budget": float("nan")}, "--budget is nan"),
        ({"limit": 0}, "--limit is 0"),
    ],
)
def test_misuse_is_refused_before_anything_runs(tmp_path, changes, told):
    with pytest.raises(UserError, match=told):
        plan.check(Options(ModelSpec("M"), tmp_path, **changes))
