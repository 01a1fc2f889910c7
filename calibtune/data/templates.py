"""Render chat templates, which are programs: with an end to their time, memory and text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jinja2 import TemplateError

from calibtune.errors import UserError, reason
from calibtune.processes import memory_limit, time_limit

#: A chat template renders a prompt in so many seconds, and at most so many characters; else it loops.
TEMPLATE_SECONDS, MOST_RENDERED = 10, 10**7
#: Bytes that rendering may take beside what the process has.
TEMPLATE_MEMORY = 2**30


def limited(render: Callable[..., str]) -> Callable[..., str]:
    """Return what renders a chat template, with an end to its time, its memory and the length of its text.

    Args:
        render: A backend's ``apply_chat_template``.
    """

    def rendered(*args: Any, **options: Any) -> str:
        try:
            with time_limit(TEMPLATE_SECONDS), memory_limit(TEMPLATE_MEMORY):
                text = render(*args, **options)
        except TimeoutError:
            wrong = f"did not end in {TEMPLATE_SECONDS} s"
        except TemplateError:
            raise  # which backends answer with another prompt, for templates that take no system message
        except Exception as error:
            wrong = f"cannot render it ({type(error).__name__}: {reason(error)})"
        else:
            if len(text) <= MOST_RENDERED:
                return text
            wrong = f"made {len(text)} characters of it"
        message = args[0][-1] if args and args[0] else ""
        raise UserError(f"the model's chat template, given {message!r:.80}, {wrong}; mend or replace the template")

    return rendered
