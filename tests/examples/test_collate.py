"""Batches of examples of all kinds."""

import torch

from laion_face_builder.examples.collate import collate

FACE = {"box": [0.0, 1.0, 2.0, 3.0], "landmarks": [[0.0, 1.0]] * 5, "score": 0.5}


def test_faces_of_different_numbers_stay_a_list_of_tensors():
    batch = collate([{"faces": [FACE, FACE]}, {"faces": []}])
    assert [tuple(faces["boxes"].shape) for faces in batch["faces"]] == [(2, 4), (0, 4)]
    assert [tuple(faces["landmarks"].shape) for faces in batch["faces"]] == [(2, 5, 2), (0, 5, 2)]
    assert batch["faces"][0]["scores"].dtype == torch.float32


def test_numbers_become_tensors_unless_one_is_missing():
    batch = collate(
        [
            {"sample_id": 2**52, "width": 5, "ok": True, "caption": "a"},
            {"sample_id": 1, "width": None, "ok": False, "caption": None},
        ]
    )
    assert batch["sample_id"].tolist() == [2**52, 1]
    assert batch["width"] == [5, None]
    assert batch["ok"].dtype == torch.bool
    assert batch["caption"] == ["a", None]


def test_images_are_stacked_only_if_they_fit():
    one, two = torch.zeros(3, 4, 4), torch.zeros(3, 5, 4)
    assert collate([{"image": one}, {"image": one}])["image"].shape == (2, 3, 4, 4)
    assert len(collate([{"image": one}, {"image": two}])["image"]) == 2
    assert collate([]) == {}
