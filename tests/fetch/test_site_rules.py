"""What robots.txt, its lines of usage and tdmrep.json mean: by RFC 9309, the drafts, and a slow reference."""

from __future__ import annotations

import json
import re
import tracemalloc
from urllib.parse import quote, unquote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from laion_face_builder.errors import PictureError
from laion_face_builder.fetch.http import Response
from laion_face_builder.fetch.opt_outs import check_headers, forbids_training
from laion_face_builder.fetch.site_rules import MOST_BYTES, OPEN, read_reservations, read_robots

SITE = "http://example.com"


def said(rules, path):
    refusal = rules.refusal(f"{SITE}{path}")
    return None if refusal is None else refusal.reason


def robots(text, path, name="laion-face"):
    return said(read_robots(text.encode(), name), path)


NO = "robots_disallowed"
RFC_5_1 = """\
User-Agent: *
Disallow: *.gif$
Disallow: /example/
Allow: /publications/

User-Agent: foobot
Disallow:/
Allow:/example/page.html
Allow:/example/allowed.gif

User-Agent: barbot
User-Agent: bazbot
Disallow: /example/page.html

User-Agent: quxbot
"""


@pytest.mark.parametrize(
    ("text", "name", "path", "expected"),
    [
        # RFC 9309, 5.1
        (RFC_5_1, "us", "/a/b.gif", NO),
        (RFC_5_1, "us", "/a/b.gif?x", None),
        (RFC_5_1, "us", "/example/x.jpg", NO),
        (RFC_5_1, "us", "/publications/x.jpg", None),
        (RFC_5_1, "foobot", "/x.jpg", NO),
        (RFC_5_1, "FooBot/1.0", "/x.jpg", NO),
        (RFC_5_1, "foobot", "/example/page.html", None),
        (RFC_5_1, "barbot", "/example/page.html", NO),
        (RFC_5_1, "bazbot", "/example/page.html", NO),
        (RFC_5_1, "bazbot", "/example/x.gif", None),
        (RFC_5_1, "quxbot", "/example/x.gif", None),
        # 5.2, longest match; 2.2.2, the lesser evil of two that are equal
        ("User-agent: *\nAllow: /example/page/\nDisallow: /example/page/disallowed.gif", "us", "/example/page/", None),
        (
            "User-agent: *\nAllow: /example/page/\nDisallow: /example/page/disallowed.gif",
            *("us", "/example/page/disallowed.gif", NO),
        ),
        ("User-agent: *\nDisallow: /a\nAllow: /a", "us", "/a", None),
        # Google's table of paths: https://developers.google.com/search/docs/crawling-indexing/robots/robots_txt
        ("User-agent: *\nDisallow: /fish", "us", "/fishheads/yummy.html", NO),
        ("User-agent: *\nDisallow: /fish", "us", "/Fish.asp", None),
        ("User-agent: *\nDisallow: /fish", "us", "/?id=fish", None),
        ("User-agent: *\nDisallow: /fish/", "us", "/fish", None),
        ("User-agent: *\nDisallow: /*.php", "us", "/folder/any.php.file.html", NO),
        ("User-agent: *\nDisallow: /*.php$", "us", "/filename.php?parameters", None),
        ("User-agent: *\nDisallow: /fish*.php", "us", "/fishheads/catfish.php?parameters", NO),
        ("User-agent: *\nAllow: /p\nDisallow: /", "us", "/page", None),
        ("User-agent: *\nAllow: /page\nDisallow: /*.htm", "us", "/page.htm", NO),
        ("User-agent: *\nAllow: /$\nDisallow: /", "us", "/", None),
        ("User-agent: *\nAllow: /$\nDisallow: /", "us", "/page.htm", NO),
        # 2.2.2, percent-encoding
        ("User-agent: *\nDisallow: /foo/bar/ツ", "us", "/foo/bar/%E3%83%84", NO),
        ("User-agent: *\nDisallow: /foo/bar/%E3%83%84", "us", "/foo/bar/%E3%83%84", NO),
        ("User-agent: *\nDisallow: /foo/bar/%62%61%7A", "us", "/foo/bar/baz", NO),
        # groups
        ("User-agent: us\nDisallow: /a\nUser-agent: *\nDisallow: /b", "us", "/b", None),
        ("User-agent: us\nDisallow: /a\n\nUser-agent: x\nDisallow: /\n\nUser-agent: US\nDisallow: /b", "us", "/b", NO),
        ("User-agent: us\nDisallow:", "us", "/b", None),
        ("User-agent: x\nCrawl-delay: 1\nUser-agent: us\nDisallow: /", "us", "/b", NO),
        ("User-agent: x\nDisallow: /a\nUser-agent: us\nDisallow: /b", "us", "/a", None),
        ("User-agent: use\nDisallow: /", "us", "/a", None),
        ("User-agent: x\nDisallow: /", "us", "/a", None),
        ("Disallow: /", "us", "/a", None),
        # as people write it
        ("\ufeffuser-agent : *\r disallow : / # all", "us", "/a", NO),
        ("User-agent: *\r\nSitemap: x\r\n\r\nDissalow: /", "us", "/a", NO),
        ("useragent *\ndisallow /", "us", "/a", NO),
        ("<html><body>User-agent: *<br>Disallow: /", "us", "/a", None),
        ("", "us", "/a", None),
        ("\x00\xff\ufffd\nUser-agent: *\n\x00\nDisallow: /", "us", "/a", NO),
    ],
)
def test_robots_txt_is_read_as_the_rfc_and_its_authors_have_it(text, name, path, expected):
    assert robots(text, path, name) == expected


# A plain reference, slow and short: RFC 9309, 2.2.2 word for word.


def same_form(text):
    """Return a path or pattern with every octet percent-encoded that may be, and none that need not be."""
    return "".join(
        piece if piece in ("*", "$") else quote(unquote(piece), safe="/") for piece in re.split(r"([*$])", text)
    )


def matches(pattern, path):
    is_end = pattern.endswith("$")
    parts = [re.escape(part) for part in same_form(pattern[:-1] if is_end else pattern).split("*")]
    return re.match(".*".join(parts) + ("$" if is_end else ""), same_form(path), re.DOTALL) is not None


def reference(rules, path):
    found = [(len(same_form(value)), kind == "Allow") for kind, value in rules if value and matches(value, path)]
    return max(found, default=(0, True))[1]


PATHS = st.text("ab/.%é", max_size=8).map(lambda text: "/" + text.replace("%", "%61"))
PATTERNS = st.builds(lambda path, end: f"/{path}{end}", st.text("ab/.*é", max_size=8), st.sampled_from(["", "", "$"]))
RULES = st.lists(st.tuples(st.sampled_from(["Allow", "Disallow"]), st.just("") | PATTERNS), max_size=6)


@settings(max_examples=400)
@given(RULES, PATHS)
@example([("Disallow", "/*a*b$")], "/aabab")
def test_whatever_the_rules_the_decision_is_that_of_a_plain_reference(rules, path):
    text = "\n".join(["User-agent: *", *(f"{kind}: {value}" for kind, value in rules)])
    url = quote(path, safe="/%*")
    assert (robots(text, url) is None) == reference(rules, url)


@given(st.binary(max_size=300) | st.text("User-agent:*\n Disallow/\r#%$é", max_size=300).map(str.encode))
def test_no_file_is_an_error(data):
    read_robots(data, "us").refusal(f"{SITE}/a.jpg")
    read_reservations(data, OPEN).refusal(f"{SITE}/a.jpg")


#: Files that would take a parser with a group for each name, or regular expressions, minutes or for ever.
HOSTILE = {
    "names times rules": "".join(f"User-agent: a{n}\n" for n in range(20_000))
    + "User-agent: us\n"
    + "".join(f"Disallow: /{n}\n" for n in range(10_000)),
    "one line": "User-agent: *\nDisallow: /" + "a" * MOST_BYTES,
    "no colon in sight": "a" * MOST_BYTES,
    "nothing but ends": "\n" * MOST_BYTES,
    "rules": "User-agent: *\n" + "".join(f"Disallow: /p{n}\n" for n in range(30_000)),
    "patterns as most allow": "User-agent: *\nDisallow: /" + "*a" * 1_999 + "b",
    "names": "User-agent: us\n" * 30_000,
    "usage": "User-agent: *\n" + "".join(f"Content-Usage: /{n} train-ai=n\n" for n in range(15_000)),
}


@pytest.mark.timeout(60)  # seconds of what takes one: a parser that is not made for such files is at it for hours
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_read_and_asked_to_the_end(name):
    data, url = HOSTILE[name].encode()[:MOST_BYTES], f"{SITE}/{'a' * 8_000}"
    rules = read_robots(data, "us")
    assert len({rules.refusal(url) for _ in range(5)}) == 1


def test_more_wildcards_than_are_tried_are_a_refusal():
    many = "User-agent: *\n" + "Disallow: /*x*y\n" * 1_001
    assert robots(many, "/a") == "robots_unavailable"
    assert robots(many.replace("*\n", "other\n"), "/a") is None


def test_rules_behind_500_kib_are_not_read():
    start = "User-agent: *\nDisallow: /a\n"
    assert robots(start + "#" * (MOST_BYTES - len(start)) + "\nDisallow: /b", "/a") == NO
    assert robots(start + "#" * (MOST_BYTES - len(start)) + "\nDisallow: /b", "/b") is None


# Usage: draft-ietf-aipref-attach, section 3 and its example; Content-Signal.

DRAFT = """\
User-Agent: *
Allow: /
Disallow: /never/
Content-Usage: train-ai=n
Content-Usage: /ai-ok/ train-ai=y

User-Agent: ExampleBot
Allow: /
Content-Usage: train-ai=y
"""


@pytest.mark.parametrize(
    ("text", "name", "path", "expected"),
    [
        (DRAFT, "us", "/test", "content_usage"),
        (DRAFT, "us", "/never/test", NO),
        (DRAFT, "us", "/ai-ok/test", None),
        (DRAFT, "examplebot", "/test", None),
        ("User-agent: *\nContent-Usage: /a train-ai=n\nContent-Usage: /a train-ai=y", "us", "/a", "content_usage"),
        ("User-agent: *\nContent-Usage: /*.jpg$\ttrain-ai=n", "us", "/x.jpg", "content_usage"),
        ("User-agent: *\nContent-Usage: /*.jpg$\ttrain-ai=n", "us", "/x.png", None),
        ("User-agent: *\nContent-Usage: search=n", "us", "/x", None),
        ("User-agent: *\nContent-Usage: /", "us", "/x", None),
        ("User-agent: *\nContent-Signal: search=yes,ai-train=no\nAllow: /", "us", "/x", "content_usage"),
        ("User-agent: *\nContent-Signal: search=yes,ai-train=yes", "us", "/x", None),
        ("User-agent: other\nContent-Usage: train-ai=n", "us", "/x", None),
    ],
)
def test_usage_in_robots_txt_goes_by_the_longest_path(text, name, path, expected):
    assert robots(text, path, name) == expected


@pytest.mark.parametrize(
    ("statement", "is_against"),
    [
        ("train-ai=n", True),
        ("train-ai=y", False),
        ("search=y, train-ai=n", True),
        ("train-ai=n;why=x, search=y", True),
        ("train-ai;allow=n, train-ai=y", False),
        ("train-ai=y, train-ai, search=n", False),
        ("bots=n", True),
        ("bots=n, train-ai=y", False),
        ('train-ai="n"', False),
        ("search=n", False),
        ("", False),
    ],
)
def test_a_statement_of_preferences_is_about_training_or_not(statement, is_against):
    assert forbids_training(statement) is is_against


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([b"X-Robots-Tag: noai"], "opt_out"),
        ([b"Content-Usage: search=y", b"content-usage: train-ai=n"], "content_usage"),
        ([b"Content-Usage: train-ai=y"], None),
        ([b"TDM-Reservation: 1"], "tdm_reserved"),
        ([b"tdm-reservation: 0"], None),
        ([b"tdm-reservation: yes"], None),
    ],
)
def test_a_pictures_own_headers_refuse_it(headers, expected):
    found = None
    try:
        check_headers(Response(200, headers, b"x"), "us")
    except PictureError as error:
        found = error.reason
    assert found == expected


# tdmrep.json: the report's own example, and what else is served under the name.

REPORT = [
    {"location": "/directory-a/", "tdm-reservation": 1},
    {"location": "/directory-b/html/", "tdm-reservation": 1, "tdm-policy": f"{SITE}/policies/policy.json"},
    {"location": "/directory-b/images/*.jpg", "tdm-reservation": 0},
]


@pytest.mark.parametrize(
    ("found", "path", "expected"),
    [
        (REPORT, "/directory-a/x.jpg", "tdm_reserved"),
        (REPORT, "/directory-b/html/x.jpg", "tdm_reserved"),
        (REPORT, "/directory-b/images/x.jpg", None),
        (REPORT, "/elsewhere.jpg", None),
        ([{"location": "/a", "tdm-reservation": 0}, {"location": "/", "tdm-reservation": 1}], "/a.jpg", None),
        ([{"location": "/", "tdm-reservation": 1}, {"location": "/a", "tdm-reservation": 0}], "/a.jpg", "tdm_reserved"),
        ([{"location": "/x.jpg$", "tdm-reservation": "1"}], "/x.jpg", "tdm_reserved"),
        ([{"location": "/x.jpg$", "tdm-reservation": "1"}], "/x.jpg?y", None),
        ({"location": "/", "tdm-reservation": 1}, "/x.jpg", "tdm_reserved"),
        ([{"location": "/", "tdm-reservation": 2}], "/x.jpg", None),
        ([{"location": "/"}, {"tdm-reservation": 1}, 7, None], "/x.jpg", None),
        ([{"location": f"/{n}", "tdm-reservation": 1} for n in range(1_001)], "/x.jpg", "tdm_reserved"),
        ("words", "/x.jpg", None),
        (7, "/x.jpg", None),
    ],
)
def test_reservations_go_by_the_first_location_that_matches(found, path, expected):
    assert said(read_reservations(json.dumps(found).encode(), OPEN), path) == expected


def test_what_is_no_json_reserves_nothing():
    for data in (b"<html>", b"", b"\xff\xfe", b"[" * MOST_BYTES, b'[{"location": "/", "tdm-reservation": 1}'):
        assert read_reservations(data, OPEN) is OPEN


@pytest.mark.parametrize(
    "make",
    [
        lambda n: robots_of(f"/some/path/{n}-{rule}" for rule in range(100)),
        lambda n: robots_of(f"/some/*path/{n}-{rule}" for rule in range(20)),
        lambda n: robots_of([f"/{n}"]),
        lambda n: read_reservations(
            json.dumps([{"location": f"/{n}/{rule}", "tdm-reservation": 1} for rule in range(20)]).encode(), OPEN
        ),
    ],
)
def test_rules_take_about_the_memory_that_they_are_counted_with(make):
    make(0).refusal(f"{SITE}/a.jpg")
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        kept = [make(n) for n in range(20)]
        for rules in kept:
            rules.refusal(f"{SITE}/a.jpg")
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.4 < sum(rules.size for rules in kept) / taken < 2.5


def robots_of(paths):
    # Longer than what is kept as a text, so that it is read each time.
    return read_robots(
        b"User-agent: *\n" + "".join(f"Disallow: {path}\n" for path in paths).encode() + b"#" * 2_000, "us"
    )
