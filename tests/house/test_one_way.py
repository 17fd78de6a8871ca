"""There is one way for each thing: a class and its name, a reason, the logger, what is private in datasets."""

import ast
import inspect
import json
import pickle
import re
from collections import Counter
from pathlib import Path

import datasets.builder
import datasets.iterable_dataset
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import laion_face
import laion_face_builder
from laion_face_builder.errors import PictureError
from laion_face_builder.fetch.names import NoAnswer
from laion_face_builder.images.reasons import FINAL, Chance, Reason, Whose, http

PACKAGE = Path(laion_face_builder.__file__).parent
COMPAT = PACKAGE / "examples" / "_compat.py"
TREES = {
    path: ast.parse(path.read_text(encoding="utf-8")) for path in [*PACKAGE.rglob("*.py"), Path(laion_face.__file__)]
}


def nodes(kind):
    return [(path, node) for path, tree in TREES.items() for node in ast.walk(tree) if isinstance(node, kind)]


def test_every_class_has_a_name_of_its_own():
    names = Counter(node.name for _, node in nodes(ast.ClassDef))
    assert [name for name, count in names.items() if count > 1] == []


# --- reasons ---


@pytest.mark.parametrize("reason", Reason)
def test_a_reason_is_its_string_everywhere(reason):
    text = reason.value
    assert type(text) is str
    assert (reason, str(reason), f"{reason}", f"{reason:<50}", repr(reason)) == (*[text] * 3, f"{text:<50}", repr(text))
    assert {reason: 1} == {text: 1}
    assert json.dumps({reason: [reason]}) == json.dumps({text: [text]})
    assert [type(pickle.loads(pickle.dumps(reason, protocol))) for protocol in range(6)] == [str] * 6
    assert pa.array([reason, "x"]).to_pylist() == [text, "x"]
    assert pc.equal(pa.array([text, "x"]), reason).to_pylist() == [True, False]
    assert sorted([*Reason], reverse=True) == sorted((one.value for one in Reason), reverse=True)


@pytest.mark.parametrize("kind", [PictureError, NoAnswer])
def test_an_error_with_a_reason_comes_back_from_another_process(kind):
    error = pickle.loads(pickle.dumps(kind(Reason.TIMEOUT, "30 s")))
    assert (type(error), error.reason, error.detail, str(error)) == (kind, "timeout", "30 s", "timeout: 30 s")
    assert str(kind(Reason.TIMEOUT)) == "timeout"


def test_what_is_final_is_not_asked_for_again():
    refused = {"opt_out", "content_usage", "tdm_reserved", "robots_disallowed"}
    ours = {"filtered", "taken_down", "bad_url", "cannot_blur", "crashed_decoder", "decode_timeout"}
    assert refused | ours == FINAL
    assert {one for one in Reason if one.chance is Chance.SOON and one.whose is Whose.PICTURES} == set()


#: Words that mean something else as well: options, columns of reports, what a dry run says of a file.
_COMMON = {
    "connection",
    "dns",
    "excluded",
    "filtered",
    "incomplete",
    "ok",
    "opt_out",
    "other",
    "refused",
    "timeout",
    "unreachable",
}


def test_no_reason_is_a_bare_string():
    # The sandbox is the world outside: the fates of its pictures are not what becomes of them here.
    ours = [path for path in TREES if "sandbox" not in path.parts and path.name != "reasons.py"]
    assert [found for path in ours for found in bare_reasons(path)] == []


def bare_reasons(path):
    names = {reason.value for reason in Reason}
    parents = {child: node for node in ast.walk(TREES[path]) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(TREES[path]):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
            continue
        text, parent = node.value, parents[node]
        is_reason = text in names - _COMMON or (text in _COMMON and means_a_reason(node, parents))
        if isinstance(parent, ast.JoinedStr):
            is_reason = re.search(r"\bhttp_$", text) is not None
        if (is_reason and not is_searched_for(node, parent)) or re.fullmatch(r"http_\d+", text):
            yield f"{path}:{node.lineno}: {text!r}"


def means_a_reason(node, parents):
    """Say whether a word is given to an error, returned, compared with a reason or a status, or among others."""
    names = {reason.value for reason in Reason}
    while isinstance(parent := parents[node], (ast.IfExp, ast.Tuple, ast.Set, ast.List)):
        if not isinstance(parent, ast.IfExp) and sum(getattr(one, "value", 0) in names for one in parent.elts) > 1:
            return True
        node = parent
    if isinstance(parent, ast.Call):
        return ast.unparse(parent.func) in ("PictureError", "NoAnswer", "NoFiles", "StoredPicture")
    if isinstance(parent, ast.Compare):
        return re.search("reason|status", ast.unparse(parent)) is not None
    return isinstance(parent, ast.Return)


def is_searched_for(node, parent):
    return isinstance(parent, ast.Compare) and parent.left is node and isinstance(parent.ops[0], ast.In)


def test_answers_are_named_by_their_status():
    assert [http(404), http("503")] == ["http_404", "http_503"]


# --- what is private in datasets ---

#: What a builder has to define: the documented way to make one.
_DOCUMENTED = {"_info", "_split_generators", "_generate_examples"}


def test_one_module_touches_what_is_private_in_datasets():
    private = names_in(datasets.builder) | names_in(datasets.iterable_dataset)
    assert {"_create_builder_config", "_state_dict", "_init_state_dict", "_output_dir"} <= private
    wrong = [f"{path}:{node.lineno}: from {node.module}" for path, node in imports() if path != COMPAT]
    for path, node in nodes(ast.ClassDef):
        bases = {ast.unparse(base) for base in node.bases}
        if path != COMPAT and any(base in _HEIRS or base.startswith("datasets.") for base in bases):
            wrong += [f"{path}: {name}" for name in private_names(node) & (private - _DOCUMENTED)]
    wrong += [f"{p}: {n.attr}" for p, n in nodes(ast.Attribute) if n.attr == "download_checksums" and p != COMPAT]
    wrong += [f"{p}: {n.value}" for p, n in nodes(ast.Constant) if n.value == "download_checksums" and p != COMPAT]
    wrong += [f"{p}: {ast.unparse(n)}" for p, n in nodes(ast.Attribute) if p != COMPAT and is_of_datasets(n)]
    assert wrong == []
    assert [node for path, node in imports() if path == COMPAT]


_HEIRS = {"HookedBuilder", "ExamplesIterable", "ExampleStream", "LaionFace"}


def names_in(module):
    return private_names(ast.parse(inspect.getsource(module)))


def private_names(tree):
    """Collect the names of methods, and of attributes of `self` and `super()`, that begin with one underscore."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "super()"):
            found.add(node.attr)
    return {name for name in found if re.match(r"_[^_]", name)}


def imports():
    """Yield what is imported from private modules of datasets, or by private names."""
    for path, node in nodes(ast.ImportFrom):
        names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        if names[0] == "datasets" and any(re.match(r"_", name) for name in names):
            yield path, node


def is_of_datasets(node):
    """Say whether this is `datasets.….__version__`, or a name of it that begins with an underscore."""
    text = ast.unparse(node)
    return text.startswith("datasets.") and node.attr.startswith("_")


# --- the logger ---


def test_there_is_one_way_to_the_logger():
    found = [path for path, node in nodes(ast.Constant) if node.value == "laion_face" and is_a_loggers_name(path, node)]
    assert found == [PACKAGE / "log.py"]


def is_a_loggers_name(path, node):
    calls = [one for one in ast.walk(TREES[path]) if isinstance(one, ast.Call) and node in one.args]
    return any(ast.unparse(call.func).endswith("getLogger") for call in calls)
