"""Short names for what went wrong with a picture, and how they are read from the messages kept beside tars.

img2dataset keeps `str(error)` of whatever urllib raised, and its resizer's sentences. Here a message is a short name
and maybe ": " and a sentence. Earlier versions had a proxy between img2dataset and the web, which put short names into
the reason phrase of its answers.
"""

from __future__ import annotations

import re

OK = "ok"
#: Not fetched because the row did not pass the filters.
FILTERED = "filtered"
#: In none of the tars.
NOT_DOWNLOADED = "not_downloaded"
#: Not asked for again when this shard was made anew: a tar of another round has it.
IN_ANOTHER_ROUND = "in_another_round"
#: Its faces are to be blurred, and nobody knows where in this picture they are.
CANNOT_BLUR = "cannot_blur"
#: A file with more comments, chunks, directories or the like than a picture has.
TOO_MUCH_METADATA = "too_much_metadata"
#: Decoding it takes, or would take, longer than a picture may.
SLOW_DECODE = "slow_decode"
#: Decoding it takes more memory than a picture of its size may.
TOO_MUCH_MEMORY = "too_much_memory"
#: The process that decoded it died, and so did another one.
CRASHED_DECODER = "crashed_decoder"
#: Nobody known has signed the host's certificate: nearly always it leaves out those between its own and a root.
TLS_INCOMPLETE_CHAIN = "tls_incomplete_chain"
#: Not HTTP, or not by its rules.
BAD_RESPONSE = "bad_response"
#: Packed in a way that was not asked for and is not known here, or damaged.
CONTENT_CODING = "content_coding"
#: A fault of ours, which the log tells of.
INTERNAL = "internal"
#: The same answer is certain however often it is asked for. Of private addresses it is not: names come to others.
FINAL = frozenset({FILTERED, "opt_out", "bad_url", CANNOT_BLUR, CRASHED_DECODER})

_OURS = re.compile(r"([a-z]+(?:_[a-z0-9]+)*)(?:: .*)?", re.DOTALL)

_STATUS_LINE = re.compile(r"(?:HTTP Error|Tunnel connection failed:) (\d{3}):? ?(.*)", re.DOTALL)
#: What that proxy said in a reason phrase.
_PROXY_NAMES = frozenset(
    (
        "bad_url",
        "private_address",
        "too_large",
        "timeout",
        "dns",
        "refused",
        "reset",
        "unreachable",
        "connection",
        "incomplete",
        "bad_response",
        "bad_request",
    )
)
#: In order: the first fragment found in the message, in lower case, names it.
_FRAGMENTS = (
    ("x-robots-tag", "opt_out"),
    ("timed out", "timeout"),
    ("certificate_verify_failed", "tls"),
    ("ssl", "tls"),
    ("violation of protocol", "tls"),
    ("getaddrinfo", "dns"),
    ("name or service not known", "dns"),
    ("name resolution", "dns"),
    ("nodename nor servname", "dns"),
    ("no address associated", "dns"),
    ("connection refused", "refused"),
    ("reset by peer", "reset"),
    ("remote end closed", "reset"),
    ("broken pipe", "reset"),
    ("unreachable", "unreachable"),
    ("no route to host", "unreachable"),
    ("incompleteread", "incomplete"),
    ("unknown url type", "bad_url"),
    ("no host given", "bad_url"),
    ("url can't contain", "bad_url"),
    ("nonnumeric port", "bad_url"),
    ("codec can't encode", "bad_url"),
    ("codec failed", "bad_url"),
    ("label empty or too long", "bad_url"),
    ("image decoding error", "not_an_image"),
    ("!buf.empty()", "empty"),
    ("image too small", "too_small"),
    ("image area too large", "too_many_pixels"),
    ("aspect ratio too large", "aspect_ratio"),
    ("hash mismatch", "hash_mismatch"),
)


#: How urllib says that the proxy itself did not answer; when a host refused, the proxy's own answer told so.
_BROKEN = frozenset({"reset", "incomplete", "other"})
_PROXY_GONE = re.compile(r"<urlopen error \[Errno \d+\] Connection refused>")


def proxy_was_gone(message: str | None) -> bool:
    """Say whether a failure may mean only that the proxy had ended, and nothing about the picture.

    Hosts that break connections look the same.
    """
    if message is None or _OURS.fullmatch(message):
        return False
    broken = short_name(message) in _BROKEN and not _STATUS_LINE.search(message)
    return broken or _PROXY_GONE.fullmatch(message) is not None


def short_name(message: str | None) -> str:
    """Return the reason under which a failure is counted, such as "http_404" or "timeout"; "other" if none fits."""
    if not message:
        return "other"
    if found := _OURS.fullmatch(message):
        return found[1]
    if found := _STATUS_LINE.search(message):
        return _of_status(found[1], found[2])
    lowered = message.lower()
    return next((name for fragment, name in _FRAGMENTS if fragment in lowered), "other")


def _of_status(code: str, phrase: str) -> str:
    words = re.match(r"\w*", phrase.strip())
    if words and words[0] in _PROXY_NAMES:
        return words[0]
    if "infinite loop" in phrase:
        return "redirects"
    # urllib refuses redirects to anything but http, https and ftp with the code of the redirect.
    return "bad_redirect" if "is not allowed" in phrase else f"http_{code}"
