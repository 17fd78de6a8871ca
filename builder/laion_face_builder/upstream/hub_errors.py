"""Translate what huggingface_hub raises into our errors: those that may pass, to be tried again, and others.

Which library's errors these are depends on the version of huggingface_hub: they are recognised by their attributes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from laion_face_builder.errors import LaionFaceError, SourceError
from laion_face_builder.shown import in_one_line, shown
from laion_face_builder.upstream.retrying import TransientError, Unreachable
from laion_face_builder.upstream.source_url import PASSING_STATUS

#: The HTTP libraries under huggingface_hub, by version; the errors of the last two are not OSErrors.
_HTTP_LIBRARIES = frozenset({"requests", "httpx", "httpx2"})


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status of the answer that `error` is about; None if there was no answer."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def in_our_words(error: Exception, where: str) -> Exception:
    """Return a TransientError, with the pause asked for, or a SourceError if it will not pass; ours as they are."""
    if isinstance(error, LaionFaceError):
        return error
    status = status_of(error)
    if status in PASSING_STATUS:
        return TransientError(f"HTTP {status}", _wait_asked(getattr(error, "response").headers))  # noqa: B009 - varies
    library = type(error).__module__.partition(".")[0]
    if status is None and (isinstance(error, OSError) or library in _HTTP_LIBRARIES):
        from huggingface_hub import constants

        return Unreachable(f"it cannot be reached: no answer from {shown(constants.ENDPOINT)}, {_cause(error)}")
    if isinstance(error, json.JSONDecodeError):
        return TransientError("the answer is not JSON, as from a gateway that has no answer")
    return SourceError(f"{where}: {short(error)}")


def _cause(error: BaseException) -> str:
    """Return what the system says, such as "Connection refused", below the layers of HTTP libraries; else all text."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
        inner = inner.__cause__ or inner.__context__
    return short(error)


def _wait_asked(headers: Mapping[str, str]) -> float:
    """Return the seconds of Retry-After, or the `t` of the Hub's RateLimit, `"api";r=0;t=55`."""
    found = re.search(r"^\d+$", headers.get("Retry-After", "")) or re.search(
        r"(?<=;t=)\d+", headers.get("RateLimit", "")
    )
    return float(found[0]) if found else 0.0


def short(error: BaseException) -> str:
    """Return the error's text in one line of at most 300 characters."""
    return in_one_line(error) or type(error).__name__
