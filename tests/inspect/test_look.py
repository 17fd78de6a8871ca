"""What a notebook shows of an example and of a report: a notebook is run, and its outputs looked at."""

import base64
import io

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

import laion_face
from laion_face_builder.examples.report import Report
from laion_face_builder.transforms.drawing import POINTS, SURE
from tests.support.one_example import example as one_example

CELLS = """
import laion_face
ds = laion_face.load_dataset("20M", split="train", parts="0", data_dir={data!r}, streaming=True)
example = next(iter(ds))
---
laion_face.look(example)
---
laion_face.report(ds)
---
laion_face.look(next(iter(ds.decode(False))))
"""


def test_a_notebook_shows_an_example_and_a_table(prepared, tmp_path):
    cells = CELLS.format(data=str(prepared.data.root)).split("---\n")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell.strip()) for cell in cells])
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    _, shown, counts, undecoded = (
        [output["data"] for output in cell.outputs if output.output_type == "execute_result"] for cell in notebook.cells
    )
    picture = Image.open(io.BytesIO(base64.b64decode(shown[0]["image/png"])))
    assert max(picture.size) <= 640
    assert share_of(picture, SURE) > 1e-3
    assert any(f"{row.sample_id}, part 0" in shown[0]["text/html"] for row in prepared.truth)
    assert shown[0]["image/png"] == undecoded[0]["image/png"]
    assert "<th>yielded</th><td>1</td>" in counts[0]["text/html"]
    assert "yielded=1" in counts[0]["text/plain"]


def share_of(picture, colour):
    return float((np.abs(np.asarray(picture, int) - colour).max(axis=-1) <= 12).mean())


def test_marks_lie_where_the_faces_are():
    example = one_example()
    shown = np.asarray(laion_face.look(example).picture, int)
    scale = shown.shape[1] / example["width"]
    for (x, y), colour in zip(example["faces"][0]["landmarks"], POINTS, strict=True):
        at = shown[round((y + 0.5) * scale - 0.5), round((x + 0.5) * scale - 0.5)]
        assert np.abs(at - colour).max() <= 12


ODD = [
    {"image": None, "width": None, "height": None},
    {"faces": []},
    {"caption": None, "url": None, "similarity": None, "nsfw": None},
    {"image": Image.new("P", (1, 9000)), "width": 1, "height": 9000},
    {"image": np.zeros((160, 200, 3), np.uint8)},
    {"caption": "<script>alert(1)</script>", "url": "javascript:alert(1)"},
    {"faces": [{"box": [9.0, 9.0, 1.0, 1.0], "landmarks": [[0.0, 0.0]] * 5, "score": float("nan")}]},
]


@pytest.mark.parametrize("given", ODD, ids=",".join)
def test_odd_examples_are_shown(given):
    look = laion_face.look({**one_example(), **given})
    assert (look._repr_png_() is None) == (look.example["image"] is None)
    page = look._repr_html_()
    assert "<script" not in page
    assert 'href="javascript' not in page
    assert repr(look).startswith("sample 7, part 0: ")


def test_what_is_no_example_is_told():
    with pytest.raises(laion_face.OptionError, match="no image, faces"):
        laion_face.look({name: 1 for name in one_example() if name not in ("image", "faces")})


def test_a_reports_table_has_every_reason_and_no_markup_of_others():
    report = Report(filtered=1200, yielded=3)
    report.failed.update({"http_404": 2, "<b>": 1})
    page = report._repr_html_()
    assert "<td>1,206</td>" in page
    assert "failed: http_404" in page
    assert "<b>" not in page
