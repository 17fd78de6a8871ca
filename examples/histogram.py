"""Draw how many faces pictures have, from the index alone: no picture is read."""

from collections import Counter

import matplotlib.pyplot as plt

import laion_face

ds = laion_face.load_dataset("20M", split="train", data_dir="laion-face", streaming=True, images="none")
counts = Counter(len(row["faces"]) for row in ds.select_columns("faces").take(100_000))
plt.bar(list(counts), list(counts.values()))
plt.gca().set(xlabel="faces a picture", ylabel="pictures", yscale="log")
plt.savefig("faces.png")
