"""Format metrics and their intervals as text."""

from __future__ import annotations

from collections.abc import Mapping


def numbers_table(title: str, numbers: Mapping[str, float]) -> str:
    """Return a text with one line per metric, followed by its interval if there is one.

    Args:
        title: The first line.
        numbers: Value of each metric; ``X_low`` and ``X_high`` are the ends of X's interval, ``X_least`` and ``X_most``
            those of its range where letters are unseen.

    Example:
        >>> print(numbers_table("t: 64 questions", {"acc": 0.5, "ece": 0.1, "ece_low": 0.05, "ece_high": 0.2}))
        t: 64 questions
          acc    0.5000
          ece    0.1000  [0.0500, 0.2000]
    """
    shown = [name for name in numbers if not name.partition(",")[0].endswith(("_low", "_high", "_least", "_most"))]
    width = max(map(len, shown), default=0)
    lines = [title]
    for name in shown:
        metric, comma, pipeline = name.partition(",")
        ends = ("low", "high", "least", "most")
        low, high, least, most = (numbers.get(f"{metric}_{end}{comma}{pipeline}") for end in ends)
        interval = f"  [{low:.4f}, {high:.4f}]" if low is not None and high is not None else ""
        unseen = f"  {least:.4f} to {most:.4f} by unseen letters" if least is not None and most is not None else ""
        lines.append(f"  {name:<{width}}  {numbers[name]:8.4f}{interval}{unseen}")
    return "\n".join(lines)
