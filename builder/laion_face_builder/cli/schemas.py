"""The shape of what each command prints with `--format json`, as JSON Schema: programs may rely on it.

`download` and `faces` print one document a line, for each part and each sample; the others print one.
"""

from __future__ import annotations

from typing import Any

_Schema = dict[str, Any]

_TEXT: _Schema = {"type": "string"}
_YES_OR_NO: _Schema = {"type": "boolean"}
_COUNT: _Schema = {"type": "integer", "minimum": 0}
_AMOUNT: _Schema = {"type": "number", "minimum": 0}
_PART: _Schema = {"type": "integer", "minimum": 0, "maximum": 31}
_SHARE: _Schema = {"type": ["number", "null"], "minimum": 0, "maximum": 1}
_SHA256: _Schema = {"type": "string", "pattern": "^[0-9a-f]{64}$"}


def _object(**properties: _Schema) -> _Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _list(items: _Schema, **more: Any) -> _Schema:
    return {"type": "array", "items": items, **more}


def _map(values: _Schema) -> _Schema:
    return {"type": "object", "additionalProperties": values}


def _or_null(schema: _Schema) -> _Schema:
    return {"anyOf": [schema, {"type": "null"}]}


#: What there is of each part. Counts are null where there is nothing; of the proof, see `index.proof.Proof`.
_STATUS = _object(
    data_dir=_TEXT,
    parts=_list(
        _object(
            part=_PART,
            ids=_or_null(_COUNT),
            faces=_or_null(_COUNT),
            rows=_or_null(_COUNT),
            proof=_or_null(
                {
                    "type": "object",
                    "properties": {"rows": _COUNT, "coverage": _SHARE, "fit": _SHARE},
                    "required": ["rows", "coverage", "fit"],
                }
            ),
            tars=_COUNT,
            tar_bytes=_COUNT,
            pictures=_or_null(_map(_COUNT)),
        )
    ),
    tables=_list(_object(folder=_TEXT, parts=_list(_PART), rows=_COUNT, bytes=_COUNT, columns=_list(_TEXT))),
)
_POINT = _list({"type": "number"}, minItems=2, maxItems=2)
_FACE = _object(
    box=_list({"type": "number"}, minItems=4, maxItems=4),
    landmarks=_list(_POINT, minItems=5, maxItems=5),
    score={"type": "number"},
)
_ALL_AND_KEPT = _object(all=_COUNT, kept=_COUNT)
#: Faces of one detector, how many the other has too, and the 95 % interval of that share.
_BAND = _object(bin=_TEXT, faces=_COUNT, found=_COUNT, share=_SHARE, low=_SHARE, high=_SHARE)
_AUDIT = {
    "detector": _TEXT,
    "weights_sha256": _SHA256,
    "iou": _SHARE,
    "from": {"enum": ["tars", "web"]},
    "parts": _list(_PART),
    "asked": _COUNT,
    "pictures": _COUNT,
    "unplaced": _COUNT,
    "failed": _map(_COUNT),
    "found_again": _object(all=_BAND, score=_list(_BAND), size=_list(_BAND)),
    "there_too": _object(all=_BAND, score=_list(_BAND)),
}
_OUT_AND_IN = _object(came_out=_COUNT, put_in=_COUNT)

_ESTIMATE = _object(count=_COUNT, exact=_YES_OR_NO)
#: What every command prints with `--dry-run`; see `forecast.Forecast`.
FORECAST = _object(
    command=_TEXT,
    dry_run={"const": True},
    steps=_list(
        _object(
            what=_TEXT,
            deed={"enum": ["made", "made anew", "used as it is", "depends", "sent", "removed", "refused"]},
            why=_TEXT,
            bytes=_or_null(_ESTIMATE),
        )
    ),
    fetch_bytes=_ESTIMATE,
    send_bytes=_ESTIMATE,
    pictures=_ESTIMATE,
    disks=_list(_object(folder=_TEXT, write_bytes=_ESTIMATE, free_bytes=_COUNT)),
    hours=_list(_object(to=_TEXT, hours=_AMOUNT, at=_TEXT)),
    notes=_list(_TEXT),
    refusal=_or_null(_TEXT),
)

SCHEMAS: dict[str, _Schema] = {
    "prepare": _STATUS,
    "download": _object(
        part=_PART, rows=_COUNT, ok=_COUNT, filtered=_COUNT, failures=_map(_COUNT), bytes=_COUNT, rounds=_COUNT
    ),
    "faces": _object(sample_id=_COUNT, part=_PART, faces=_list(_FACE)),
    "status": _STATUS,
    "publish": _object(
        target=_TEXT,
        kind={"enum": ["index", "examples"]},
        parts=_list(_PART),
        # The preview is of no part: -1.
        files=_list(_object(name=_TEXT, part={**_PART, "minimum": -1}, rows=_COUNT, size=_COUNT, sha256=_SHA256)),
    ),
    "remove": _object(data_dir=_TEXT, places=_list(_object(place=_TEXT, counts=_map(_COUNT)))),
    "verify": _object(place=_TEXT, problems=_list(_TEXT)),
    "show": _object(files=_list(_TEXT)),
    "stats": _object(
        config=_TEXT,
        parts=_list(_PART),
        filters={"type": "object"},
        samples=_ALL_AND_KEPT,
        faces=_ALL_AND_KEPT,
        index_bytes=_ALL_AND_KEPT,
        picture_bytes=_ALL_AND_KEPT,
        excluded=_COUNT,
        dropped=_map(_COUNT),
        copies=_list(_object(sha256=_SHA256, addresses=_COUNT)),
        spreads=_map(_list(_object(bin=_TEXT, all=_COUNT, kept=_COUNT))),
        asked=_COUNT,
        usable=_COUNT,
        failed=_map(_COUNT),
        by_part=_map(_object(asked=_COUNT, usable=_COUNT)),
        hosts=_list(_object(host=_TEXT, asked=_COUNT, usable=_COUNT)),
        audit=_or_null(_object(**_AUDIT)),
    ),
    "export": _object(
        out=_TEXT,
        rows=_COUNT,
        filtered=_COUNT,
        excluded=_COUNT,
        pictures=_COUNT,
        pieces=_COUNT,
        bytes=_COUNT,
        failed=_map(_COUNT),
    ),
    "demo": _object(
        folder=_TEXT,
        metadata_rows=_COUNT,
        rows=_OUT_AND_IN,
        usable=_OUT_AND_IN,
        from_arrow=_OUT_AND_IN,
        streamed=_OUT_AND_IN,
        same_order=_YES_OR_NO,
        faces=_OUT_AND_IN,
        failed=_object(came_out=_map(_COUNT), put_in=_map(_COUNT)),
        seconds=_map(_AMOUNT),
    ),
}
