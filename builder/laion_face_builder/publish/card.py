"""The dataset card, README.md of a published place: its text, and its YAML for `datasets` and the Hub's viewer.

It is Markdown with numbers and names of our own in it, so there is nothing to escape. Everything in the YAML is
measured: configs name the files that exist, sizes and counts are sums over the manifest. Features stand in a form that
datasets 3.6 and 5.2 both read (`published_columns`).
"""

from __future__ import annotations

import bisect
import importlib.resources
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import yaml

from laion_face_builder.errors import BadFile
from laion_face_builder.files import human_size
from laion_face_builder.layout import CONFIG_PARTS
from laion_face_builder.publish.manifest import GLOBS, PREVIEW, PREVIEW_FILE, Manifest
from laion_face_builder.publish.published_columns import features_of, schema_of_features
from laion_face_builder.publish.published_files import EXAMPLES
from laion_face_builder.schema import INDEX

#: In dataset_card.md: what is published takes its place.
PLACE = "<!-- laion-face: what is published here -->"
#: A public repo with one of these tags has no viewer.
FORBIDDEN_TAGS = frozenset({"nsfw", "porn", "hentai", "inappropriate", "not-for-all-audiences"})
_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M")
_SIZE_LIMITS = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)


def card_template() -> str:
    """Read the dataset_card.md that came with this package."""
    return importlib.resources.files(__package__).joinpath("dataset_card.md").read_text(encoding="utf-8")


def card_of(manifest: Manifest, target: str) -> str:
    """Make the README.md for a place with the files of `manifest`.

    Args:
        target: the name under which people load it: "owner/name" or a folder.
    """
    given, body = split_card(card_template(), "dataset_card.md")
    head = {**given, **measured_head(manifest)}
    if manifest.kind == "examples" or manifest.preview:
        # The Hub has one field for one licence; the card's section on licences says which is for what.
        head |= {"license": "other", "license_name": "mixed", "license_link": "#licences"}
    text = yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=120)
    return f"---\n{text}---\n{body.replace(PLACE, _what_is_here(manifest, target))}"


def split_card(text: str, name: str) -> tuple[dict[str, Any], str]:
    """Split a card into the YAML at its head, as a dict, and the text after it.

    Raises:
        BadFile: there is no such head.
    """
    start, *rest = text.split("---\n", 2)
    try:
        head = yaml.safe_load(rest[0]) if not start and len(rest) == 2 else None
    except yaml.YAMLError:
        head = None
    if not isinstance(head, dict):
        raise BadFile(name, found="no YAML head", expected="one between two lines of ---", way_out="Publish again.")
    return head, rest[1]


def schema_of(manifest: Manifest, config: str) -> pa.Schema:
    """Give the columns of a config's files: ours, and what was published beside them."""
    ours = EXAMPLES if manifest.kind == "examples" or config == PREVIEW else INDEX
    return pa.schema([*ours, *schema_of_features(manifest.columns(config))])


def data_files(manifest: Manifest, config: str) -> str | list[str]:
    """Give the pattern of a config's files; their names, where an earlier version published under others."""
    names = [entry.name for entry in manifest.of_config(config)]
    pattern = GLOBS.get(config, PREVIEW_FILE)
    found = [name for name in manifest.entries if PurePosixPath(name).match(pattern)]
    return pattern if set(found) == set(names) else names


def measured_head(manifest: Manifest) -> dict[str, Any]:
    """Give the keys of the card's YAML that follow from the files: size_categories, configs, dataset_info."""
    configs = manifest.configs()
    rows = sum(entry.rows for entry in manifest.entries.values() if entry.part >= 0)
    return {
        "size_categories": [_SIZES[bisect.bisect_right(_SIZE_LIMITS, rows)]],
        # The Hub opens the first of them to see whether its pages are small: that has to be one file.
        "configs": [
            _config(manifest, config, is_default=config == configs[0])
            for config in sorted(configs, key=lambda config: config != PREVIEW)
        ],
        "dataset_info": [_info(manifest, config) for config in configs],
    }


def _config(manifest: Manifest, config: str, is_default: bool) -> dict[str, Any]:
    files = [{"split": "train", "path": data_files(manifest, config)}]
    return {"config_name": config, **({"default": True} if is_default else {}), "data_files": files}


def _info(manifest: Manifest, config: str) -> dict[str, Any]:
    entries = manifest.of_config(config)
    # No splits: `datasets` would hold load_dataset(..., filters=…) to their numbers of rows, and raise.
    return {
        "config_name": config,
        "features": features_of(schema_of(manifest, config)),
        "download_size": sum(entry.size for entry in entries),
        "dataset_size": sum(entry.arrow_bytes for entry in entries),
    }


def _what_is_here(manifest: Manifest, target: str) -> str:
    lines = [
        "### What is published here",
        "",
        *_coverage(manifest),
        "",
        "| config | parts | rows | size |",
        "|---|---|---:|---:|",
    ]
    for config in manifest.configs():
        entries = manifest.of_config(config)
        parts = ", ".join(map(str, sorted({entry.part for entry in entries if entry.part >= 0}))) or "a few rows"
        rows, size = sum(entry.rows for entry in entries), sum(entry.size for entry in entries)
        lines.append(f"| `{config}` | {parts} | {rows:,} | {human_size(size)} |")
    return "\n".join([*lines, "", *_pictures(manifest), *_left_out(manifest), "", *_how_to_load(manifest, target)])


def _coverage(manifest: Manifest) -> list[str]:
    here = set(manifest.parts)
    of = [f"{len(here & set(parts))} of the {len(parts)} parts of {name}" for name, parts in CONFIG_PARTS.items()]
    missing = [part for part in CONFIG_PARTS["50M"] if part not in here]
    rest = f" Missing are the parts {_ranges(missing)}." if missing else ""
    return [f"This copy has {' and '.join(of)}.{rest}"]


def _ranges(numbers: list[int]) -> str:
    """Write numbers as ranges: 1, 2, 3, 7 as "1-3, 7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _pictures(manifest: Manifest) -> list[str]:
    if manifest.kind == "examples":
        return ["Rows have their pictures, which belong to their owners: this copy is for private use."]
    shown = " The config `preview` shows a few, which belong to their owners." if manifest.preview else ""
    return [f"There are no pictures in it: they are fetched from where they were found.{shown}"]


def _left_out(manifest: Manifest) -> list[str]:
    filters = {name for entry in manifest.entries.values() for name in entry.fingerprint.get("filters", ())}
    said = {
        "exclude": "Rows on the publisher's exclusion list are left out.",
        "join_how": "Rows that the publisher's own tables lack are left out.",
    }
    return [text for name, text in said.items() if name in filters] + _taken_down(manifest)


def _taken_down(manifest: Manifest) -> list[str]:
    if not manifest.removals.done:
        return []
    count = sum(len(manifest.removals.found_in(part)) for part in manifest.parts)
    latest = max(removal.date for removal in manifest.removals.done)
    return [f"Of these parts {count:,} rows were taken down, the last time on {latest}; they stay away."]


def _how_to_load(manifest: Manifest, target: str) -> list[str]:
    config = manifest.configs()[0]
    lines = [
        "```python",
        "import datasets",
        "",
        f'ds = datasets.load_dataset("{target}", "{config}", split="train", streaming=True)',
    ]
    if manifest.kind == "index":
        lines += [
            "",
            "import laion_face  # the same rows with their pictures, fetched as they are read",
            "",
            f'ds = laion_face.load_dataset("{config}", split="train", streaming=True,',
            f'                             index="{target}"{_parts(manifest, config)})',
        ]
    return [*lines, "```"]


def _parts(manifest: Manifest, config: str) -> str:
    here = [part for part in manifest.parts if part in CONFIG_PARTS[config]]
    return "" if len(here) == len(CONFIG_PARTS[config]) else f', parts="{",".join(map(str, here))}"'
