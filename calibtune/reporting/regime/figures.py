"""Draw the figures of the regime page; nothing is computed here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calibtune.reporting.figures import BOTTOM, LEFT, RIGHT, TOP, WIDTH, Entries, axes_at, questions_text, shorten
from calibtune.reporting.style import LIGHT, line

SIZE = (4.4, 3.5)
#: Up to this many models, each has its number in the figure; else those of the frontier alone.
MOST_NUMBERED = 9
#: Size of the text in a figure's corners and beside its points.
SMALL = 7


def plane(entries: Entries, families: Mapping[str, str], frontier: list[str], known: Mapping[str, Any]) -> Figure:
    """Draw conf-ECE against accuracy for all models, with 95 % intervals and the frontier.

    Args:
        entries: Results of a task by label.
        families: What made each model, by label; a family has one color and marker.
        frontier: Labels on the frontier.
        known: ``accuracy`` at which the calibratable regime ends as far as is known, and ``text`` for that line; empty
            where nothing is known.
    """
    figure, axes = _axes("accuracy (share right)", "conf-ECE, 10 bins (share)", entries)
    _points(axes, entries, families, lambda entry: _of(entry["numbers"], "acc"), _ece)
    steps = [(entries[label]["numbers"]["acc"], entries[label]["numbers"]["conf_ece_10"]) for label in frontier]
    axes.plot(*zip(*steps, strict=True), color=LIGHT["ink"], linewidth=0.9, linestyle=(0, (1, 1.5)), label="frontier")
    for number, (label, entry) in enumerate(entries.items(), start=1):
        if label in frontier or len(entries) <= MOST_NUMBERED:
            _number(axes, number, entry["numbers"]["acc"], entry["numbers"]["conf_ece_10"])
    if known:
        axes.axvline(known["accuracy"], color=LIGHT["faint"], linewidth=1.1, label=known["text"])
    axes.set_ylim(0, None)
    _key(figure, axes)
    return figure


def drawn_bounds(entries: Entries, families: Mapping[str, str]) -> Figure:
    """Draw TCE against the accuracy on the drawn answers, as arXiv 2505.01997, figure 2.

    The lines are ``2 |acc - acc*|`` and ``c |acc - acc*|``, with the smallest c of the models.
    """
    figure, axes = _axes("accuracy on the drawn answers (share)", "TCE (0 to 2)", entries)
    _points(axes, entries, families, lambda entry: _of(entry["numbers"], "acc"), _tce)
    best = next(iter(entries.values()))["theory"]["drawn_acc_star"]
    measured = [entry["theory"]["c"] for entry in entries.values() if entry["theory"]["c"] is not None]
    left, right = _reach(axes, best)
    x = np.array([left, best, right])
    axes.plot(x, 2 * abs(x - best), color=LIGHT["gap"], linewidth=1.2, label="2 |acc − acc*|: some model is below")
    if measured:
        text = f"c |acc − acc*|, c = {min(measured):.3f}: none of these is below"
        axes.plot(x, min(measured) * abs(x - best), color=LIGHT["ink"], linewidth=1.2, linestyle="--", label=text)
    axes.axvline(best, color=LIGHT["faint"], linewidth=1.1, label=f"acc* = {best:.3f}")
    axes.axvspan(best, right, color=LIGHT["grid"], alpha=0.4, linewidth=0, label="not calibratable")
    axes.set(xlim=(left, right), ylim=(0, None))
    _key(figure, axes)
    return figure


def expected_bound(entries: Entries, families: Mapping[str, str]) -> Figure:
    """Draw TCE against the accuracy that is expected over the answers, above the line ``acc* - acc``."""
    figure, axes = _axes("accuracy expected over the answers (share)", "TCE (0 to 2)", entries)
    _points(axes, entries, families, lambda entry: (entry["theory"]["acc"], 0, 0), _tce)
    best = next(iter(entries.values()))["theory"]["acc_star"]
    left, right = _reach(axes, best)
    axes.plot([left, best], [best - left, 0], color=LIGHT["ink"], linewidth=1.2, linestyle="--", label="acc* − acc")
    axes.axvline(best, color=LIGHT["faint"], linewidth=1.1, label=f"acc* = {best:.3f}: no model is right of it")
    axes.set(xlim=(left, right), ylim=(0, None))
    _key(figure, axes)
    return figure


def classes_bound(entries: Entries) -> Figure:
    """Draw cw-ECE against TCE: expected over the answers, and on the answers as they fell."""
    figure, axes = _axes("TCE (0 to 2)", "cw-ECE, 10 bins (share)", entries)
    found = [(entry["theory"]["tce"]["estimate"], entry) for entry in entries.values()]
    x = np.array([tce for tce, _ in found])
    expected = [entry["theory"]["cw_ece"] for _, entry in found]
    drawn = [entry["numbers"]["cw_ece_10"] for _, entry in found]
    axes.plot(x, expected, "o", color=LIGHT["line1"], markersize=5, label="expected over the answers")
    axes.plot(x, drawn, "D", color=LIGHT["line2"], markerfacecolor="none", markersize=5, label="on the drawn answers")
    letters = max(entry["theory"]["letters"] for _, entry in found)
    most, top = 1.12 * float(x.max()) or 1.0, 1.25 * max(*expected, *drawn, float(x.max()) / letters) or 1.0
    ends = np.array([0, most])
    axes.plot(ends, ends, color=LIGHT["gap"], linewidth=1.2, label="cw-ECE = TCE (Theorem 4.6)")
    text = f"cw-ECE = TCE / {letters}, the letters"
    axes.plot(ends, ends / letters, color=LIGHT["ink"], linewidth=1.2, linestyle="--", label=text)
    axes.set(xlim=(0, most), ylim=(0, top))
    _key(figure, axes)
    return figure


def spread(entries: Entries, scale: Entries | None = None) -> Figure:
    """Draw the histogram of the probabilities of all options for one model, over that of p* where it is known."""
    (label, entry), *_ = entries.items()
    figure = Figure(figsize=(WIDTH, 2.5))
    axes = axes_at(figure, LEFT, TOP, WIDTH - LEFT - RIGHT, 2.5 - TOP - BOTTOM)
    shares = np.array(entry["spread"]["shares"])
    width = 1 / len(shares)
    style: dict[str, Any] = {"facecolor": LIGHT["shade4"], "edgecolor": LIGHT["ink"], "linewidth": 0.5}
    axes.bar((np.arange(len(shares)) + 0.5) * width, shares, width, label="model", **style)
    if "theory" in entry:
        edges = np.linspace(0, 1, len(shares) + 1)
        axes.stairs(entry["theory"]["spread"]["shares"], edges, color=LIGHT["gap"], linewidth=1.4, label="p*")
        axes.legend(loc="upper center")
    drawn = [each["spread"]["shares"] for each in (scale or entries).values()]
    drawn += [each["theory"]["spread"]["shares"] for each in (scale or entries).values() if "theory" in each]
    axes.set(xlabel="probability of an option", ylabel="share of options", xlim=(0, 1), ylim=(0, 1.08 * np.max(drawn)))
    axes.set_title(f"{shorten(label)}\nsure of one option: {entry['spread']['sure']:.0%}", loc="left")
    return figure


def _axes(x: str, y: str, entries: Entries) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y)
    counts = sorted({entry["questions"] for entry in entries.values()})
    axes.set_title(" to ".join(dict.fromkeys((questions_text(counts[0]), questions_text(counts[-1])))), loc="left")
    return figure, axes


def _points(axes: Axes, entries: Entries, families: Mapping[str, str], x: Any, y: Any) -> None:
    """Draw a point with intervals for each model; ``x`` and ``y`` give value, low and high of an entry."""
    order = list(dict.fromkeys(families[label] for label in entries))
    seen = set()
    for label, entry in entries.items():
        family, (across, *ends_x), (up, *ends_y) = families[label], x(entry), y(entry)
        style = line(order.index(family))
        axes.errorbar(
            across,
            up,
            xerr=_bars(across, *ends_x),
            yerr=_bars(up, *ends_y),
            fmt=style["marker"],
            color=style["color"],
            markersize=5,
            elinewidth=0.7,
            alpha=0.9,
            label=None if family in seen else family,
        )
        seen.add(family)


def _bars(value: float, low: float | None, high: float | None) -> Any:
    if not low and not high:
        return None
    return [[max(0.0, value - (low or 0.0))], [max(0.0, (high or value) - value)]]


def _of(numbers: Mapping[str, Any], name: str) -> tuple[Any, ...]:
    return numbers[name], numbers[f"{name}_low"], numbers[f"{name}_high"]


def _ece(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return _of(entry["numbers"], "conf_ece_10")


def _tce(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    found = entry["theory"]["tce"]
    return found["estimate"], found["low"], found["high"]


def _number(axes: Axes, number: int, x: float, y: float) -> None:
    axes.annotate(str(number), (x, y), (4, 4), textcoords="offset points", size=SMALL, color=LIGHT["ink"])


def _reach(axes: Axes, best: float) -> tuple[float, float]:
    """Return x limits that hold the points and acc*, with some room on both sides."""
    left, right = axes.get_xlim()
    left, right = min(left, best - 0.02), max(right, best + 0.02)
    return max(0.0, left), min(1.0, right)


def _key(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = 2 if max(map(len, labels)) < 36 else 1
    figure.set_figheight(figure.get_figheight() + 0.17 * math.ceil(len(labels) / columns))
    figure.legend(handles, labels, loc="outside lower left", ncols=columns, handlelength=2.4)
