"""What a site says before it is asked for a picture: robots.txt (RFC 9309), and `/.well-known/tdmrep.json` (TDMRep).

robots.txt says which addresses may be asked for at all, and by lines of Content-Usage
(draft-ietf-aipref-attach) or Content-Signal (https://contentsignals.org) what for. What speaks to us is cut out first,
in one pass, and only that goes to Protego, which knows how patterns match: given whole files, it makes every rule anew
for every name above it, and 100 kB of both take it 40 s. Crawl-delay is in no standard, and is not read: a host's pace
is found by its answers (`hosts`).

All is bounded, since strangers write it: the bytes that are read, and the wildcards that are tried for each picture.
What says more than that is taken as a refusal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from protego import Protego

from laion_face_builder.errors import PictureError
from laion_face_builder.fetch.opt_outs import forbids_training
from laion_face_builder.images.reasons import Reason

#: Of a file, bytes: as much as RFC 9309 asks for, and no more.
MOST_BYTES = 500 * 1024
#: Wildcards that are tried for one picture: some ten milliseconds at worst.
_MOST_WILDCARDS = 2_000
_MOST_RESERVATIONS = 1_000
#: Files that are kept as they are, to know them again, bytes.
_SHORT = 2_000
#: What a site takes in memory that has no rules, the objects of a parser, of one rule, and of a wildcard in it, bytes.
_BYTES_A_SITE, _BYTES_A_PARSER, _BYTES_A_RULE, _BYTES_A_WILDCARD = 400, 1_000, 300, 600


@dataclass(frozen=True, slots=True)
class SiteRules:
    """What a site says to us of its addresses.

    Attributes:
        access: whether an address may be asked for, as Allow and Disallow have it; None if there is no such rule.
        usage: refuses what may be used for training, since a refusal wins a draw and Allow does in Protego.
        reservations: locations of tdmrep.json in its order, and whether rights are reserved there.
        closed: why nothing may be asked for: reason and detail.
        size: bytes of memory, roughly.
    """

    access: Protego | None = None
    usage: Protego | None = None
    reservations: tuple[tuple[Protego, bool], ...] = ()
    closed: tuple[str, str] | None = None
    size: int = field(default=_BYTES_A_SITE, compare=False)

    def refusal(self, url: str) -> PictureError | None:
        """Return why `url` is not to be asked for; None if it may be.

        Args:
            url: as a `WebAddress` has it.
        """
        if self.closed is not None:
            return PictureError(*self.closed)
        if self.access is not None and not self.access.can_fetch(url, _US):
            return PictureError(Reason.ROBOTS_DISALLOWED, "robots.txt")
        if self.usage is not None and self.usage.can_fetch(url, _US):
            return PictureError(Reason.CONTENT_USAGE, "robots.txt: no training")
        for location, is_reserved in self.reservations:
            if not location.can_fetch(url, _US):
                return PictureError(Reason.TDM_RESERVED, "tdmrep.json") if is_reserved else None
        return None


#: A site that forbids nothing, as most do.
OPEN = SiteRules()
#: The name under which our group's rules are given to Protego, once they are cut out.
_US = "us"


def closed(reason: str, detail: str) -> SiteRules:
    """Return the rules of a site of which nothing may be asked for, and why."""
    return SiteRules(closed=(reason, detail[:200]))


# robots.txt.

_LINE_END = re.compile(r"\r\n|\r|\n")
_AGENT, _ALLOW, _DISALLOW, _USAGE, _SIGNAL = range(5)
#: Field names as they are written, slips included that all crawlers read over.
_FIELDS = {
    **dict.fromkeys(("user-agent", "useragent", "user agent"), _AGENT),
    "allow": _ALLOW,
    **dict.fromkeys(("disallow", "dissallow", "dissalow", "disalow", "diasllow", "disallaw"), _DISALLOW),
    "content-usage": _USAGE,
    "content-signal": _SIGNAL,
}
_PRODUCT = re.compile(r"[^\s/;,()]+")
_EVERYBODY = "*"
_Rule = tuple[int, str]


def product(name: str) -> str:
    """Return the product token of a crawler's name, in lower case: "MyBot/2.0 (x)" is "mybot"."""
    found = _PRODUCT.search(name)
    return found[0].lower() if found else ""


def read_robots(data: bytes, name: str) -> SiteRules:
    """Read a robots.txt. Short ones are often the same, as the software of blogs writes them, and read once.

    Groups for our name count together; without any, those for "*" do. What is no rule is passed over, pages of HTML
    too, and so is what follows after 500 KiB.

    Args:
        data: the file.
        name: whom its groups are to speak to.
    """
    return (_read_short if len(data) < _SHORT else _read)(data[:MOST_BYTES], product(name))


def _read(data: bytes, us: str) -> SiteRules:
    rules = _group(_lines(data), us)
    if not rules:
        return OPEN
    if sum(value.count("*") for _, value in rules) > _MOST_WILDCARDS:
        return closed(Reason.ROBOTS_UNAVAILABLE, f"robots.txt: more than {_MOST_WILDCARDS} wildcards")
    access = [
        f"{'Allow' if kind == _ALLOW else 'Disallow'}: {value}"
        for kind, value in rules
        if kind in (_ALLOW, _DISALLOW) and value
    ]
    # Whatever has no word of its own is free: so a rule for all, which any refusal beats.
    usage = [
        f"{'Allow' if forbids else 'Disallow'}: {path}" for path, forbids in map(_usage, rules) if path is not None
    ]
    return SiteRules(
        access=_parsed(access) if access else None,
        usage=_parsed(["Disallow: /", *usage]) if any(line.startswith("Allow") for line in usage) else None,
        size=_BYTES_A_SITE + _size(access) + _size(usage),
    )


_read_short = lru_cache(512)(_read)


def _lines(data: bytes) -> Iterator[_Rule]:
    text = data.decode("utf-8", "replace").removeprefix("\ufeff")
    for whole in _LINE_END.split(text):
        line = whole.partition("#")[0].strip()
        name, _, value = line.partition(":")
        kind = _FIELDS.get(name.strip().lower())
        if kind is None:  # without a colon, as crawlers read it too
            name, _, value = line.partition(" ")
            kind = _FIELDS.get(name.lower())
        if kind is not None:
            yield kind, value.strip()


def _group(lines: Iterable[_Rule], us: str) -> list[_Rule]:
    """Return the rules for us, or else for everybody. A name after a rule begins another group."""
    found: dict[str, list[_Rule]] = {}
    names: set[str] = set()
    is_open = False
    for kind, value in lines:
        if kind == _AGENT:
            if not is_open:
                names, is_open = set(), True
            if (name := product(value)) in (us, _EVERYBODY):
                names.add(name)
                found.setdefault(name, [])
            continue
        is_open = False
        for name in names:
            found[name].append((kind, value))
    return found.get(us, found.get(_EVERYBODY, []))


def _usage(rule: _Rule) -> tuple[str | None, bool]:
    """Return the path that a rule of usage is for, and whether it forbids training there; (None, …) of others."""
    kind, value = rule
    if kind not in (_USAGE, _SIGNAL):
        return None, False
    path, said = "/", value
    if value.startswith("/"):
        path, *rest = value.split(maxsplit=1)
        said = rest[0] if rest else ""
    return path, forbids_training(said)


def _size(rules: Iterable[str]) -> int:
    return _BYTES_A_PARSER + sum(_BYTES_A_RULE + len(rule) + _BYTES_A_WILDCARD * rule.count("*") for rule in rules)


def _parsed(rules: Iterable[str]) -> Protego:
    return Protego.parse("\n".join((f"User-agent: {_US}", *rules)))


# tdmrep.json.


def read_reservations(data: bytes, rules: SiteRules) -> SiteRules:
    """Return `rules` with what a tdmrep.json says beside them; what is none says nothing.

    Args:
        data: the file.
        rules: of the site's robots.txt.
    """
    try:
        found = json.loads(data[:MOST_BYTES])
    except (ValueError, RecursionError):
        return rules
    reservations = [one for one in map(_reservation, found if isinstance(found, list) else [found]) if one is not None]
    wildcards = sum(location.count("*") for location, _ in reservations)
    if len(reservations) > _MOST_RESERVATIONS or wildcards > _MOST_WILDCARDS:
        return closed(Reason.TDM_RESERVED, "tdmrep.json: more rules than are read")
    if not any(is_reserved for _, is_reserved in reservations):
        return rules
    return SiteRules(
        rules.access,
        rules.usage,
        tuple((_parsed([f"Disallow: {location}"]), is_reserved) for location, is_reserved in reservations),
        rules.closed,
        rules.size + sum(_size([location]) for location, _ in reservations),
    )


def _reservation(rule: Any) -> tuple[str, bool] | None:
    if not isinstance(rule, dict):
        return None
    location, reserved = rule.get("location"), str(rule.get("tdm-reservation")).strip()
    if not isinstance(location, str) or reserved not in ("0", "1") or _LINE_END.search(location) or "#" in location:
        return None
    return location.strip(), reserved == "1"
