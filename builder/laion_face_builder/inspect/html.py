"""HTML pages in one file, which load nothing and run nothing.

Captions, addresses and hosts are other people's text. jinja2 escapes whatever a template is given, and the content
security policy of every page forbids scripts, requests and forms besides.

templates/
  page.html     what every page is made of; page.css is its style
  macros.html   links, tables, plots
  sheet.html    the contact sheet, stats.html the statistics, each with a style of its own
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


def rendered(template: str, **values: Any) -> str:
    """Fill the template of this name with `values`, all of which are escaped."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__name__.rpartition(".")[0]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"number": "{:,.0f}".format, "percent": "{:.1%}".format, "short": "{:.6g}".format}
    return environment
