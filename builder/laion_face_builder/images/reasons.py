"""Name what went wrong with a picture, and read that name from the messages kept beside tars.

img2dataset keeps `str(error)` of whatever urllib raised, and its resizer's sentences. Here a message is a short name
and maybe ": " and a sentence. Earlier versions had a proxy between img2dataset and the web, which put short names into
the reason phrase of its answers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum, unique


class Whose(Enum):
    """Who is behind a reason."""

    OURS = "decided here: no host was asked, or none is to blame"
    HOSTS = "the host's, or that of the way to it"
    PICTURES = "the picture's own: its bytes came"


class Chance(Enum):
    """Whether another try may end otherwise."""

    NONE = "final: the same answer is certain however often it is asked for"
    LATER = "worth another try in a later round"
    SOON = "worth another try at once: the fetch itself makes it"


@unique
class Reason(str, Enum):
    """Why there is no picture, or `OK`: the status in sidecars and the name in counts. Of HTTP answers, see `http`.

    A member is its string wherever it is compared, sorted, shown, written as JSON, or pickled.

    Attributes:
        whose: who is behind it.
        chance: whether another try may end otherwise.
    """

    whose: Whose
    chance: Chance

    #: There is a picture.
    OK = "ok", Whose.OURS, Chance.NONE

    #: Not fetched because the row did not pass the filters.
    FILTERED = "filtered", Whose.OURS, Chance.NONE
    #: Taken down by `laion-face remove`: nothing of it is kept or asked for.
    TAKEN_DOWN = "taken_down", Whose.OURS, Chance.NONE
    #: On the exclusion list, by what its bytes are.
    EXCLUDED = "excluded", Whose.OURS, Chance.LATER
    #: Not on the list of what is included: neither its row nor its bytes.
    NOT_INCLUDED = "not_included", Whose.OURS, Chance.LATER
    #: More addresses give these very bytes than `max_copies` allows.
    TOO_MANY_COPIES = "too_many_copies", Whose.OURS, Chance.LATER
    #: In none of the tars.
    NOT_DOWNLOADED = "not_downloaded", Whose.OURS, Chance.LATER
    #: Not asked for again when this shard was made anew: a tar of another round has it.
    IN_ANOTHER_ROUND = "in_another_round", Whose.OURS, Chance.LATER
    #: The tar that it was in has gone.
    TAR_MISSING = "tar_missing", Whose.OURS, Chance.LATER
    #: The tar that it was in ends before it.
    TAR_CUT = "tar_cut", Whose.OURS, Chance.LATER
    #: The system cannot read the tar that it is in.
    TAR_UNREADABLE = "tar_unreadable", Whose.OURS, Chance.LATER
    #: Its bytes in the tar are not those that were downloaded.
    TAR_CHANGED = "tar_changed", Whose.OURS, Chance.LATER
    #: Its row of the index cannot be read: text that is not UTF-8, a face that is not whole.
    BAD_ROW = "bad_row", Whose.OURS, Chance.LATER
    #: No address of the web, or one that nobody is asked at.
    BAD_URL = "bad_url", Whose.OURS, Chance.NONE
    #: The host has only addresses that are not public. Not final: names come to others.
    PRIVATE_ADDRESS = "private_address", Whose.OURS, Chance.LATER
    #: No connection could be tried.
    CONNECTION = "connection", Whose.OURS, Chance.SOON
    #: A fault of ours, which the log tells of.
    INTERNAL = "internal", Whose.OURS, Chance.LATER
    #: Of earlier versions' proxy: img2dataset asked it for what is no address.
    BAD_REQUEST = "bad_request", Whose.OURS, Chance.LATER

    #: The host asks that its pictures be left alone: X-Robots-Tag.
    OPT_OUT = "opt_out", Whose.HOSTS, Chance.NONE
    #: It does not want it used for training: Content-Usage, in a header or in robots.txt, or Content-Signal there.
    CONTENT_USAGE = "content_usage", Whose.HOSTS, Chance.NONE
    #: It reserves the rights of text and data mining: the header tdm-reservation, or tdmrep.json.
    TDM_RESERVED = "tdm_reserved", Whose.HOSTS, Chance.NONE
    #: Its robots.txt does not let us ask for the picture, so nobody did.
    ROBOTS_DISALLOWED = "robots_disallowed", Whose.HOSTS, Chance.NONE
    #: There is a robots.txt that cannot be had or read, so nobody asked for the picture.
    ROBOTS_UNAVAILABLE = "robots_unavailable", Whose.HOSTS, Chance.LATER
    #: No such name, or nobody says.
    DNS = "dns", Whose.HOSTS, Chance.LATER
    #: Not all of it came in time.
    TIMEOUT = "timeout", Whose.HOSTS, Chance.SOON
    #: The host refused the connection.
    REFUSED = "refused", Whose.HOSTS, Chance.SOON
    #: The connection was broken off.
    RESET = "reset", Whose.HOSTS, Chance.SOON
    #: There is no way to the host.
    UNREACHABLE = "unreachable", Whose.HOSTS, Chance.SOON
    #: Fewer bytes came than were said to.
    INCOMPLETE = "incomplete", Whose.HOSTS, Chance.SOON
    #: No TLS could be agreed on, or the certificate is not the host's.
    TLS = "tls", Whose.HOSTS, Chance.LATER
    #: Nobody known has signed the host's certificate: nearly always it leaves out those between its own and a root.
    TLS_INCOMPLETE_CHAIN = "tls_incomplete_chain", Whose.HOSTS, Chance.LATER
    #: Not HTTP, or not by its rules.
    BAD_RESPONSE = "bad_response", Whose.HOSTS, Chance.LATER
    #: Packed in a way that was not asked for and is not known here, or damaged.
    CONTENT_CODING = "content_coding", Whose.HOSTS, Chance.LATER
    #: A redirect to nowhere, or to what is not the web.
    BAD_REDIRECT = "bad_redirect", Whose.HOSTS, Chance.LATER
    #: More redirects than are followed.
    REDIRECTS = "redirects", Whose.HOSTS, Chance.LATER
    #: More bytes than a picture may have.
    TOO_LARGE = "too_large", Whose.HOSTS, Chance.LATER
    #: No bytes.
    EMPTY = "empty", Whose.HOSTS, Chance.LATER
    #: None of these.
    OTHER = "other", Whose.HOSTS, Chance.LATER

    #: Bytes of something else.
    NOT_AN_IMAGE = "not_an_image", Whose.PICTURES, Chance.LATER
    #: It ends too early.
    TRUNCATED = "truncated", Whose.PICTURES, Chance.LATER
    #: The decoder says no.
    UNDECODABLE = "undecodable", Whose.PICTURES, Chance.LATER
    #: More pixels than a picture may have.
    TOO_MANY_PIXELS = "too_many_pixels", Whose.PICTURES, Chance.LATER
    #: A file with more comments, chunks, directories or the like than a picture has.
    TOO_MUCH_METADATA = "too_much_metadata", Whose.PICTURES, Chance.LATER
    #: Decoding it would take longer than a picture may, by what its header says.
    SLOW_DECODE = "slow_decode", Whose.PICTURES, Chance.LATER
    #: Its decoder did not end in the time that a picture of its size may take, and was ended.
    DECODE_TIMEOUT = "decode_timeout", Whose.PICTURES, Chance.NONE
    #: Decoding it takes more memory than a picture of its size may.
    TOO_MUCH_MEMORY = "too_much_memory", Whose.PICTURES, Chance.LATER
    #: The process that decoded it died of it, and so did another one.
    CRASHED_DECODER = "crashed_decoder", Whose.PICTURES, Chance.NONE
    #: Its faces are to be blurred, and nobody knows where in this picture they are.
    CANNOT_BLUR = "cannot_blur", Whose.PICTURES, Chance.NONE
    #: Its faces are to be cut out or drawn, and nobody knows where in this picture they are.
    UNSURE_FACES = "unsure_faces", Whose.PICTURES, Chance.LATER
    #: A face that cannot be cut out: it lies outside of the picture, or has no area.
    CANNOT_CROP = "cannot_crop", Whose.PICTURES, Chance.LATER
    #: It has another shape than the one that the faces were found in, and on_size_change is "drop".
    SIZE_CHANGED = "size_changed", Whose.PICTURES, Chance.LATER
    #: It would be turned by whoever opens it.
    TURNED = "turned", Whose.PICTURES, Chance.LATER
    #: img2dataset's: fewer pixels than were asked for.
    TOO_SMALL = "too_small", Whose.PICTURES, Chance.LATER
    #: img2dataset's: longer or wider than was asked for.
    ASPECT_RATIO = "aspect_ratio", Whose.PICTURES, Chance.LATER
    #: img2dataset's: not the bytes that were asked for.
    HASH_MISMATCH = "hash_mismatch", Whose.PICTURES, Chance.LATER

    def __new__(cls, name: str, whose: Whose, chance: Chance) -> Reason:
        """Make the member that is the string `name`."""
        member = str.__new__(cls, name)
        member._value_ = name
        member.whose, member.chance = whose, chance
        return member

    __str__ = str.__str__
    __repr__ = str.__repr__

    def __format__(self, format_spec: str) -> str:
        return format(str(self), format_spec)

    def __reduce_ex__(self, protocol: object) -> tuple[type[str], tuple[str]]:
        # As its string: states and tasks of other versions know no member.
        return str, (str(self),)


#: The same answer is certain however often it is asked for.
FINAL = frozenset(reason for reason in Reason if reason.chance is Chance.NONE) - {Reason.OK}


def http(status: int | str) -> str:
    """Return the reason of an answer with this HTTP status, such as "http_404"."""
    return f"http_{status}"


def is_of_server(reason: str) -> bool:
    """Say whether the host answered that the fault is its own: 500 to 599."""
    return reason.startswith(http(5))


#: What a user can mend, by the reason.
_HINTS = {
    Reason.PRIVATE_ADDRESS: "Names of hosts lead to addresses that are not public: a proxy, a VPN or a sign-in page "
    "may answer so for all of them; hosts of your own are reached with allow_private_hosts (--allow-private-hosts)",
}


def hint_on(failed: Mapping[str, int]) -> str:
    """Say what to do about the commonest failure, if its reason is one that the user can mend; else ""."""
    commonest = max(failed, key=lambda reason: failed[reason], default="")
    return next((hint for reason, hint in _HINTS.items() if reason == commonest), "")


_OURS = re.compile(r"([a-z]+(?:_[a-z0-9]+)*)(?:: .*)?", re.DOTALL)

_STATUS_LINE = re.compile(r"(?:HTTP Error|Tunnel connection failed:) (\d{3}):? ?(.*)", re.DOTALL)
#: What that proxy said in a reason phrase.
_PROXY_NAMES = frozenset(
    (
        Reason.BAD_URL,
        Reason.PRIVATE_ADDRESS,
        Reason.TOO_LARGE,
        Reason.TIMEOUT,
        Reason.DNS,
        Reason.REFUSED,
        Reason.RESET,
        Reason.UNREACHABLE,
        Reason.CONNECTION,
        Reason.INCOMPLETE,
        Reason.BAD_RESPONSE,
        Reason.BAD_REQUEST,
    )
)
#: In order: the first fragment found in the message, in lower case, names it.
_FRAGMENTS = (
    ("x-robots-tag", Reason.OPT_OUT),
    ("timed out", Reason.TIMEOUT),
    ("certificate_verify_failed", Reason.TLS),
    ("ssl", Reason.TLS),
    ("violation of protocol", Reason.TLS),
    ("getaddrinfo", Reason.DNS),
    ("name or service not known", Reason.DNS),
    ("name resolution", Reason.DNS),
    ("nodename nor servname", Reason.DNS),
    ("no address associated", Reason.DNS),
    ("connection refused", Reason.REFUSED),
    ("reset by peer", Reason.RESET),
    ("remote end closed", Reason.RESET),
    ("broken pipe", Reason.RESET),
    ("unreachable", Reason.UNREACHABLE),
    ("no route to host", Reason.UNREACHABLE),
    ("incompleteread", Reason.INCOMPLETE),
    ("unknown url type", Reason.BAD_URL),
    ("no host given", Reason.BAD_URL),
    ("url can't contain", Reason.BAD_URL),
    ("nonnumeric port", Reason.BAD_URL),
    ("codec can't encode", Reason.BAD_URL),
    ("codec failed", Reason.BAD_URL),
    ("label empty or too long", Reason.BAD_URL),
    ("image decoding error", Reason.NOT_AN_IMAGE),
    ("!buf.empty()", Reason.EMPTY),
    ("image too small", Reason.TOO_SMALL),
    ("image area too large", Reason.TOO_MANY_PIXELS),
    ("aspect ratio too large", Reason.ASPECT_RATIO),
    ("hash mismatch", Reason.HASH_MISMATCH),
)


#: How urllib says that the proxy itself did not answer; when a host refused, the proxy's own answer told so.
_BROKEN = frozenset({Reason.RESET, Reason.INCOMPLETE, Reason.OTHER})
_PROXY_GONE = re.compile(r"<urlopen error \[Errno \d+\] Connection refused>")


def proxy_was_gone(message: str | None) -> bool:
    """Say whether a failure may mean only that the proxy had ended, and nothing about the picture.

    Hosts that break connections look the same.
    """
    if message is None or _OURS.fullmatch(message):
        return False
    broken = short_name(message) in _BROKEN and not _STATUS_LINE.search(message)
    return broken or _PROXY_GONE.fullmatch(message) is not None


def short_name(message: str | None) -> str:
    """Return the reason under which a failure is counted, such as "http_404" or "timeout"; "other" if none fits."""
    if not message:
        return Reason.OTHER
    if found := _OURS.fullmatch(message):
        return found[1]
    if found := _STATUS_LINE.search(message):
        return _of_status(found[1], found[2])
    lowered = message.lower()
    return next((name for fragment, name in _FRAGMENTS if fragment in lowered), Reason.OTHER)


def _of_status(code: str, phrase: str) -> str:
    words = re.match(r"\w*", phrase.strip())
    if words and words[0] in _PROXY_NAMES:
        return words[0]
    if "infinite loop" in phrase:
        return Reason.REDIRECTS
    # urllib refuses redirects to anything but http, https and ftp with the code of the redirect.
    return Reason.BAD_REDIRECT if "is not allowed" in phrase else http(code)
