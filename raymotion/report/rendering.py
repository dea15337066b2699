"""Renders the templates of the pages, and recorded values as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jinja2

NOT_RECORDED = "not recorded"


def template(name: str) -> jinja2.Template:
    """Loads a page's template, with the shared `style.css`, `metrics.html.j2` and `percent`."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("raymotion.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    return environment.get_template(name)


def percent(share: float) -> str:
    """Formats a share as a percentage, with two digits near 0 and 1."""
    digits = 1 if 0.001 <= share <= 0.999 or share in (0.0, 1.0) else 2
    return f"{100 * share:.{digits}f} %"


def as_text(value: Any) -> str:
    """Formats a recorded value; lists with commas, mappings as key: value."""
    if value is None or value in ("", [], {}):
        return NOT_RECORDED
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {as_text(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)
