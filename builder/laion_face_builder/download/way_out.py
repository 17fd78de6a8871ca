"""How img2dataset gets out: through our guarding proxy, and the user's own behind it where that is trusted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from laion_face_builder.download.options import DownloadOptions
from laion_face_builder.fetch.guard import refuse_user_proxy
from laion_face_builder.proxy.guard_proxy import GuardProxy, ProxyLimits


@contextmanager
def way_out(options: DownloadOptions) -> Iterator[GuardProxy]:
    """Gives the running proxy that everything goes through; behind it there may be the user's own.

    Raises:
        OptionError: the environment names a proxy that is not trusted.
    """
    theirs = refuse_user_proxy(os.environ, options.trust_proxy)
    limits = ProxyLimits(
        timeout=options.timeout,
        max_bytes=options.max_bytes,
        per_host=options.per_host,
        allow_private_hosts=options.allow_private_hosts,
    )
    with GuardProxy(limits, upstream_proxy=theirs) as proxy:
        yield proxy
