"""A public project's files on security, workflows and citation agree with the code."""

import importlib.metadata
import re
from pathlib import Path

import pytest
import yaml

import laion_face_builder

ROOT = Path(__file__).parents[2]
SECURITY = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def test_the_tests_that_security_names_are_there():
    # Each `test_…` stands in the file that was named last before it.
    files = re.split(r"`(tests/[\w/]+\.py)`", SECURITY)[1:]
    assert len(files) > 10
    for file, text in zip(files[::2], files[1::2], strict=True):
        source = (ROOT / file).read_text(encoding="utf-8")
        for name in re.findall(r"`(test_\w+)`", text):
            assert f"def {name}(" in source, f"{file} has no {name}"


@pytest.mark.parametrize("file", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda file: file.name)
def test_actions_are_pinned_by_commit_and_jobs_end(file):
    for name, job in yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"].items():
        assert job["timeout-minutes"], name
    for action in re.findall(r"uses: (.*)", file.read_text(encoding="utf-8")):
        assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action


def test_there_is_one_version():
    assert importlib.metadata.version("laion-face") == laion_face_builder.__version__
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_paper_that_is_cited_is_that_of_the_docs():
    paper = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["preferred-citation"]
    docs = re.sub(r"\s+", " ", (ROOT / "docs" / "index.md").read_text(encoding="utf-8"))
    assert f"title={{{paper['title']}}}" in docs
    authors = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    assert f"author={{{authors}}}" in docs
