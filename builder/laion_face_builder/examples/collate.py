"""Batches for a DataLoader. torch's own collate fails on None, on PIL images and on face lists of different lengths.

torch takes seconds to import, and reading examples does not need it: it is imported when a batch is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Batch = dict[str, Any]


def collate(examples: Sequence[dict[str, Any]]) -> Batch:
    """Make one dict of columns from a list of examples, plain or `with_format("torch")`.

    - `faces`: a list, one entry an example, of {"boxes": float32[n, 4], "landmarks": float32[n, 5, 2],
      "scores": float32[n]}; n can be 0.
    - numbers and booleans: a tensor [batch]; a list if any is None.
    - `image`: a list, since sizes differ; a tensor [batch, …] if all are tensors of one shape.
    - text: a list.
    """
    if not examples:
        return {}
    return {name: _column(name, [example[name] for example in examples]) for name in examples[0]}


def _column(name: str, values: list[Any]) -> Any:
    import torch

    if name == "faces":
        return [_faces(faces) for faces in values]
    if all(isinstance(value, torch.Tensor) for value in values):
        return torch.stack(values) if len({value.shape for value in values}) == 1 else values
    if all(isinstance(value, (bool, int, float)) for value in values):
        return torch.tensor(values)
    return values


def _faces(faces: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    import torch

    def stacked(name: str, *shape: int) -> torch.Tensor:
        values = [torch.as_tensor(face[name], dtype=torch.float32) for face in faces]
        return torch.stack(values) if values else torch.empty((0, *shape), dtype=torch.float32)

    return {"boxes": stacked("box", 4), "landmarks": stacked("landmarks", 5, 2), "scores": stacked("score")}
