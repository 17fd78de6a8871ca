"""A user's script for type checkers, never run: what is wrong says so, and nothing else is. See test_typed_face."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import laion_face

stream = laion_face.load_dataset("20M", split="train", streaming=True, images="fetch", min_face_size=64)
rows: Iterator[dict[str, object]] = iter(stream)
laion_face.load_dataset(
    "50M", parts=[0, 2], exclude=Path("ids.txt"), nsfw=["UNLIKELY"], images=Path("tars"), num_proc=2
)
laion_face.load_dataset("20M", split="train", data_dir=Path("here"), token=True, mode="RGB", min_similarity=0.3)
builder = laion_face.LaionFace(config_name="20M", parts="0-3", on_error="null")
blurred: bool = builder.config.blur_faces
failed: Counter[str] = laion_face.report(stream).failed
try:
    batch = laion_face.collate([{"caption": "a"}])
except (laion_face.OptionError, laion_face.LaionFaceError) as error:
    print(error)

laion_face.load_dataset("20M", streaming=True, min_face_sise=64)  # wrong
laion_face.load_dataset("30M", split="train")  # wrong
laion_face.load_dataset("20M", streaming=True, images="ftch")  # wrong
laion_face.load_dataset("20M", streaming=True, num_proc=4, split="train", order="random")  # wrong
laion_face.load_dataset("20M", min_score="high")  # wrong
laion_face.LaionFace(config_name="20M", on_eror="null")  # wrong
laion_face.LaionFaceConfig(name="10M")  # wrong
laion_face.crop_face(1, {}, marign=0.1)  # wrong
laion_face.report(stream).yieldd  # wrong
laion_face.Plan  # wrong
