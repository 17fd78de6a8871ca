"""Read the faces of LAION-400M out of tars that img2dataset wrote, such as a lab has them: nothing is downloaded.

They need no SAMPLE_ID; samples are found by their addresses, whatever part they belong to.
"""

import laion_face

ds = laion_face.load_dataset("20M", split="train", data_dir="laion-face", images="laion400m-data", streaming=True)
for example in ds.take(5):
    print(example["sample_id"], example["image"].size, len(example["faces"]), example["caption"])
print(laion_face.report(ds))
