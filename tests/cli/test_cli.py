"""The command line as a user meets it: one line for whatever goes wrong, every format, every stream, every shell."""

import argparse
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from subprocess import PIPE
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_face_builder import __version__, cli
from laion_face_builder.cli import commands, failures, parsing
from laion_face_builder.cli.arguments import make_parser
from laion_face_builder.cli.parsing import meant
from laion_face_builder.cli.schemas import FORECAST, SCHEMAS
from laion_face_builder.layout import DataDir
from laion_face_builder.sandbox import Sandbox, SandboxSpec
from laion_face_builder.sources.sources import Upstream

MODULES = ("laion_face", "laion_face_builder")
#: Programs that are started in the background of a script, as these tests may be, do not hear Ctrl-C.
LISTENS = ("env", "--default-signal=INT")
INTERRUPTED = "laion-face: interrupted; run the same command again to go on"


def run(capsys, *words):
    code = cli.main(list(map(str, words)))
    told = capsys.readouterr()
    return code, told.out, told.err.splitlines()


def process(*words, module="laion_face_builder", **how):
    command = [sys.executable, "-m", module, *map(str, words)]
    return subprocess.run(command, check=False, timeout=300, text=True, **{"stderr": PIPE, **how})


# Every format of every command


@pytest.fixture
def words_of(prepared, tmp_path):
    """Give `words_of(command)`: the command on what is prepared, writing only below tmp_path."""

    def words(command):
        data = ["--data-dir", str(prepared.data.root)]
        copy = tmp_path / "copy"
        if command == "download":
            shutil.copytree(prepared.data.root, copy)
        if command == "remove":
            shutil.copytree(prepared.data.root / "index", copy / "index")
            (tmp_path / "list.txt").write_text(str(prepared.truth[0].sample_id))
        return {
            "prepare": ["prepare", "20M", "--parts", "0,2", *data],
            "download": ["download", "20M", "--parts", "0,2", "--allow-private-hosts", "--data-dir", str(copy)],
            "faces": ["faces", *(str(one.sample_id) for one in prepared.truth if one.faces)][:4] + data,
            "status": ["status", "20M", *data],
            "publish": ["publish", str(tmp_path / "published"), "--preview", "2", *data],
            "remove": ["remove", str(tmp_path / "list.txt"), "--data-dir", str(copy)],
            "verify": ["verify", *data],
            "show": ["show", "20M", "--images", "none", "--count", "3", "--out", str(tmp_path / "sheet.html"), *data],
            "stats": ["stats", "20M", "--out", str(tmp_path / "stats.html"), *data],
            "export": ["export", str(tmp_path / "out"), "--as", "webdataset", "--shards-per-part", "2", *data],
            "demo": ["demo", str(tmp_path / "demo")],
        }[command]

    return words


def test_every_command_that_reports_has_formats_and_a_schema():
    parsers = make_parser().commands
    reporting = [name for name, parser in parsers.items() if "--format" in parser.option_names]
    assert reporting == list(SCHEMAS)
    assert [name for name in parsers if name not in SCHEMAS] == ["completion"]


@pytest.mark.parametrize("command", SCHEMAS)
def test_json_has_the_documented_shape(words_of, capsys, command):
    code, out, _ = run(capsys, *words_of(command), "--format", "json")
    assert code == 0
    documents = [json.loads(line) for line in out.splitlines()]
    assert len(documents) == {"download": 2, "faces": 3}.get(command, 1)
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[command])
    for document in documents:
        jsonschema.validate(document, SCHEMAS[command])


@pytest.mark.parametrize("command", ["prepare", "download", "publish", "remove", "show", "stats", "export", "demo"])
def test_every_command_that_writes_has_a_dry_run_of_one_shape(words_of, capsys, command):
    words = [*words_of(command), "--dry-run"]
    code, out, _ = run(capsys, *words, "--format", "json")
    assert code == 0
    document = json.loads(out)
    jsonschema.validate(document, FORECAST)
    assert document["command"] == command
    code, out, _ = run(capsys, *words)
    assert (code, out.splitlines()[0]) == (0, f"dry run of {command}: nothing is touched")


@pytest.mark.parametrize("command", [name for name in SCHEMAS if name != "demo"])
def test_quiet_says_nothing_and_the_exit_code_tells(words_of, command):
    done = process(*words_of(command), "--format", "quiet", stdout=PIPE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_quiet_says_errors_all_the_same(tmp_path, capsys):
    code, out, err = run(capsys, "stats", "20M", "--data-dir", tmp_path, "--format", "quiet")
    assert (code, out, len(err)) == (1, "", 1)
    assert "no index of parts" in err[0]


def test_quiet_draws_no_bars_at_a_terminal(prepared, tmp_path):
    # `stats` draws a bar for people: this is what a real terminal of 80 columns gets.
    code = (
        "import os, pty, sys\n"
        "chunks = []\n"
        "def read(descriptor):\n"
        "    chunks.append(os.read(descriptor, 1 << 16))\n"
        "    return chunks[-1]\n"
        "status = pty.spawn(sys.argv[1:], read)\n"
        "sys.exit(os.waitstatus_to_exitcode(status))\n"
    )
    words = ["stats", "20M", "--out", str(tmp_path / "stats.html"), "--data-dir", str(prepared.data.root)]
    shown = {}
    for form in ("quiet", "human"):
        command = [
            "sh",
            "-c",
            'stty rows 24 cols 80; TERM=xterm exec "$@"',
            "sh",
            sys.executable,
            "-m",
            "laion_face_builder",
            *words,
        ]
        command = [sys.executable, "-c", code, *command, "--format", form]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        shown[form] = done.stdout
    assert shown["quiet"].strip("\r\n^D\b") == ""
    assert "counting" in shown["human"]


def test_downloads_are_a_table_for_people(words_of, prepared, capsys):
    code, out, _ = run(capsys, *words_of("download"))
    head, *rows = out.splitlines()
    assert (code, head.split()[:3]) == (0, ["part", "asked", "for"])
    for row, part in zip(rows, (0, 2), strict=True):
        truths = [one for one in prepared.truth if one.part == part]
        asked, usable = f"{len(truths):,}", f"{sum(one.ok for one in truths):,}"
        assert row.split()[:3] == [str(part), asked, usable]


def test_faces_are_json_lines_unless_they_are_for_people(prepared, capsys):
    one = next(truth for truth in prepared.truth if len(truth.faces) == 1)
    words = ["faces", one.sample_id, "--data-dir", prepared.data.root]
    _, out, _ = run(capsys, *words)
    assert json.loads(out)["sample_id"] == one.sample_id
    _, out, _ = run(capsys, *words, "--format", "human")
    first, face = out.splitlines()
    assert first == f"{one.sample_id}, part {one.part}: 1 face"
    assert face.startswith(f"  score {one.faces[0].score:.3f}  box {one.faces[0].box[0]:.1f},")


def test_stats_json_is_what_it_was_called_before(words_of, capsys):
    _, by_format, _ = run(capsys, *words_of("stats"), "--format", "json")
    _, by_alias, _ = run(capsys, *words_of("stats"), "--json")
    assert by_alias == by_format


# What is typed wrongly

VALID_20M = "0, 2, 5, 8, 13, 15, 17, 18, 21, 22, 24, 25, 28"
WRONG = {
    ("prepar",): "there is no command 'prepar': did you mean prepare? valid are prepare, download,",
    ("STATUS",): "did you mean status?",
    ("zzz",): "there is no command 'zzz': valid are prepare, ",
    ("prepare", "20m"): "argument CONFIG: found '20m': did you mean 20M? valid are 20M, 50M; see",
    ("prepare",): "the following arguments are required: CONFIG; see `laion-face prepare --help`",
    (
        "download",
        "--min-face-sise",
        "50",
        "20M",
    ): "download has no option --min-face-sise: did you mean --min-face-size",
    ("download", "20M", "--min-face-sise=50"): "did you mean --min-face-size",
    ("prepare", "20M", "--min-face-size", "50"): "--min-face-size: it belongs to download, show, stats, export; see",
    ("prepare", "20M", "--data", "x"): "prepare has no option --data: did you mean --data-dir? see",
    ("--versoin",): "laion-face has no option --versoin: did you mean --version? see `laion-face --help`",
    ("status", "--format", "JSON"): "argument --format: found 'JSON': did you mean json? valid are human, json, quiet",
    ("faces", "-5"): "found '-5', expected a sample id as in the column sample_id: a whole number from 0 to 9223372036",
    ("faces", "abc"): "found 'abc', expected a sample id",
    ("faces", str(2**63)): "found '9223372036854775808', expected a sample id",
    ("faces", "1.5"): "found '1.5', expected a sample id",
    ("prepare", "20M", "--processes", "many"): "argument --processes: found 'many', expected a whole number",
    ("publish", "--gated", "owner/name"): "valid are auto, manual, off; --gated without a value stands last; see",
    ("completion", "csh"): "argument SHELL: found 'csh': did you mean",
    ("prepare", "20M", "two\nlines"): "unrecognized arguments: two lines",
}


@pytest.mark.parametrize("words", WRONG)
def test_what_cannot_be_understood_is_one_line_with_what_was_meant(words, capsys):
    code, out, err = run(capsys, *words)
    assert (code, out, len(err)) == (2, "", 1)
    assert err[0].startswith("laion-face: error: ")
    assert WRONG[words] in err[0]


@pytest.mark.parametrize("parts", ["99", "3", "-1", "0,99"])
def test_parts_out_of_range_name_the_valid_ones(parts, tmp_path, capsys):
    code, _, err = run(capsys, "prepare", "20M", f"--parts={parts}", "--data-dir", tmp_path)
    assert (code, len(err)) == (1, 1)
    assert parts in err[0]
    assert parts == "-1" or f"its parts are {VALID_20M}" in err[0]


def test_other_cases_come_first_then_longer_words_then_what_looks_alike():
    assert meant("json", ["JSON", "jsonl"]) == "did you mean JSON? "
    assert meant("--data", ["--metadata", "--data-dir"]) == "did you mean --data-dir? "
    assert meant("--min-face-sise", ["--data-dir", "--min-face-size"]) == "did you mean --min-face-size? "
    assert meant("zzz", ["prepare", "download"]) == ""


_KNOWN_WORDS = sorted({name for parser in make_parser().commands.values() for name in parser.option_names})


@given(
    st.lists(
        st.sampled_from([*make_parser().commands, *_KNOWN_WORDS, "20M", "0", "-5", "--", "-", ""])
        | st.text(max_size=8),
        max_size=6,
    )
)
@settings(max_examples=150)
def test_whatever_is_typed_is_understood_or_refused(words):
    # Neither a traceback nor a code of its own, and of what is not understood something is said.
    with redirect_stderr(StringIO()) as err, redirect_stdout(StringIO()) as out:
        try:
            code = 0 if callable(parsing.parse(make_parser(), words).run) else 1
        except SystemExit as ended:
            code = int(ended.code or 0)
    assert code in (0, 2)
    assert len(err.getvalue().splitlines()) == (code == 2)
    assert code == 0 or not out.getvalue()


def test_options_count_by_their_whole_names_only():
    for parser in [make_parser(), *make_parser().commands.values()]:
        assert not parser.allow_abbrev


# What goes wrong

BUG = TypeError("two\nlines, and http://me:secret@host/x")


@pytest.fixture
def bug(monkeypatch):
    def raise_it(given):
        raise BUG

    monkeypatch.setattr(commands, "run_status", raise_it)


def test_a_mistake_of_ours_is_one_line_that_says_how_to_report_it(bug, capsys):
    code, out, err = run(capsys, "status")
    assert (code, out) == (70, "")
    assert err == [
        "laion-face: error: something went wrong that should not: TypeError: two lines, and http://***@host/x - run it "
        "again with --debug for the traceback, and report that to the project"
    ]


@pytest.mark.parametrize("words", [("--debug", "status"), ("status", "--debug")])
def test_debug_shows_the_traceback_wherever_it_stands(bug, capsys, words):
    code, _, err = run(capsys, *words)
    assert code == 70
    assert err[0] == "Traceback (most recent call last):"
    assert any("in raise_it" in line for line in err)
    assert err[-1].startswith("laion-face: error: something went wrong")


def test_debug_shows_the_traceback_of_known_errors_too(tmp_path, capsys):
    words = ["stats", "20M", "--data-dir", tmp_path]
    code, _, plain = run(capsys, *words)
    assert (code, len(plain)) == (1, 1)
    code, _, err = run(capsys, *words, "--debug")
    assert (code, err[0], err[-1]) == (1, "Traceback (most recent call last):", plain[0])


@pytest.mark.parametrize("number", sorted(failures._MEANINGS))
def test_what_the_system_refuses_names_the_file_and_the_way_out(number, tmp_path):
    error = OSError(number, os.strerror(number), str(tmp_path / "file"))
    assert failures.is_explained(error)
    line = failures.sentence(error, None)
    assert line.startswith(f"{tmp_path}/file: ")
    assert "; " in line
    assert "\n" not in line
    if number in (errno.ENOSPC, errno.EDQUOT):
        assert re.search(rf"\([\d.]+ \w+ free at {tmp_path}\); free some space and run the same command again$", line)


def test_an_error_that_names_no_file_is_told_with_the_fullest_place(tmp_path):
    written = argparse.Namespace(data_dir=tmp_path / "data", out=tmp_path / "out")
    line = failures.sentence(OSError(errno.ENOSPC, "No space left on device"), written)
    named = line.partition(":")[0]
    assert Path(named) in (tmp_path / "data", tmp_path / "out", Path(os.environ.get("TMPDIR", "/tmp")))


@pytest.mark.parametrize("error", [ConnectionRefusedError(111, "Connection refused"), TimeoutError("timed out")])
def test_a_network_that_fails_is_no_file(error):
    assert failures.sentence(error, None).startswith("the network: ")


def test_an_os_error_without_sense_is_a_mistake_of_ours():
    assert not failures.is_explained(OSError("what a library says"))


@pytest.mark.parametrize("words", [("prepare", "20M", "--parts", "0", "--data-dir"), ("demo",)])
def test_a_file_where_a_folder_has_to_be(words, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code, _, err = run(capsys, *words, tmp_path / "file")
    assert code == 1
    assert len([line for line in err if "error" in line]) == 1
    assert f"{tmp_path}/file" in err[-1]


def test_a_full_disk_says_what_is_free_and_what_to_do(sandbox: Sandbox, tmp_path, capsys):
    file: Any = Upstream(sandbox.repo).id_list()
    incomplete = file._incomplete(file.place(DataDir.at(tmp_path).sources))
    incomplete.parent.mkdir(parents=True)
    incomplete.symlink_to("/dev/full")
    code, _, err = run(capsys, "prepare", "20M", "--parts", "0", "--data-dir", tmp_path)
    assert code == 1
    assert re.search(
        r"no room left on its disk \([\d.]+ \w+ free at /.*\)\. Make room, .* and run the same command again", err[-1]
    )


# Streams


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("words", [("--help",), ("--version",), (), ("status",), ("completion", "bash")])
@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_full_standard_output_is_one_line(module, words, buffered):
    with open("/dev/full", "w") as full:
        done = process(*words, module=module, stdout=full, env={**os.environ, "PYTHONUNBUFFERED": buffered})
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "laion-face: error: standard output: No space left on device; send it somewhere else, and run the same command "
        "again"
    ]


def test_a_standard_error_that_is_full_changes_no_exit_code():
    with open("/dev/full", "w") as full:
        assert process("status", stderr=full, stdout=subprocess.DEVNULL).returncode == 0
        assert process("prepar", stderr=full).returncode == 2


@pytest.mark.parametrize("closed", ["<&-", "2>&-"])
def test_closed_streams_change_nothing(closed):
    command = f'"$0" -m laion_face_builder status {closed}'
    done = subprocess.run(["bash", "-c", command, sys.executable], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "0 of 32 parts are prepared" in done.stdout


def test_a_closed_standard_output_is_one_line():
    done = subprocess.run(
        ["bash", "-c", '"$0" -m laion_face_builder status >&-', sys.executable], check=False, capture_output=True
    )
    assert done.returncode == 1
    assert done.stderr.decode().startswith("laion-face: error: standard output: Bad file descriptor")


def test_a_reader_who_has_gone_is_no_error():
    command = 'set -o pipefail; "$0" -m laion_face_builder status | true'
    done = subprocess.run(["bash", "-c", command, sys.executable], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}]
)
def test_paths_beyond_ascii_come_through_any_terminal(environment, tmp_path):
    place = tmp_path / "né漢"
    own = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "PYTHONUTF8"))}
    words = ("status", "--data-dir", place)
    done = process(*words, stdout=PIPE, env={**own, **environment}, errors="surrogateescape")
    if "PYTHONUTF8" in environment:  # The path itself cannot be said then, since Python takes its bytes for no text.
        assert done.returncode == 1
        assert "a name that is no UTF-8" in done.stderr
    else:
        assert done.returncode == 0
        assert done.stdout.splitlines()[0].startswith(f"{tmp_path}/n")
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == done.returncode


# Ctrl-C


@pytest.mark.parametrize(
    "moment", ["laion_face_builder.cli.ending", "argparse", "numpy", "pyarrow.lib", "laion_face_builder.index.prepare"]
)
@pytest.mark.parametrize("module", MODULES)
def test_ctrl_c_while_modules_are_imported_is_one_line(module, moment, make_sandbox, tmp_path):
    box = make_sandbox(SandboxSpec(parts=(0,), rows=60))
    box.hub.plant("/", calls=range(1, 99), delay=60.0)  # Whatever comes after the imports would take for ever.
    words = ["prepare", "20M", "--parts", "0", "--data-dir", str(tmp_path), "--source-repo", box.repo]
    command = [*LISTENS, sys.executable, "-X", "importtime", "-m", module, *words]
    child = subprocess.Popen(command, stderr=PIPE, text=True)
    while not (line := child.stderr.readline()).endswith(f" {moment}\n"):
        assert line, f"{moment} is not imported"
    child.send_signal(signal.SIGINT)
    rest = child.communicate(timeout=120)[1].splitlines()
    assert [line for line in rest if not line.startswith("import time:")] == [INTERRUPTED]
    assert child.returncode == 130


SLOWLY_PRINTING = """
import io, sys, time
class Slow(io.FileIO):
    def write(self, data):
        super().write(data)
        time.sleep(99)
sys.stdout = io.TextIOWrapper(io.BufferedWriter(Slow(1, "w", closefd=False)))
print("ready", flush=True)
"""
SWALLOWS = {
    "a bare except while importing": "try:\n    import slow\nexcept:\n    pass\nimport time; time.sleep(99)",
    "a bare except in the middle of a print": (
        "try:\n    import slowly_printing\nexcept:\n    pass\nimport time; time.sleep(99)"
    ),
    "a callback": (
        "import time\n"
        "class Waits:\n"
        "    def __del__(self):\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(99)\n"
        "Waits()\n"
        "time.sleep(99)"
    ),
}


@pytest.mark.parametrize("how", SWALLOWS)
def test_no_ctrl_c_is_swallowed_by_a_library(how, tmp_path):
    (tmp_path / "slow.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(99)\n")
    (tmp_path / "slowly_printing.py").write_text(SLOWLY_PRINTING)
    (tmp_path / "library.py").write_text(SWALLOWS[how])
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "from laion_face_builder import cli\n"
        "from laion_face_builder.cli import commands\n"
        "def run(given):\n"
        f"    exec(open({str(tmp_path / 'library.py')!r}).read(), {{}})\n"
        "commands.run_status = run\n"
        "sys.argv[1:] = ['status']\n"
        "sys.exit(cli.main())\n"
    )
    child = subprocess.Popen([*LISTENS, sys.executable, "-c", code], stdout=PIPE, stderr=PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGINT)
    assert child.communicate(timeout=60) == ("", INTERRUPTED + "\n")
    assert child.returncode == 130


def test_who_is_told_to_ignore_ctrl_c_does(make_sandbox, tmp_path):
    box = make_sandbox(SandboxSpec(parts=(0,), rows=60))
    words = ["prepare", "20M", "--parts", "0", "--data-dir", str(tmp_path), "--source-repo", box.repo]
    words += ["--metadata", box.metadata_repo]
    command = ["env", "--ignore-signal=INT", sys.executable, "-X", "importtime", "-m", "laion_face_builder", *words]
    child = subprocess.Popen(command, stderr=PIPE, text=True)
    while not child.stderr.readline().endswith(" pyarrow.lib\n"):
        pass
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=300)
    assert child.returncode == 0


# The command alone, and as a module


def test_the_command_alone_shows_the_next_step(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LAION_FACE_DATA_DIR", str(tmp_path))
    data = DataDir.at(None)

    def next_step():
        code, out, err = run(capsys)
        assert (code, err) == (0, [])
        assert len(out.splitlines()) < 15
        return out, next(line for line in out.splitlines() if line.startswith("->"))

    out, step = next_step()
    assert f"In {tmp_path}: nothing is prepared yet." in out
    assert step == "-> 1. Prepare the index:  laion-face prepare 20M --parts 0"
    data.index(2).parent.mkdir()
    data.index(2).touch()
    out, step = next_step()
    assert "part 2 prepared, no pictures downloaded" in out
    assert step.startswith("-> 2. Download pictures:  laion-face download 20M --parts 2 ")
    data.index(1).touch()
    data.sidecar(1).parent.mkdir()
    data.sidecar(1).touch()
    out, step = next_step()
    assert "parts 1,2 prepared, pictures of part 1 downloaded" in out
    assert step.startswith('-> 3. Load, in Python:    laion_face.load_dataset("50M", parts="1"')


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_the_command_line_and_imports_little_for_it(module):
    command = [sys.executable, "-X", "importtime", "-m", module, "--version"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{__version__}\n")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "laion_face_builder.cli" in imported
    assert imported.isdisjoint({"datasets", "torch", "img2dataset", "matplotlib"})


def test_a_module_gives_the_exit_code(tmp_path):
    for module in MODULES:
        assert process("faces", "1", "--data-dir", tmp_path, module=module).returncode == 1
        assert process("prepar", module=module).returncode == 2


# Completion


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scripts")
    for shell in ("bash", "zsh", "fish"):
        done = process("completion", shell, stdout=PIPE)
        assert (done.returncode, done.stderr) == (0, "")
        (folder / f"_{shell}").write_text(done.stdout)
    return folder


def in_bash(script, line):
    code = (
        "source $1; COMP_WORDS=($2); [[ $2 == *' ' ]] && COMP_WORDS+=(''); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); "
        '_shtab_laion_face; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    return ["bash", "--norc", "-c", code, "bash", script, line]


def in_fish(script, line):
    return ["fish", "--no-config", "-c", 'source $argv[1]; complete -C "$argv[2]"', script, line]


def in_zsh(script, line):
    """Complete `line` in a zsh at a terminal of its own: press Tab twice, and read until all that is due is there."""
    code = r"""
    zmodload zsh/zpty
    zpty z zsh -f -i
    zpty -w z "fpath=(${1:h} \$fpath); autoload -Uz compinit; compinit -u -D; setopt NO_LIST_BEEP; LISTMAX=9999"
    zpty -w z "source $1; compdef _shtab_laion_face laion-face; print re''ady"
    zpty -r -m z seen '*ready*'; seen=
    zpty -n -w z "$2"$'\t\t'
    for word in "${@:3}"; do
      until [[ $seen == *"$word"* ]]; do zpty -r -t z piece && seen+=${piece//$'\r'} || sleep 0.05; done
    done
    print -r -- "$seen"
    """
    return ["zsh", "-f", "-c", code, "zsh", script, line, *COMPLETED[line]]


ASK = {"bash": in_bash, **{name: ask for name, ask in (("fish", in_fish), ("zsh", in_zsh)) if shutil.which(name)}}
COMPLETED = {
    "laion-face pre": {"prepare"},
    "laion-face s": {"status", "stats", "show"},
    "laion-face prepare ": {"20M", "50M"},
    "laion-face prepare 20M --dis": {"--discard-sources", "--distributor"},
    "laion-face download 20M --min-face": {"--min-faces", "--min-face-size", "--min-face-area", "--min-face-share"},
    "laion-face status --format ": {"human", "json", "quiet"},
    "laion-face download 20M --resize-mode ": {"no", "border", "keep_ratio", "keep_ratio_largest", "center_crop"},
    "laion-face completion ": {"bash", "zsh", "fish"},
    "laion-face status --data-dir fold": {"folder"},
    "laion-face stats 20M --out fi": {"file.html"},
}


@pytest.mark.parametrize("line", COMPLETED)
@pytest.mark.parametrize("shell", ASK)
def test_shells_complete_commands_options_choices_and_files(scripts, tmp_path, shell, line):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.html").touch()
    command = ASK[shell](str(scripts / f"_{shell}"), line)
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.stderr == ""
    if shell == "zsh":
        # A single match is put into the line, several are listed below it.
        assert [word for word in COMPLETED[line] if word not in done.stdout] == []
        return
    found = {entry.split("\t")[0].rstrip("/") for entry in done.stdout.splitlines()}
    assert found == COMPLETED[line]
