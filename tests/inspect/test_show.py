"""Contact sheets: what load_dataset reads, as a picture and as a page that a browser shows as it should."""

import re
import shutil
import threading
import unicodedata
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from laion_face_builder import cli
from laion_face_builder.errors import OptionError
from laion_face_builder.inspect import contact_sheet as sheets
from laion_face_builder.inspect.contact_sheet import contact_sheet
from laion_face_builder.inspect.sheet import THUMBNAIL, sheet
from laion_face_builder.inspect.show import Sheet
from laion_face_builder.transforms.drawing import POINTS, SURE, UNSURE
from tests.support import browser
from tests.support.one_example import LANDMARKS, example

SURE_IN_PAGE, UNSURE_IN_PAGE = (0, 122, 75), (179, 107, 0)


def share_of(picture, colour, near=12):
    """Return the share of pixels of about that colour."""
    away = np.abs(np.asarray(picture, int) - colour).max(axis=-1)
    return float((away <= near).mean())


class Tags(HTMLParser):
    """Every tag of a page with its attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def named(self, name):
        return [attributes for tag, attributes in self.found if tag == name]


def run(capsys, *arguments):
    code = cli.main(["show", "20M", *map(str, arguments)])
    told = capsys.readouterr()
    return code, told.out.splitlines(), told.err


@pytest.mark.browser
def test_the_page_shows_what_load_dataset_reads(prepared, tmp_path, capsys):
    data = ["--data-dir", prepared.data.root]
    before = len(prepared.sandbox.pictures.log)
    code, files, _ = run(capsys, *data, "--min-face-size", 30, "--count", 6, "--columns", 3, "--out", tmp_path / "s")
    assert (code, files) == (0, [str(tmp_path / "s.png"), str(tmp_path / "s.html")])

    def passes(truth):
        return truth.ok and any(min(f.box[2] - f.box[0], f.box[3] - f.box[1]) >= 30 for f in truth.faces)

    wanted = [truth for truth in prepared.truth if passes(truth)][:6]
    seen = browser.look_at(tmp_path / "s.html")
    assert seen.complaints == []
    tags = Tags(seen.dom)
    assert [int(n) for n in re.findall(r"<dd>(\d+), part \d+</dd>", seen.dom)] == [t.sample_id for t in wanted]
    assert len(tags.named("image")) == 6
    assert len([a for a in tags.named("rect") if a["class"] == "box"]) == sum(len(t.faces) for t in wanted)
    assert len([a for a in tags.named("circle") if "point " in a["class"]]) == 5 * sum(len(t.faces) for t in wanted)
    assert "laion-face show 20M" in unescape(seen.dom)
    assert "--min-face-size 30" in unescape(seen.dom)
    for truth in wanted:
        assert truth.caption is None or "".join(truth.caption.split()) in "".join(unescape(seen.dom).split())
    for colour in (SURE_IN_PAGE, *POINTS):
        assert share_of(seen.picture, colour) > 5e-5, "boxes and landmarks are seen"
    assert len(prepared.sandbox.pictures.log) == before, "the page asks nobody for anything"
    with Image.open(tmp_path / "s.png") as sheet_picture:
        assert share_of(sheet_picture.convert("RGB"), SURE) > 1e-3


def test_every_source_of_pictures_shows_the_same(prepared, tmp_path, capsys):
    shutil.copytree(prepared.data.root / "index", tmp_path / "bare" / "index")
    how = ["--parts", "0", "--count", 8]
    fetch = ["--images", "fetch", "--allow-private-hosts", "--retries", 0]
    sheets, there = [], set(threading.enumerate())
    before = len(prepared.sandbox.pictures.log)
    for number, given in enumerate(([prepared.data.root], [tmp_path / "bare", *fetch])):
        code, _, err = run(capsys, "--data-dir", *given, *how, "--out", tmp_path / f"{number}.png")
        assert code == 0, err
        with Image.open(tmp_path / f"{number}.png") as picture:
            sheets.append(np.asarray(picture))
    one, other = sheets
    assert np.array_equal(one, other)
    asked = len(prepared.sandbox.pictures.log) - before
    assert 8 <= asked < 60, "only what the sheet needs is fetched, not thousands of rows ahead"
    assert {thread for thread in threading.enumerate() if thread.name == "laion-face-fetch"} <= there
    code, _, _ = run(capsys, "--data-dir", tmp_path / "bare", *how, "--images", "none", "--out", tmp_path / "none.html")
    assert code == 0
    tags = Tags((tmp_path / "none.html").read_text(encoding="utf-8"))
    assert tags.named("image") == []
    assert len([a for a in tags.named("rect") if a.get("class") == "blank"]) >= 7, "faces on an empty frame"


HOSTILE = '</figcaption><script>document.title="owned"</script><img src=x onerror="document.title=1"> &amp; <b>"\''


@pytest.mark.browser
def test_hostile_text_stays_text(tmp_path):
    nasty = example(caption=HOSTILE, url='javascript:alert(1)//"><script>x</script>', nsfw="<i>")
    spoiled = example(url='http://h.example/"onmouseover="alert(1)', caption="\u202eevil \x00\x07")
    file = tmp_path / "page.html"
    file.write_text(sheet([nasty, spoiled], "laion-face show <script>", "Read: <b>"), encoding="utf-8")
    seen = browser.look_at(file)
    assert seen.complaints == []
    tags = Tags(seen.dom)
    assert [tag for tag, _ in tags.found if tag in ("script", "img", "iframe", "i", "b", "form", "object")] == []
    assert "<title>LAION-Face contact sheet</title>" in seen.dom
    assert HOSTILE in unescape(seen.dom)
    (only,) = tags.named("a")
    assert only["href"] == 'http://h.example/"onmouseover="alert(1)'
    assert set(only) == {"href", "rel"}
    assert "noreferrer" in only["rel"]


@pytest.mark.browser
def test_the_policy_stops_what_escaping_would_miss(tmp_path):
    file = tmp_path / "page.html"
    script = '<script>document.title="owned"</script><p id="x" onclick="1">x</p><img src="http://127.0.0.1:9/x.png">'
    page = sheet([], "c", "r")
    assert "</main>" in page
    file.write_text(page.replace("</main>", f"{script}</main>"), encoding="utf-8")
    seen = browser.look_at(file, (300, 200))
    assert "<title>LAION-Face contact sheet</title>" in seen.dom
    assert any("Content Security Policy" in line for line in seen.complaints)


@pytest.mark.browser
def test_scripts_of_the_world(tmp_path):
    captions = [
        "وجه مرسوم رقم 7",
        "פנים מצוירות",
        "微笑的人像",
        "にこにこ似顔絵",
        "그림 속의 얼굴",
        "Two friends 👩🏽‍🎨",
    ]
    file = tmp_path / "page.html"
    file.write_text(sheet([example(caption=text) for text in captions], "c", "r"), encoding="utf-8")
    seen = browser.look_at(file)
    assert all(f'<p class="caption" dir="auto">{text}</p>' in seen.dom for text in captions)
    assert share_of(seen.picture, (250, 240, 120)) > 0.1, "the pictures are shown"


@pytest.mark.browser
def test_captions_run_from_the_side_where_their_script_begins(tmp_path):
    file, seen = tmp_path / "page.html", []
    for caption in ("abc", "وجه"):
        file.write_text(sheet([example(caption=caption)], "c", "r"), encoding="utf-8")
        seen.append(np.asarray(browser.look_at(file, (500, 900)).picture, int).mean(axis=-1))
    differ = np.abs(seen[0] - seen[1]) > 60
    left, right = (np.nonzero(differ & (pixels < 120))[1].mean() for pixels in seen)
    assert (left < 120, right > 380) == (True, True), (left, right)


@pytest.mark.browser
def test_boxes_lie_on_their_pixels(tmp_path):
    # A red square exactly under a box: in the page the box's line runs along its edge, whatever the scale.
    picture = Image.new("RGB", (400, 300), "white")
    picture.paste((255, 0, 0), (100, 120, 301, 221))
    face = {"box": [100.0, 120.0, 300.0, 220.0], "landmarks": [[200.0, 170.0]] * 5, "score": 0.5}
    file = tmp_path / "page.html"
    file.write_text(sheet([example(image=picture, faces=[face])], "c", "r", columns=1), encoding="utf-8")
    pixels = np.asarray(browser.look_at(file, (1250, 1500)).picture, int)
    red = np.argwhere(np.abs(pixels - (255, 0, 0)).max(axis=-1) < 40)
    green = np.argwhere(np.abs(pixels - SURE_IN_PAGE).max(axis=-1) < 12)
    near = (green >= red.min(axis=0) - 6).all(axis=1) & (green <= red.max(axis=0) + 6).all(axis=1)
    scale = np.ptp(red[:, 1]) / 200
    assert scale > 1.5
    for end in (np.min, np.max):
        assert np.abs(end(red, axis=0) - end(green[near], axis=0)).max() <= 1.5 + scale


@pytest.mark.browser
def test_boxes_that_may_not_fit_are_amber_and_told(tmp_path):
    file = tmp_path / "page.html"
    file.write_text(sheet([example(faces_aligned=False)], "c", "r"), encoding="utf-8")
    seen = browser.look_at(file, (700, 700))
    assert "may not fit this picture" in seen.dom
    assert share_of(seen.picture, UNSURE_IN_PAGE) > 5e-4
    assert share_of(contact_sheet([example(faces_aligned=False)]), UNSURE) > 5e-4


def test_odd_examples_make_a_sheet():
    nan = float("nan")
    odd = [
        example(image=None),
        example(image=None, original_width=None),
        example(faces=[], caption=None, url=None, nsfw=None, similarity=None),
        example(faces=[{"box": [nan] * 4, "landmarks": LANDMARKS, "score": nan}]),
        example(faces=[{"box": [90.0, 20.0, 20.0, 100.0], "landmarks": LANDMARKS, "score": 0.5}]),
        example(faces=[{"box": [-1e30, 0.0, 1e30, 9.0], "landmarks": [[1e30, 1.0]] * 5, "score": 0.5}]),
        example(image=Image.new("RGBA", (3000, 40)), original_width=3000, original_height=40),
        example(image=Image.new("I;16", (1, 1))),
    ]
    text = sheet(odd, "c", "r")
    assert text.count("<figure>") == len(odd)
    assert 'nan"' not in text
    assert "e+30" not in text
    assert contact_sheet(odd).size[0] > 1000


def crowd(count):
    """Make an example with faces of 12 pixels all over a picture of plain blue."""
    spots = [(30.0 * (number % 40), 30.0 * (number // 40)) for number in range(count)]
    faces = [
        {"box": [x, y, x + 12, y + 12], "landmarks": [[x + 4 + 2 * at, y + 6] for at in range(5)], "score": 0.5}
        for x, y in spots
    ]
    return example(image=Image.new("RGB", (1200, 600), (40, 60, 220)), faces=faces)


def test_the_marks_of_a_crowd_do_not_hide_it():
    assert share_of(contact_sheet([crowd(400)]).crop((30, 110, 270, 230)), (40, 60, 220), near=40) > 0.3
    page = sheet([crowd(400)], "command", "counts")
    assert page.count('class="box"') == 400
    assert 'class="label"' not in page
    assert "and 388 more" in page


def test_a_caption_of_any_length_makes_a_sheet():
    # A search for the longest line that fits took minutes from some thousand letters on.
    for caption in ("word " * 240, "x" * 1_000_000, "\n" * 1_000_000):
        assert contact_sheet([example(caption=caption)]).height == contact_sheet([example()]).height


def test_letters_that_a_font_lacks_become_plain_ones(monkeypatch):
    monkeypatch.setattr(sheets, "_is_missing", lambda character: not character.isascii())
    sheets._script_if_missing.cache_clear()
    found = [sheets.showable(text) for text in ("Øde Łódź, Æro, Đà Nẵng", "a 笑顔の女性 イラスト No. 3 Привет")]
    sheets._script_if_missing.cache_clear()
    assert found == ["Ode Lodz, AEro, Da Nang", "a <cjk, hiragana, katakana> No. 3 <cyrillic>"]


def test_the_marks_of_a_letter_that_a_font_lacks_go_with_it(monkeypatch):
    # Alone, a mark is drawn on a circle with dots, which even fonts without the script have.
    monkeypatch.setattr(sheets, "_is_missing", lambda one: not one.isascii() and unicodedata.category(one)[0] != "M")
    sheets._script_if_missing.cache_clear()
    found = sheets.showable("मुस्कुराती हुई लड़की 41")
    sheets._script_if_missing.cache_clear()
    assert found == "<devanagari> 41"


def test_a_smaller_copy_of_the_picture_keeps_the_frame():
    whole = example(image=Image.new("RGB", (1600, 1200), "white"), original_width=1600, original_height=1200)
    small = {**whole, "image": whole["image"].resize((200, 150))}
    assert np.array_equal(np.asarray(contact_sheet([whole])), np.asarray(contact_sheet([small])))
    assert re.sub('href="[^"]*"', "", sheet([whole], "", "")) == re.sub('href="[^"]*"', "", sheet([small], "", ""))


def test_pictures_in_the_page_are_bounded():
    rng = np.random.default_rng(0)
    large = Image.fromarray(rng.integers(0, 256, (2000, 3000, 3), np.uint8))
    assert len(sheet([example(image=large)], "c", "r")) < THUMBNAIL * THUMBNAIL * 2


def test_no_example_is_said(prepared, tmp_path, capsys):
    given = ["--data-dir", prepared.data.root, "--min-faces", 99, "--out", tmp_path / "s"]
    code, files, err = run(capsys, *given)
    assert code == 0
    assert len(files) == 2
    assert "no example to show" in err
    assert "No sample passed" in (tmp_path / "s.html").read_text(encoding="utf-8")


def test_what_cannot_be_shown_is_one_line(prepared, tmp_path, capsys):
    data = ["--data-dir", prepared.data.root, "--parts", "0"]
    for given, said in [
        ([*data, "--out", tmp_path / "s.pdf"], r"expected \.png, \.html"),
        ([*data, "--count", 0], "1 to 500"),
        ([*data, "--images", "download"], "laion-face download"),
        (["--data-dir", tmp_path], r"no index of parts .*laion-face prepare"),
        (["--data-dir", prepared.data.root, "--parts", "5"], "no index of parts 5"),
    ]:
        code, files, err = run(capsys, *given)
        assert (code, files, err.count("\n")) == (1, [], 1), given
        assert re.search(said, err)
    assert list(tmp_path.iterdir()) == []


def test_sheets_name_their_files(tmp_path):
    assert Sheet(tmp_path / "a").files == [tmp_path / "a.png", tmp_path / "a.html"]
    assert Sheet(tmp_path / "a.HTML").files == [tmp_path / "a.html"]
    with pytest.raises(OptionError):
        _ = Sheet(tmp_path / "a", columns=0).files


def test_the_token_is_never_written_down(prepared, tmp_path, capsys):
    run(capsys, "--data-dir", prepared.data.root, "--token", "hf_secret", "--count", 1, "--out", tmp_path / "s")
    assert "hf_secret" not in (tmp_path / "s.html").read_text(encoding="utf-8")


def test_only_web_addresses_can_be_followed():
    page = sheet([example(url="HTTPS://a.example/?a=1&b=<2>")], "c", "r")
    assert '<a href="HTTPS://a.example/?a=1&amp;b=&lt;2&gt;" rel="noreferrer noopener nofollow"><bdi>HTTPS:' in page
    others = ["javascript:1", "data:text/html,x", "file:///etc/passwd", "ftp://a/b", " http://a/", "//a/b", "", None]
    for address in others:
        page = sheet([example(url=address)], "c", "r")
        assert "<a" not in page
        assert (f"<bdi>{address}</bdi>" in page) is bool(address)
        assert ("no address" in page) is not bool(address)
