"""Draw the figures of a page, in several processes where there are many."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from calibtune.parallel import Map
from calibtune.reporting.style import Panel, drawn, file_formats, inline_svg, lacking, styled

logger = logging.getLogger(__name__)


@dataclass
class Drawing:
    """Describe a figure of a page."""

    #: Unique name on the page, the prefix of all ids in the SVG.
    id: str
    #: Draws the figure; the document itself where it has been drawn already. Can be pickled.
    draw: Callable[[], Figure] | bytes
    #: Text for readers who cannot see the figure.
    description: str
    caption: str = ""
    #: Name of its files beside the page, without the ending; the progress bar shows it too.
    file: str = ""
    #: Endings of these files.
    formats: Sequence[str] = ()
    #: The ``<svg>`` element, after :func:`draw_all`.
    svg: str = ""


def warn_of_signs(results: Mapping[str, Any]) -> None:
    """Log which signs of the labels and tasks the figures' font lacks, if any."""
    if signs := lacking([*(method["label"] for method in results["methods"]), *results["tasks"]]):
        logger.warning(
            "the figures' font lacks %s: PDF and PNG show boxes in their place, the page has the reader's own fonts",
            signs,
        )


def draw_all(
    drawings: Sequence[Drawing], step: Callable[[str], None] = lambda _: None, mapped: Map = map
) -> Mapping[str, bytes]:
    """Draw figures and set their ``svg``.

    Args:
        drawings: The figures.
        step: Called with a text after each one.
        mapped: ``map``, or one over several processes.

    Returns:
        The content of the files beside the page, by their names.
    """
    files: dict[str, bytes] = {}
    for drawing, (svg, own) in zip(drawings, mapped(_draw, drawings), strict=True):
        drawing.svg = Markup(svg)
        files |= own
        step(f"drawn {drawing.file}")
    return files


def _draw(drawing: Drawing) -> tuple[str, dict[str, bytes]]:
    if isinstance(drawing.draw, bytes):
        return inline_svg(drawing.draw.decode(), drawing.id, drawing.description), {}
    with styled():
        figure = drawing.draw()
        whole = drawn(figure)
        svg = inline_svg(whole, drawing.id, drawing.description, figure.below if isinstance(figure, Panel) else 0.0)
        return svg, file_formats(drawing.file, figure, whole, drawing.formats)
