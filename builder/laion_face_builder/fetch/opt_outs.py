"""Opt-outs: how a site says that its pictures are to be left alone, and whether it means us.

What is read today is the header X-Robots-Tag of the picture's own answer, as img2dataset reads it and as Google defines
it (https://developers.google.com/search/docs/crawling-indexing/robots-meta-tag). One function decides for
streams and downloads. What else a site may say has its place here: other headers of the answer (`tdm-reservation`,
`Content-Usage`) in `refusal`, and what has to be asked for before (robots.txt, `/.well-known/tdmrep.json`) beside it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

#: Words that are honoured by default, as img2dataset does.
OPT_OUT = frozenset({"noai", "noimageai", "noindex", "noimageindex"})

#: In order: a date with its own comma, another directive with a value, somebody's name, a word.
_PIECE = re.compile(
    r"unavailable_after\s*:\s*(?P<date>(?:(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*\s*,)?[^,;]*)"
    r"|max-[a-z-]+\s*:[^,;]*"
    r"|(?P<name>[^\s,;:]+)\s*:"
    r"|(?P<word>[^\s,;:]+)"
)
#: A name that means everybody.
_ALL = "*"


def refusal(robots_tags: Iterable[str], token: str, directives: Collection[str] = OPT_OUT) -> str:
    """Say why a site's headers forbid `token` the picture, in words; "" if they do not.

    Each X-Robots-Tag header is a list. "otherbot: noindex" speaks to otherbot alone, and so do the directives behind it
    in the same header, until another name. "none" is all of them at once, and a date of `unavailable_after` that is
    over counts likewise. Letter case and blanks do not matter.

    Args:
        robots_tags: the values of the answer's X-Robots-Tag headers.
        token: the name that scoped directives are compared with.
        directives: words that are honoured; none fetches all the same.
    """
    honoured = {word.strip().lower() for word in directives}
    if not honoured:
        return ""
    for value in robots_tags:
        if found := _first(value.lower(), token.lower(), honoured | {"none"}):
            return f"X-Robots-Tag: {found}"
    return ""


def _first(value: str, token: str, honoured: Collection[str]) -> str:
    is_meant = True
    for piece in _PIECE.finditer(value):
        if name := piece["name"]:
            is_meant = name in (token, _ALL)
        elif is_meant and (piece["word"] in honoured or (piece["date"] and _is_over(piece["date"].strip()))):
            return piece[0]
    return ""


def _is_over(date: str) -> bool:
    """Say whether a date (RFC 822, 850 or ISO 8601) has passed. What is no date never has."""
    for read in (_iso, parsedate_to_datetime):
        try:
            when = read(date)
        except (ValueError, TypeError, OverflowError):
            continue
        if when.tzinfo is None:
            when = when.replace(tzinfo=timezone.utc)
        return when.timestamp() <= time.time()
    return False


def _iso(date: str) -> datetime:
    # Python 3.10 does not know "Z".
    return datetime.fromisoformat(date.upper().replace("Z", "+00:00"))
