"""The errand to a site's rules: ask for robots.txt, and maybe for tdmrep.json, before its first picture.

An errand is a job like a picture's: checked addresses, redirects one at a time, the same bounds, tries and manners. It
differs in how answers are read, by RFC 9309 (2.3.1):

- 2xx: its first 500 KiB are the rules.
- 4xx, or redirects that lead nowhere or are too many: there are no rules, everything may be asked for. 429 is no such
  answer: it is waited out, as for pictures, and if it stays the pictures fail with it.
- 5xx, after the usual tries, or a file that cannot be read: nothing may be asked for ("robots_unavailable").
- nobody is reached: the pictures fail with that reason. They would have met the same.

tdmrep.json counts only if it is there: by TDMRep whoever does not give it has none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum

from laion_face_builder.errors import PictureError
from laion_face_builder.fetch import policy
from laion_face_builder.fetch.http import Response
from laion_face_builder.fetch.job import Ending, Job
from laion_face_builder.fetch.limits import FetchLimits
from laion_face_builder.fetch.policy import FetchProgress, Retry, Throttled
from laion_face_builder.fetch.site_rules import OPEN, SiteRules, closed, read_reservations, read_robots
from laion_face_builder.fetch.stream_queue import StreamQueue
from laion_face_builder.images.reasons import Reason, http

#: Failures that say nothing of the file: the site's pictures would fail with them too.
_OF_THE_HOST = frozenset(
    (
        *(Reason.DNS, Reason.TIMEOUT, Reason.REFUSED, Reason.RESET, Reason.UNREACHABLE, Reason.CONNECTION),
        *(Reason.TLS, Reason.TLS_INCOMPLETE_CHAIN, Reason.PRIVATE_ADDRESS, Reason.INTERNAL, http(429)),
    )
)


class Page(str, Enum):
    """Where a site has its rules."""

    ROBOTS = "/robots.txt"
    RESERVATIONS = "/.well-known/tdmrep.json"


class Errand(Job):
    """Asks one site for its rules.

    Args:
        queue: of the errands.
        picture: the first of the site; errands of earlier ones go first.
        site: scheme, host and port, as the picture's address begins.
        pages: to ask for, in this order.
        tell: called once with the rules, or with what ended the errand.
    """

    __slots__ = ("_pages", "_rules", "_tell", "held", "site", "wanted")

    def __init__(
        self, queue: StreamQueue, picture: Job, site: str, pages: Sequence[Page], tell: Callable[[Errand, Ending], None]
    ) -> None:
        super().__init__(queue, picture.number, f"{site}{pages[0].value}")
        self.host, self.port = picture.host, picture.port
        self.site, self._pages, self._tell = site, pages, tell
        self._rules = OPEN
        #: Pictures of the site that will need the rules, and those of them that wait for them now.
        self.wanted: list[Job] = []
        self.held: list[Job] = []

    @property
    def page(self) -> Page:
        """The page that is asked for."""
        return self._pages[0]

    @property
    def is_wanted(self) -> bool:
        """Whether any picture is still waited for."""
        return any(job.open for job in self.wanted)

    def after_answer(self, answer: Response, limits: FetchLimits, now: float) -> bytes | SiteRules | Retry | Throttled:
        """Return the page, the rules of a site that has none, or what to do next.

        Raises:
            PictureError: the page cannot be had.
        """
        if 200 <= answer.status < 300:
            return answer.body
        try:
            return policy.after_no_success(self.progress, answer, limits, now)
        except PictureError as error:
            if _is_absent(error.reason):
                return self.go_on_with(self._rules)
            raise

    def read(self, data: bytes, name: str) -> SiteRules:
        """Return the rules with what the page says to `name`. Takes a second at worst."""
        return read_robots(data, name) if self.page is Page.ROBOTS else read_reservations(data, self._rules)

    def go_on_with(self, rules: SiteRules) -> SiteRules | Retry:
        """Return the rules if there is nothing more to ask for; else where the next page is."""
        if rules.closed is not None or len(self._pages) == 1:
            return rules
        self._rules, self._pages = rules, self._pages[1:]
        self.progress = FetchProgress(f"{self.site}{self.page.value}")
        return Retry(self.progress.url)

    def finish(self, ending: Ending) -> None:
        """Tell the rules; a failure is read as this module says."""
        if isinstance(ending, PictureError):
            ending = self._failed(ending) if self.page is Page.ROBOTS else self._rules
        self._tell(self, ending)

    def _failed(self, error: PictureError) -> SiteRules:
        if error.reason in _OF_THE_HOST and not self.progress.hops:
            return closed(error.reason, f"robots.txt: {error.detail}")
        return closed(Reason.ROBOTS_UNAVAILABLE, f"robots.txt: {error}")


def _is_absent(reason: str) -> bool:
    return reason in (Reason.REDIRECTS, Reason.BAD_REDIRECT) or (
        reason.startswith((http(3), http(4))) and reason != http(429)
    )
