"""The hosts of the pictures, and a plain folder of files over http."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from laion_face_builder.sandbox.messages import Answer, Request, ranged
from laion_face_builder.sandbox.serving import LoopbackServer


class PictureHost(LoopbackServer):
    """Serves what `answers` holds under each path; anything else is a 404.

    `answers` may be edited while it runs. It is reached as `127.0.0.1` and as `localhost`: two hosts to a client.
    """

    def __init__(self, answers: Mapping[str, Answer] | None = None) -> None:
        super().__init__()
        self.answers: dict[str, Answer] = dict(answers or {})

    def answer(self, request: Request) -> Answer:
        """What stands under the path, the query aside."""
        return self.answers.get(request.path, Answer(404, b"nothing here"))


class FolderHost(LoopbackServer):
    """Serves the files of a folder like a plain web server: Range, If-Range, ETag, a listing with links."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder.resolve()

    def answer(self, request: Request) -> Answer:
        """A file, the listing of a folder, or 404."""
        path = (self.folder / request.path.lstrip("/")).resolve()
        if not path.is_relative_to(self.folder) or not path.exists():
            return Answer(404, b"not found")
        if path.is_dir():
            links = "".join(f'<a href="{entry.name}">{entry.name}</a>\n' for entry in sorted(path.iterdir()))
            return Answer(body=f"<html><body>\n{links}</body></html>".encode(), headers={"Content-Type": "text/html"})
        found = path.stat()
        whole = Answer(body=path, headers={"Content-Type": "application/octet-stream"})
        whole = replace(whole, headers={**whole.headers, "ETag": f'"{found.st_mtime_ns:x}-{found.st_size:x}"'})
        return ranged(whole, request.headers.get("range"), request.headers.get("if-range"))
