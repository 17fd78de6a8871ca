"""Runs Python as `python` does, with stand-ins for what the docs leave to their reader, on the sandbox.

python run_recipe.py [-u] SCRIPT.py ARGUMENT…  |  python run_recipe.py -m MODULE ARGUMENT…

The pictures of the sandbox are on loopback, its 20M has two parts, and `train_step`, `make_model` and `loss_of`, which
the recipes call "yours", are stood in for. All else is as it is.
"""

import builtins
import runpy
import sys

import numpy as np
import torch

from laion_face_builder import layout
from laion_face_builder.options import Options

layout.CONFIG_PARTS.update({"20M": (0, 2), "50M": (0, 1, 2)})
checked = vars(Options)["of"].__func__


def of(cls, config, given, *rest):
    given.allow_private_hosts = True
    return checked(cls, config, given, *rest)


def train_step(images, captions, faces):
    assert len(images) == len(captions) == len(faces)
    assert {image.mode for image in images} == {"RGB"}
    return 0.0


def make_model():
    return torch.nn.Linear(3, 1)


def loss_of(model, batch):
    print("step of", len(batch["image"]))
    colours = np.array([np.asarray(image).mean((0, 1)) for image in batch["image"]])
    return model(torch.tensor(colours, dtype=torch.float32)).square().mean()


setattr(Options, "of", classmethod(of))  # noqa: B010 mypy forbids the assignment
for yours in (train_step, make_model, loss_of):
    setattr(builtins, yours.__name__, yours)

if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "-u"]
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
