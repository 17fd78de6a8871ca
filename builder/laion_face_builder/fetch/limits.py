"""The bounds of a fetch: one frozen object that all modules of fetching share.

What counts as what:

- `timeout` is one picture's total: every try, redirect, name look-up and wait between tries. Standing in our own
  queue, for a free connection or because a host already has all that we allow it, is not counted: that is our
  politeness, not the host's slowness. A host that is down is therefore given up as a whole (`hosts`).
- One try gets an equal share of what is left of the total, so that a first try that hangs leaves time for the next.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from laion_face_builder import __version__
from laion_face_builder.fetch.addresses import AddressRule, refuse_user_proxy
from laion_face_builder.fetch.opt_outs import OPT_OUT
from laion_face_builder.options import FetchOptions
from laion_face_builder.options.fields import EVERYTHING, NOTHING, ROBOTS, USER_AGENT_TOKEN

_HOME = "https://github.com/FacePerceiver/LAION-Face"


@dataclass(frozen=True)
class FetchLimits:
    """The bounds of every fetch: what the user chose, and what nobody has to choose.

    Attributes:
        options: the user's choice; see above for what its `timeout` counts.
        redirects: followed one at a time, each checked like the first address.
        max_header_bytes: of all headers of one answer.
        kept_connections: idle ones that are kept for the next picture of their host, at most: a third of real addresses
            met an open one with 256 of them, more than half with 4,096, and a new one costs six times a kept one.
        opt_out: the words of X-Robots-Tag that are honoured.
        also_public: networks that count as public too; see `addresses.AddressRule`.
        proxy: "http://host:port" that everything goes through; then the check of addresses is its own.
        ca_file: certificates to trust, PEM; None is the environment's SSL_CERT_FILE, else certifi's.
        longest_wait: seconds that a host may have its pictures wait (429, Retry-After) with no other answer between.
        connect_timeout: seconds for a connection; see `connect_seconds`.
    """

    options: FetchOptions = FetchOptions()
    redirects: int = 10
    max_header_bytes: int = 64_000
    kept_connections: int = 4096
    opt_out: frozenset[str] = OPT_OUT
    also_public: tuple[str, ...] = ()
    proxy: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    longest_wait: float = 60.0
    connect_timeout: float = 5.0

    @classmethod
    def of(cls, options: FetchOptions, environ: Mapping[str, str] | None = None) -> FetchLimits:
        """Return the limits that a user's options mean here.

        Args:
            options: of the user.
            environ: the environment; a proxy named in it is used only with `trust_proxy`.

        Raises:
            OptionError: the environment names a proxy that is not trusted.
        """
        proxy = refuse_user_proxy(os.environ if environ is None else environ, options.trust_proxy)
        return cls(options, proxy=proxy)

    @property
    def allow(self) -> AddressRule:
        """Which addresses may be connected to."""
        return AddressRule(self.options.allow_private_hosts, self.also_public)

    @property
    def user_agent_token(self) -> str:
        """The name that scoped opt-outs are compared with, and that the User-Agent says."""
        return self.options.user_agent_token or USER_AGENT_TOKEN

    @property
    def respects_headers(self) -> bool:
        """Whether a picture's own headers may refuse it."""
        return self.options.respect != NOTHING

    @property
    def asks_sites(self) -> bool:
        """Whether a site is asked for its rules before it is asked for pictures."""
        return self.options.respect in (ROBOTS, EVERYTHING)

    @property
    def asks_reservations(self) -> bool:
        """Whether tdmrep.json is asked for, beside robots.txt."""
        return self.options.respect == EVERYTHING

    @property
    def connect_seconds(self) -> float:
        """Seconds for a connection to come about: never more than a picture has."""
        return min(self.connect_timeout, self.options.timeout)

    @property
    def max_wire_bytes(self) -> int:
        """The most bytes of one answer with all that is wrapped around it: TLS and chunks take a few per cent."""
        largest = self.options.max_bytes
        return largest + largest // 4 + self.max_header_bytes + (1 << 20)

    @property
    def user_agent(self) -> str:
        """The User-Agent header: who asks, and where to read about it."""
        if contact := self.options.contact:
            # As Wikimedia and others ask: https://foundation.wikimedia.org/wiki/Policy:Wikimedia_Foundation_User-Agent_Policy
            name = self.options.user_agent_token or f"{USER_AGENT_TOKEN}/{__version__}"
            return f"{name} (+{_HOME}; {contact})"
        return f"Mozilla/5.0 (compatible; {self.user_agent_token}; +{_HOME})"
