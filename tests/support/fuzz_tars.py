"""Damage tars of strangers, with the JSON and the Parquet that say what is in them, and adopt them."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from laion_face_builder.download.foreign import LookJob
from laion_face_builder.errors import BadFile
from tests.support import fuzz_pictures
from tests.support.fuzz_child import READ
from tests.support.mutations import mutated

_FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
#: What a value of a sample's JSON may be instead of what it should be.
_ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1 << 40, 1 << 63, 1 << 70, -(1 << 63) - 1, 1.5, 1e300, float("nan"), float("inf")),
    *("", "x", "7", "1e400", "9" * 5000, "\ud800", "\0", [], [1], {}, {"a": [None]}, [[]] * 3, "ü" * 2000),
)
_NAMES = ("sample_id", "SAMPLE_ID", "error_message", "sha256", "original_width", "laion_width", "laion_height", "key")


@dataclass(frozen=True)
class Tars:
    """Changed tars: every sample is counted with its reason, or one error names the file.

    Attributes:
        seed: other seeds have other changes.
    """

    seed: int = 0

    def ready(self, folder: Path) -> Callable[[int], str]:
        """See `fuzz_child.Trial`."""
        path, out = folder / "00000.tar", folder / "out.parquet"

        def attempt(number: int) -> str:
            rng = random.Random(f"{self.seed} {number}")
            tar, table = _made(rng)
            changed = mutated(rng, tar, rng.choice([0, 0, rng.randrange(len(tar))])) if rng.random() < 0.7 else tar
            path.write_bytes(changed)
            path.with_suffix(".parquet").write_bytes(mutated(rng, table) if rng.random() < 0.3 else table)
            try:
                LookJob(str(path), str(out), 1_000_000, {"kind": "tried"}).run()
            except BadFile as error:
                if "\n" in str(error) or path.name not in str(error):
                    raise AssertionError(f"no line that names the tar: {error!s:.300}") from error
                return type(error).__name__
            return READ if set(pq.read_table(out)["status"].to_pylist()) <= {"ok"} else "counted"

        return attempt


def _made(rng: random.Random) -> tuple[bytes, bytes]:
    """Return a tar of a few samples, and the Parquet file beside it, which may be none."""
    out, form = io.BytesIO(), rng.choice(_FORMATS)
    keys = [
        rng.choice(["{:09}", "a/b.c/{:05}", "x" * (90 if form == tarfile.USTAR_FORMAT else 120) + "{}"]).format(number)
        for number in range(3)
    ]
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for number, key in enumerate(keys):
            picture = rng.choice(fuzz_pictures.honest())
            said: dict[str, Any] = {"sample_id": number + 1, "original_width": 40, "original_height": 30}
            if rng.random() < 0.5:
                said[rng.choice(_NAMES)] = rng.choice(_ODD)
            text = json.dumps(said).encode() if rng.random() < 0.97 else b"[" * 100_000
            for ending, content in ((".jpg", picture), (".json", text)):
                member = tarfile.TarInfo(key + ending)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    if rng.random() < 0.5:
        return out.getvalue(), b""
    columns = {"key": keys, "sample_id": [1, 2, 3], "error_message": [None, None, None], "sha256": ["a", "b", None]}
    name = rng.choice(_NAMES[:3])
    odd = rng.choice([value for value in _ODD if type(value) in (int, float, str, list) and value != "\ud800"])
    if rng.random() < 0.5:
        try:
            columns[name] = pa.array([odd, None, odd])
        except (OverflowError, pa.ArrowInvalid):
            columns[name] = pa.array([b"\xff", b"", None])
    table = io.BytesIO()
    pq.write_table(pa.table(columns), table)
    return out.getvalue(), table.getvalue()
