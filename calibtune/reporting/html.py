"""Render the pages, each a single HTML file without external files."""

from __future__ import annotations

from typing import Any

import jinja2

from calibtune import __version__
from calibtune.reporting.style import COLORS


def rendered(template: str, title: str, package: str = "calibtune.reporting", **values: Any) -> str:
    """Render a template that extends ``base.html``; texts are escaped.

    Args:
        template: Its path in ``package``.
        title: Title of the page.
        package: Package of the template; ``base.html`` and ``macros.html`` are this package's.
        values: What the template shows.
    """
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(each, "") for each in (package, "calibtune.reporting")]),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(title=title, version=__version__, colors=COLORS, **values)
