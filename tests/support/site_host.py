"""A picture host that has pages of its own, such as robots.txt, and counts who asks for them."""

from __future__ import annotations

from tests.support.hostile_host import HostileHost, message

#: Answers that hosts give for a robots.txt that they do not have, or not now.
SOFT_404 = message(b"<!doctype html><title>Not here</title><p>Disallow: /</p>", "Content-Type: text/html")


class SiteHost(HostileHost):
    """Serves pictures at any path that ends in .jpg, and `pages` by their paths.

    A page is its text, a whole answer in bytes, or several: one for each request, the last of them for all later ones.
    They come while `gate` is set.
    """

    def __init__(self, *, address: str = "127.0.0.1") -> None:
        super().__init__(address=address)
        self.pages: dict[str, str | bytes | list[bytes]] = {}
        #: Headers of the pictures.
        self.headers: tuple[str, ...] = ()

    def _missing(self, _c: object, _q: object, times: object, path: str) -> bytes:
        if path.endswith(".jpg"):
            return message(self.picture, *self.headers)
        if (page := self.pages.get(path)) is None:
            return message(b"no", status="404 Not Found")
        self.gate.wait()
        if isinstance(page, list):
            page = page[min(int(str(times)), len(page)) - 1]
        return page if isinstance(page, bytes) else message(page.encode(), "Content-Type: text/plain")


def to(place: str) -> bytes:
    """Return a redirect."""
    return message(b"", f"Location: {place}", status="301 Moved Permanently")


def status(code: int, *headers: str) -> bytes:
    """Return an answer without a body."""
    return message(b"", *headers, status=f"{code} Whatever")
