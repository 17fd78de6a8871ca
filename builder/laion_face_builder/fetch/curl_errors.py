"""Short names, under which failures are counted, of libcurl's errors."""

from __future__ import annotations

import errno

import pycurl

from laion_face_builder.images.reasons import BAD_RESPONSE, TLS_INCOMPLETE_CHAIN

#: As curl/curl.h has them; pycurl gives them no names. The second is said of endless header lines.
_WEIRD_SERVER_REPLY, _TOO_LARGE = 8, 100
_NAMES = {
    pycurl.E_URL_MALFORMAT: "bad_url",
    pycurl.E_COULDNT_RESOLVE_HOST: "dns",
    pycurl.E_COULDNT_RESOLVE_PROXY: "dns",
    pycurl.E_OPERATION_TIMEDOUT: "timeout",
    pycurl.E_SSL_ISSUER_ERROR: "tls",
    pycurl.E_PARTIAL_FILE: "incomplete",
    pycurl.E_FILESIZE_EXCEEDED: "too_large",
    pycurl.E_SEND_ERROR: "reset",
    pycurl.E_GOT_NOTHING: "reset",
    # HTTP of before 1.0, or no HTTP at all; a NUL in a header.
    pycurl.E_UNSUPPORTED_PROTOCOL: BAD_RESPONSE,
    _WEIRD_SERVER_REPLY: BAD_RESPONSE,
    _TOO_LARGE: "too_large",
}
_UNREACHABLE = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EADDRNOTAVAIL)
#: OpenSSL's X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT, …_LOCALLY and X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE: nobody
#: whom we know has signed. Nearly always the host leaves out the certificates between; browsers fetch or remember them.
_NO_ISSUER = frozenset({2, 20, 21})
#: How OpenSSL and libcurl say that the connection broke while TLS was agreed on: the host's bad moment, not its papers.
_BROKE_OFF = ("reset by peer", "unexpected eof", "ssl_error_syscall", "ssl_error_zero_return", "broken pipe")


def name_of(curl: pycurl.Curl, number: int) -> str:
    """Return the short name of what ended a transfer.

    Args:
        curl: the handle, as the transfer left it.
        number: libcurl's error.
    """
    if number == pycurl.E_COULDNT_CONNECT:
        return _of_connecting(curl.getinfo(pycurl.OS_ERRNO))
    if number == pycurl.E_PEER_FAILED_VERIFICATION:
        return TLS_INCOMPLETE_CHAIN if curl.getinfo(pycurl.SSL_VERIFYRESULT) in _NO_ISSUER else "tls"
    if number == pycurl.E_SSL_CONNECT_ERROR:
        said = curl.errstr().lower()
        return "reset" if any(words in said for words in _BROKE_OFF) else "tls"
    if number == pycurl.E_RECV_ERROR:
        # libcurl's word for broken chunks, too, and for headers beyond its own bounds: then no system call has failed.
        is_broken = curl.getinfo(pycurl.OS_ERRNO) or "ssl" in curl.errstr().lower()
        return "reset" if is_broken else BAD_RESPONSE
    return _NAMES.get(number, "other")


def _of_connecting(reason: int) -> str:
    if reason == errno.ECONNREFUSED:
        return "refused"
    return "unreachable" if reason in _UNREACHABLE else "connection"
