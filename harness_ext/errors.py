"""Define the error that tells a user what is wrong."""


class UserError(Exception):
    """Report a mistake in what the user gave: a question, scores, a file, a flag.

    The message is one sentence with the bad value, where it came from and what to do. Bad input is
    never skipped or repaired by guessing. The command line prints the message after
    ``calibtune: error:`` without a traceback and exits with 2.
    """

    exit_code = 2
