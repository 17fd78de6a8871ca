"""The rows of the miniature: what the metadata says, what is true of the face rows, and what the hosts answer."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, cycle, islice
from typing import Any

from PIL import Image, ImageOps

from laion_face_builder.sandbox.cartoons import KINDS, Scene, draw, encode, plan
from laion_face_builder.sandbox.plain_join import plain_join
from laion_face_builder.sandbox.serving import Answer, redirect
from laion_face_builder.sandbox.spec import FAILURES, RELEASES, TWISTS, Row, SandboxSpec, Truth, row_of
from laion_face_builder.sandbox.today import files_of_today

_CAPTIONS = (
    "Cartoon portrait of a smiling woman, flat illustration no. {}",
    "Retrato de un niño sonriente, ilustración vectorial n.º {}",
    "Портрет улыбающейся девушки, рисунок № {}",
    "微笑女孩卡通头像插画 {}",
    "笑顔の女の子のイラスト その{}",
    "웃는 얼굴 캐릭터 일러스트 {}",
    "رسم كرتوني لوجه فتاة مبتسمة رقم {}",
    "मुस्कुराती लड़की का कार्टून चित्र {}",
    "Πορτρέτο αγοριού, σκίτσο αρ. {}",  # noqa: RUF001 - Greek, not Latin letters that look like it
    "ציור פנים של ילדה מחייכת {}",
    "Two friends 👩🏽‍🎨👨🏻‍🚀 — avatar pack, icon {} of 999",
    '"Happy Birthday" greeting card, faces,\tset of {};\nfree download',
    "",
    None,
)
_SUFFIXES = {"jpeg": "jpg", "png": "png", "webp": "webp", "gif": "gif"}
_PAGE = b"<!doctype html><html><body><h1>This picture has moved on</h1></body></html>"


@dataclass(frozen=True)
class Content:
    """All that a sandbox holds.

    Args:
        files: the metadata files by name, and the rows of each of them in order.
        listed: the face rows of 2021, by part and row: those that the id list names and that have detections.
        truth: the rows of the indexes, by part and row.
        proof: what stands beside the index of each part; see `plain_join`.
        answers: what the picture hosts say under each path.
    """

    spec: SandboxSpec
    files: dict[str, list[Row]]
    listed: tuple[Truth, ...]
    truth: tuple[Truth, ...]
    proof: dict[int, dict[str, int]]
    answers: dict[str, Answer] = field(repr=False)

    def rows_read_for(self, parts: Collection[int]) -> int:
        """Count the metadata rows that have to be read for these parts: those of their files, or all."""
        by_part = self.spec.world == "2021"
        wanted = {RELEASES["2021"].file_name.format(part) for part in parts} if by_part else self.files
        return sum(len(rows) for name, rows in self.files.items() if name in wanted)


@dataclass(frozen=True)
class _Seat:
    """A face row before it is made: who it is, and what is to become of it."""

    sample_id: int
    row: int
    fate: str
    twist: str
    kind: str


def make_content(spec: SandboxSpec, hosts: Sequence[str], forbidden_file: str = "/etc/hostname") -> Content:
    """Make a sandbox's content: metadata rows, what is true of the face rows, and the hosts' answers.

    Args:
        spec: how much of what.
        hosts: addresses without a slash at the end; the pictures are spread over them.
        forbidden_file: a local file that some URLs name (as file://), which no client may ever read.
    """
    answers: dict[str, Answer] = {}
    made = {part: _make_part(spec, part, hosts, forbidden_file, answers) for part in spec.parts}
    parts = {part: rows for part, (rows, _) in made.items()}
    listed = tuple(truth for _, truths in made.values() for truth in truths)
    if spec.world == "today":
        files = files_of_today(spec, parts, listed, hosts)
    else:
        files = {RELEASES["2021"].file_name.format(part): rows for part, rows in parts.items()}
    truths: list[Truth] = []
    proof = {}
    for part in spec.parts:
        of_part, proof[part] = _what_is_true(files, [truth for truth in listed if truth.part == part], part)
        truths += of_part
    return Content(spec, files, listed, tuple(truths), proof, answers)


def id_without_metadata(part: int) -> int:
    """Return an id that the list has for this part, and no metadata file has."""
    return 10**12 * 32 + part


def _what_is_true(
    files: Mapping[str, Sequence[Row]], listed: Sequence[Truth], part: int
) -> tuple[list[Truth], dict[str, int]]:
    known = {truth.sample_id: truth for truth in listed}
    rows = chain.from_iterable(files[name] for name in sorted(files))
    faces = {sample_id: truth.faces for sample_id, truth in known.items()}
    kept, proof = plain_join(rows, {*known, id_without_metadata(part)}, faces)
    return [replace(known[row["sample_id"]], row=number, **row) for number, row in enumerate(kept)], proof


def _make_part(
    spec: SandboxSpec, part: int, hosts: Sequence[str], forbidden_file: str, answers: dict[str, Answer]
) -> tuple[list[Row], list[Truth]]:
    """Make the part's rows of 2021, and what is true of its face rows; put what the hosts say into `answers`."""
    rng = random.Random(f"{spec.seed}/{part}")  # noqa: S311 - variety, not secrets
    rows: list[Row] = []
    truths = []
    for seat in _deal(spec, rng, part):
        if isinstance(seat, int):
            rows.append(_other_row(rng, seat, hosts))
            continue
        base = rng.choice(list(hosts))
        truth = _face_row(rng, seat, base)
        own = _answers(truth, base, spec)
        # The answer that comes last is the one that a redirect leads to.
        body = list(own.values())[-1].body if own else b""
        truth = replace(truth, served=body if isinstance(body, bytes) else b"")
        if truth.fate == "file_url":
            truth = replace(truth, url=f"file://{forbidden_file}")
        answers.update(own)
        rows.append(row_of(truth))
        truths.append(truth)
    return rows, truths


def _deal(spec: SandboxSpec, rng: random.Random, part: int) -> list[_Seat | int]:
    """Return the part's rows in order, of the faceless only the id; shares are exact, kinds equally frequent."""
    count = round(spec.rows * spec.face_share)
    failing, twisted = round(count * spec.failing), round(count * spec.twisted)
    fates = [(fate, "") for fate in islice(cycle(FAILURES), failing)]
    fates += [("ok", twist) for twist in islice(cycle(TWISTS), min(twisted, count - failing))]
    fates += [("ok", "")] * (count - len(fates))
    kinds = list(islice(cycle(KINDS), count))
    has_faces = [at < count for at in range(spec.rows)]
    for deck in (fates, kinds, has_faces):
        rng.shuffle(deck)
    ids = [number * 32 + part for number in rng.sample(range(10**11), spec.rows)]  # no id is in two parts
    dealt = zip(range(count), fates, kinds, strict=True)
    seats: list[_Seat | int] = []
    for sample_id, chosen in zip(ids, has_faces, strict=True):
        if chosen:
            row, (fate, twist), kind = next(dealt)
            plain = fate in ("truncated", "cut") or twist in ("rescaled", "reshaped")
            seats.append(_Seat(sample_id, row, fate, twist, "jpeg" if plain else kind))
        else:
            seats.append(sample_id)
    return seats


def _face_row(rng: random.Random, seat: _Seat, base: str) -> Truth:
    scene = plan(rng, rng.choice((0, 1, 1, 1, 1, 1, 2, 2, 3, 4, 5, 6)))
    path = f"/{seat.sample_id % 32:02d}/{seat.sample_id}.{_SUFFIXES[seat.kind.partition('-')[0]]}"
    served, size = _served(scene, seat.kind, seat.twist)
    known = rng.random() > 0.03
    return Truth(
        sample_id=seat.sample_id,
        part=seat.sample_id % 32,
        row=seat.row,
        url=("ftp" + base[4:] if seat.fate == "ftp_url" else base) + path,
        caption=_caption(rng),
        width=scene.width if known else None,
        height=scene.height if known or rng.random() < 0.3 else None,
        faces=scene.faces,
        kind=seat.kind,
        fate=seat.fate,
        twist=seat.twist,
        served=served,
        served_size=size if seat.fate == "ok" else None,
        **_labels(rng),
    )


def _served(scene: Scene, kind: str, twist: str) -> tuple[bytes, tuple[int, int]]:
    picture = draw(scene, plain=kind.startswith("gif") or kind == "png-palette")
    if twist == "rescaled":
        picture = picture.resize((scene.width * 3 // 2, scene.height * 3 // 2), Image.Resampling.LANCZOS)
    if twist == "reshaped":
        picture = ImageOps.fit(picture, (scene.width, max(24, scene.height // 2)))
    return encode(picture, kind), picture.size


def _answers(truth: Truth, base: str, spec: SandboxSpec) -> dict[str, Answer]:
    """Return the answer under the row's path and, last, the one that a redirect leads to."""
    path = truth.path
    data, form = truth.served, {"Content-Type": f"image/{truth.kind.partition('-')[0]}"}
    if truth.fate in ("ftp_url", "file_url"):
        return {}
    if truth.fate.startswith("http_"):
        return {path: Answer(int(truth.fate[5:]), b"gone")}
    if truth.twist == "redirected":
        return {path: redirect(f"{base}/moved{path}", 301), f"/moved{path}": Answer(body=data, headers=form)}
    failures = {
        "html": Answer(body=_PAGE, headers={"Content-Type": "text/html; charset=utf-8"}),
        "opted_out": Answer(body=data, headers={**form, "X-Robots-Tag": "noai, noimageai"}),
        "truncated": Answer(body=data[: len(data) // 2], headers=form),
        "cut": Answer(body=data, headers=form, cut_after=len(data) // 2),
        "empty": Answer(headers=form),
        "other_scheme": redirect(f"ftp{base[4:]}/moved{path}"),
    }
    good = Answer(body=data, headers=form, delay=spec.slow if truth.twist == "slow" else 0.0)
    return {path: failures.get(truth.fate, good)}


def _caption(rng: random.Random) -> str | None:
    chosen = rng.choice(_CAPTIONS)
    return chosen.format(rng.randint(1, 999)) if chosen else chosen


def _labels(rng: random.Random) -> dict[str, Any]:
    return {
        "license": rng.choices(("?", None, "cc-by-4.0"), (90, 5, 5))[0],
        "nsfw": rng.choices(("UNLIKELY", "UNSURE", "NSFW", None), (85, 6, 4, 5))[0],
        "similarity": None if rng.random() < 0.03 else rng.uniform(0.3, 0.45),
    }


def _other_row(rng: random.Random, sample_id: int, hosts: Sequence[str]) -> Row:
    """Make a row without faces, whose picture nobody has a reason to ask for. One in fifty has no id."""
    labels = _labels(rng)
    return {
        "sample_id": None if rng.random() < 0.02 else sample_id,
        "url": f"{rng.choice(list(hosts))}/faceless/{sample_id}.jpg",
        "caption": _caption(rng),
        "height": rng.randint(64, 2000),
        "width": rng.randint(64, 2000),
        **labels,
    }
