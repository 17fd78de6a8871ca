"""Copy files from http(s) addresses, with If-Range, which neither fsspec nor huggingface_hub's `http_get` sends."""

from __future__ import annotations

import base64
import http.client
import posixpath
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from laion_face_builder import __version__
from laion_face_builder.errors import BadFile, OptionError, SourceError
from laion_face_builder.files import digest
from laion_face_builder.shown import bare, harmless, shown
from laion_face_builder.sources.copied_file import PIECE, CopiedFile, check_footer
from laion_face_builder.sources.retrying import TransientError, Unreachable, retried

#: Seconds without a byte after which a request counts as dropped.
TIMEOUT = 30.0
PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


def open_url(
    address: str, headers: Mapping[str, str], secret: Mapping[str, str] | None = None
) -> http.client.HTTPResponse:
    """Return the answer to a GET of an http(s) address; `secret` headers are not sent along with redirects.

    Raises:
        TransientError: another try may help; urllib.error.HTTPError: any other status that is no success.
    """
    return _answer("GET", address, headers, secret)


def _answer(
    method: str, address: str, headers: Mapping[str, str], secret: Mapping[str, str] | None = None
) -> http.client.HTTPResponse:
    if urlsplit(address).scheme not in ("http", "https"):
        raise OptionError(f"{shown(address)}: expected an http(s) address")
    address, user = without_user(address)
    request = urllib.request.Request(address, method=method)  # noqa: S310 - the scheme was checked
    for name, value in {"Accept-Encoding": "identity", "User-Agent": f"laion-face/{__version__}", **headers}.items():
        request.add_header(name, value)
    for name, value in {**user, **(secret or {})}.items():
        request.add_unredirected_header(name, value)
    try:
        answer: http.client.HTTPResponse = urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in PASSING_STATUS:
            raise TransientError(f"HTTP {error.code}", _seconds(error.headers)) from harmless(error)
        raise
    except (ValueError, http.client.InvalidURL):
        # These errors quote what is wrong, which may be a piece of a password.
        raise OptionError(
            f"{shown(address)}: it, a redirect or the proxy of the environment is no address that can be asked"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise unreachable(error) from harmless(error)
    return answer


def unreachable(error: Exception) -> Unreachable:
    """Return the error that there was no answer, in the words of the system: "Connection refused"."""
    reason = getattr(error, "reason", error)  # urllib wraps what happened.
    return Unreachable(f"no answer, {getattr(reason, 'strerror', None) or reason or type(reason).__name__}")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Sends the secret headers along to the same host, and nowhere else."""

    def redirect_request(self, req: urllib.request.Request, *answer: Any) -> urllib.request.Request | None:
        """Return the next request; the last of `answer` is its address, of which user and password are left out."""
        *said, place = answer
        place, _ = without_user(place)
        request = super().redirect_request(req, *said, place)  # type: ignore[call-arg]  # code, message and so on
        if request is not None and urlsplit(place)[:2] == urlsplit(req.full_url)[:2]:
            secret = {name: value for name, value in req.unredirected_hdrs.items() if name == "Authorization"}
            request.unredirected_hdrs.update(secret)
        return request


def ranged_pieces(answer: http.client.HTTPResponse, start: int) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, bytes) of the answer to a request for bytes from `start` on; from 0 if the server ignored that."""
    with answer:
        offset = start if answer.status == 206 else 0
        stated = answer.headers.get("Content-Range", f"bytes {offset}-")
        if answer.status == 206 and not stated.startswith(f"bytes {start}-"):
            raise SourceError(f"{bare(answer.url)}: asked for the bytes from {start} on, got {stated!r}")
        while piece := _read(answer):
            yield offset, piece
            offset += len(piece)


def _read(answer: http.client.HTTPResponse) -> bytes:
    try:
        return answer.read(PIECE)
    except (OSError, http.client.HTTPException) as error:
        raise TransientError(str(error) or type(error).__name__) from harmless(error)


def without_user(address: str) -> tuple[str, dict[str, str]]:
    """Return the address without user and password, and the header that carries them, in UTF-8.

    urllib would take them for a host name, and aiohttp knows no letters beyond Latin-1.
    """
    parts = urlsplit(address)
    user, at, host = parts.netloc.rpartition("@")
    if not at:
        return address, {}
    basic = base64.b64encode(unquote(user).encode()).decode()
    return urlunsplit(parts._replace(netloc=host)), {"Authorization": f"Basic {basic}"}


def _seconds(headers: Message | None) -> float:
    stated = headers.get("Retry-After", "") if headers is not None else ""
    return float(stated) if stated.isdigit() else 0.0


@dataclass(frozen=True)
class UrlFile(CopiedFile):
    """A file behind an http(s) address; a cut copy is continued only while its strong ETag stays."""

    address: str = field(repr=False)
    etag: str | None = None

    def place(self, folder: Path) -> Path:
        """Return HOST-<hex of the folder's address>/NAME below `folder`."""
        return place_of(folder, self.address)

    def pieces(self, start: int) -> Iterator[tuple[int, bytes]]:
        """Yield the bytes from `start` on."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        if start and self.etag:
            headers["If-Range"] = self.etag
        try:
            answer = open_url(self.address, headers)
        except urllib.error.HTTPError as error:
            raise SourceError(f"{self.name}: HTTP {error.code}") from harmless(error)
        if self.etag and answer.headers.get("ETag", self.etag) != self.etag:
            answer.close()
            raise SourceError(f"{self.name}: it has changed since it was looked up. Run it again.")
        yield from ranged_pieces(answer, start)

    def mismatch(self, path: Path) -> str | None:
        """Say if the size is wrong or the file is not Parquet; an ETag says nothing about bytes."""
        return parquet_mismatch(self, path)


def look_up_url(address: str) -> UrlFile | int:
    """Look up the file behind an http(s) address; return the HTTP status if there is none.

    Raises:
        SourceError: no answer.
    """
    return retried(lambda: _look_up_url(address), bare(address))


def _look_up_url(address: str) -> UrlFile | int:
    try:
        headers = _headers_of(address)
    except urllib.error.HTTPError as error:
        return error.code
    stated, etag = headers.get("Content-Length", ""), headers.get("ETag", "")
    size = int(stated) if stated.isdigit() else None
    if etag.startswith('"') and len(etag) > 2:
        return UrlFile(bare(address), size, "etag:" + etag.strip('"'), address, etag)
    # A weak ETag may stay when bytes change: it counts along with the rest.
    version = f"modified:{headers.get('Last-Modified')};{size}" + (etag and f";{etag}")
    return UrlFile(bare(address), size, version, address)


def _headers_of(address: str) -> Message:
    try:
        with _answer("HEAD", address, {}) as answer:
            return answer.headers
    except urllib.error.HTTPError as error:
        if error.code not in (405, 501):
            raise
    with _answer("GET", address, {}) as answer:  # A server without HEAD; the body is not read.
        return answer.headers


def place_of(folder: Path, address: str) -> Path:
    """Return HOST-<hex of the folder's address>/NAME below `folder`; user, password and query play no part."""
    parts = urlsplit(address)
    parent, name = posixpath.split(parts.path)
    host = parts.netloc.rpartition("@")[2]
    return folder / f"{parts.hostname or parts.scheme}-{digest([parts.scheme, host, parent], 8)}" / name


def parquet_mismatch(file: CopiedFile, path: Path) -> str | None:
    """Say what is wrong with the size or the end of a copy; None if nothing is."""
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        return f"{size} bytes came, {file.size} were stated"
    try:
        check_footer(path)
    except BadFile as error:
        return f"found {error.found}"
    return None


def check_address(address: str, option: str) -> None:
    """Check that the parts of an address can be told from each other.

    Raises:
        OptionError: they cannot, as with an unescaped "/" or "#" in a password.
    """
    if address.startswith("hf://") and ":" in address.removeprefix("hf://").partition("@")[0]:
        raise OptionError(f"{option}={shown(address)!r}: found a password or a port; the Hub knows a token, token=…")
    try:
        parts = urlsplit(address)
        is_known = parts.scheme not in ("http", "https") or bool(parts.hostname and parts.port != 0)
    except ValueError:  # This error quotes a piece of the address.
        is_known = False
    if not is_known:
        raise OptionError(
            f"{option}={shown(address)!r}: not an address. Write the signs / ? # @ : and blanks in a user name or "
            "password as %2F %3F %23 %40 %3A %20"
        )


def joined_url(folder: str, name: str) -> str:
    """Return the address of `name` in an http(s) folder; a query of the folder's stays."""
    parts = urlsplit(folder)
    return urlunsplit(parts._replace(path=posixpath.join(parts.path, quote(name)), fragment=""))
