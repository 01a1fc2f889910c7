"""Draw the figures from the results of :mod:`calibtune.reporting.build`; nothing is computed here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from calibtune.reporting.style import LIGHT, SHADE_TEXTS, line, shade

Entries = Mapping[str, Mapping[str, Any]]
#: Number of panels in a row of a figure file.
ACROSS = 4
#: Key of the hatched area.
GAP = Patch(facecolor="none", edgecolor=LIGHT["gap"], hatch="/////", label="gap to mean confidence")
#: Largest number of class-wise panels of a method; results.json has all letters.
MOST_CLASSES = 10


def shorten(text: str, length: int = 26) -> str:
    """Return the text, with an ellipsis in the middle if it is longer than ``length``."""
    return text if len(text) <= length else f"{text[: length // 2 - 1]}…{text[-(length // 2) :]}"


def questions_text(count: int) -> str:
    """Return the number of questions as text, such as "N = 2,000 questions"."""
    return f"N = {count:,} question{'' if count == 1 else 's'}"


def reliability(entries: Entries, scale: Entries | None = None, across: int = ACROSS) -> Figure:
    """Draw a reliability diagram and a histogram of the confidence for each method.

    Bars are the bins' accuracies with 95 % intervals, shaded by the bin's share of the questions.
    The hatched area is the gap to the bin's mean confidence; the dashed line is the diagonal.

    Args:
        entries: Results of a task by method label.
        scale: Results of all methods that share the axes' scale; ``entries`` by default.
        across: Number of panels in a row.
    """
    columns, rows = min(across, len(entries)), math.ceil(len(entries) / across)
    figure = Figure(figsize=(2.75 * columns, 3.55 * rows), layout="constrained")
    grid = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[3, 1] * rows)
    most = max(max(_shares(entry["bins"])) for entry in (scale or entries).values())
    pairs = [(grid[2 * row, column], grid[2 * row + 1, column]) for row in range(rows) for column in range(columns)]
    for (upper, lower), (label, entry) in zip(pairs, entries.items(), strict=False):
        numbers = entry["numbers"]
        draw_bins(upper, entry["bins"])
        upper.set(ylabel="accuracy (share right)", xticklabels=[])
        upper.set_title(f"{shorten(label)}\n{questions_text(entry['questions'])}", loc="left")
        upper.text(0.03, 0.965, f"conf-ECE {numbers['conf_ece_10']:.3f}", va="top", transform=upper.transAxes)
        _histogram(lower, entry["bins"], most)
        lower.axvline(numbers["mean_confidence"], color=LIGHT["gap"], linewidth=1.3)
        lower.axvline(numbers["acc"], color=LIGHT["ink"], linestyle=":", linewidth=1.3)
        lower.set(xlabel="confidence (probability)", xlim=(0, 1), xticks=upper.get_xticks())
    for axes in [axes for pair in pairs[len(entries) :] for axes in pair]:
        axes.set_visible(False)
    return figure


def slide(label: str, entry: Mapping[str, Any]) -> Figure:
    """Draw a method's reliability diagram so that a slide can show it."""
    figure = Figure(figsize=(4.4, 4.3), layout="constrained")
    axes, numbers = figure.subplots(), entry["numbers"]
    draw_bins(axes, entry["bins"])
    sure, right = (f"{100 * numbers[name]:.0f} %" for name in ("mean_confidence", "acc"))
    axes.set_title(f"{shorten(label, 34)}\n{sure} sure, {right} right", loc="left", size=12)
    axes.set_xlabel("confidence", size=11)
    axes.set_ylabel("accuracy", size=11)
    axes.tick_params(labelsize=10)
    axes.text(0.03, 0.97, f"conf-ECE {numbers['conf_ece_10']:.3f}", va="top", size=11, transform=axes.transAxes)
    axes.legend(handles=[GAP], loc="upper left", bbox_to_anchor=(0, 0.93), borderpad=0.2, fontsize=10)
    return figure


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
    axes.set(ylim=(0, most * 1.08), ylabel="share of\nquestions")


def _boxes(axes: Axes, left: Any, width: float, bottom: Any, top: Any, **style: Any) -> None:
    """Draw bars as one collection, which is several times faster than single rectangles."""
    corners = [(left, bottom), (left, top), (left + width, top), (left + width, bottom)]
    boxes = np.stack([np.stack(corner, axis=-1) for corner in corners], axis=1)
    axes.add_collection(PolyCollection(list(boxes), **{"linewidths": 0.6, **style}), autolim=False)


def classwise(entries: Entries, across: int | None = None) -> Figure:
    """Draw class-wise reliability diagrams: how often a letter is right, by its probability.

    Args:
        entries: Results of a task by method label.
        across: Number of panels in a row; by default all letters of a method are in one row.
    """
    letters = {label: list(entry["classes"].items())[:MOST_CLASSES] for label, entry in entries.items()}
    columns = across or max(map(len, letters.values()))
    rows = {label: math.ceil(len(classes) / columns) for label, classes in letters.items()}
    heights = [1.75 * count + 0.65 for count in rows.values()]
    figure = Figure(figsize=(max(1.7 * columns, 3.9), sum(heights)), layout="constrained")
    parts = figure.subfigures(len(entries), 1, height_ratios=heights, hspace=0.02, squeeze=False).ravel()
    for part, (label, entry) in zip(parts, entries.items(), strict=True):
        name = shorten(label, 24 if columns < 4 else 44)
        part.suptitle(f"{name}, {questions_text(entry['questions'])}", size=8.5, weight="bold")
        grid = part.subplots(rows[label], columns, sharex=True, sharey=True, squeeze=False)
        for axes, (letter, bins) in zip(grid.ravel(), letters[label], strict=False):
            draw_bins(axes, bins, ticks=3)
            axes.set_title(f"{letter} (N = {sum(bins['count']):,})", size=8, weight="normal", loc="left")
        for axes in grid.ravel()[len(letters[label]) :]:
            axes.set_visible(False)
        part.supxlabel("probability given to the letter", size=8)
        part.supylabel("frequency (share right)", size=8)
    return figure


def options(entries: Entries, scale: Entries | None = None, across: int = ACROSS) -> Figure:
    """Draw how often each letter is chosen, with a 95 % interval, and how often it is right.

    Args:
        entries: Results of a task by method label; each method has a panel.
        scale: Results of all methods that share the axes' scale; ``entries`` by default.
        across: Number of panels in a row.
    """
    shares = [entry["options"][name] for entry in (scale or entries).values() for name in ("chosen_high", "right")]
    most = max(map(max, shares))
    columns, rows = min(across, len(entries)), math.ceil(len(entries) / across)
    figure = Figure(figsize=(2.75 * columns, 2.45 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes, (label, entry) in zip(grid.ravel(), entries.items(), strict=False):
        found = entry["options"]
        place = np.arange(len(found["letters"]))
        chosen = np.array(found["chosen"])
        ends = np.array([chosen - found["chosen_low"], np.array(found["chosen_high"]) - chosen])
        axes.bar(place - 0.2, chosen, 0.4, color=LIGHT["shade4"], edgecolor=LIGHT["ink"], linewidth=0.5, label="chosen")
        axes.errorbar(place - 0.2, chosen, np.maximum(ends, 0), fmt="none", color=LIGHT["ink"], linewidth=0.9)
        axes.bar(
            place + 0.2, found["right"], 0.4, facecolor="none", edgecolor=LIGHT["gap"], hatch="/////", label="right"
        )
        axes.set_xticks(place, found["letters"])
        axes.set(xlabel="option", ylim=(0, 1.18 * most))
        axes.grid(axis="x", visible=False)
        axes.set_title(f"{shorten(label)}\n{questions_text(entry['questions'])}", loc="left")
    grid[0, 0].legend(loc="upper right", ncols=2, handlelength=1.2, columnspacing=0.8)
    for axes in grid[:, 0]:
        axes.set_ylabel("share of questions")
    for axes in grid.ravel()[len(entries) :]:
        axes.set_visible(False)
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


def add_key(figure: Figure, lines: bool) -> None:
    """Add a key of shades, hatching and lines to a reliability diagram that is not on the page.

    Args:
        figure: The drawn figure; it grows by the key's height.
        lines: Whether the figure has a histogram with lines for mean confidence and accuracy.
    """
    patches = [
        Patch(facecolor=LIGHT[f"shade{number}"], edgecolor=LIGHT["ink"], linewidth=0.5, label=f"bin holds {text}")
        for number, text in enumerate(SHADE_TEXTS, start=1)
    ]
    patches.append(GAP)
    handles: list[Any] = list(patches)
    if lines:
        handles.append(Line2D([], [], color=LIGHT["gap"], label="mean confidence"))
        handles.append(Line2D([], [], color=LIGHT["ink"], linestyle=":", label="accuracy"))
    columns = max(1, min(6, int(figure.get_figwidth() / 1.45)))
    rows = math.ceil(len(handles) / columns)
    figure.set_figheight(figure.get_figheight() + 0.2 * rows)
    figure.legend(handles=handles, loc="outside lower left", ncols=columns, fontsize=7)
