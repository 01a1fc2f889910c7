"""Draw the figures from the results of :mod:`calibtune.reporting.build`; nothing is computed here."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from calibtune.reporting.sentences import sure_and_right
from calibtune.reporting.style import KEY, LIGHT, SHADE_RANGES, Panel, line, shade

Entries = Mapping[str, Mapping[str, Any]]
#: Inches of a method's panel: width, height, and what lies around its axes on the left, right, top and bottom.
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 2.75, 3.55, 0.63, 0.14, 0.42, 0.4
#: Corners of a key's mark.
SQUARE = (0, 0), (0, 1), (1, 1), (1, 0)
#: Largest number of class-wise panels of a method; results.json has all letters.
MOST_CLASSES = 10


def shorten(text: str, length: int = 26) -> str:
    """Return the text, with an ellipsis in the middle if it is longer than ``length``."""
    return text if len(text) <= length else f"{text[: length // 2 - 1]}…{text[-(length // 2) :]}"


def questions_text(count: int) -> str:
    """Return the number of questions as text, such as "N = 2,000 questions"."""
    return f"N = {count:,} question{'' if count == 1 else 's'}"


def reliability(entries: Entries, scale: Entries | None = None) -> Panel:
    """Draw a reliability diagram and a histogram of the confidence for each method, side by side.

    Bars are the bins' accuracies with 95 % intervals, shaded by the bin's share of the questions.
    The hatched area is the gap to the bin's mean confidence; the dashed line is the diagonal.

    Args:
        entries: Results of a task by method label.
        scale: Results of all methods that share the axes' scale; ``entries`` by default.
    """
    figure = Panel(figsize=(WIDTH * len(entries), HEIGHT))
    most = max(max(_shares(entry["bins"])) for entry in (scale or entries).values())
    width = WIDTH - LEFT - RIGHT
    for number, (label, entry) in enumerate(entries.items()):
        numbers, left = entry["numbers"], WIDTH * number + LEFT
        upper, lower = axes_at(figure, left, TOP, width, 1.9), axes_at(figure, left, 2.51, width, 0.64)
        draw_bins(upper, entry["bins"])
        upper.set(ylabel="accuracy (share right)", xticklabels=[])
        upper.set_title(f"{shorten(label)}\n{questions_text(entry['questions'])}", loc="left")
        upper.text(0.03, 0.965, f"conf-ECE {numbers['conf_ece_10']:.3f}", va="top", transform=upper.transAxes)
        _histogram(lower, entry["bins"], most)
        lower.axvline(numbers["mean_confidence"], color=LIGHT["gap"], linewidth=1.3)
        lower.axvline(numbers["acc"], color=LIGHT["ink"], linestyle=":", linewidth=1.3)
        lower.set(xlabel="confidence (probability)", xlim=(0, 1), xticks=upper.get_xticks())
    figure.below = add_key(figure, lines=True)
    return figure


def slide(label: str, entry: Mapping[str, Any]) -> Figure:
    """Draw a method's reliability diagram so that a slide can show it."""
    figure, numbers = Figure(figsize=(4.4, 4.3)), entry["numbers"]
    axes = axes_at(figure, 0.66, 0.5, 3.54, 3.3, larger=1.2)
    draw_bins(axes, entry["bins"])
    axes.set_title(f"{shorten(label, 34)}\n{sure_and_right(numbers)}", loc="left", size=12)
    axes.set_xlabel("confidence", size=11)
    axes.set_ylabel("accuracy", size=11)
    axes.tick_params(labelsize=10)
    axes.text(0.03, 0.97, f"conf-ECE {numbers['conf_ece_10']:.3f}", va="top", size=11, transform=axes.transAxes)
    add_key(figure, lines=False, size=9)
    return figure


def axes_at(figure: Figure, left: float, top: float, width: float, height: float, larger: float = 1.0) -> Axes:
    """Return axes at a place in inches from the figure's upper left corner, with a place for their labels.

    matplotlib finds such places itself, which takes as long as drawing does.

    Args:
        figure: The figure.
        left: Distance of the axes from the figure's left end.
        top: Distance from its upper end.
        width: Width of the axes.
        height: Height of the axes.
        larger: Size of the labels' text, as a multiple of the usual one.
    """
    across, up = figure.get_size_inches()
    axes = figure.add_axes((left / across, 1 - (top + height) / up, width / across, height / up))
    axes.xaxis.set_label_coords(0.5, -0.22 * larger / height)
    axes.yaxis.set_label_coords(-0.39 * larger / width, 0.5)
    return axes


def _shares(bins: Mapping[str, Sequence[float]]) -> list[float]:
    total = max(1, sum(bins["count"]))
    return [count / total for count in bins["count"]]


def draw_bins(axes: Axes, bins: Mapping[str, Sequence[Any]], ticks: int = 6) -> None:
    """Draw a reliability diagram of M bins on [0, 1], with ``ticks`` ticks on each axis."""
    size = len(bins["count"])
    axes.plot([0, 1], [0, 1], color=LIGHT["faint"], linestyle=(0, (4, 3)), linewidth=1)
    used = np.flatnonzero(bins["count"])
    accuracy, confidence, low, high = (
        np.array([bins[name][int(number)] for number in used], dtype=np.float64)
        for name in ("accuracy", "confidence", "low", "high")
    )
    shades = [shade(_shares(bins)[int(number)]) for number in used]
    _boxes(axes, used / size, 1 / size, 0 * accuracy, accuracy, facecolors=shades, edgecolors=LIGHT["ink"])
    hatched = {"facecolors": "none", "edgecolors": LIGHT["gap"], "hatch": "/////"}
    _boxes(axes, used / size, 1 / size, accuracy, confidence, **hatched)
    ends = np.maximum([accuracy - low, high - accuracy], 0)
    axes.errorbar((used + 0.5) / size, accuracy, ends, fmt="none", color=LIGHT["ink"], linewidth=0.9, capsize=1.6)
    places = np.linspace(0, 1, ticks)
    axes.set(xlim=(0, 1), ylim=(0, 1), xticks=places, yticks=places)


def _histogram(axes: Axes, bins: Mapping[str, Sequence[float]], most: float) -> None:
    shares = np.array(_shares(bins))
    size = len(shares)
    shades = [shade(share) for share in shares.tolist()]
    _boxes(axes, np.arange(size) / size, 1 / size, 0 * shares, shares, facecolors=shades, edgecolors=LIGHT["ink"])
    axes.set(ylim=(0, most * 1.08))
    axes.set_ylabel("share of\nquestions", size=7)
    axes.yaxis.set_label_coords(-0.145, 0.5)


def _boxes(axes: Axes, left: Any, width: float, bottom: Any, top: Any, **style: Any) -> None:
    """Draw bars as one collection, which is several times faster than single rectangles."""
    corners = [(left, bottom), (left, top), (left + width, top), (left + width, bottom)]
    boxes = np.stack([np.stack(corner, axis=-1) for corner in corners], axis=1)
    axes.add_collection(PolyCollection(list(boxes), **{"linewidths": 0.6, **style}), autolim=False)


def classwise(label: str, entry: Mapping[str, Any]) -> Panel:
    """Draw class-wise reliability diagrams of a method: how often a letter is right, by its probability."""
    classes = list(entry["classes"].items())[:MOST_CLASSES]
    rows = math.ceil(len(classes) / 2)
    figure = Panel(figsize=(3.9, 1.8 * rows + 0.84))
    high = figure.get_figheight()
    title = f"{shorten(label, 38)}\n{questions_text(entry['questions'])}"
    figure.text(0.56 / 3.9, 1 - 0.08 / high, title, size=8.5, weight="bold", va="top")
    for number, (letter, bins) in enumerate(classes):
        row, column = divmod(number, 2)
        axes = axes_at(figure, 0.56 + 1.71 * column, 0.6 + 1.8 * row, 1.46, 1.5)
        draw_bins(axes, bins, ticks=3)
        axes.set_title(f"{letter} (N = {sum(bins['count']):,})", size=8, weight="normal", loc="left")
        if column:
            axes.set_yticklabels([])
        if number + 2 < len(classes):
            axes.set_xticklabels([])
    figure.text(0.57, 0.1 / high, "probability given to the letter", size=8, ha="center", va="bottom")
    middle = 1 - (0.6 + 0.9 * rows) / high
    figure.text(0.03, middle, "frequency (share right)", size=8, rotation=90, ha="left", va="center")
    figure.below = add_key(figure, lines=False)
    return figure


def options(label: str, entry: Mapping[str, Any], scale: Entries) -> Figure:
    """Draw how often a method chooses each letter, with a 95 % interval, and how often it is right.

    Args:
        label: The method's label.
        entry: Its results of a task.
        scale: Results of all methods that share the axes' scale.
    """
    shares = [each["options"][name] for each in scale.values() for name in ("chosen_high", "right")]
    found, chosen = entry["options"], np.array(entry["options"]["chosen"])
    figure = Figure(figsize=(WIDTH, 2.45))
    axes = axes_at(figure, LEFT, TOP, WIDTH - LEFT - RIGHT, 2.45 - TOP - BOTTOM)
    place = np.arange(len(found["letters"]))
    ends = np.array([chosen - found["chosen_low"], np.array(found["chosen_high"]) - chosen])
    axes.bar(place - 0.2, chosen, 0.4, color=LIGHT["shade4"], edgecolor=LIGHT["ink"], linewidth=0.5, label="chosen")
    axes.errorbar(place - 0.2, chosen, np.maximum(ends, 0), fmt="none", color=LIGHT["ink"], linewidth=0.9)
    right: dict[str, Any] = {"facecolor": "none", "edgecolor": LIGHT["gap"], "hatch": "/////", "label": "right"}
    axes.bar(place + 0.2, found["right"], 0.4, **right)
    axes.set_xticks(place, found["letters"])
    axes.set(xlabel="option", ylabel="share of questions", ylim=(0, 1.18 * max(map(max, shares))))
    axes.grid(axis="x", visible=False)
    axes.set_title(f"{shorten(label)}\n{questions_text(entry['questions'])}", loc="left")
    axes.legend(loc="upper right", ncols=2, handlelength=1.2, columnspacing=0.8)
    return figure


def coverage(entries: Entries) -> Figure:
    """Draw accuracy at coverage, a line for each method."""
    figure = Figure(figsize=(3.9, 3.1), layout="constrained")
    axes = figure.subplots()
    for number, (label, entry) in enumerate(entries.items()):
        curve = entry["coverage"]
        style = {**line(number), "markevery": 4, "markersize": 4}
        axes.plot(curve["share"], curve["accuracy"], label=shorten(label, 40), **style)
    axes.set(xlabel="coverage (most confident share of questions)", ylabel="accuracy (share right)", xlim=(0, 1.02))
    _legend(figure, axes, entries)
    return figure


def temperatures(entries: Entries) -> Figure:
    """Draw conf-ECE and NLL at T = 1 and at the fitted T, with 95 % intervals."""
    scaled = {label: entry for label, entry in entries.items() if "unscaled" in entry}
    figure = Figure(figsize=(3.9, 1.15 + 0.5 * len(scaled)), layout="constrained")
    for axes, (name, text) in zip(
        figure.subplots(1, 2, sharey=True), (("conf_ece_10", "conf-ECE (share)"), ("nll", "NLL (nats)")), strict=True
    ):
        for place, entry in enumerate(scaled.values()):
            for key, marker, color, shift in (("unscaled", "o", "gap", 0.12), ("numbers", "s", "line1", -0.12)):
                numbers = entry[key]
                value = numbers[name]
                ends = [[value - numbers[f"{name}_low"]], [numbers[f"{name}_high"] - value]]
                axes.errorbar(
                    value,
                    place + shift,
                    xerr=np.maximum(ends, 0),
                    fmt=marker,
                    color=LIGHT[color],
                    markersize=4.5,
                    label=("T = 1" if key == "unscaled" else "T fitted") if place == 0 else None,
                )
        axes.set(xlabel=text, ylim=(len(scaled) - 0.5, -0.5), xlim=(0, None))
    names = [f"{shorten(label, 24)}\nT = {entry['temperature']:.3g}" for label, entry in scaled.items()]
    figure.axes[0].set_yticks(range(len(scaled)), names)
    count = max(entry["questions"] for entry in scaled.values())
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
    figure.suptitle(questions_text(count), x=0.99, ha="right", size=8)
    return figure


def plane(entries: Entries) -> Figure:
    """Draw conf-ECE against accuracy with 95 % intervals, as arXiv 2505.01997, figure 2."""
    figure = Figure(figsize=(3.9, 3.1), layout="constrained")
    axes = figure.subplots()
    for number, (label, entry) in enumerate(entries.items()):
        numbers = entry["numbers"]
        x, y = numbers["acc"], numbers["conf_ece_10"]
        style = line(number)
        axes.errorbar(
            x,
            y,
            xerr=np.maximum([[x - numbers["acc_low"]], [numbers["acc_high"] - x]], 0),
            yerr=np.maximum([[y - numbers["conf_ece_10_low"]], [numbers["conf_ece_10_high"] - y]], 0),
            fmt=style["marker"],
            color=style["color"],
            markersize=5.5,
            elinewidth=1,
            label=shorten(label, 40),
        )
    axes.set(xlabel="accuracy (share right)", ylabel="conf-ECE, 10 bins (share)", ylim=(0, None))
    _legend(figure, axes, entries)
    return figure


def _legend(figure: Figure, axes: Axes, entries: Entries) -> None:
    counts = sorted({entry["questions"] for entry in entries.values()})
    axes.set_title(" to ".join(dict.fromkeys((questions_text(counts[0]), questions_text(counts[-1])))), loc="left")
    columns = 2 if len(entries) > 1 and max(map(len, entries)) < 20 else 1
    height = figure.get_figheight()
    figure.set_figheight(height + 0.17 * math.ceil(len(entries) / columns))
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=columns, handlelength=3)


def add_key(figure: Figure, lines: bool, size: float = 6.2) -> float:
    """Add a key of shades, hatching and lines below a reliability diagram, and return its height in inches.

    Args:
        figure: The drawn figure; it grows by the key's height, and its axes and texts keep their places and sizes.
        lines: Whether the figure has a histogram with lines for mean confidence and accuracy.
        size: Points of the key's text.
    """
    shades = [{"facecolors": LIGHT[f"shade{number}"], "edgecolors": LIGHT["ink"]} for number in range(1, 6)]
    ends = (0, 0.5), (1, 0.5)
    marks: list[tuple[str, Any, dict[str, Any]]] = [
        ("gap to mean confidence", SQUARE, {"facecolors": "none", "edgecolors": LIGHT["gap"], "hatch": "/////"}),
        ("perfect calibration", ends, {"edgecolors": LIGHT["faint"], "linestyles": [(0, (4, 3))], "linewidths": 1}),
        ("95 % interval", ((0.5, 0), (0.5, 1)), {"edgecolors": LIGHT["ink"], "linewidths": 0.9}),
        ("mean confidence", ends, {"edgecolors": LIGHT["gap"], "linewidths": 1.3}),
        ("accuracy", ends, {"edgecolors": LIGHT["ink"], "linestyles": [":"], "linewidths": 1.3}),
    ]
    marks = marks if lines else marks[:3]
    unit, half = size / 72, math.ceil(len(marks) / 2)
    # Beside the shades where there is room, else below them.
    beside = figure.get_figwidth() > 62 * unit
    rows = max(2, half) if beside else 2 + half
    below = 1.65 * unit * rows + 0.06
    _grow(figure, below)
    put = functools.partial(_put, figure, unit)
    put(0.9, rows - 0.5, "share of the questions in the bin", None, {})
    for place, text, style in zip((0.9, 6.3, 11.7, 17.8, 24.5), SHADE_RANGES, shades, strict=True):
        put(place, rows - 1.5, text, SQUARE, style)
    for number, mark in enumerate(marks):
        column, line = divmod(number, half)
        put(0.9 + 15.2 * column + 33 * beside, half - 0.5 - line, *mark)
    return below


def _put(figure: Figure, unit: float, left: float, row: float, text: str, mark: Any, style: Mapping[str, Any]) -> None:
    """Draw an entry of a key and its mark, at a place in the text's size and in rows from below."""
    across, up = figure.get_size_inches()
    bottom, name = 1.65 * row * unit, f"{KEY}-{len(figure.texts)}"
    if mark is not None:
        corners = [((left + 1.25 * x) * unit / across, (bottom + 0.75 * (y - 0.5) * unit) / up) for x, y in mark]
        figure.add_artist(
            PolyCollection([corners], **{"linewidths": 0.6, **style}, closed=mark is SQUARE, gid=f"{name}-mark")
        )
        left += 1.75
    figure.text(left * unit / across, bottom / up, text, size=72 * unit, va="center_baseline", gid=name)


def _grow(figure: Figure, inches: float) -> None:
    """Add room below a figure's axes and texts."""
    before = figure.get_figheight()
    figure.set_figheight(before + inches)
    share = before / (before + inches)
    for axes in figure.axes:
        left, bottom, width, height = axes.get_position().bounds
        axes.set_position((left, 1 - (1 - bottom) * share, width, height * share))
    for text in figure.texts:
        text.set_y(1 - (1 - text.get_position()[1]) * share)
