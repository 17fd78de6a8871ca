"""Opt-outs in an answer's headers: how a site says that this picture is to be left alone, and whether it means us.

They cost no request, since the picture's own answer has them; one function decides for streams and downloads:

- X-Robots-Tag, as img2dataset reads it and as Google defines it
  (https://developers.google.com/search/docs/crawling-indexing/robots-meta-tag);
- Content-Usage (draft-ietf-aipref-attach): `train-ai=n`;
- tdm-reservation (TDMRep, https://www.w3.org/community/reports/tdmrep/): 1.

What is asked for before the picture is, is read in `site_rules`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

from laion_face_builder.errors import PictureError
from laion_face_builder.fetch.http import Response
from laion_face_builder.images.reasons import Reason

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
#: Uses that training is, by the names of the drafts and of Content-Signal. Where the first has a word, it decides.
_TRAINING = ("train-ai", "ai-train", "train-genai", "ai", "bots", "tdm")
_NO, _YES = ("n", "no"), ("y", "yes")


def check_headers(answer: Response, token: str, directives: Collection[str] = OPT_OUT) -> None:
    """Refuse a picture that its own headers forbid `token` to use.

    Args:
        answer: with the picture.
        token: the name that scoped directives are compared with.
        directives: words of X-Robots-Tag that are honoured.

    Raises:
        PictureError: "opt_out", "content_usage", "tdm_reserved".
    """
    if said := refusal(answer.values(b"x-robots-tag"), token, directives):
        raise PictureError(Reason.OPT_OUT, said)
    # Several headers of a name are one list.
    if (said := ",".join(answer.values(b"content-usage"))) and forbids_training(said):
        raise PictureError(Reason.CONTENT_USAGE, f"Content-Usage: {said[:100]}")
    if any(value.strip() == "1" for value in answer.values(b"tdm-reservation")):
        raise PictureError(Reason.TDM_RESERVED, "tdm-reservation: 1")


def forbids_training(said: str) -> bool:
    """Say whether a statement of preferences, such as "search=y, train-ai=n", is against training on what it is about.

    It is read member by member, the last of a name counts, and parameters do not. The draft knows a statement with a
    slip in it as none; here what can be read of it counts, since a slip is no consent.
    """
    words = (member.partition(";")[0].partition("=") for member in said.lower().split(","))
    found = {name.strip(): value.strip() for name, _, value in words}
    if found.get(_TRAINING[0]) in _YES:
        return False
    return any(found.get(name) in _NO for name in _TRAINING)


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
