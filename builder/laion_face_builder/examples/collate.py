"""Batches for a DataLoader. torch's own collate fails on None, on PIL images and on face lists of different lengths.

torch takes seconds to import, and reading examples does not need it: it is imported when a batch is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Batch = dict[str, Any]

#: Numbers of an example that can be missing: of a picture that failed, or that LAION does not know.
NULLABLE = frozenset({"width", "height", "original_width", "original_height", "similarity"})


def collate(examples: Sequence[dict[str, Any]]) -> Batch:
    """Make one dict of columns from a list of examples, plain or `with_format("torch")` or `with_format("numpy")`.

    A column of ours has one type, whatever is missing in a batch:

    - `faces`: a list, one entry an example, of {"boxes": float32[n, 4], "landmarks": float32[n, 5, 2],
      "scores": float32[n]}; n can be 0.
    - `sample_id`, `part`, `faces_aligned`, `faces_blurred`: a tensor [batch] of int64 or bool.
    - `width`, `height`, `original_width`, `original_height`, `similarity`: a tensor float64[batch], NaN where there is
      none.
    - `image`: a list, since sizes differ; a tensor [batch, …] if all are tensors or arrays of one shape.
    - text: a list.

    Columns of your own: numbers become a tensor, of float64 with NaN if one is None; tensors and arrays of one shape
    are stacked; all else is a list.
    """
    if not examples:
        return {}
    return {name: _column(name, [example[name] for example in examples]) for name in examples[0]}


def _column(name: str, values: list[Any]) -> Any:
    import numpy as np
    import torch

    if name == "faces":
        return [_faces(faces) for faces in values]
    # with_format("numpy") gives scalars of NumPy, with_format("torch") tensors without dimensions: numbers as well.
    values = [
        value.item() if isinstance(value, (np.generic, np.ndarray, torch.Tensor)) and value.ndim == 0 else value
        for value in values
    ]
    if all(isinstance(value, (np.ndarray, torch.Tensor)) for value in values):
        return _stacked(values)
    numbers = [value for value in values if isinstance(value, (bool, int, float))]
    if len(numbers) + values.count(None) < len(values) or not (numbers or name in NULLABLE):
        return values
    if name in NULLABLE or len(numbers) < len(values):
        return torch.tensor([float("nan") if value is None else value for value in values], dtype=torch.float64)
    return torch.tensor(numbers)


def _stacked(values: list[Any]) -> Any:
    import numpy as np
    import torch

    can_be_tensors = all(isinstance(value, torch.Tensor) or value.dtype.kind in "biufc" for value in values)
    if not can_be_tensors or len({tuple(value.shape) for value in values}) > 1:
        return values
    return torch.stack(
        [torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value for value in values]
    )


def _faces(faces: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    import numpy as np
    import torch

    def stacked(name: str, *shape: int) -> torch.Tensor:
        # NumPy's format keeps the points of a face as an array of arrays.
        values = [[np.asarray(item).tolist() for item in np.atleast_1d(face[name])] for face in faces]
        return torch.tensor(values, dtype=torch.float32).reshape(len(faces), *shape)

    return {"boxes": stacked("box", 4), "landmarks": stacked("landmarks", 5, 2), "scores": stacked("score")}
