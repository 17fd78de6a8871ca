"""Writes a sandbox's content as upstream publishes it: metadata Parquet, and pickles by the real torch.save."""

from __future__ import annotations

import pickle
import random
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from laion_face_builder.sandbox.content import Content, id_without_metadata
from laion_face_builder.sandbox.spec import RELEASES, Face, PickleStyle

METADATA_NAME = RELEASES["2021"].file_name
IDS_NAME = "laion_face_ids.pth"
DETECTIONS_NAME = "sample2detect_{}.pth"
_ID_TYPES = {"int64": pa.int64(), "float64": pa.float64(), "string": pa.string()}


def write_upstream(content: Content, folder: Path) -> None:
    """Write the id list and the detections to folder/laion-face/, and the metadata to folder/metadata/."""
    for name in ("laion-face", "metadata"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    style = content.spec.pickles
    for name in content.files:
        write_metadata(folder / "metadata" / name, metadata_table(content, name), row_groups=content.spec.row_groups)
    for part in content.spec.parts:
        detections_path = folder / "laion-face" / DETECTIONS_NAME.format(part)
        write_detections(detections_path, detections_of(content, part), style)
    write_ids(folder / "laion-face" / IDS_NAME, ids_of(content), style)


def metadata_table(content: Content, name: str) -> pa.Table:
    """Return the rows of a metadata file with its release's columns; the ids in the type that the spec asks for."""
    release = RELEASES[content.spec.world]
    columns = {column: [row[field] for row in content.files[name]] for column, field in release.columns.items()}
    at = list(release.columns).index(release.id_column)
    wanted = pa.field(release.id_column, _ID_TYPES[content.spec.sample_ids])
    return pa.table(columns, schema=release.schema).cast(release.schema.set(at, wanted))


def write_metadata(path: Path, table: pa.Table, *, row_groups: int = 4) -> None:
    """Write a metadata file of so many row groups."""
    pq.write_table(table, path, compression="snappy", row_group_size=max(1, -(-table.num_rows // row_groups)))


def ids_of(content: Content) -> list[list[int]]:
    """Return the 32 lists of ids, unsorted; one id comes twice, one has no metadata; other parts have ids of no use."""
    lists = [[id_without_metadata(part), 32 * 7 + part] for part in range(32)]
    for part in content.spec.parts:
        mine = [truth.sample_id for truth in content.listed if truth.part == part]
        random.Random(part).shuffle(mine)  # noqa: S311 - order, not secrets
        lists[part] = [*mine, *mine[:1], id_without_metadata(part)]
    return lists


def detections_of(content: Content, part: int) -> dict[int, tuple[Face, ...]]:
    """Return faces by id. Half of the rows without a face have an empty entry, half have none; one id is on no list."""
    mine = [truth for truth in content.listed if truth.part == part]
    found = {truth.sample_id: truth.faces for truth in mine if truth.faces or truth.row % 2}
    first = next((truth.faces for truth in mine if truth.faces), ())
    return {**found, 10**12 * 64 + part: first}


def write_ids(path: Path, lists: Sequence[Iterable[int]], style: PickleStyle | None = None) -> None:
    """Write laion_face_ids.pth in the given style."""
    import torch

    style = style or PickleStyle()
    number = {"float": float, "int": int, "numpy": np.int64}[style.numbers]
    shapes: dict[str, Any] = {
        "list": lambda ids: [number(one) for one in ids],
        "tuple": lambda ids: tuple(number(one) for one in ids),
        "set": lambda ids: {number(one) for one in ids},
        "array": lambda ids: np.asarray(list(ids), dtype=np.int64 if style.numbers == "int" else np.float64),
        "tensor": lambda ids: torch.tensor(list(ids), dtype=torch.int64 if style.numbers == "int" else torch.float64),
    }
    inner = [shapes[style.inner](ids) for ids in lists]
    outers = {"list": inner, "tuple": tuple(inner), "dict": dict(enumerate(inner))}
    save(outers[style.outer], path, style)


def write_detections(path: Path, faces: Mapping[int, Sequence[Face]], style: PickleStyle | None = None) -> None:
    """Write a sample2detect_i.pth in the given style: id -> list of faces."""
    style = style or PickleStyle()
    save(
        {sample_id: [_as_upstream(face, style.face) for face in each] for sample_id, each in faces.items()}, path, style
    )


def _as_upstream(face: Face, shape: str) -> object:
    box, landmarks = np.asarray(face.box, np.float32), np.asarray(face.landmarks, np.float32).reshape(5, 2)
    if shape == "lists":
        return box.tolist(), landmarks.tolist(), face.score
    if shape == "tensors":
        import torch

        return torch.from_numpy(box), torch.from_numpy(landmarks), torch.tensor(face.score, dtype=torch.float32)
    if shape == "dicts":
        return {"box": box, "kps": landmarks, "score": np.float32(face.score)}
    return box, landmarks, np.float32(face.score)


def save(value: object, path: Path, style: PickleStyle | None = None) -> None:
    """Save by torch.save in the style's container, with numpy's old or new names in the pickle."""
    import torch

    style = style or PickleStyle()
    module: Any = _old_names if style.old_numpy else pickle
    torch.save(value, path, pickle_module=module, _use_new_zipfile_serialization=not style.legacy)


class _OldNamesPickler(pickle._Pickler):
    """Python's own pickler, which can be told to write the name that a function had before numpy 2."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        module = getattr(obj, "__module__", None) or ""
        if module.startswith("numpy._core"):
            old = module.replace("numpy._core", "numpy.core")
            self.write(pickle.GLOBAL + f"{old}\n{obj.__name__}\n".encode())  # type: ignore[attr-defined] # not in its stubs
            self.memoize(obj)  # type: ignore[attr-defined] # not in its stubs
        else:
            super().save_global(obj, name)  # type: ignore[misc] # not in its stubs


def _dump(value: object, file: Any, protocol: int | None = None) -> None:
    _OldNamesPickler(file, protocol).dump(value)


_old_names = types.SimpleNamespace(__name__="pickle", Pickler=_OldNamesPickler, dump=_dump)
