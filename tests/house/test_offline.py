"""Without a network what is prepared works, nobody is asked anything, and what would need one says so in a line."""

import json
import os
import shutil
import socket
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laion_face_builder.layout import DataDir

#: Every attempt of Python to reach anything but a socket of this very machine's files.
WATCH = """
import sys
asked = []
def watch(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        asked.append((event, str(arguments)))
    elif event == "socket.connect" and not isinstance(arguments[1], (str, bytes)):
        asked.append((event, str(arguments[1])))
sys.addaudithook(watch)
"""

WORK = """
import json
data, adopted, published, out = sys.argv[1:]
import laion_face
from torch.utils.data import DataLoader
from laion_face_builder import cli

def command(*arguments):
    assert cli.main([*map(str, arguments)]) == 0, arguments

counts = {}
def count(name, rows):
    counts[name] = sum(1 for _ in rows)

def load(**how):
    return laion_face.load_dataset("20M", split="train", parts="0,2", **how)

which = ["20M", "--parts", "0,2", "--data-dir", data]
count("tars", load(data_dir=data, streaming=True))
count("none", load(data_dir=data, streaming=True, images="none"))
count("index", load(index=published, data_dir=adopted, streaming=True, images="none"))
count("folder", load(index=published, data_dir=adopted, streaming=True, images=data + "/images"))
count("arrow", load(data_dir=data, cache_dir=out + "/arrow"))
count("arrow again", load(data_dir=data, cache_dir=out + "/arrow"))
loader = DataLoader(load(data_dir=data, streaming=True), batch_size=8, num_workers=2, collate_fn=laion_face.collate)
counts["collated"] = sum(len(batch["sample_id"]) for batch in loader)
command("status", "--data-dir", data)
command("verify", data)
command("verify", published)
command("stats", *which, "--out", out + "/stats.html")
command("show", *which, "--count", 4, "--out", out + "/sheet")
command("faces", json.load(open(out + "/sample", encoding="utf-8")), "--data-dir", data)
command("publish", out + "/index", "--data-dir", data)
command("publish", out + "/pictures", "--data-dir", data, "--with-images")
print(json.dumps({"counts": counts, "asked": asked}))
"""


def cut_off():
    """Return the command before another under which that has no network; nothing where the system has no such thing."""
    alone = ["unshare", "--map-root-user", "--net"]
    try:
        subprocess.run([*alone, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return alone


def offline(environment, *arguments):
    """Run Python where nobody can be reached: what remains of a network is a port that nobody listens at."""
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{dead.getsockname()[1]}"
        here = {**os.environ, "HF_ENDPOINT": nowhere, **environment}
        command = [*cut_off(), sys.executable, *map(str, arguments)]
        return subprocess.run(command, env=here, capture_output=True, encoding="utf-8", check=False)


@pytest.mark.parametrize("said", [{}, {"HF_HUB_OFFLINE": "1"}], ids=["no network", "HF_HUB_OFFLINE"])
def test_what_is_prepared_works_and_asks_nobody(prepared, published, tmp_path, said):
    shutil.copytree(prepared.data.root, tmp_path / "data")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sample").write_text(str(prepared.truth[0].sample_id), encoding="utf-8")
    # As its user has it: nothing that we set for tests keeps a library from asking.
    mine = {
        "HF_HUB_DISABLE_TELEMETRY": "0",
        "HF_HUB_DISABLE_UPDATE_CHECK": "0",
        "HF_HOME": str(tmp_path / "home"),
        **said,
    }
    places = [tmp_path / "data", tmp_path / "adopted", published.folder, tmp_path / "out"]
    done = offline(mine, "-c", WATCH + WORK, *places)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    good = sum(truth.ok for truth in prepared.truth)
    rows = len(prepared.truth)
    assert result["asked"] == []
    assert result["counts"] == {
        "tars": good,
        "none": rows,
        "index": rows,
        "folder": good,
        "arrow": good,
        "arrow again": good,
        "collated": good,
    }


def test_the_watch_sees_who_asks(tmp_path):
    # The test above can fail.
    code = WATCH + "import socket; socket.socket().connect_ex(('127.0.0.1', 9)); print(len(asked))"
    assert offline({}, "-c", code).stdout == "1\n"


@pytest.mark.parametrize(
    ("command", "flag", "told"),
    [
        (["prepare", "50M", "--parts", "1"], "1", "HF_HUB_OFFLINE"),
        (["prepare", "50M", "--parts", "1"], "0", "cannot be reached"),
        (["prepare", "50M", "--parts", "1", "--index", "owner/name"], "1", "HF_HUB_OFFLINE"),
        (["prepare", "50M", "--parts", "1", "--index", "owner/name"], "0", "cannot be reached"),
        (["publish", "owner/name"], "1", "HF_HUB_OFFLINE"),
        (["publish", "owner/name"], "0", "cannot be reached"),
        (["verify", "owner/name"], "1", "HF_HUB_OFFLINE"),
        (["verify", "owner/name"], "0", "cannot be reached"),
    ],
)
def test_what_needs_a_network_says_so_in_a_line(prepared, tmp_path, command, flag, told):
    environment = {"HF_HUB_OFFLINE": flag, "HF_HUB_CACHE": str(tmp_path / "cache")}
    data = tmp_path / "data" if command[0] == "prepare" else prepared.data.root
    done = offline(environment, "-m", "laion_face_builder", *command, "--data-dir", data)
    assert done.returncode == 1
    assert told in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].startswith("laion-face: error: ")
    assert "Traceback" not in done.stderr


FETCH = """
import sys, laion_face
from laion_face_builder.errors import NetworkOutage
how = {"images": "fetch", "timeout": 5, "outage_patience": 2, "data_dir": sys.argv[1]}
try:
    print(sum(1 for _ in laion_face.load_dataset("20M", split="train", streaming=True, parts="0", **how)))
except NetworkOutage as error:
    print(error)
try:
    laion_face.load_dataset("20M", split="train", parts="0", cache_dir=sys.argv[2], **how)
except Exception as error:
    print(type(error).__name__, error)
"""


def test_who_reaches_nobody_waits_says_so_once_ends_loudly_and_leaves_no_cache(prepared, tmp_path):
    rows = pq.read_table(prepared.data.index(0))
    urls = pa.array([f"http://no-such-host-{row}.invalid/x.jpg" for row in range(rows.num_rows)])
    DataDir.at(tmp_path).index(0).parent.mkdir()
    pq.write_table(rows.set_column(rows.column_names.index("url"), "url", urls), DataDir.at(tmp_path).index(0))
    done = offline({}, "-c", FETCH, tmp_path, tmp_path / "arrow")
    assert done.returncode == 0, done.stderr
    streamed, cached = done.stdout.splitlines()
    assert "outage_patience=2" in streamed
    assert done.stderr.count("the network cannot be reached") == 2
    assert cached == f"NetworkOutage {streamed}"
    assert not [*(tmp_path / "arrow").rglob("*.arrow"), *(tmp_path / "arrow").rglob("dataset_info.json")]
