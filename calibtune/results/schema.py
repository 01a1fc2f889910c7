"""Describe what is read from lm_eval's results files; see :mod:`calibtune.reading`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field, Strict
from typing_extensions import NotRequired, TypedDict

AGAIN = "run the evaluation again"
#: A number as such, whatever its size, else what it is.
Value = Annotated[Annotated[float, Strict()] | Any, Field(union_mode="left_to_right")]


class Setup(TypedDict):
    """Describe what ``calibtune eval`` adds to tell evaluations apart."""

    __pydantic_config__ = ConfigDict(strict=True, extra="allow")  # type: ignore[misc]

    model_args: dict[str, Any]
    #: Such as 3/8.
    shard: NotRequired[Annotated[str, Field(pattern=r"^[1-9][0-9]{0,5}/[1-9][0-9]{0,5}$")] | None]


class Config(TypedDict, total=False):
    """Describe how a run was started."""

    __pydantic_config__ = ConfigDict(strict=True)  # type: ignore[misc]

    model_args: dict[str, Any] | str | None
    calibtune: Setup | None
    model_num_parameters: Value


class Counts(TypedDict):
    """Describe how many questions a task has, and how many were asked."""

    original: NotRequired[int | None]
    effective: int


class TaskConfig(TypedDict, total=False):
    """Describe a task."""

    __pydantic_config__ = ConfigDict(strict=True)  # type: ignore[misc]

    output_type: str | None
    metadata: Any


#: lm_eval's results file, as far as it is read.
Results = TypedDict(
    "Results",
    {
        "results": dict[str, dict[str, Value]],
        "config": Config | None,
        "configs": dict[str, TaskConfig] | None,
        "n-shot": dict[str, int] | None,
        "n-samples": dict[str, Counts] | None,
        "group_subtasks": dict[str, list[str] | None] | None,
        "model_name": str | None,
        "chat_template": Any,
        "chat_template_sha": str | None,
        "system_instruction": str | None,
        "system_instruction_sha": str | None,
    },
    total=False,
)
