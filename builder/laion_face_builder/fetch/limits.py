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

from laion_face_builder.errors import OptionError
from laion_face_builder.fetch.addresses import AddressRule, refuse_user_proxy
from laion_face_builder.fetch.opt_outs import OPT_OUT
from laion_face_builder.options import Transfer

#: The name that sites may address in X-Robots-Tag when the user gives none.
DEFAULT_TOKEN = "laion-face"  # noqa: S105 - not a secret
_HOME = "https://github.com/FacePerceiver/LAION-Face"


@dataclass(frozen=True)
class FetchLimits:
    """The bounds of every fetch, and the name under which it asks.

    Attributes:
        timeout: seconds for one picture, see above.
        retries: further tries for what can pass.
        max_bytes: of a body, declared or real, before and after decompression.
        max_pixels: width times height, before decoding.
        per_host: the most requests to one host at a time, of all processes of this machine; see `hosts` and `machine`.
        concurrency: pictures in flight at a time.
        redirects: followed one at a time, each checked like the first address.
        max_header_bytes: of all headers of one answer.
        kept_connections: idle ones that are kept for the next picture of their host, at most: a third of real addresses
            met an open one with 256 of them, more than half with 4,096, and a new one costs six times a kept one.
        user_agent_token: the name that scoped opt-outs are compared with, and that the User-Agent says.
        opt_out: the words of X-Robots-Tag that are honoured.
        allow: which addresses may be connected to.
        proxy: "http://host:port" that everything goes through; then the check of addresses is its own.
        ca_file: certificates to trust, PEM; None is the environment's SSL_CERT_FILE, else certifi's.
        connect_timeout: seconds for a connection; see `connect_seconds`.
        outage_patience: seconds that a lost network is waited for; see `network`.
        longest_wait: seconds that a host may have its pictures wait (429, Retry-After) with no other answer between.
    """

    timeout: float = 30.0
    retries: int = 1
    max_bytes: int = 32_000_000
    max_pixels: int = 100_000_000
    per_host: int = 32
    concurrency: int = 256
    redirects: int = 10
    max_header_bytes: int = 64_000
    kept_connections: int = 4096
    user_agent_token: str = DEFAULT_TOKEN
    opt_out: frozenset[str] = OPT_OUT
    allow: AddressRule = AddressRule()
    proxy: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    longest_wait: float = 60.0
    outage_patience: float = 600.0
    connect_timeout: float = 5.0

    def __post_init__(self) -> None:
        for name in ("timeout", "max_bytes", "max_pixels", "per_host", "concurrency"):
            if not getattr(self, name) > 0:
                raise OptionError(f"{name}={getattr(self, name)!r}: expected more than 0")
        if not self.user_agent_token.isascii() or not self.user_agent_token.isprintable():
            raise OptionError(f"user_agent_token={self.user_agent_token!r}: expected plain ASCII on one line")

    @classmethod
    def of(cls, transfer: Transfer, *, concurrency: int = 256, environ: Mapping[str, str] | None = None) -> FetchLimits:
        """Return the limits that a user's transfer options mean.

        Args:
            transfer: validated options.
            concurrency: pictures in flight at a time.
            environ: the environment; a proxy named in it is used only with `trust_proxy`.

        Raises:
            OptionError: the environment names a proxy that is not trusted.
        """
        return cls(
            timeout=transfer.timeout,
            retries=transfer.retries,
            max_bytes=transfer.max_bytes,
            max_pixels=transfer.max_pixels,
            per_host=transfer.per_host,
            outage_patience=transfer.outage_patience,
            concurrency=concurrency,
            user_agent_token=transfer.user_agent_token or DEFAULT_TOKEN,
            allow=AddressRule(allow_private=transfer.allow_private_hosts),
            proxy=refuse_user_proxy(os.environ if environ is None else environ, transfer.trust_proxy),
        )

    @property
    def connect_seconds(self) -> float:
        """Seconds for a connection to come about: never more than a picture has."""
        return min(self.connect_timeout, self.timeout)

    @property
    def max_wire_bytes(self) -> int:
        """The most bytes of one answer with all that is wrapped around it: TLS and chunks take a few per cent."""
        return self.max_bytes + self.max_bytes // 4 + self.max_header_bytes + (1 << 20)

    @property
    def user_agent(self) -> str:
        """The User-Agent header: who asks, and where to read about it."""
        return f"Mozilla/5.0 (compatible; {self.user_agent_token}; +{_HOME})"
