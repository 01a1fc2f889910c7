"""Define colors, fonts and file formats of the figures, for light and dark pages."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast

import fontTools
from fontTools import subset
from fontTools.ttLib import TTFont
from matplotlib import get_cachedir, rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry, FontProperties, findfont, fontManager
from matplotlib.ft2font import FT2Font

from calibtune import __version__
from calibtune.errors import WorkFailed
from calibtune.files import replacing, sha256, write_bytes

#: Each color on a light and on a dark page. The hues are from Okabe & Ito (2008), which color-blind
#: readers can distinguish; the shades differ in lightness only. All light colors must be distinct,
#: because the page replaces each of them in the SVG by its own variable.
COLORS = {
    "ink": ("#1f2328", "#e6e8eb"),
    "faint": ("#8b939c", "#8a929b"),
    "grid": ("#d9dde2", "#3a4048"),
    "paper": ("#fefefe", "#16191d"),
    "shade1": ("#d6e6f4", "#1d3347"),
    "shade2": ("#abd0e6", "#25506f"),
    "shade3": ("#6aaed6", "#3178a6"),
    "shade4": ("#3787c0", "#5aa9dc"),
    "shade5": ("#105ba4", "#a5d3f3"),
    "gap": ("#d55e01", "#ff8a3d"),
    "line1": ("#0072b3", "#56b4ea"),
    "line2": ("#d55e02", "#ff8a3e"),
    "line3": ("#009e74", "#2fce9f"),
    "line4": ("#aa4499", "#dd88cc"),
    "line5": ("#b07d00", "#e6b83a"),
    "line6": ("#3a3f47", "#c4c9d0"),
    "line7": ("#4a7fd0", "#9ab8ff"),
}
LIGHT = {name: pair[0] for name, pair in COLORS.items()}
LINES = [LIGHT[f"line{number}"] for number in range(1, 8)]
#: Each method has its own marker and dash too, for print and for readers who see no color.
MARKERS = "osD^vPX"
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1)), "-", (0, (5, 2)))
#: Upper ends of the shades, as a bin's share of the questions.
SHADES = (0.01, 0.03, 0.1, 0.3, 1.0)
SHADE_TEXTS = ("up to 1 %", "1 to 3 %", "3 to 10 %", "10 to 30 %", "over 30 %")
#: The same where there is little room.
SHADE_RANGES = ("0–1 %", "1–3 %", "3–10 %", "10–30 %", "30–100 %")
#: The figures' font, and the family of a copy of it with the signs of most texts and no more.
FONT, FEW_SIGNS = "DejaVu Sans", "calibtune DejaVu Sans"
#: First and last of the copy's signs: Latin, Greek, punctuation, minus. matplotlib takes others from the font itself.
SIGNS = ((0x20, 0x17F), (0x391, 0x3C9), (0x2010, 0x2026), (0x2212, 0x2212))

SETTINGS: dict[str, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    # A place of its own: to find one takes a tenth of the time of drawing.
    "axes.titley": 1.0,
    "axes.labelsize": 8,
    "axes.edgecolor": LIGHT["faint"],
    "axes.labelcolor": LIGHT["ink"],
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "grid.color": LIGHT["grid"],
    "grid.linewidth": 0.5,
    # The grid shows where ticks are.
    "xtick.bottom": False,
    "ytick.left": False,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.color": LIGHT["faint"],
    "ytick.color": LIGHT["faint"],
    "xtick.labelcolor": LIGHT["ink"],
    "ytick.labelcolor": LIGHT["ink"],
    "text.color": LIGHT["ink"],
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "figure.facecolor": LIGHT["paper"],
    "hatch.linewidth": 0.6,
    "lines.linewidth": 1.4,
    # Keep text as text: it can be searched and read aloud, and the page is a tenth of the size.
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    # Make files reproducible.
    "svg.hashsalt": "calibtune",
    # Model names can have underscores and dollar signs, which are not math.
    "text.parse_math": False,
}


@contextmanager
def styled() -> Iterator[None]:
    """Apply the report's matplotlib settings inside a ``with`` block."""
    with rc_context(cast(Any, {**SETTINGS, "font.family": font_families()})), warnings.catch_warnings():
        # Once for each sign and place; pages say it once for all, by what `lacking` returns.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


@cache
def font_families() -> list[str]:
    """Give matplotlib a font of the signs of most texts, and return it and the whole one, or that alone.

    A PDF embeds the signs of a small font in a tenth of the time. It lies in matplotlib's cache, where there is room.
    """
    try:
        for weight in (400, 700):
            own = Path(findfont(FontProperties(family=FONT, weight=weight)))
            fontManager.ttflist.append(FontEntry(fname=str(_small_copy(own)), name=FEW_SIGNS, weight=weight))
    except (OSError, WorkFailed):
        return [FONT]
    return [FEW_SIGNS, FONT]


def _small_copy(own: Path) -> Path:
    """Return the file of a font's copy with few signs; a new one for another version of what it is made from or by."""
    made = (sha256(own), SIGNS, fontTools.version, __version__)
    copy = Path(get_cachedir()) / f"calibtune-{hashlib.sha256(repr(made).encode()).hexdigest()[:12]}.ttf"
    try:
        FT2Font(str(copy))
    except (OSError, RuntimeError):  # not there, or damaged
        with replacing(copy) as temporary:
            _few_signs(own).save(temporary)
    return copy


def _few_signs(own: Path) -> TTFont:
    options = subset.Options(glyph_names=True, layout_features=[])
    options.drop_tables += ["FFTM", "GDEF", "GPOS", "GSUB", "MATH", "kern"]
    font, signs = subset.load_font(str(own), options), subset.Subsetter(options)
    signs.populate(unicodes=[sign for first, last in SIGNS for sign in range(first, last + 1)])
    signs.subset(font)
    return font


def lacking(texts: Iterable[str]) -> str:
    """Return the signs of these texts that the figures' font lacks, such as Chinese ones, each once.

    Example:
        >>> lacking(["RCFT, λ = 4", "模型"])
        '型模'
    """
    known = FT2Font(findfont(FontProperties(family=FONT))).get_charmap()
    return "".join(sorted({sign for text in texts for sign in text if ord(sign) not in known}))


def shade(share: float) -> str:
    """Return the color of a bin with this share of the questions, in [0, 1]; darker means more."""
    return LIGHT[f"shade{next(i for i, most in enumerate(SHADES, start=1) if share <= most + 1e-12)}"]


def line(number: int) -> dict[str, Any]:
    """Return color, marker and dash of the method with this number, as arguments of ``plot``."""
    turn = number % len(LINES)
    # From the eighth method on, colors repeat with other markers and dashes.
    other = turn if number < len(LINES) else (turn + 3) % len(LINES)
    return {"color": LINES[turn], "marker": MARKERS[other], "linestyle": DASHES[other]}


#: Endings of the figures' files; those of a slide have more.
FORMATS, SLIDE_FORMATS = ("svg", "pdf"), ("svg", "pdf", "png")
#: Beginning of the ids of a panel's key.
KEY = "key"


class Panel(Figure):
    """Hold a figure with a key at its lower end, which a page that has the key once leaves out."""

    #: Height of the key in inches.
    below = 0.0


def file_stem(task: str) -> str:
    """Return a task's name as a part of file names; other names give others, also where signs are replaced.

    Example:
        >>> file_stem("mc_calib_arc"), file_stem("mc calib:arc")
        ('mc_calib_arc', 'mc_calib_arc-1a26043a')
    """
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "_", task)[:80]
    return stem if stem == task else f"{stem}-{hashlib.sha256(task.encode('utf-8', 'replace')).hexdigest()[:8]}"


def panel_stem(task: str, kind: str, label: str) -> str:
    """Return the name of a panel's files without their ending."""
    return f"{file_stem(task)}_{kind}_{file_stem(label)}"


def drawn(figure: Figure) -> str:
    """Return a figure as a whole SVG document; other formats of it then take no layout of their own."""
    buffer = io.StringIO()
    # savefig would draw each figure twice, and drawing takes most of a report's time.
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    figure.set_layout_engine("none")
    # The page's readers have the font itself, or one like it.
    return buffer.getvalue().replace(f"'{FEW_SIGNS}', ", "")


def file_formats(stem: str, figure: Figure, svg: str, formats: Sequence[str]) -> dict[str, bytes]:
    """Return the files of a figure by their names: for the web, for LaTeX, for slides.

    Args:
        stem: The name without its ending.
        figure: The figure.
        svg: What :func:`drawn` returned for it.
        formats: Endings.
    """
    found = {}
    for ending in formats:
        buffer = io.BytesIO()
        if ending == "svg":
            buffer.write(svg.encode())
        elif ending == "pdf":
            FigureCanvasPdf(figure).print_pdf(buffer, metadata={"CreationDate": None})
        else:
            png(figure, buffer)
        found[f"{stem}.{ending}"] = buffer.getvalue()
    return found


def save(figure: Figure, stem: Path) -> None:
    """Write ``stem.png`` (200 dots per inch) and ``stem.svg``."""
    for name, data in file_formats(stem.name, figure, drawn(figure), ("svg", "png")).items():
        write_bytes(stem.with_name(name), data)


def png(figure: Figure, file: Any) -> None:
    """Write a figure as PNG (200 dots per inch) to an open file."""
    figure.set_dpi(200)
    FigureCanvasAgg(figure).print_png(file)


def inline_svg(svg: str, name: str, description: str, below: float = 0.0) -> str:
    """Return a drawn figure as an ``<svg>`` element that uses the page's color variables, without a panel's key.

    Args:
        svg: What :func:`drawn` returned.
        name: Unique name on the page, the prefix of all ids.
        description: Text for readers who cannot see the figure.
        below: Height of the key in inches; 0: there is none, or it stays.

    Returns:
        The element, with ``role="img"`` and the description as its label.
    """
    width, height = (float(size) for size in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0])
    text = svg[svg.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # The paper, and the key, which is drawn last.
    text = re.sub(r'<g id="patch_1">.*?</g>', "", text, count=1, flags=re.DOTALL)
    if below:
        text = re.sub(rf'^( *)<g id="{KEY}.*?^\1</g>\n', "", text, flags=re.DOTALL | re.MULTILINE)
        height -= 72 * below
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    for key, (light, _) in COLORS.items():
        text = text.replace(light, f"var(--{key})")
    label = description.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    opening = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" '
    opening += f'aria-label="{label}" viewBox="0 0 {width:g} {height:g}">'
    return opening + text[text.index(">") + 1 :]
