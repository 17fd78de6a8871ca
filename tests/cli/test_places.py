"""Folders of any name, relative, behind links or with ~; and a locale that knows nothing but ASCII."""

import ast
import os
import shlex
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

import laion_face
import laion_face_builder
from laion_face_builder import cli
from laion_face_builder.errors import NotPrepared, OptionError
from laion_face_builder.layout import DataDir
from laion_face_builder.sandbox import Sandbox, SandboxSpec

#: What a shell, a URL, a format string or a pattern would make something else of.
WILD = "a b'c\"d %20%s {x} #y $HOME `z` &; [a-b] *?:: (é)"
NAMES = [
    "with blanks",
    " -rf",
    "ünïcödé 顔",
    unicodedata.normalize("NFD", "ünïcödé"),
    "per%20cent %s %(x)s",
    "{braces}{0}",
    "#hash",
    "really?",
    "c:olon",
    "star*[ab]",
    "'single' \"double\"",
    "$HOME `id` ;& \\",
    "/".join(["long" * 40] * 6),
]


def run(*arguments):
    return cli.main(list(map(str, arguments)))


@pytest.fixture(scope="module")
def prepared_index(upstream_files, tmp_path_factory):
    """Prepare part 0 in a DATA_DIR, from local folders."""
    folder = tmp_path_factory.mktemp("prepared-index")
    files = ["--source-repo", upstream_files.folder / "laion-face", "--metadata", upstream_files.folder / "metadata"]
    assert run("prepare", "20M", "--parts", 0, "--data-dir", folder, *files) == 0
    return DataDir.at(folder)


def ids_of(dataset):
    return [row["sample_id"] for row in dataset]


@pytest.mark.parametrize("name", NAMES)
def test_a_job_runs_in_a_folder_of_any_name(upstream_files, tmp_path, name):
    base = tmp_path / name
    base.mkdir(parents=True)
    for kind in ("laion-face", "metadata"):
        (base / kind).symlink_to(upstream_files.folder / kind)
    true = [truth.sample_id for truth in upstream_files.truth_of(0)]
    (base / "exclude.txt").write_text(f"{true[0]}\n", encoding="utf-8")
    data, which = ["--data-dir", base / "data"], ["20M", "--parts", "0"]
    files = ["--source-repo", base / "laion-face", "--metadata", base / "metadata"]
    assert run("prepare", *which, *data, *files) == 0
    assert run("publish", f"{base}/published", *data) == 0
    assert run("verify", base / "data") == 0
    assert run("verify", f"{base}/published") == 0
    assert (
        run("stats", *which, *data, "--exclude", base / "exclude.txt", "--images=none", "--out", base / "s.html") == 0
    )
    assert run("show", *which, *data, "--images=none", "--count=2", "--out", base / "sheet") == 0
    assert {path.name for path in base.iterdir()} >= {"s.html", "sheet.html", "sheet.png"}
    how = {"split": "train", "parts": "0", "images": "none", "exclude": str(base / "exclude.txt")}
    assert ids_of(laion_face.load_dataset("20M", streaming=True, data_dir=base / "data", **how)) == true[1:]
    published = {"index": f"{base}/published", "data_dir": tmp_path / "none"}
    assert ids_of(laion_face.load_dataset("20M", streaming=True, **published, **how)) == true[1:]


def test_a_path_may_be_relative_and_the_folder_change_later(prepared_index, tmp_path, monkeypatch):
    shutil.copytree(prepared_index.root, tmp_path / "data")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    how = {"split": "train", "parts": "0", "images": "none", "streaming": True}
    by_data = laion_face.load_dataset("20M", data_dir="data/", **how)
    by_index = laion_face.load_dataset("20M", index="data", data_dir="none", **how)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert ids_of(by_data) == ids_of(by_index) != []


def test_home_is_found(prepared_index, tmp_path, monkeypatch):
    shutil.copytree(prepared_index.root, tmp_path / "data")
    monkeypatch.setenv("HOME", str(tmp_path))
    how = {"split": "train", "parts": "0", "images": "none", "streaming": True}
    (tmp_path / "none.txt").write_text("example.com\n", encoding="utf-8")
    by_data = laion_face.load_dataset("20M", data_dir="~/data", exclude="~/none.txt", cache_images="~/kept", **how)
    assert ids_of(by_data) == ids_of(laion_face.load_dataset("20M", index="~/data", data_dir="~/none", **how)) != []
    assert run("publish", "~/published", "--data-dir", "~/data") == 0
    assert run("verify", "~/published") == 0
    assert (tmp_path / "published" / "README.md").exists()


@pytest.mark.parametrize(
    "option", ["data_dir", "index", "metadata", "source_repo", "images", "exclude", "cache_images"]
)
def test_a_home_of_nobody_is_refused(tmp_path, option):
    given = {"data_dir": tmp_path, option: "~nobody-of-this-name/x"}
    with pytest.raises(OptionError, match="there is no such user"):
        laion_face.load_dataset("20M", split="train", streaming=True, **given)


def test_a_folder_behind_a_link_is_named_by_the_link(prepared_index, tmp_path):
    (tmp_path / "link").symlink_to(prepared_index.root)
    ds = laion_face.load_dataset(
        "20M", split="train", streaming=True, parts="0", images="none", data_dir=tmp_path / "link"
    )
    assert len(ids_of(ds)) > 0
    with pytest.raises(NotPrepared, match="/link: no pictures"):
        laion_face.load_dataset("20M", parts="0", data_dir=tmp_path / "link")


@pytest.mark.parametrize("name", NAMES)
def test_the_command_that_an_error_names_runs_as_it_is_printed(upstream_files, tmp_path, monkeypatch, capsys, name):
    (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for kind in ("laion-face", "metadata"):
        (tmp_path / name / kind).symlink_to(upstream_files.folder / kind)
    given = [f"--data-dir=./{name}/data", f"--source-repo=./{name}/laion-face", f"--metadata=./{name}/metadata"]
    assert run("download", "20M", "--parts", "0", *given) == 1
    told = capsys.readouterr().err
    named = told[told.index("Run `") + len("Run `") : told.rindex("`")]
    program, *arguments = shlex.split(named)
    assert program == "laion-face"
    assert run(*arguments) == 0
    assert DataDir.at(tmp_path / name / "data").index(0).exists()


@pytest.fixture(scope="module")
def small(tmp_path_factory, hub):
    spec = SandboxSpec(parts=(0,), rows=60, failing=0.1, slow=0.05)
    with Sandbox.running(tmp_path_factory.mktemp("small"), spec, hub=hub, namespace="places") as box:
        yield box


def test_pictures_lie_in_a_folder_of_any_name(small, tmp_path):
    base = tmp_path / WILD
    data, which = ["--data-dir", base / "data"], ["20M", "--parts", "0"]
    files = ["--source-repo", small.repo, "--metadata", small.metadata_repo]
    assert run("prepare", *which, *data, *files) == 0
    assert run("download", *which, *data, *files, "--processes=1", "--allow-private-hosts") == 0
    assert run("publish", f"{base}/published/", *data, "--with-images") == 0
    assert run("verify", base / "data", "--deep") == 0
    assert run("verify", f"{base}/published", "--deep") == 0
    good = [truth.sample_id for truth in small.truth if truth.ok]
    how = {"split": "train", "parts": "0", "data_dir": base / "data", "allow_private_hosts": True}
    assert ids_of(laion_face.load_dataset("20M", streaming=True, **how)) == good
    assert ids_of(laion_face.load_dataset("20M", streaming=True, images=base / "data" / "images", **how)) == good
    assert ids_of(laion_face.load_dataset("20M", cache_dir=base / "arrow", **how)) == good
    keep = {"images": "fetch", "cache_images": base / "kept"}
    assert ids_of(laion_face.load_dataset("20M", streaming=True, **keep, **how)) == good
    assert any(path.is_file() for path in (base / "kept").rglob("*"))


#: ASCII for files, names and what is printed, in a window of 20 columns.
POOR = {
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONIOENCODING": "ascii",
    "COLUMNS": "20",
    "NO_COLOR": "1",
}
LOAD = """
import sys, laion_face
ds = laion_face.load_dataset("20M", split="train", streaming=True, parts="0", data_dir=sys.argv[1], images="none")
print(ascii([row["caption"] for row in ds]))
"""


def in_ascii(environment, *command):
    poor = {**os.environ, **environment, **POOR}
    poor.pop("LANG", None)
    done = subprocess.run([sys.executable, *map(str, command)], env=poor, capture_output=True, check=False)
    return done.returncode, done.stdout.decode(errors="surrogateescape"), done.stderr.decode(errors="surrogateescape")


def test_the_whole_job_runs_where_there_is_nothing_but_ascii(small, tmp_path):
    assert any(not (truth.caption or "").isascii() for truth in small.truth), "nothing to lose"
    data, which = ["--data-dir", tmp_path / "data"], ["20M", "--parts", "0"]
    files = ["--source-repo", small.repo, "--metadata", small.metadata_repo]
    for command in (
        ["prepare", *which, *data, *files],
        ["download", *which, *data, *files, "--processes=1", "--allow-private-hosts"],
        ["status", *data],
        ["stats", *which, *data, "--out", tmp_path / "stäts.html"],
        ["show", *which, *data, "--count=2", "--out", tmp_path / "shäw"],
        ["publish", tmp_path / "published", *data, "--with-images"],
        ["verify", tmp_path / "published"],
        ["faces", small.truth[0].sample_id, *data],
    ):
        code, out, err = in_ascii(small.environment, "-m", "laion_face_builder", *command)
        assert code == 0, err
        assert "Traceback" not in err
        if command[0] == "show":
            assert sorted(out.splitlines()) == [str(tmp_path / "shäw.html"), str(tmp_path / "shäw.png")]
    code, out, err = in_ascii(small.environment, "-c", LOAD, tmp_path / "data")
    assert code == 0, err
    assert ast.literal_eval(out) == [truth.caption for truth in small.truth]


def test_a_folder_that_this_locale_cannot_name_is_one_line(small, tmp_path):
    which = ["20M", "--parts", "0", "--data-dir", tmp_path / "dätä"]
    code, _, err = in_ascii(small.environment, "-m", "laion_face_builder", "prepare", *which)
    assert code == 1
    assert err.startswith("laion-face: error: '")
    assert "PYTHONUTF8=1" in err
    assert err.count("\n") == 1


COMMANDS = ["prepare", "download", "faces", "status", "publish", "verify", "show", "stats", "demo"]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_readable_in_twenty_columns_of_ascii(command):
    code, out, err = in_ascii({}, "-m", "laion_face_builder", *command.split(), "--help")
    assert (code, err) == (0, "")
    assert out.startswith("usage: laion-face")
    assert out.isascii()
    assert "\x1b" not in out


def test_every_text_file_of_ours_is_utf8_whatever_the_locale():
    # `open`, `read_text` and their like take the locale's encoding where none is given.
    wrong = []
    for path in [Path(laion_face.__file__), *Path(laion_face_builder.__file__).parent.rglob("*.py")]:
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and lacks_encoding(call):
                wrong.append(f"{path}:{call.lineno}: {ast.unparse(call)[:80]}")
    assert wrong == []


def lacks_encoding(call):
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    of = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in given:
        return False
    if name in ("read_text", "write_text"):
        return True
    if "text" in given or "universal_newlines" in given:
        return name in ("run", "Popen", "check_output")
    texts = [value.value for value in [*call.args, *given.values()] if isinstance(value, ast.Constant)]
    is_binary = any(isinstance(text, str) and "b" in text and set(text) <= set("rwxab+") for text in texts)
    of_ours = of in ("os", "Image", "tarfile") or of[:1].isupper() or of.startswith("urllib")
    return name in ("open", "fdopen", "TemporaryFile", "NamedTemporaryFile") and not is_binary and not of_ours


@pytest.mark.parametrize(
    "call", ["open(file=p)", "p.open(mode='w')", "p.read_text()", "p.write_text(data=x)", "run(text=True)"]
)
def test_a_missing_encoding_is_seen(call):
    assert lacks_encoding(ast.parse(call, mode="eval").body)
    assert not lacks_encoding(ast.parse(call.replace("(", "(encoding='utf-8', ", 1), mode="eval").body)
