"""The error that every check of the scoring code raises."""


class ScoringError(ValueError):
    """A question, a backend's answer or a samples file that cannot be scored honestly.

    The message names the row, the bad value and what to do; nothing is skipped, wrapped or guessed instead.
    """
