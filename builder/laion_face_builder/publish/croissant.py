"""Describe the published tables as Croissant (JSON-LD, version 1.0), for dataset search engines and mlcroissant.

File sets name the files, record sets the columns: one of each for every config. On the Hub the files are in a git repo,
as in the Hub's own descriptions, so that mlcroissant iterates the records by the document's address alone: it clones
the repo without the large files, and brings those that it reads. In a folder names are relative to the document.

What is responsible about it (the RAI vocabulary, version 1.0) is said in the words of the card's own sections.
"""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from laion_face_builder.publish.card import card_of, schema_of, split_card
from laion_face_builder.publish.card_snippets import Address
from laion_face_builder.publish.manifest import Manifest

#: The vocabulary's terms, in the standard's own form (mlcommons/croissant, datasets/1.0).
_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    **{
        term: f"cr:{term}"
        for term in (
            *("citeAs", "column", "equivalentProperty", "extract", "field", "fileObject", "fileProperty", "fileSet"),
            *("format", "includes", "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet"),
            *("references", "regex", "repeated", "replace", "samplingRate", "separator", "source", "subField"),
            "transform",
        )
    },
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
}
_STANDARDS = ["http://mlcommons.org/croissant/1.0", "http://mlcommons.org/croissant/RAI/1.0"]
#: What the card's sections say, under the names of the vocabulary.
_RESPONSIBLE = {
    "dataCollection": ("Data Collection and Processing",),
    "dataAnnotationProtocol": ("Annotation process",),
    "personalSensitiveInformation": ("Personal and Sensitive Information",),
    "dataBiases": ("Bias, Risks, and Limitations",),
    "dataLimitations": ("Annotation process", "Recommendations"),
    "dataUseCases": ("Direct Use",),
    "dataSocialImpact": ("Out-of-Scope Use",),
    "dataReleaseMaintenancePlan": ("Maintenance",),
}
_DESCRIPTION = (
    "The human-face subset of LAION-400M: image-text pairs with face boxes, five landmarks and detection scores."
)
_CITATION = "Zheng et al., General Facial Representation Learning in a Visual-Linguistic Manner, 2021, arXiv:2112.03109"
_HOMEPAGE = "https://github.com/FacePerceiver/LAION-Face"
_DATASETS = "https://huggingface.co/datasets"
_REPO = "repo"
_LICENCES = ["https://creativecommons.org/licenses/by/4.0/", "https://laion.ai/blog/laion-400-open-dataset"]


def croissant_of(manifest: Manifest, address: Address) -> str:
    """Make the croissant.json for a place with the files of `manifest`.

    Args:
        address: how people name the place.
    """
    head, body = split_card(card_of(manifest, address), "README.md")
    document = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": _STANDARDS,
        "name": "laion-face",
        "alternateName": head["pretty_name"],
        "description": _DESCRIPTION,
        "url": f"{_DATASETS}/{address.name}" if address.is_hub else _HOMEPAGE,
        "license": _LICENCES,
        "citeAs": _CITATION,
        "version": "1.0.0",
        "datePublished": manifest.history[0]["date"] if manifest.history else "2021-12-06",
        **({"dateModified": manifest.history[-1]["date"]} if manifest.history else {}),
        "keywords": head["tags"],
        "creator": {"@type": "sc:Organization", "name": "The authors of LAION-Face", "url": _HOMEPAGE},
        "isLiveDataset": False,
        **_responsible(body),
        "distribution": [
            *([_repo(address)] if address.is_hub else []),
            *(_file_set(manifest, config, address) for config in manifest.configs()),
        ],
        "recordSet": [_record_set(manifest, config) for config in manifest.configs()],
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _responsible(card: str) -> dict[str, Any]:
    """Say what the data are, and do, to people: the RAI vocabulary, from the card's sections."""
    said = {f"rai:{name}": " ".join(section_of(card, one) for one in of) for name, of in _RESPONSIBLE.items()}
    return {
        **said,
        "rai:dataCollectionType": ["Web Scraping", "Secondary Data Analysis"],
        # The first is as the standard spells it, the second as mlcroissant reads it.
        "rai:dataCollectionTimeframe": ["2014-01-01", "2021-12-31"],
        "rai:dataCollectionTimeFrame": ["2014-01-01", "2021-12-31"],
        "rai:annotationsPerItem": "One: a detector's faces, any number of them, none checked by hand",
        "rai:machineAnnotationTools": ["RetinaFace (batch-face)", "CLIP (similarity, nsfw)"],
    }


def section_of(card: str, heading: str) -> str:
    """Give the text under a heading of a card, up to the next one, without tables, code and marks of Markdown."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", card, re.DOTALL | re.MULTILINE)
    text = re.sub(r"^(\||```|<).*?$", "", found[1] if found else "", flags=re.MULTILINE)
    text = re.sub(r"\[([^\]]+)\]\(([^)]+)\)", r"\1", text).replace("**", "").replace("`", "")
    return " ".join(text.split())


def _repo(address: Address) -> dict[str, Any]:
    branch = "" if address.branch == "main" else f"/tree/{quote(f'refs/heads/{address.branch}', safe='')}"
    return {
        "@type": "cr:FileObject",
        "@id": _REPO,
        "name": _REPO,
        "description": "The git repository on the Hub.",
        "contentUrl": f"{_DATASETS}/{address.name}{branch}",
        "encodingFormat": "git+https",
        # A repository has none; validators ask for it, and the Hub gives this answer too.
        "sha256": "https://github.com/mlcommons/croissant/issues/80",
    }


def _file_set(manifest: Manifest, config: str, address: Address) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": f"files-{config}",
        "name": f"files-{config}",
        "description": f"The Parquet files of config {config}, split train.",
        **({"containedIn": {"@id": _REPO}} if address.is_hub else {}),
        "encodingFormat": "application/x-parquet",
        "includes": [entry.name for entry in manifest.of_config(config)],
    }


def _record_set(manifest: Manifest, config: str) -> dict[str, Any]:
    rows = sum(entry.rows for entry in manifest.of_config(config))
    return {
        "@type": "cr:RecordSet",
        "@id": config,
        "name": config,
        "description": f"{rows} rows: one picture on the web each.",
        "field": [_field(config, field) for field in schema_of(manifest, config)],
    }


def _field(config: str, column: pa.Field) -> dict[str, Any]:
    field: dict[str, Any] = {"@type": "cr:Field", "@id": f"{config}/{column.name}", "name": column.name}
    if column.name == "faces":
        return {
            **field,
            "repeated": True,
            "subField": [_sub_field(config, name) for name in ("box", "landmarks", "score")],
        }
    source = {"fileSet": {"@id": f"files-{config}"}, "extract": {"column": column.name}}
    if column.name == "image":
        source["transform"] = {"jsonPath": "bytes"}
    return {**field, "dataType": _data_type(column), "source": source}


def _sub_field(config: str, name: str) -> dict[str, Any]:
    source = {
        "fileSet": {"@id": f"files-{config}"},
        "extract": {"column": "faces"},
        "transform": {"jsonPath": name},
    }
    return {
        "@type": "cr:Field",
        "@id": f"{config}/faces/{name}",
        "name": f"faces/{name}",
        "dataType": "sc:Float",
        "source": source,
        **({} if name == "score" else {"repeated": True}),
    }


def _data_type(column: pa.Field) -> str:
    if column.name == "image":
        return "sc:ImageObject"
    if column.name == "url":
        return "sc:URL"
    if pa.types.is_boolean(column.type):
        return "sc:Boolean"
    if pa.types.is_integer(column.type):
        return "sc:Integer"
    return "sc:Float" if pa.types.is_floating(column.type) else "sc:Text"
