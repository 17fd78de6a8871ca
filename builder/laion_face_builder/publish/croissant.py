"""Describe the published tables as Croissant (JSON-LD, version 1.0), for dataset search engines and mlcroissant.

File sets name the files, record sets the columns: one of each for every config. File names are relative to the
document, so that it holds for a folder and for its copy on the Hub.
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from laion_face_builder.publish.card import card_template, schema_of, split_card
from laion_face_builder.publish.manifest import Manifest

_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_DESCRIPTION = (
    "The human-face subset of LAION-400M: image-text pairs with face boxes, five landmarks and detection scores."
)
_CITATION = "Zheng et al., General Facial Representation Learning in a Visual-Linguistic Manner, 2021, arXiv:2112.03109"
_HOMEPAGE = "https://github.com/FacePerceiver/LAION-Face"
_LICENCES = ["https://creativecommons.org/licenses/by/4.0/", "https://laion.ai/blog/laion-400-open-dataset"]


def croissant_of(manifest: Manifest) -> str:
    """Make the croissant.json for a place with the files of `manifest`."""
    head, _ = split_card(card_template(), "dataset_card.md")
    document = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": "laion-face",
        "alternateName": head["pretty_name"],
        "description": _DESCRIPTION,
        "url": _HOMEPAGE,
        "license": _LICENCES,
        "citeAs": _CITATION,
        "version": "1.0.0",
        "datePublished": "2021-12-06",
        "keywords": head["tags"],
        "creator": {"@type": "sc:Organization", "name": "The authors of LAION-Face", "url": _HOMEPAGE},
        "isLiveDataset": False,
        "distribution": [_file_set(manifest, config) for config in manifest.configs()],
        "recordSet": [_record_set(manifest, config) for config in manifest.configs()],
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _file_set(manifest: Manifest, config: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": f"files-{config}",
        "name": f"files-{config}",
        "description": f"The Parquet files of config {config}, split train.",
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
