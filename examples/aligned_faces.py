"""Write ten thousand aligned faces, each the only one of its picture, as FFHQ has them."""

from pathlib import Path

import laion_face

alone = {"min_faces": 1, "max_faces_in_picture": 1, "min_face_size": 64}
ds = laion_face.load_dataset("20M", split="train", data_dir="laion-face", streaming=True, mode="RGB", **alone)
Path("aligned").mkdir(exist_ok=True)
for example in ds.filter(lambda example: example["faces_aligned"]).take(10_000):
    face = laion_face.align_face(example["image"], example["faces"][0]["landmarks"], size=512, template="ffhq")
    face.image.save(f"aligned/{example['sample_id']}.jpg", quality=95)
