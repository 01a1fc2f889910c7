"""Define the errors whose messages are for users.

:class:`UserError` is defined in harness_ext, which does not import calibtune.
"""

import textwrap

from harness_ext.errors import UserError as UserError

#: Characters of another library's message that ours quote.
QUOTED = 400


class WorkFailed(UserError):
    """Report a failure with correct input (out of memory, a full disk, a NaN loss); exit code 1."""

    exit_code = 1


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that a device is out of memory.

    torch raises ``OutOfMemoryError`` for its own allocator. If there is no memory for a CUDA context
    or a library's workspace, CUDA's own error is a plain ``RuntimeError``.

    Example:
        >>> is_out_of_memory(RuntimeError("CUDA error: out of memory")), is_out_of_memory(RuntimeError("shape"))
        (True, False)
    """
    return type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and "out of memory" in str(error).lower()
    )


def reason(error: BaseException) -> str:
    r"""Return another library's message in one line: of a long one the beginning and the end, where the advice is.

    Example:
        >>> reason(ValueError("a\nb")), reason(KeyError()), len(reason(ValueError("word " * 999))) <= QUOTED
        ('a b', 'KeyError', True)
    """
    text = " ".join(str(error).split()) or type(error).__name__
    if len(text) <= QUOTED:
        return text
    half = QUOTED // 2 - len(" ... ")
    return f"{textwrap.shorten(text, half, placeholder='')} ... {text[-half:].partition(' ')[2]}"
