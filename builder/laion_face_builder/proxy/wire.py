"""HTTP/1.1 heads as the guarding proxy needs them: parsed strictly on the way out, forgivingly on the way back."""

from __future__ import annotations

import asyncio
import hmac
import re
from dataclasses import dataclass
from http import HTTPStatus

from laion_face_builder.fetch.guard import split_url

#: Of a request or an answer, all lines together.
MAX_HEAD = 64 * 1024
#: Says why in an answer of the proxy itself. The reason is its phrase too, which urllib puts into its errors.
REASON_HEADER = "X-LAION-Face-Reason"

_HEAD_END = re.compile(rb"\r?\n\r?\n")
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_STATUS_LINE = re.compile(r"HTTP/1\.[0-9] ([1-9][0-9]{2})(?: |\Z)")
#: They speak of one connection, not of the message (RFC 9110, 7.6.1), or are the proxy's own to write.
_PER_CONNECTION = frozenset(
    "connection keep-alive proxy-connection proxy-authorization proxy-authenticate te trailer transfer-encoding upgrade"
    f" expect {REASON_HEADER.lower()}".split()
)
#: What the proxy answers with, by reason; 502 for the others.
_STATUS = {"private_address": 403, "bad_url": 403, "timeout": 504, "too_large": 413}

_PHRASES = {status.value: status.phrase for status in HTTPStatus}

Headers = list[tuple[str, str]]


class Refusal(Exception):
    """The proxy's own answer to a request.

    Args:
        reason: the short name under which it is counted, one word.
        status: the HTTP status, by default the one that goes with the reason.
    """

    def __init__(self, reason: str, status: int | None = None) -> None:
        self.reason = reason
        self.status = status or _STATUS.get(reason, 502)
        super().__init__(f"{self.status} {reason}")

    def as_bytes(self) -> bytes:
        """The whole answer."""
        lines = [f"HTTP/1.1 {self.status} {self.reason}", f"{REASON_HEADER}: {self.reason}"]
        if self.status == 407:
            lines.append('Proxy-Authenticate: Basic realm="laion-face"')
        return "\r\n".join([*lines, "Content-Length: 0", "Connection: close", "\r\n"]).encode()


@dataclass(frozen=True)
class Request:
    """What a client asks for. `path` is in origin form and empty for CONNECT; `authority` is host and port as given."""

    method: str
    host: str
    port: int
    authority: str
    path: str
    headers: Headers


@dataclass(frozen=True)
class Answer:
    """The head of an origin's answer. `length` None and not `chunked`: the body ends with the connection."""

    status: int
    headers: Headers
    length: int | None
    chunked: bool


async def read_head(reader: asyncio.StreamReader, start: bytes = b"") -> tuple[bytes, bytes]:
    """The next head without its blank line, and what was read beyond it.

    Raises:
        Refusal: "too_large", or "incomplete" if the connection ends before the head does.
    """
    found = start
    while (end := _HEAD_END.search(found)) is None:
        if len(found) > MAX_HEAD:
            raise Refusal("too_large", 502)
        piece = await reader.read(1 << 16)
        if not piece:
            raise Refusal("incomplete")
        found += piece
    if end.start() > MAX_HEAD:
        raise Refusal("too_large", 502)
    return found[: end.start()], found[end.end() :]


def parse_request(head: bytes, credentials: str) -> Request:
    """The request in `head`, if it knows `credentials` (the value of Proxy-Authorization) and is one that we serve.

    Raises:
        Refusal: 400, 405, 407 or 505 for what no client of ours sends.
        PictureError: "bad_url".
    """
    try:
        lines = head.decode("ascii").split("\r\n")
        method, target, version = lines[0].split(" ")
        headers = [_request_header(line) for line in lines[1:]]
    except ValueError as error:
        raise Refusal("bad_request", 400) from error
    if not _same([value for name, value in headers if name.lower() == "proxy-authorization"], credentials):
        raise Refusal("bad_credentials", 407)
    if method == "CONNECT":
        _, host, port = split_url(f"https://{target}")
        if not re.search(r":[0-9]+\Z", target) or re.search(r"[/?#]", target):
            raise Refusal("bad_request", 400)
        return Request(method, host, port, target, "", [])
    if method not in ("GET", "HEAD"):
        raise Refusal("bad_method", 405)
    if version != "HTTP/1.1":
        raise Refusal("bad_version", 505)  # an older client could not tell a cut body from a whole one
    return _plain_request(method, target, headers)


def _plain_request(method: str, target: str, headers: Headers) -> Request:
    scheme, host, port = split_url(target)
    names = {name.lower() for name, _ in headers}
    if scheme != "http":
        raise Refusal("bad_url")
    if names & {"content-length", "transfer-encoding"}:
        raise Refusal("bad_request", 400)  # a picture is asked for without a body
    # Cut by hand: urlsplit would lose an empty query. The fragment is not for servers, but urllib sends it to proxies.
    after_scheme = target.partition("#")[0].partition("//")[2]
    authority = re.split(r"[/?]", after_scheme, maxsplit=1)[0]
    path = after_scheme[len(authority) :]
    return Request(
        method, host, port, authority, path if path.startswith("/") else f"/{path}", _end_to_end(headers, {"host"})
    )


def request_head(request: Request, proxy_credentials: str | None = None) -> bytes:
    """The head that goes to the origin; in absolute form and with credentials if it goes to another proxy."""
    target = request.path
    if proxy_credentials is not None:
        target = f"http://{request.authority}{request.path}"
    lines = [f"{request.method} {target} HTTP/1.1", f"Host: {request.authority}"]
    if proxy_credentials:
        lines.append(f"Proxy-Authorization: {proxy_credentials}")
    lines += [f"{name}: {value}" for name, value in request.headers]
    return "\r\n".join([*lines, "Connection: close", "\r\n"]).encode("ascii")


def parse_answer(head: bytes, method: str) -> Answer:
    """The head of an origin's answer to `method`; header lines that are not understood are left out.

    Raises:
        Refusal: "bad_response" if it is not HTTP/1, or if the end of its body is ambiguous.
    """
    lines = re.split(r"\r?\n", head.decode("latin-1"))
    status_line = _STATUS_LINE.match(lines[0])
    if status_line is None:
        raise Refusal("bad_response")
    status = int(status_line[1])
    headers = [header for line in lines[1:] if (header := _answer_header(line)) is not None]
    lengths = {value for name, value in headers if name.lower() == "content-length"}
    codings = [value.lower() for name, value in headers if name.lower() == "transfer-encoding"]
    if method == "HEAD" or status < 200 or status in (204, 304):
        return Answer(status, _end_to_end(headers), 0, False)
    if codings:
        if codings != ["chunked"]:
            raise Refusal("bad_response")
        return Answer(status, _end_to_end(headers, {"content-length"}), None, True)
    if len(lengths) > 1 or any(not re.fullmatch("[0-9]{1,18}", length) for length in lengths):
        raise Refusal("bad_response")
    return Answer(status, _end_to_end(headers), int(lengths.pop()) if lengths else None, False)


def answer_head(answer: Answer) -> bytes:
    """The head that goes to the client. A body without a known length becomes chunked: only so can a cut be seen."""
    # Never the origin's own phrase: it could pass for one of our reasons.
    lines = [f"HTTP/1.1 {answer.status} {_PHRASES.get(answer.status, 'Status')}"]
    lines += [f"{name}: {value}" for name, value in answer.headers]
    if answer.length is None:
        lines.append("Transfer-Encoding: chunked")
    return "\r\n".join([*lines, "Connection: close", "\r\n"]).encode("latin-1")


def chunk(data: bytes) -> bytes:
    """`data` as one piece of a chunked body; of nothing: the last piece."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def _same(given: list[str], expected: str) -> bool:
    return len(given) == 1 and hmac.compare_digest(given[0].strip().encode(), expected.encode())


def _request_header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon or not _TOKEN.match(name) or _CONTROL.search(value):
        raise ValueError("not a header line")
    return name, value.strip()


def _answer_header(line: str) -> tuple[str, str] | None:
    name, colon, value = line.partition(":")
    return (name, value.strip()) if colon and _TOKEN.match(name) and not _CONTROL.search(value) else None


def _end_to_end(headers: Headers, also: set[str] | None = None) -> Headers:
    named = {
        word.strip().lower() for name, value in headers if name.lower() == "connection" for word in value.split(",")
    }
    # An origin may not name the headers that say where its body ends.
    gone = _PER_CONNECTION | (named - {"content-length"}) | (also or set())
    return [(name, value) for name, value in headers if name.lower() not in gone]
