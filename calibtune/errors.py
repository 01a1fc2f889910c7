"""Define the errors whose messages are for users.

:class:`UserError` is defined in harness_ext, which does not import calibtune.
"""

from harness_ext.errors import UserError as UserError


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
