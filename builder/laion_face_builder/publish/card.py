"""The dataset card, README.md of a published place: its text, and its YAML for `datasets` and the Hub's viewer.

Text is in dataset_card.md; what depends on the files takes the place of its comments `<!-- laion-face: NAME -->`. It is
Markdown with numbers and names of our own in it, so there is nothing to escape. Configs, sizes and features in the YAML
are measured: configs name the files that exist, sizes are sums over the manifest. Features stand in a form that
datasets 3.6 and 5.2 both read (`published_columns`).
"""

from __future__ import annotations

import bisect
import importlib.resources
import re
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import yaml

from laion_face_builder.errors import BadFile
from laion_face_builder.publish import card_sections, card_snippets
from laion_face_builder.publish.card_snippets import Address
from laion_face_builder.publish.manifest import GLOBS, PREVIEW, Manifest
from laion_face_builder.publish.published_columns import features_of, schema_of_features
from laion_face_builder.publish.published_files import EXAMPLES
from laion_face_builder.schema import INDEX

#: In dataset_card.md: what is written of the files that are published takes its place.
_PLACE = re.compile(r"<!-- laion-face: ([a-z ]+) -->")
#: A public repo with one of these tags has no viewer.
FORBIDDEN_TAGS = frozenset({"nsfw", "porn", "hentai", "inappropriate", "not-for-all-audiences"})
_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M")
_SIZE_LIMITS = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)


def card_template() -> str:
    """Read the dataset_card.md that came with this package."""
    return importlib.resources.files(__package__).joinpath("dataset_card.md").read_text(encoding="utf-8")


def card_of(manifest: Manifest, address: Address) -> str:
    """Make the README.md for a place with the files of `manifest`.

    Args:
        address: how people name the place.
    """
    given, body = split_card(card_template(), "dataset_card.md")
    head = {**given, "source_datasets": source_datasets(manifest), **measured_head(manifest), **_gate(manifest)}
    text = yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=120)
    return f"---\n{text}---\n{_filled(body, manifest, address)}"


def licence_of(manifest: Manifest) -> str:
    """Make the LICENSE.md that the card's YAML links to: the card's own section on licences."""
    _, body = split_card(card_template(), "dataset_card.md")
    section = re.search(r"^## (Licences\n.*?)(?=^## )", body, re.DOTALL | re.MULTILINE)
    if section is None:
        raise BadFile("dataset_card.md", found="no section", expected="## Licences", way_out="Install it again.")
    return f"# {_filled(section[1], manifest, Address('')).rstrip()}\n"


def _filled(text: str, manifest: Manifest, address: Address) -> str:
    """Put what is written of these files into the places of the template's text."""

    def written(place: re.Match[str]) -> str:
        return "\n".join(_SECTIONS[place[1]](manifest, address)).rstrip()

    return _PLACE.sub(written, text)


def _published(manifest: Manifest, address: Address) -> list[str]:
    load, ask = card_snippets.how_to_load(manifest, address), card_snippets.how_to_ask(manifest, address)
    return [*card_sections.what_is_here(manifest), *load, *ask]


def _numbers(manifest: Manifest, address: Address) -> list[str]:
    return [*card_sections.numbers(manifest), *card_sections.summary(manifest)]


def _contact(manifest: Manifest, address: Address) -> list[str]:
    contact = manifest.publisher.contact
    ways = [f"<{contact}>"] if contact else []
    if address.is_hub:
        ways.append(f"in the [discussions](https://huggingface.co/datasets/{address.name}/discussions)")
    return [f"{', or '.join(ways) or 'whoever published it'}."]


_SECTIONS: dict[str, Callable[[Manifest, Address], list[str]]] = {
    "what is published here": _published,
    "a row": lambda manifest, address: card_snippets.example_row(manifest),
    "numbers": _numbers,
    "provenance": lambda manifest, address: card_sections.provenance(manifest),
    "changes": lambda manifest, address: card_sections.changes(manifest),
    "whose use": lambda manifest, address: [card_sections.whose_use(manifest)],
    "contact": _contact,
}

#: What people have to say before the Hub lets them in.
_PROMPT = """\
These data are about people who were not asked. Faces, boxes and landmarks can be biometric data, captions can name \
people. Access is for research that needs them, under these conditions: nobody is identified with them, or judged by \
them; they are not passed on; who asks to be left out is left out of your copy too, as soon as you hear of it; the \
laws on data protection that hold where you are, are kept."""
_FIELDS = {
    "Name": "text",
    "Affiliation": "text",
    "Country": "country",
    "What I need the data for": "text",
    "I will identify nobody with these data, nor judge anybody by them": "checkbox",
    "I will remove rows that are removed here, and not pass the data on": "checkbox",
}


def _gate(manifest: Manifest) -> dict[str, Any]:
    """Give the keys that the Hub asks people by before they see the files of a gated repo."""
    return {"extra_gated_prompt": _PROMPT, "extra_gated_fields": _FIELDS} if manifest.publisher.gated else {}


def source_datasets(manifest: Manifest) -> list[str]:
    """Name the Hub's datasets that the rows are from; of the metadata, the release in which the joins found them."""
    found = {str(join.get("made_from", {}).get("metadata", "")) for join in manifest.joins.values()}
    is_whole = not found or any(one.startswith("whole:") for one in found)
    # The release of 2021, by part, is on the Hub no more: its name there leads to today's.
    return ["FacePerceiver/laion-face", "laion/relaion400m" if is_whole else "laion/laion400m"]


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
    pattern = GLOBS.get(config, names[0])
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
            for config in sorted(configs, key=lambda config: config in GLOBS)
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
