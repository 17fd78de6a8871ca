"""Show on the card how a published place is loaded and asked, in code that runs as it is printed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from laion_face_builder.layout import CONFIG_PARTS
from laion_face_builder.publish.manifest import GLOBS, Manifest
from laion_face_builder.schema import EXAMPLE_COLUMNS, INDEX
from laion_face_builder.shown import ranges

PROJECT = "https://github.com/FacePerceiver/LAION-Face"

#: Not a row of the data: that would show a person, and stay here when the row has been taken down.
EXAMPLE_ROW: dict[str, Any] = {
    "sample_id": 1234567890123,
    "part": 0,
    "url": "https://example.com/pictures/choir.jpg",
    "caption": "The village choir in front of the town hall",
    "width": 1024,
    "height": 683,
    "license": "?",
    "nsfw": "UNLIKELY",
    "similarity": 0.3172,
    "faces": [
        {
            "box": [311.5, 120.25, 371.0, 198.75],
            "landmarks": [[328.0, 150.5], [355.5, 150.0], [342.0, 166.5], [331.0, 179.0], [353.0, 178.5]],
            "score": 0.99,
        }
    ],
    "n_faces": 1,
    "max_face_score": 0.99,
    "max_face_size": 59.5,
}


@dataclass(frozen=True)
class Address:
    """How readers name a published place.

    Attributes:
        name: "owner/name" on the Hub, or a folder.
        is_hub: whether it is the former.
        branch: of the Hub dataset.
    """

    name: str
    is_hub: bool = False
    branch: str = "main"

    @property
    def root(self) -> str:
        """What stands before the name of a file: an hf:// address, or the folder."""
        if not self.is_hub:
            return self.name
        return f"hf://datasets/{self.name}" + ("" if self.branch == "main" else f"@{self.branch}")

    @property
    def index(self) -> str:
        """What `laion_face.load_dataset(index=…)` takes."""
        return self.name if not self.is_hub or self.branch == "main" else f"{self.name}@{self.branch}"


def how_to_load(manifest: Manifest, address: Address) -> list[str]:
    """Write the section that loads the rows, with `datasets` and with this project."""
    config = manifest.configs()[0]
    branch = f', revision="{address.branch}"' if address.is_hub and address.branch != "main" else ""
    lines = [
        "### Load it",
        "",
        "```python",
        "import datasets",
        "",
        f'ds = datasets.load_dataset("{address.name}", "{config}", split="train", streaming=True{branch})',
        "print(next(iter(ds)))",
        "```",
        "",
    ]
    if manifest.kind == "index":
        lines += [
            "The same rows with their pictures, which are fetched as they are read, by "
            f"[LAION-Face for `datasets`]({PROJECT}):",
            "",
            "```console",
            f"$ pip install git+{PROJECT}",
            "```",
            "",
            "```python",
            "import laion_face",
            "",
            f'ds = laion_face.load_dataset("{config}", split="train", streaming=True,',
            f'                             index="{address.index}"{_parts(manifest, config)})',
            "```",
            "",
        ]
    return lines


def _parts(manifest: Manifest, config: str) -> str:
    here = [part for part in manifest.parts if part in CONFIG_PARTS[config]]
    return "" if len(here) == len(CONFIG_PARTS[config]) else f', parts="{ranges(here)}"'


def how_to_ask(manifest: Manifest, address: Address) -> list[str]:
    """Write the section that asks the files in DuckDB, Polars and pandas, and downloads those of one part."""
    config = manifest.configs()[0]
    files, entry = f"{address.root}/{GLOBS[config]}", manifest.of_config(config)[0]
    lines = [
        "### Ask it",
        "",
        "DuckDB, how many faces there are a picture:",
        "",
        "```sql",
        "SELECT n_faces, count(*) AS pictures",
        f"FROM '{files}'",
        "GROUP BY n_faces ORDER BY n_faces",
        "```",
        "",
        "Polars, the pictures with one large face:",
        "",
        "```python",
        "import polars as pl",
        "",
        f'rows = pl.scan_parquet("{files}")',
        'rows = rows.filter(pl.col("n_faces") == 1, pl.col("max_face_size") >= 64)',
        'print(rows.select("sample_id", "url", "caption").head(10).collect())',
        "```",
        "",
        f"pandas, some columns of {'a file' if manifest.kind == 'examples' else 'a part'}:",
        "",
        "```python",
        "import pandas as pd",
        "",
        f'rows = pd.read_parquet("{address.root}/{entry.name}", columns=["sample_id", "caption", "n_faces"])',
        "```",
        "",
    ]
    return [*lines, *(_download(entry.part, entry.name, address) if address.is_hub else [])]


def _download(part: int, name: str, address: Address) -> list[str]:
    folder, branch = name.split("/", maxsplit=1)[0], "" if address.branch == "main" else f" --revision {address.branch}"
    return [
        "One part alone, to a folder:",
        "",
        "```bash",
        f"hf download {address.name} --repo-type dataset{branch} --include '{folder}/part-{part:05d}*.parquet' "
        "--local-dir laion-face",
        "```",
        "",
    ]


def example_row(manifest: Manifest) -> list[str]:
    """Write a row as it comes; its values are made up, since a true one would show a person."""
    names = [name for name in INDEX.names if name in EXAMPLE_ROW]
    values: dict[str, Any] = EXAMPLE_ROW
    if manifest.kind == "examples":
        size = (values["width"], values["height"])
        own = {"image": f"<picture of {size[0]} x {size[1]}>", "original_width": size[0], "original_height": size[1]}
        values = {**values, **own, "faces_aligned": True}
        names = [*EXAMPLE_COLUMNS, *(name for name in names if name not in EXAMPLE_COLUMNS)]
    lines = [f" {json.dumps(name)}: {json.dumps(values[name])}" for name in names]
    body = ",\n".join(lines)
    return [
        "A row looks like this; the values are made up, since those of a true row would show a person here:",
        "",
        f"```json\n{{\n{body}\n}}\n```",
    ]
