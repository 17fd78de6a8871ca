"""HTML pages in one file, which load nothing and run nothing.

Captions, addresses and hosts are other people's text. They reach a page only through `escaped`, and the page's content
security policy forbids scripts, requests and forms besides.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping

#: Pictures are in the page itself; matplotlib's SVG has style attributes.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_STYLE = """
:root { color-scheme: light; --ink: #22242a; --faint: #676c76; --line: #dcdcd7; --paper: #fff; --page: #f4f4f1;
  --mat: #e8e9ec; --sure: #007a4b; --unsure: #b36b00; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.5rem 3rem; max-width: 76rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "Noto Sans", "Liberation Sans", "Noto Sans CJK JP",
  "Noto Sans Arabic", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .8rem; }
p { margin: .3rem 0 .8rem; max-width: 46rem; }
pre { margin: 1rem 0; padding: .7rem .9rem; background: var(--paper); border: 1px solid var(--line);
  border-radius: 6px; white-space: pre-wrap; font: .85rem/1.5 ui-monospace, "Liberation Mono", Menlo, monospace; }
.faint, footer { color: var(--faint); font-size: .9rem; }
a { color: #0b5cad; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; background: var(--paper); }
th, td { padding: .35rem .8rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; }
thead th { font-size: .85rem; color: var(--faint); font-weight: 600; }
.empty { padding: 1.2rem; background: var(--paper); border: 1px dashed #b9bab4; border-radius: 8px; }
"""


def escaped(text: object) -> str:
    """Escape `text` for a page, inside and outside of quotes."""
    return html.escape(str(text), quote=True)


def page(title: str, body: Iterable[str], style: str = "") -> str:
    """Make a whole page.

    Args:
        title: plain text, which is escaped here.
        body: pieces of HTML.
        style: CSS besides what all pages have.
    """
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="referrer" content="no-referrer">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escaped(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n<body>",
            *body,
            "</body>\n</html>\n",
        ]
    )


def link(url: str | None) -> str:
    """Make a link to the address; only http(s) can be followed, and without a referrer."""
    if not url:
        return '<span class="faint">no address</span>'
    if not url.lower().startswith(("http://", "https://")):
        return f"<bdi>{escaped(url)}</bdi>"
    return f'<a href="{escaped(url)}" rel="noreferrer noopener nofollow"><bdi>{escaped(url)}</bdi></a>'


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Make a table; its first column is text, the others are numbers. Everything is escaped here."""
    heads = "".join(f'<th scope="col">{escaped(name)}</th>' for name in head)
    lines = ["".join(f"<td>{escaped(cell)}</td>" for cell in row) for row in rows]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def attributes(values: Mapping[str, object]) -> str:
    """Write the attributes of a tag, numbers without needless digits; `_` in a name becomes `-`."""
    shown = {name.replace("_", "-"): f"{v:.6g}" if isinstance(v, float) else v for name, v in values.items()}
    return " ".join(f'{name}="{escaped(value)}"' for name, value in shown.items())
