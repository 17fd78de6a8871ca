"""Prints the examples of a prepared folder as JSON lines, by whatever way this version of datasets has.

python tests/support/dump_examples.py DATA_DIR CACHE_DIR stream|table
"""

import hashlib
import json
import sys
from typing import Any

import datasets
from packaging.version import Version

import laion_face


def load(data_dir: str, cache_dir: str, streaming: bool) -> Any:
    options = {"parts": "0,2", "data_dir": data_dir, "cache_dir": cache_dir, "streaming": streaming, "split": "train"}
    if Version(datasets.__version__) < Version("4"):
        return datasets.load_dataset(laion_face.__file__, "20M", trust_remote_code=True, **options)
    return laion_face.load_dataset("20M", **options)


def line(example: dict) -> str:
    image = example["image"]
    pixels = hashlib.sha256(image.convert("RGBA").tobytes()).hexdigest()
    return json.dumps({**example, "image": [image.size, image.mode, pixels]})


if __name__ == "__main__":
    print(datasets.__version__)
    for example in load(sys.argv[1], sys.argv[2], sys.argv[3] == "stream"):
        print(line(example))
