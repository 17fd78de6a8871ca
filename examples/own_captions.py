"""Put captions of your own beside those of LAION-Face: a table with sample_id and whatever else."""

import pandas as pd

import laion_face

ours = laion_face.load_dataset("20M", split="train", data_dir="laion-face", streaming=True, images="none")
made = [{"sample_id": row["sample_id"], "new_caption": f"{len(row['faces'])} faces"} for row in ours.take(50)]
pd.DataFrame(made).to_parquet("captions.parquet")  # in real life: what your captioner wrote

how = {"data_dir": "laion-face", "join": "captions.parquet", "join_how": "inner"}
for example in laion_face.load_dataset("20M", split="train", streaming=True, **how):
    print(example["sample_id"], example["new_caption"], example["image"].size)
