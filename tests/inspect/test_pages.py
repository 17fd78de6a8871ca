"""Other people's text in our pages: whatever it is, it is shown, and is never a tag, an attribute or a template."""

import dataclasses
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from laion_face_builder.inspect import plots
from laion_face_builder.inspect.command_line import as_typed
from laion_face_builder.inspect.counts import Kept, PartStats, Stats
from laion_face_builder.inspect.sheet import sheet
from laion_face_builder.inspect.stats import stats_page
from laion_face_builder.options import OptionFields, Options
from tests.support import browser

NASTY = {
    "a script": "<script>document.title='owned'</script>",
    "a tag that asks": "<img src=http://127.0.0.1:9/x.png onerror=alert(1)>",
    "out of an attribute": '" onmouseover="alert(1)" x="',
    "out of a single-quoted one": "' onmouseover='alert(1)' x='",
    "out of every element": "</bdi></dd></dl></figcaption></figure></main></pre></svg></style></title><h1>x</h1>",
    "a comment": "<!-- --!> ]]> -->",
    "a style": "</style><style>* { display: none }</style>",
    "entities": "&lt;b&gt; &amp; &#60;i&#62; &quot;",
    "a template": "{{ 7 * 7 }} {% include 'page.css' %} {# gone #} {{ command.__class__ }} {told} %(told)s",
    "a script's address": "javascript:alert(1)//http://a.example",
    "a page's address": "data:text/html,<script>alert(1)</script>",
    "turned around": "\u202eevil\u2066 \u200b",
    "controls": "a\x00b\x07c\x1b[31m",
    "half a character": "\ud83d",
    "a long one": "x" * 5000,
}


class Parsed(HTMLParser):
    """A page's tags with the names of their attributes, and all text and values of attributes, as a reader has them."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, [name for name, _ in attrs]))
        self.texts += [value for _, value in attrs if value]

    def handle_data(self, data):
        self.texts.append(data)

    def handle_comment(self, data):
        self.tags.append(("comment", data))


def example(text):
    return {
        "sample_id": 7,
        "part": 0,
        "image": Image.new("RGB", (20, 16)),
        "caption": text,
        "faces": [],
        "url": f"http://host.example/{text}",
        "width": 20,
        "height": 16,
        "original_width": 20,
        "original_height": 16,
        "faces_aligned": True,
        "nsfw": text,
        "similarity": 0.3,
        "license": "?",
    }


def typed(command, text):
    given = {"config": "20M", "data_dir": Path(text.replace("\x00", "")), "images": text, "exclude": f"{text}.txt"}
    return as_typed(command, {**{spec.name: spec.default for spec in dataclasses.fields(OptionFields)}, **given})


def a_sheet(text):
    page = sheet([example(text)], typed("show", text), f"Read: {text}")
    return page, [text, f"http://host.example/{text}", f"{text}, similarity 0.300", f". Read: {text}."]


def a_page_of_statistics(text):
    total = PartStats(samples=Kept(9, 9), asked=9, usable=4)
    total.reasons, total.hosts, total.usable_hosts = Counter({text: 5}), Counter({text: 9}), Counter({text: 4})
    page = stats_page(Stats(Options.of("20M", OptionFields(parts="0")), total, {0: (9, 4)}), typed("stats", text))
    return page, [text, plots.named(text)]


@pytest.mark.parametrize("make", [a_sheet, a_page_of_statistics])
@pytest.mark.parametrize("name", NASTY)
def test_nasty_text_changes_no_tag_and_is_shown_as_it_is(name, make):
    page, shown = make(NASTY[name])
    harmless, _ = make("http")
    parsed, without = Parsed(page), Parsed(harmless)
    assert parsed.tags == without.tags
    for text in shown:
        assert any(text in found for found in parsed.texts), text


@pytest.mark.browser
def test_a_browser_makes_nothing_of_nasty_text(tmp_path):
    file = tmp_path / "page.html"
    page = sheet([example(text) for text in NASTY.values()], typed("show", "".join(NASTY.values())), "r")
    file.write_text(page, encoding="utf-8", errors="replace")
    seen = browser.look_at(file)
    assert seen.complaints == []
    tags = {tag for tag, _ in Parsed(seen.dom).tags}
    assert tags == {tag for tag, _ in Parsed(sheet([example("a")], "c", "r")).tags}
    assert "<title>LAION-Face contact sheet</title>" in seen.dom
