"""Which addresses pictures may come from: globally routable ones; the one checked is the one connected to.

The one rule is: resolve a host to addresses, check those, connect to those. Odd spellings ("127.1", "0x7f.1",
"2130706433", "localhost.") need no rule of their own, because what they resolve to is what is checked.

`is_public` and `AddressRule`, the tables behind the check, are in `addresses` and can be imported from here.
"""

from __future__ import annotations

from collections.abc import Mapping

from laion_face_builder.errors import OptionError
from laion_face_builder.fetch.addresses import AddressRule, is_public

__all__ = ["AddressRule", "is_public", "refuse_user_proxy"]

_PROXY_VARIABLES = ("https_proxy", "http_proxy", "all_proxy", "ftp_proxy")


def refuse_user_proxy(environ: Mapping[str, str], trust_proxy: bool) -> str | None:
    """Return the proxy that the environment asks for, if it is trusted; None if there is none.

    Args:
        environ: the environment; http_proxy, https_proxy, all_proxy and ftp_proxy count, in either case.
        trust_proxy: the user's word that this proxy keeps private addresses closed: it then does our check.

    Returns:
        "http://[user:password@]host:port". https_proxy is preferred where several are set.

    Raises:
        OptionError: there is a proxy and it is not trusted, or it is not an http:// one.
    """
    for name in _PROXY_VARIABLES:
        for variable in (name, name.upper()):
            if not (address := environ.get(variable, "").strip()):
                continue
            if not trust_proxy:
                raise OptionError(
                    f"{variable} is set: behind a proxy nobody here can check which addresses pictures come from. "
                    "Unset it, or set trust_proxy if that proxy keeps private addresses closed"
                )
            if "://" not in address:
                address = f"http://{address}"
            if not address.lower().startswith("http://"):
                raise OptionError(f"{variable}: only http:// proxies can be used, not {address.partition(':')[0]}://")
            return address
    return None
