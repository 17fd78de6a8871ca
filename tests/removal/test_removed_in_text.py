"""What is listed is found in text of any kind and length, and nothing else is."""

import pytest

from laion_face_builder.index.exclusion import exclusion_of
from laion_face_builder.verify import verify_removed as room

ADDRESS = "https://cdn.gone.example/a.jpg"
SHA256 = "ab" * 32


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"{ADDRESS}", ["1 addresses"]),
        (f'{{"url":"{ADDRESS}"}}', ["1 addresses"]),
        (f"see ({ADDRESS}), and {ADDRESS};", ["1 addresses"]),
        (f"1{ADDRESS} é{ADDRESS}", ["1 addresses"]),
        ("HTTPS://CDN.gone.example/a.jpg", ["1 addresses"]),
        (f"git+{ADDRESS}", ["1 addresses"]),  # of another scheme, and of the same host
        (f"https://kept.example/?u={ADDRESS}", []),
        ("://cdn.gone.example/a.jpg cdn.gone.example https://xgone.example/", []),
        ('{"sample_id": 4711, "SAMPLE_ID": "-5"}', ["2 sample ids"]),
        ('{"sample_id": 47110, "id": 4711}', []),
        (f"{SHA256} {SHA256}0", ["1 hashes"]),
        (
            f'{{"sample_id": 4711, "url": "{ADDRESS}", "sha256": "{SHA256}"}}',
            ["1 sample ids", "1 addresses", "1 hashes"],
        ),
    ],
)
@pytest.mark.parametrize("before", ["", "x" * 4090 + " "])
def test_text_is_searched_piece_by_piece(text, left, before, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "_PIECE", 4096)
    monkeypatch.setattr(room, "_OVERLAP", 1024)
    (tmp_path / "lines.jsonl").write_text(before + text, encoding="utf-8")
    listed = exclusion_of(["4711", "-5", "gone.example", SHA256])
    problems = [line.rpartition(": ")[2] for line in room.verify_removed(str(tmp_path), listed).problems]
    assert problems == [f"{found} that are listed" for found in left]
