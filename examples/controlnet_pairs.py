"""Write pairs for ControlNet, landmarks on black and the picture, and look at the first of them."""

import datasets

import laion_face

counts = laion_face.export("20M", "pairs", data_dir="laion-face", draw="landmarks", min_faces=1, min_face_size=64)
pair = datasets.load_dataset("pairs", split="train")[0]
print(counts)
print({name: getattr(value, "size", value) for name, value in pair.items() if name != "faces"})
