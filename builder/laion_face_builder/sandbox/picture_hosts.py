"""The hosts of the pictures, and a plain folder of files over http."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from html import escape
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from laion_face_builder.sandbox.serving import Answer, LoopbackServer, Request, ranged, redirect


class PictureHost(LoopbackServer):
    """Serves what `answers` holds under each path; anything else is a 404.

    `answers` may be edited while it runs. It is reached as `127.0.0.1` and as `localhost`: two hosts to a client.
    """

    def __init__(self, answers: Mapping[str, Answer] | None = None) -> None:
        super().__init__()
        self.answers: dict[str, Answer] = dict(answers or {})

    def answer(self, request: Request) -> Answer:
        """Return what stands under the path; the query is ignored."""
        return self.answers.get(request.path, Answer(404, b"nothing here"))


class FolderHost(LoopbackServer):
    """Serves the files of a folder like a plain web server: Range, If-Range, ETag, and an index page of each folder.

    `listing` is the server whose index pages they are like; None refuses them, as servers do that are not told to list.
    """

    def __init__(self, folder: Path, listing: Literal["nginx", "apache"] | None = "nginx") -> None:
        super().__init__()
        self.folder = folder.resolve()
        self.listing = listing

    def answer(self, request: Request) -> Answer:
        """Return a file, the index page of a folder, or 404."""
        path = (self.folder / request.path.lstrip("/")).resolve()
        if not path.is_relative_to(self.folder) or not path.exists():
            return Answer(404, b"not found")
        if path.is_dir():
            return self._index(path, request)
        found = path.stat()
        whole = Answer(body=path, headers={"Content-Type": "application/octet-stream"})
        whole = replace(whole, headers={**whole.headers, "ETag": f'"{found.st_mtime_ns:x}-{found.st_size:x}"'})
        return ranged(whole, request.headers.get("range"), request.headers.get("if-range"))

    def _index(self, folder: Path, request: Request) -> Answer:
        if not request.path.endswith("/"):
            return redirect(f"{request.split.path}/", 301)
        if self.listing is None:
            return Answer(403, b"forbidden")
        page = (nginx_index if self.listing == "nginx" else apache_index)(folder, request.path)
        return Answer(body=page.encode(), headers={"Content-Type": "text/html;charset=UTF-8"})


def nginx_index(folder: Path, path: str) -> str:
    """Return the page of nginx's autoindex: links are whole and quoted, their texts cut after 50 characters."""
    lines = []
    for name, entry in _entries(folder):
        shown = name if len(name) <= 50 else f"{name[:47]}..>"
        gap = " " * (51 - len(shown))
        size = "-" if entry.is_dir() else entry.stat().st_size
        lines.append(f'<a href="{quote(name)}">{escape(shown)}</a>{gap}{_date(entry, "%d-%b-%Y %H:%M")}{size:>20}\r\n')
    title = f"Index of {escape(path)}"
    return (
        f"<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<h1>{title}</h1><hr>"
        f'<pre><a href="../">../</a>\r\n{"".join(lines)}</pre><hr></body>\r\n</html>\r\n'
    )


def apache_index(folder: Path, path: str) -> str:
    """Return the page of Apache's mod_autoindex with FancyIndexing and HTMLTable: links that sort come first."""
    heads = "".join(
        f'<th><a href="?C={key};O={"D" if key == "N" else "A"}">{title}</a></th>'
        for key, title in (("N", "Name"), ("M", "Last modified"), ("S", "Size"), ("D", "Description"))
    )
    lines = ['<tr><td><a href="/">Parent Directory</a></td><td>&nbsp;</td><td align="right">  - </td></tr>\n']
    for name, entry in _entries(folder):
        shown = name if len(name) <= 23 else f"{name[:21]}..>"
        size = "  - " if entry.is_dir() else f"{entry.stat().st_size / 1024:.1f}K"
        lines.append(
            f'<tr><td><a href="{quote(name)}">{escape(shown)}</a></td>'
            f'<td align="right">{_date(entry, "%Y-%m-%d %H:%M")}  </td><td align="right">{size}</td></tr>\n'
        )
    title = f"Index of {escape(path)}"
    return (
        '<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 3.2 Final//EN">\n'
        f"<html>\n <head>\n  <title>{title}</title>\n </head>\n <body>\n<h1>{title}</h1>\n"
        f"  <table>\n   <tr>{heads}</tr>\n{''.join(lines)}</table>\n</body></html>\n"
    )


def _entries(folder: Path) -> list[tuple[str, Path]]:
    """List what is in a folder by name, folders with a slash at their end."""
    return [(f"{entry.name}/" if entry.is_dir() else entry.name, entry) for entry in sorted(folder.iterdir())]


def _date(entry: Path, form: str) -> str:
    return datetime.fromtimestamp(entry.stat().st_mtime, timezone.utc).strftime(form)
