"""Errors that are for users; :class:`UserError` is defined in harness_ext, which does not know calibtune."""

from harness_ext.errors import UserError as UserError


class WorkFailed(UserError):
    """The input was right and the work still failed (out of memory, a full disk, a NaN loss); exit code 1."""

    exit_code = 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device's memory is full.

    torch has ``OutOfMemoryError`` for its own allocator, but where other processes leave the device no room for a new
    context or a library's workspace, CUDA's plain error comes through.

    Example:
        >>> is_out_of_memory(RuntimeError("CUDA error: out of memory")), is_out_of_memory(RuntimeError("shape"))
        (True, False)
    """
    return type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and "out of memory" in str(error).lower()
    )
