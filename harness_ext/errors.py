"""Define the error that every check of the scoring code raises."""


class ScoringError(ValueError):
    """Report a question, a model's scores or a samples file that cannot be scored.

    The message names the row, the bad value and what to do. Bad input is never skipped or repaired
    by guessing.
    """
