"""One bounded fetch: what to do after each answer, and after each failure, until there is a picture or a reason.

A fetch is a row of exchanges. After each one these functions say: here are the bytes, or go on there and then, or
(`PictureError`) give up. They know no sockets and no clock, so that every rule can be read and tried on its own.

Our own bugs in the middle of a fetch are counted as that picture's failure and logged once; they never end a stream.
"""

from __future__ import annotations

import random
import traceback
from dataclasses import dataclass, field

from laion_face_builder.errors import PictureError
from laion_face_builder.fetch.addresses import WebAddress
from laion_face_builder.fetch.http import Response, asked_wait
from laion_face_builder.fetch.limits import FetchLimits
from laion_face_builder.fetch.names import NoAnswer
from laion_face_builder.fetch.opt_outs import check_headers
from laion_face_builder.images.reasons import Chance, Reason, http, is_of_server
from laion_face_builder.log import logger

#: Where faults were found that have been told of. One place would fill the log.
_TOLD: set[tuple[str, str]] = set()


def counted(error: Exception, url: str) -> PictureError:
    """Return the failure that `error` is counted as; log the first of each kind and place with its traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    kind = type(error).__name__
    if (kind, place) not in _TOLD:
        _TOLD.add((kind, place))
        logger.error(
            "a fault of laion_face, please report it; such pictures are counted as %r: %s",
            Reason.INTERNAL,
            url[:500],
            exc_info=error,
        )
    return PictureError(Reason.INTERNAL, f"{kind}: {str(error)[:200]}")


#: What can pass. Everything else is the same however often it is asked for.
PASSING = frozenset({http(408), *(reason for reason in Reason if reason.chance is Chance.SOON)})
#: Answers of a host that wants fewer requests.
THROTTLING = frozenset({429, 503})
_FIRST_PAUSE = 0.5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(slots=True)
class FetchProgress:
    """How far a fetch has come.

    Attributes:
        url: where the next exchange goes.
        origin: where the fetch began.
        tries: exchanges that failed with something that can pass.
        hops: redirects followed since the last such failure.
        spent: seconds of the total timeout that are gone.
        has_begun: whether it was looked for in the cache, so that only the network is left.
        refused_at: when the host first asked to be left alone (429, or 503 with Retry-After).
    """

    url: str
    origin: str = field(init=False)
    tries: int = 0
    hops: int = 0
    spent: float = 0.0
    has_begun: bool = False
    refused_at: float | None = None

    def __post_init__(self) -> None:
        self.origin = self.url

    @property
    def is_back(self) -> bool:
        """Whether the host was asked for this picture before, so that it goes before those that were not asked for."""
        return bool(self.tries or self.hops) or self.refused_at is not None

    def share(self, limits: FetchLimits) -> float:
        """Return the seconds for the next exchange: an equal part of the time left for each try still to come."""
        return max(0.0, limits.options.timeout - self.spent) / (1 + limits.options.retries - self.tries)


@dataclass(frozen=True, slots=True)
class Retry:
    """Another exchange is due.

    Attributes:
        url: where.
        pause: seconds to wait before; they count as spent.
    """

    url: str
    pause: float = 0.0


@dataclass(frozen=True, slots=True)
class Throttled:
    """The host wants to be left alone. That costs the picture neither a try nor time: the host's queue waits.

    Attributes:
        pause: seconds that the host asks for; 0 if it does not say.
    """

    pause: float


def after_answer(
    progress: FetchProgress, answer: Response, limits: FetchLimits, now: float
) -> bytes | Retry | Throttled:
    """Return the picture's bytes, or what to do next.

    Raises:
        PictureError: "opt_out", "content_usage", "tdm_reserved", "redirects", "bad_redirect", "http_…", "empty".
    """
    if answer.is_success:
        # The picture's own answer counts: redirects and error pages carry "noindex" for other reasons.
        if limits.respects_headers:
            check_headers(answer, limits.user_agent_token, limits.opt_out)
        if answer.body:
            return answer.body
        raise PictureError(Reason.EMPTY if answer.status == 200 else http(answer.status), "an answer without a body")
    return after_no_success(progress, answer, limits, now)


def after_no_success(progress: FetchProgress, answer: Response, limits: FetchLimits, now: float) -> Retry | Throttled:
    """Return what to do next after an answer that does not bring what was asked for.

    Raises:
        PictureError: "redirects", "bad_redirect", "http_…".
    """
    if answer.status in _REDIRECTS:
        return _redirected(progress, answer, limits)
    error = PictureError(http(answer.status), progress.url[:200])
    pause = asked_wait(answer.values(b"retry-after")) if answer.status in THROTTLING else 0.0
    if answer.status == 429 or pause:
        return _refused(progress, error, limits, pause, now)
    return after_failure(progress, error, limits)


def after_failure(progress: FetchProgress, error: PictureError, limits: FetchLimits) -> Retry:
    """Return when and where to try again.

    Args:
        progress: how far the fetch has come.
        error: what went wrong now.
        limits: the bounds.

    Raises:
        PictureError: `error` itself, if it cannot pass, or there is no try or no time left.
    """
    options = limits.options
    if not can_pass(error) or progress.tries >= options.retries:
        raise error
    # Back-off with jitter: pictures of one host that failed together do not come back together.
    pause = min(_FIRST_PAUSE, options.timeout / 10) * 2**progress.tries * random.uniform(0.5, 1.5)  # noqa: S311 - no secret
    if progress.spent + pause >= options.timeout:
        raise error
    progress.tries += 1
    progress.hops = 0
    return Retry(progress.origin, pause)


def can_pass(error: PictureError) -> bool:
    """Say whether another try may end otherwise."""
    return error.reason in PASSING or is_of_server(error.reason) or isinstance(error, NoAnswer)


def _refused(progress: FetchProgress, error: PictureError, limits: FetchLimits, pause: float, now: float) -> Throttled:
    if progress.refused_at is None:
        progress.refused_at = now
    elif now - progress.refused_at > limits.longest_wait:
        raise error
    return Throttled(pause)


def _redirected(progress: FetchProgress, answer: Response, limits: FetchLimits) -> Retry:
    location = next(filter(None, answer.raw(b"location")), b"")
    if not location:
        raise PictureError(Reason.BAD_REDIRECT, f"{answer.status} without a Location")
    progress.hops += 1
    if progress.hops > limits.redirects:
        raise PictureError(Reason.REDIRECTS, f"more than {limits.redirects}")
    try:
        return Retry(WebAddress.parse(progress.url).follow(location).url)
    except PictureError as error:
        raise PictureError(Reason.BAD_REDIRECT, error.detail) from None
