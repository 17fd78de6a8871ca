"""Write the sections of the card that say what is published: which rows, how many of what, where from, what changed.

Nothing that strangers wrote stands in them as it is: counted values have names of ours, and hosts are letters, digits,
dots and dashes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from laion_face_builder.files import human_size
from laion_face_builder.layout import CONFIG_PARTS
from laion_face_builder.publish import published_counts
from laion_face_builder.publish.manifest import Entry, Manifest
from laion_face_builder.publish.published_counts import HOSTS, sum_of
from laion_face_builder.shown import ranges

_SHOWN_HOSTS = 20
_SHOWN_CHANGES = 10
_SHARES = (
    ("faces a picture", "faces", published_counts.FACES),
    ("the largest face's short side, pixels", "face_sizes", published_counts.FACE_SIZES),
    ("the picture's short side, pixels", "short_sides", published_counts.SHORT_SIDES),
    ("LAION's `nsfw`", "nsfw", published_counts.NSFW),
    ("LAION's `license`", "licences", published_counts.LICENCES),
)
_LEFT_OUT = ("repeated_rows", "ambiguous_rows", "disproved_rows", "swapped_rows")


def what_is_here(manifest: Manifest) -> list[str]:
    """Write which parts there are, how large the configs are, and what was left out."""
    lines = ["### What is published here", "", *_coverage(manifest), "", "| config | parts | rows | size |"]
    lines.append("|---|---|---:|---:|")
    for config in manifest.configs():
        entries = manifest.of_config(config)
        parts = ranges(sorted({entry.part for entry in entries if entry.part >= 0}), ", ") or "a few rows"
        rows, size = sum(entry.rows for entry in entries), sum(entry.size for entry in entries)
        lines.append(f"| `{config}` | {parts} | {rows:,} | {human_size(size)} |")
    return [*lines, "", *_counted_again(manifest), *_pictures(manifest), *_left_out(manifest), ""]


def _counted_again(manifest: Manifest) -> list[str]:
    """Say which rows are in several configs."""
    twice = "The files of `20M` are among those of `50M`: a total over configs, as the Hub shows it, counts them twice."
    lines = [twice] if {"20M", "50M"} <= set(manifest.configs()) else []
    if manifest.single and not manifest.preview:
        lines.append(f"`{manifest.single[0]}` is the first of these files alone, for a quick look.")
    return lines


def _coverage(manifest: Manifest) -> list[str]:
    here = set(manifest.parts)
    of = [f"{len(here & set(parts))} of the {len(parts)} parts of {name}" for name, parts in CONFIG_PARTS.items()]
    missing = [part for part in CONFIG_PARTS["50M"] if part not in here]
    rest = f" Missing are the parts {ranges(missing, ', ')}." if missing else ""
    return [f"This copy has {' and '.join(of)}.{rest}"]


def _pictures(manifest: Manifest) -> list[str]:
    if manifest.kind == "examples":
        return [f"Rows have their pictures, which belong to their owners; {whose_use(manifest)}."]
    shown = " The config `preview` shows a few, which belong to their owners." if manifest.preview else ""
    return [f"There are no pictures in it: they are fetched from where they were found.{shown}"]


def whose_use(manifest: Manifest) -> str:
    """Say what a copy's pictures may be used for, as far as its publisher has said it."""
    if manifest.publisher.public_pictures:
        return "the publisher of this copy has stated the right to show every one of them"
    return "a copy with pictures is for private use, where the law allows it"


def _left_out(manifest: Manifest) -> list[str]:
    entries = manifest.entries.values()
    filters = {name for entry in entries for name in entry.fingerprint.get("filters", ())}
    said = {
        "include": "Only rows on the publisher's list are in it.",
        "exclude": "Rows on the publisher's exclusion list are left out.",
        "join_how": "Rows that the publisher's own tables lack are left out.",
    }
    lines = [text for name, text in said.items() if name in filters]
    pictured = sorted({entry.part for entry in entries if entry.fingerprint.get("pictures_only")})
    if pictured:
        which = "" if pictured == list(manifest.parts) else f" of the parts {ranges(pictured, ', ')}"
        lines.append(f"Rows{which} whose picture could not be had are left out.")
    elif manifest.kind == "examples":
        lines.append("`image` is null in rows whose picture could not be had.")
    return lines + _taken_down(manifest)


def _taken_down(manifest: Manifest) -> list[str]:
    if not manifest.removals.done:
        return []
    count = sum(len(manifest.removals.found_in(part)) for part in manifest.parts)
    latest = max(removal.date for removal in manifest.removals.done)
    return [f"Of these parts {count:,} rows were taken down, the last time on {latest}; they stay away."]


def numbers(manifest: Manifest) -> list[str]:
    """Write how many of what there are; only of files that were counted, which an earlier version did not do."""
    entries = [entry for entry in manifest.entries.values() if entry.part >= 0]
    counted = [entry for entry in entries if entry.counts]
    lines = ["### Numbers", ""]
    if len(counted) < len(entries):
        lines += [
            f"An earlier version published {len(entries) - len(counted)} of the {len(entries)} files without counting "
            "what is in them: they are not in these numbers.",
            "",
        ]
    if not counted:
        return lines
    total = sum_of(entry.counts for entry in counted)
    of = total["totals"]
    return [*lines, *_totals(of), "", *_shares(total), *_hosts(total["hosts"], of["rows"], len(counted))]


def _totals(of: Mapping[str, int]) -> list[str]:
    rows, faces, captions = of["rows"], of.get("faces", 0), of.get("captions", 0)
    pictures = of.get("pictures", 0)
    with_pictures = f", {pictures:,} of them with their picture" if pictures else ""
    size = human_size(of.get("caption_bytes", 0))
    mean = f", {faces / rows:.2f} a picture" if rows else ""
    return [f"{rows:,} rows{with_pictures}; {faces:,} faces{mean}; {captions:,} rows have a caption, {size} of text."]


def _shares(total: Mapping[str, Mapping[str, int]]) -> Iterable[str]:
    for title, name, order in _SHARES:
        found = total.get(name, {})
        shown = [value for value in order if found.get(value)]
        if not shown:
            continue
        all_rows = sum(found.values())
        yield f"| {title} | {' | '.join(shown)} |"
        yield f"|---|{'---:|' * len(shown)}"
        yield f"| rows | {' | '.join(f'{found[value]:,}' for value in shown)} |"
        yield f"| share | {' | '.join(percent(found[value], all_rows) for value in shown)} |"
        yield ""


def _hosts(hosts: Mapping[str, int], rows: int, files: int) -> list[str]:
    commonest = sorted(hosts.items(), key=lambda item: (-item[1], item[0]))[:_SHOWN_HOSTS]
    if not commonest:
        return []
    how = "Counted exactly." if files == 1 else f"Added up from the {HOSTS} commonest hosts of each file: at least."
    lines = [f"The hosts that most addresses lead to. {how}", "", "| host | rows | share |", "|---|---:|---:|"]
    return [*lines, *(f"| {host} | {n:,} | {percent(n, rows)} |" for host, n in commonest), ""]


def summary(manifest: Manifest) -> list[str]:
    """Write what the EU's template for summaries of training content asks for, as far as it is known from the data."""
    total = sum_of(entry.counts for entry in manifest.entries.values() if entry.part >= 0).get("totals", {})
    rows = sum(entry.rows for entry in manifest.entries.values() if entry.part >= 0)
    pictures = (
        f"{total.get('pictures', 0):,} pictures" if manifest.kind == "examples" else f"links to {rows:,} pictures"
    )
    text = f"{total.get('captions', 0):,} alternative texts, {human_size(total.get('caption_bytes', 0))}"
    fields = {
        "modalities": "images, and text in many languages, English most of all",
        "size": f"{pictures}; {text}" if total else pictures,
        "kind of source": "a publicly available dataset, itself made from pages of Common Crawl",
        "kind of content": "photographs, drawings and advertisements with faces; alternative texts of web pages",
        "collected": "from pages crawled in 2014 to 2021; pictures are fetched later, by whoever uses it",
        "domains": "the commonest hosts, above; all of them are in the column `url`",
        "personal data": "yes, of special categories too: see [Personal and Sensitive Information]"
        "(#personal-and-sensitive-information)",
        "copyright": "pictures and texts belong to their owners, who were not asked",
    }
    return [
        "For who has to summarise the content that a model was trained on (Article 53(1)(d) of the EU's AI Act, by the "
        "Commission's template), what is known from the data:",
        "",
        "| field | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in fields.items()),
    ]


def provenance(manifest: Manifest) -> list[str]:
    """Write what the parts were made from, and what proves their join, a line a part."""
    joins = {int(part): join for part, join in manifest.joins.items()}
    without = [part for part in manifest.parts if part not in joins]
    lines = ["#### Provenance", ""]
    if joins:
        lines += [*_proof(list(joins.values())), "", *_sources(list(joins.values())), ""]
    if without:
        lines += [f"Of the parts {ranges(without, ', ')} no proof came with the index that was published.", ""]
    lines += [
        "<details><summary>Part by part</summary>",
        "",
        "| part | rows | faces | size | ids found | faces that fit",
    ]
    lines[-1] += " | repeated, ambiguous, disproved | detections, SHA-256 |"
    lines.append("|---:|---:|---:|---:|---:|---:|---|---|")
    lines += [_of_part(part, manifest, joins.get(part)) for part in manifest.parts]
    return [*lines, "", "</details>"]


def _proof(joins: Sequence[Mapping[str, Any]]) -> list[str]:
    of = {name: sum(int(join.get(name) or 0) for join in joins) for name in _PROOF}
    return [
        f"Of the {of['ids_asked']:,} sample ids on the lists {percent(of['ids_found'], of['ids_asked'])} were found in "
        f"the metadata. {percent(of['faces_that_fit'], of['faces_with_size'])} of the faces in pictures of known size "
        f"lie in them. Left out were {of['repeated_rows']:,} rows that repeat another, {of['ambiguous_rows']:,} of "
        f"which nobody can tell which is right ({of['ambiguous_ids']:,} ids), and {of['disproved_rows']:,} whose faces "
        f"fit another row; width and height were exchanged in {of['swapped_rows']:,}."
    ]


_PROOF = ("ids_asked", "ids_found", "faces_with_size", "faces_that_fit", "ambiguous_ids", *_LEFT_OUT)


def _sources(joins: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write what the sources' bytes are known by: the Hub shows the same SHA-256 beside each large file."""
    said = {
        "ids": "List of ids (`laion_face_ids.pth`)",
        "metadata": "Metadata",
    }
    lines = ["The sources, by the SHA-256 of their bytes, which the Hub shows beside each large file:", ""]
    for name, text in said.items():
        found = sorted({str(join.get("made_from", {}).get(name, "?")) for join in joins})
        wholes = " (of the SHA-256s of all its files)" if any(one.startswith("whole:") for one in found) else ""
        shown = f"`{found[0]}`" if len(found) == 1 else f"{len(found)} files, listed in `laion_face_manifest.json`"
        lines.append(f"- {text}{wholes}: {shown}")
    return [*lines, "- Detections (`sample2detect_N.pth`): below, part by part"]


def _of_part(part: int, manifest: Manifest, join: Mapping[str, Any] | None) -> str:
    entries: list[Entry] = [entry for entry in manifest.entries.values() if entry.part == part]
    rows, size = sum(entry.rows for entry in entries), sum(entry.size for entry in entries)
    faces = sum_of(entry.counts for entry in entries).get("totals", {}).get("faces")
    cells = [str(part), f"{rows:,}", "-" if faces is None else f"{faces:,}", human_size(size)]
    if join is None:
        return f"| {' | '.join([*cells, *'----'])} |"
    left_out = ", ".join(f"{int(join.get(name) or 0):,}" for name in _LEFT_OUT[:3])
    detections = str(join.get("made_from", {}).get("faces", "?")).removeprefix("sha256:")
    shares = [
        percent(int(join.get(of) or 0), int(join.get(all_of) or 0))
        for of, all_of in (("ids_found", "ids_asked"), ("faces_that_fit", "faces_with_size"))
    ]
    return f"| {' | '.join([*cells, *shares, left_out, f'`{detections[:16]}`'])} |"


def changes(manifest: Manifest) -> list[str]:
    """Write what came and changed, the latest first."""
    lines = ["### Changes of this copy", ""]
    if not manifest.history:
        return [*lines, "None are noted: an earlier version of `laion-face` published it."]
    latest = list(reversed(manifest.history))
    for change in latest[:_SHOWN_CHANGES]:
        deeds = [
            f"{what} parts {ranges(change[what], ', ')}" for what in ("added", "changed", "removed") if what in change
        ]
        deeds += ["another preview"] * ("preview" in change)
        rows = f"{int(change['rows']):,} rows then"
        lines.append(f"- {change['date']}, laion-face {change['version']}: {'; '.join([*deeds, rows])}")
    rest = len(latest) - _SHOWN_CHANGES
    return [*lines, *([f"- {rest} more, in `laion_face_manifest.json`"] if rest > 0 else [])]


def percent(part: int, whole: int) -> str:
    """Write a share; "-" of nothing."""
    return f"{100 * part / whole:.1f} %" if whole else "-"
