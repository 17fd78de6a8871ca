"""What users can cause ends in one line that names it and says what is valid, or simply works; never in a traceback."""

import ctypes
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from laion_face_builder.errors import OptionError
from laion_face_builder.examples import parts
from laion_face_builder.layout import DataDir
from laion_face_builder.options import OptionFields, Options
from laion_face_builder.sandbox import SandboxSpec

COMMAND = (sys.executable, "-m", "laion_face_builder")
#: Prefixes that end in a command, which then may mount; the first that works here is used.
NAMESPACES = (("unshare", "-rm"), ("unshare", "-m"))
READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
#: A small disk; then a larger one, and the same command again.
SMALL_DISK = (
    'disk=$0; mount -t tmpfs -o size=100k none "$disk" && { "$@"; echo "first $?"; find "$disk/index" -name "part*";'
    ' mount -o remount,size=50m "$disk" && "$@"; echo "then $?"; }'
)


def run(*words, **how) -> subprocess.CompletedProcess:
    return subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=900, check=False, **how)


def mounting(script: str, folder: Path) -> list[list[str]]:
    """Return the prefix that mounts by `script` and goes on with a command; none where this kernel does not let us."""
    for namespace in NAMESPACES:
        prefix = [*namespace, "sh", "-c", script, str(folder)]
        try:
            if run(*prefix, "true").returncode == 0:
                return [prefix]
        except FileNotFoundError:
            break
    return []


def says(done: subprocess.CompletedProcess, *named: str, typed_wrongly: bool = False) -> str:
    """Return the one line of an error, which has to name all this."""
    assert "Traceback" not in done.stderr
    assert done.returncode == 2 if typed_wrongly else done.returncode not in (0, 2), done.stdout
    errors = [line for line in done.stderr.splitlines() if line.startswith("laion-face: error: ")]
    assert errors == done.stderr.splitlines()[-1:]
    for name in named:
        assert name in errors[0]
    return errors[0]


PREPARE = ("prepare", "20M", "--parts", "0")
DOWNLOAD = ("download", "20M", "--parts", "0")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("show", "20M", "--min-score", "2"), ("min_score=2.0", "0 to 1")),
        (("stats", "20M", "--min-face-area", "50"), ("min_face_area=50.0", "0 to 1")),
        (("stats", "20M", "--min-similarity", "nan"), ("min_similarity=nan", "-1 to 1")),
        (("stats", "20M", "--min-similarity", "-1.5"), ("min_similarity=-1.5", "-1 to 1")),
        ((*DOWNLOAD, "--retry-failed", "-1"), ("retry_failed=-1", "0 to 1,000")),
        ((*DOWNLOAD, "--processes", "0"), ("--processes", "=0", "1 to 1,000")),
        ((*DOWNLOAD, "--concurrency", "0"), ("concurrency=0", "1 to 10,000")),
        ((*DOWNLOAD, "--samples-per-shard", "0"), ("samples_per_shard=0", "1 to 1,000,000")),
        ((*DOWNLOAD, "--encode-quality", "101"), ("encode_quality=101", "1 to 100")),
        ((*DOWNLOAD, "--timeout", "inf"), ("timeout=inf", "0.001 to 86,400")),
        ((*DOWNLOAD, "--timeout", "1e99"), ("timeout=1e+99", "0.001 to 86,400")),
        ((*DOWNLOAD, "--image-size", "1000000000"), ("image_size=1000000000", "1 to 16,384")),
        ((*PREPARE, "--processes", "0"), ("processes=0", "1 to 1,000")),
        ((*PREPARE, "--shards-per-part", "1000000000000"), ("shards_per_part=1000000000000", "1 to 100,000")),
        (("show", "20M", "--count", "0"), ("count=0", "1 to 500")),
        (("show", "20M", "--columns", "0"), ("columns=0", "1 to 24")),
        (("publish", "there", "--preview", "-1"), ("preview=-1", "0 to 1,000")),
        (("faces", "99999999999999999999"), ("found '99999999999999999999'", "a whole number")),
        (("prepare", "20M", "--parts", "99"), ("parts='99'", "[99] not in config 20M", "0, 2, 5")),
        (("prepare", "20M", "--parts", "3"), ("parts='3'", "not in config 20M")),
        (("prepare", "20M", "--parts", "0-99999999999"), ("99999999999] not in config 20M",)),
        (("prepare", "20M", "--parts", ""), ("parts=''", "none given")),
        (("prepare", "20M", "--parts", "5-2"), ("parts=5-2", "runs backwards; expected 2-5")),
        ((*PREPARE, "--index", ""), ("index=''", "names nothing")),
        (
            ("verify", "me/nothere"),
            ("Hub dataset me/nothere: there is no such repo", "Nor is there a folder me/nothere"),
        ),
        (("verify", "./nothere"), ("./nothere: there is no such folder",)),
        (("verify", "file"), ("file: it is a file", "expected a DATA_DIR, a published folder or a Hub dataset")),
        (("verify", "empty"), ("empty: nothing is prepared or published there", "laion-face prepare")),
        (("status", "--data-dir", "file"), ("data_dir='file'", "it is no folder")),
        ((*PREPARE, "--data-dir", "file/below"), ("data_dir='file/below'", "file is no folder")),
        (
            (*PREPARE, "--metadata", "ftp://nothere.invalid/x"),
            ("ftp://nothere.invalid/x: no answer", "the address right"),
        ),
        ((*PREPARE, "--metadata", "http://nothere.invalid/x"), ("http://nothere.invalid/x: no answer",)),
        (
            (*PREPARE, "--metadata", "http://127.0.0.1:9/"),
            ("http://127.0.0.1:9/", "Connection refused", "try again later"),
        ),
        (
            (*PREPARE, "--metadata", "foo://bucket/x"),
            ("foo://bucket/x", "Protocol not known", "expected hf://datasets/"),
        ),
        ((*PREPARE, "--metadata", "hf://datasets/me"), ("'hf://datasets/me'", "hf://datasets/OWNER/NAME")),
        ((*PREPARE, "--metadata", "hf://models/me/x"), ("'hf://models/me/x'", "hf://datasets/OWNER/NAME")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_mistake_on_the_command_line_is_one_line(words, named, sandbox, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    done = run(*COMMAND, *words, cwd=tmp_path, env={**os.environ, "LAION_FACE_DATA_DIR": str(tmp_path / "data")})
    says(done, *named, typed_wrongly=words[0] == "faces")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "data" / "index").exists()


@pytest.mark.parametrize(
    ("variables", "words", "named"),
    [
        ({"LAION_FACE_DATA_DIR": "file"}, ("status",), ("LAION_FACE_DATA_DIR=", "file'", "it is no folder")),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, PREPARE, ("http://127.0.0.1:9", "Connection refused", "the network")),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, ("verify", "me/x"), ("me/x", "http://127.0.0.1:9", "the network")),
    ],
)
def test_a_mistake_in_the_environment_is_one_line(variables, words, named, tmp_path):
    (tmp_path / "file").touch()
    home = {"XDG_CACHE_HOME": str(tmp_path), "LAION_FACE_DATA_DIR": ""}
    says(run(*COMMAND, *words, cwd=tmp_path, env={**os.environ, **home, **variables}), *named)


def test_no_variable_is_the_default_folder(tmp_path):
    done = run(*COMMAND, "status", env={**os.environ, "LAION_FACE_DATA_DIR": "", "XDG_CACHE_HOME": str(tmp_path)})
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, str(tmp_path / "laion-face"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", ["abc", "-3", "0", "2.5"])
def test_a_number_of_ranks_that_is_none_is_refused(value, prepared, monkeypatch):
    import laion_face

    monkeypatch.setenv("WORLD_SIZE", value)
    with pytest.raises(OptionError, match=r"WORLD_SIZE=.*expected the number of ranks"):
        laion_face.load_dataset("20M", parts="0", images="none", data_dir=prepared.data.root, streaming=True)


def test_a_package_that_is_missing_is_named(tmp_path):
    # Whichever packages are here: one that stands in for s3fs fails to be imported as a missing one does.
    (tmp_path / "s3fs.py").write_text("raise ModuleNotFoundError(\"No module named 's3fs'\", name='s3fs')")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    words = (*PREPARE, "--metadata", "s3://bucket/x", "--data-dir", tmp_path / "data")
    says(run(*COMMAND, *words, env={**os.environ, "PYTHONPATH": path}), "s3://bucket/x", "`pip install s3fs`")


def of(data_dir=None, **given) -> Options:
    return Options.of("20M", OptionFields(**given), data_dir)


@pytest.mark.parametrize(
    "given",
    [
        {"min_score": float("inf")},
        {"min_faces": 10**30},
        {"concurrency": 10**9},
        {"min_similarity": -2},
        {"nsfw": []},
        {"nsfw": 5},
        {"parts": []},
        {"parts": -1},
        {"parts": True},
        {"parts": 1.0},
        {"parts": b"0"},
        {"parts": np.int64(3)},
        {"parts": np.arange(2000)},
        {"exclude": 5},
        {"exclude": b"list.txt"},
        {"exclude": {1: "why"}},
        {"exclude": [True]},
        {"exclude": [1, "sample_id"]},
        {"exclude": ["a.example,b.example"]},
        {"exclude": [None]},
        {"index": b"x"},
        {"images": b"x"},
        {"source_revision": 5},
        {"on_error": ["skip"]},
        {"data_dir": b"/tmp"},
        {"data_dir": ""},
        {"data_dir": "s3://bucket/x"},
    ],
    ids=lambda given: str(given)[:60],
)
def test_a_mistake_in_python_is_one_line_that_names_the_option(given):
    with pytest.raises(OptionError, match=next(iter(given))) as caught:
        of(**given)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 900


IDS = (5, 7)


@pytest.mark.parametrize(
    "exclude",
    [[5, 7], {7, 5}, (n for n in IDS), map(str, IDS), np.array(IDS), ["7", 5.0], (np.int64(5), np.int32(7), 5)],
    ids=lambda value: type(value).__name__,
)
def test_ids_left_out_by_value_are_those_of_a_file(exclude, tmp_path):
    (tmp_path / "list.txt").write_text("5\n7\n")
    fields = OptionFields(exclude=exclude)
    first, second = Options.of("20M", fields), Options.of("20M", fields)
    assert first.defining() == second.defining() == of(exclude=tmp_path / "list.txt").defining()


def test_other_values_are_left_out_too(tmp_path):
    values = ["http://a.example/b.jpg", "cdn.example", "ab" * 32, "cd" * 16]
    (tmp_path / "list.txt").write_text("\n".join(values))
    assert of(exclude=values).defining() == of(exclude=str(tmp_path / "list.txt")).defining()
    assert of(exclude=values).filters.exclude.counts == {"ids": 0, "urls": 1, "hosts": 1, "hashes": 2}


def test_what_is_left_out_by_value_is_left_out(prepared):
    import laion_face

    gone = prepared.truth[0].sample_id
    how = {"parts": np.int64(0), "images": "none", "data_dir": prepared.data.root, "split": "train"}
    for streaming in (True, False):
        ds = laion_face.load_dataset("20M", exclude=(n for n in [gone]), streaming=streaming, **how)
        found = [example["sample_id"] for example in ds]
        assert found == [truth.sample_id for truth in prepared.sandbox.truth_of(0) if truth.sample_id != gone]


def test_a_path_is_a_folder_of_this_machine(published, prepared, upstream_files, tmp_path):
    options = of(
        index=published.folder,
        metadata=upstream_files.folder / "metadata",
        source_repo=upstream_files.folder / "laion-face",
        images=prepared.data.root,
        cache_images=tmp_path,
        data_dir=prepared.data.root,
    )
    assert parts.rows_of(options, 0) == len(prepared.sandbox.truth_of(0))
    assert options.upstream.metadata_source().where
    assert of(index=Path("owner/name")).index == str(Path("owner/name").absolute())


def test_status_counts_samples(prepared):
    said = run(*COMMAND, "status", "20M", "--data-dir", prepared.data.root).stdout
    assert "listed  with faces    indexed" in said
    assert "usable samples" in said
    # Of a table that is joined rows are said, and other tests join some there.
    assert "rows" not in said.split("joined/")[0]


@pytest.fixture(scope="module")
def reads_only(prepared, tmp_path_factory):
    """Give a copy of `data`, and each way there is here to run a command to which that is read-only."""
    root = tmp_path_factory.mktemp("read-only") / "data"
    shutil.copytree(prepared.data.root, root, ignore=shutil.ignore_patterns("*.lock"))
    yield DataDir(root), [lambda *words: _without_permission(root, *words), *_mounted_read_only(root)]
    _set_modes(root, writable=True)


def _mounted_read_only(root: Path):
    return [lambda *words, prefix=prefix: run(*prefix, *words) for prefix in mounting(READ_ONLY, root)]


def _without_permission(root: Path, *words):
    _set_modes(root, writable=False)
    try:
        return run(*words, preexec_fn=_drop_override)
    finally:
        _set_modes(root, writable=True)


def _drop_override() -> None:
    """Give up CAP_DAC_OVERRIDE (1) by PR_CAPBSET_DROP (24): root is held back by modes of files only without it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)


def _set_modes(root: Path, *, writable: bool) -> None:
    for path in (root, *root.rglob("*")):
        path.chmod(path.stat().st_mode | 0o200 if writable else path.stat().st_mode & ~0o222)


LOADS = """if True:
    import sys, laion_face
    from laion_face_builder.errors import LaionFaceError
    try:
        how = {"split": "train", "parts": "0,2", "data_dir": sys.argv[1], "cache_dir": sys.argv[2]}
        print(len(list(laion_face.load_dataset("20M", streaming=sys.argv[3] == "streaming", **how))))
    except LaionFaceError as error:
        sys.exit(f"laion-face: error: {error}")
"""


@pytest.mark.parametrize(
    "words",
    [
        ("prepare", "20M", "--parts", "0,2"),
        ("download", "20M", "--parts", "0,2", "--allow-private-hosts"),
        ("status",),
        ("verify",),
        ("show", "20M", "--parts", "0", "--count", "2", "--out", "OUT/sheet"),
        ("stats", "20M", "--out", "OUT/stats.html"),
        ("faces", "ID"),
    ],
    ids=lambda words: words[0],
)
def test_what_is_prepared_can_be_read_where_nothing_can_be_written(words, reads_only, prepared, tmp_path):
    data, ways = reads_only
    names = {"ID": str(next(truth.sample_id for truth in prepared.truth if truth.faces))}
    words = [names.get(word, word.replace("OUT", str(tmp_path))) for word in words]
    before = sorted(data.root.rglob("*"))
    for way in ways:
        done = way(*COMMAND, *words, "--data-dir", data.root)
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
        assert words[0] != "prepare" or "parts 0, 2: prepared, nothing to do" in done.stderr
    assert sorted(data.root.rglob("*")) == before


@pytest.mark.parametrize("how", ["streaming", "copied"])
def test_a_dataset_is_loaded_where_nothing_can_be_written(how, reads_only, tmp_path):
    data, ways = reads_only
    for number, way in enumerate(ways):
        done = way(sys.executable, "-c", LOADS, data.root, tmp_path / str(number), how)
        assert done.returncode == 0, done.stderr
        assert int(done.stdout.split()[-1]) > 100


@pytest.mark.parametrize(
    "words",
    [
        ("prepare", "20M", "--parts", "0", "--data-dir", "DATA/below"),
        ("stats", "20M", "--data-dir", "DATA", "--out", "DATA/stats.html"),
        ("publish", "DATA/published", "--data-dir", "DATA"),
        ("download", "20M", "--parts", "0", "--data-dir", "DATA", "--allow-private-hosts", "--retry-failed", "1"),
    ],
    ids=lambda words: words[0],
)
def test_what_has_to_be_written_names_the_folder(words, reads_only):
    data, ways = reads_only
    for way in ways:
        done = way(*COMMAND, *[word.replace("DATA", str(data.root)) for word in words])
        line = says(done, str(data.root), "cannot be written", "name another folder")
        assert "read-only" in line or "no permission to write" in line


def limited(size: int, *words) -> subprocess.CompletedProcess:
    """Run a command whose files may not get larger, as on a full disk."""
    # Nor may what Python compiles on the way: it keeps a cut file, and every later run fails on that.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    return run(*words, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)), env=environment)


@pytest.mark.parametrize(
    ("words", "made"),
    [
        (("show", "20M", "--count", "2", "--out", "OUT/sheet.png"), "sheet.png"),
        (("stats", "20M", "--out", "OUT/stats.html"), "stats.html"),
        (("publish", "OUT/published", "--with-images"), "published/README.md"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(words, made, prepared, tmp_path):
    command = [*COMMAND, *[word.replace("OUT", str(tmp_path)) for word in words], "--data-dir", prepared.data.root]
    says(limited(2000, *command), "larger than a file may be", "free at", "ulimit -f", "the same command again")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() and path.name[0] != "."] == []
    assert run(*command).returncode == 0
    assert (tmp_path / made).is_file()


def test_preparing_and_downloading_go_on_once_there_is_room(make_sandbox, tmp_path):
    box, data = make_sandbox(SandboxSpec(parts=(0,), rows=120)), DataDir(tmp_path / "data")
    where = ("--parts", "0", "--data-dir", data.root, "--source-repo", box.repo, "--metadata", box.metadata_repo)
    prepare = (*COMMAND, "prepare", "20M", *where)
    download = (*COMMAND, "download", "20M", *where, "--allow-private-hosts", "--processes", "1")
    for command, size, made in ((prepare, 4000, data.index(0)), (download, 140_000, data.sidecar(0))):
        says(limited(size, *command), str(data.root), "larger than a file may be", "free at", "the same command again")
        assert not made.exists()
        assert run(*command).returncode == 0
        assert made.exists()


def test_preparing_goes_on_once_a_small_disk_is_a_larger_one(make_sandbox, tmp_path):
    box = make_sandbox(SandboxSpec(parts=(0,), rows=120))
    words = ("prepare", "20M", "--parts", "0", "--data-dir", tmp_path, "--source-repo", box.repo)
    for prefix in mounting(SMALL_DISK, tmp_path):
        done = run(*prefix, *COMMAND, *words, "--metadata", box.metadata_repo)
        assert "Traceback" not in done.stderr
        assert done.stdout.split() == ["first", "1", "then", "0"]
        line = next(line for line in done.stderr.splitlines() if line.startswith("laion-face: error: "))
        assert str(tmp_path) in line
        assert "no room left on its disk" in line or "are free" in line


def test_a_full_disk_under_the_arrow_cache_is_one_line(prepared, tmp_path):
    command = (sys.executable, "-c", LOADS, prepared.data.root, tmp_path, "copied")
    says(limited(20_000, *command), str(tmp_path), "larger than a file may be", "free at")
    assert list(tmp_path.rglob("*.arrow")) == []
    assert run(*command).returncode == 0
