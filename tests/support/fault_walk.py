"""Walk through all places where our writers can fail, one after the other, on a small world; print what came of each.

    python -m tests.support.fault_walk --brief    two places of each family: a minute or two
    python -m tests.support.fault_walk            a place of each kind: some ten minutes
    python -m tests.support.fault_walk --full     every place, exhaustively: hours

A command is run once undisturbed; each call of the system that it makes in the watched folders is a point. Then it is
run again and again from the same beginning, and each time another point fails. Whatever fails, the result has to be as
without the fault, or the command ends with one line; and the same command without the fault then gives that result.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from laion_face_builder.sandbox import Sandbox, SandboxSpec
from tests.support.fault_stage import FILES, NETWORK, Command, Ended, Stage
from tests.support.held_calls import Fault, Point

#: The errors that each operation is tried with, and whether they last, as those of a full disk do.
_ERRORS = {
    "open": ((errno.ENOSPC, True), (errno.EACCES, False), (errno.EMFILE, False)),
    "write": ((errno.ENOSPC, True), (errno.EIO, False)),
    "fsync": ((errno.EIO, False), (errno.ENOSPC, True)),
    "rename": ((errno.EACCES, False), (errno.EIO, False)),
    "unlink": ((errno.EIO, False), (errno.EACCES, False)),
    "mkdir": ((errno.ENOSPC, True), (errno.EACCES, False)),
    "truncate": ((errno.EIO, False),),
    "socket": ((errno.EMFILE, False), (errno.ENFILE, False)),
    "connect": ((errno.ENETUNREACH, False), (errno.ECONNREFUSED, False)),
    "send": ((errno.ECONNRESET, False), (errno.EPIPE, False)),
    "receive": ((errno.ECONNRESET, False), (errno.ETIMEDOUT, False)),
}
#: Where there is a disk in memory, nothing waits for a real one.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
_NAMES = re.compile(r"\b(DATA|OUT|CACHE|REPO|METADATA|PUBLISHED|TARS)\b")
#: Of what is only read.
_ERRORS_OF_READING = {
    "open": ((errno.ENOENT, False), (errno.EACCES, False), (errno.EMFILE, False)),
    "read": ((errno.EIO, False), (errno.ESTALE, False)),
}
OUTCOMES = ("as without the fault", "clear error", "silent", "traceback", "hung")
BAD = OUTCOMES[2:]


@dataclass(frozen=True)
class Family:
    """A command, and what its result is.

    Attributes:
        words: of the command; DATA, OUT, CACHE and PUBLISHED in them stand for folders.
        script: Python instead of a command; the words are its arguments.
        base: name of the folder that DATA begins as.
        watched: which of the folders are watched.
        result: what has to be the same, whatever happened: of the folders, and of what was printed.
        held: the operations that may fail.
        counted: says of what was printed whether all that is missing there is counted.
    """

    name: str
    words: tuple[str, ...]
    result: Callable[[Path, Ended], object]
    base: str = ""
    script: str = ""
    watched: tuple[str, ...] = ("data", "out")
    held: tuple[str, ...] = FILES
    counted: Callable[[str], bool] | None = None


@dataclass
class Row:
    """What became of one family's faults."""

    family: str
    counts: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)

    @property
    def tried(self) -> int:
        """How many faults there were."""
        return sum(self.counts.values())

    def __str__(self) -> str:
        return " · ".join([self.family, str(self.tried), *(str(self.counts[outcome]) for outcome in OUTCOMES)])


Say = Callable[[str], None]
HEAD = " · ".join(["family", "tried", *OUTCOMES])


class Walk:
    """One world, one stage, and the families that are walked there. A context manager.

    Args:
        root: an empty folder.
    """

    def __init__(self, root: Path) -> None:
        self._root, self._stack = root.absolute(), ExitStack()

    def __enter__(self) -> Walk:
        (self._root / "tmp").mkdir(parents=True)
        spec = SandboxSpec(parts=(0,), rows=16, metadata_files=2)
        self.box = self._stack.enter_context(Sandbox.running(self._root / "world", spec, namespace="faults"))
        own = {"TMPDIR": str(self._root / "tmp"), "NO_ALBUMENTATIONS_UPDATE": "1", "LAION_FACE_DATA_DIR": ""}
        self._stage = self._stack.enter_context(Stage({**os.environ, **self.box.environment, **own}))
        self._bases()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _bases(self) -> None:
        """Make what the families begin with, undisturbed."""
        (self._root / "bases" / "empty").mkdir(parents=True)
        self._made("prepared", "empty", PREPARE)
        self._made("downloaded", "prepared", DOWNLOAD)
        self._made("published", "downloaded", PUBLISH)
        self._listed()

    def _listed(self) -> None:
        """Make a list of what is to be removed, beside what was prepared."""
        shutil.copytree(self._root / "bases" / "prepared", self._root / "bases" / "listed")
        truth = self.box.truth_of(0)
        lines = [str(truth[0].sample_id), truth[-1].url]
        (self._root / "bases" / "listed" / "list.txt").write_text("\n".join(lines), encoding="utf-8")

    def _made(self, name: str, base: str, words: tuple[str, ...]) -> None:
        folder = self._begin(base)
        ended = self._stage.run(Command(self._filled(words, folder)), {})
        assert ended.code == 0, ended.errors
        shutil.copytree(folder / "data", self._root / "bases" / name)
        if (folder / "out").exists():
            shutil.copytree(folder / "out", self._root / "bases" / name / "out")

    def _begin(self, base: str) -> Path:
        """Give a folder of the same name as ever, in its first state."""
        folder = self._root / "work"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        shutil.copytree(self._root / "bases" / (base or "empty"), folder / "data")
        return folder

    def _filled(self, words: Iterable[str], folder: Path) -> tuple[str, ...]:
        places = {name.upper(): str(folder / name) for name in ("data", "out", "cache")}
        places |= {"REPO": self.box.repo, "METADATA": self.box.metadata_repo}
        places |= {"PUBLISHED": str(self._root / "bases" / "published" / "out")}
        places |= {"TARS": str(self._root / "bases" / "downloaded" / "images")}
        return tuple(_NAMES.sub(lambda name: places[name[0]], word) for word in words)

    def run(self, family: Family, folder: Path, fault: Fault | None = None) -> Ended:
        """Run a family's command in the folder."""
        command = Command(self._filled(family.words, folder), family.script, family.held)
        elsewhere = {"tmp": self._root / "tmp", "stdout": Path("/memfd:stdout"), "stderr": Path("/memfd:stderr")}
        watched = {name: elsewhere.get(name, folder / name) for name in family.watched}
        return self._stage.run(command, watched, fault)

    def walk(self, family: Family, most: int | None = None, *, is_full: bool = False, say: Say = lambda _: None) -> Row:
        """Try a family's faults: of each kind of point one, or all points there are.

        Args:
            most: no more than so many of the kinds, spread over all of them.
        """
        folder = self._begin(family.base)
        first = self.run(family, folder)
        assert first.code == 0, first.errors
        wanted, whole = family.result(folder, first), _files(folder)
        row = Row(family.name)
        faults = list(_faults(family, first.points, is_full))
        step = len(faults) / min(most or len(faults), len(faults) or 1) if faults else 1
        for fault in (fault for number, fault in enumerate(faults) if number % step < 1):
            folder = self._begin(family.base)
            ended = self.run(family, folder, fault)
            if not ended.has_failed:
                continue  # Threads were faster or slower, and it did not come to it.
            outcome, why = _judged(_Tried(family, folder, fault, ended), wanted, whole)
            if outcome == "clear error":
                again = self.run(family, folder)
                if again.code != 0 or family.result(folder, again) != wanted:
                    outcome, why = "silent", f"run again: code {again.code} {again.errors[-2000:]}"
            row.counts[outcome] += 1
            if outcome in BAD:
                row.bad.append(f"{family.name}: {fault}: {outcome}: {why}")
            say(f"{family.name}: {fault}: {outcome} ({ended.seconds:.1f} s) {why if outcome not in BAD else ''}")
        return row


def _faults(family: Family, points: Sequence[Point], is_full: bool) -> Iterator[Fault]:
    points = sorted(set(points))
    if not is_full:
        points = _one_of_each(points)
    for number, point in enumerate(points):
        errors = (_ERRORS_OF_READING if "read" in family.held else _ERRORS)[point.operation]
        # In full all of a point's errors, but for later writes to the same file one of them.
        for error, lasts in errors if is_full and point.nth <= 2 else [errors[number % len(errors)]]:
            yield Fault(point, error, lasts)


def _one_of_each(points: Sequence[Point]) -> list[Point]:
    """Choose of points of one operation in one folder, however it is numbered, the middle one."""
    kinds: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        operation, path = point.kind
        kinds.setdefault((operation, path.rpartition("/")[0] or path), []).append(point)
    return [found[len(found) // 2] for found in kinds.values()]


@dataclass(frozen=True)
class _Tried:
    """A command with a fault, and how it ended."""

    family: Family
    folder: Path
    fault: Fault
    ended: Ended

    @property
    def where(self) -> str:
        """What an error has to name: the fault's folder, or if it lasts any on that disk; a stream; or the network."""
        point = self.fault.point
        if point.operation in NETWORK:
            return ""
        root, _, below = point.path.partition("/")
        if root in ("stdout", "stderr"):
            return "standard output"
        base = self.folder.parent / root if root == "tmp" else self.folder / root
        folder, slash, _ = below.partition("/")
        # A folder with a name by chance is a pattern here.
        return str(base if self.fault.lasts or not slash or "*" in folder else base / folder)


def _judged(tried: _Tried, wanted: object, whole: Mapping[str, bytes]) -> tuple[str, str]:
    """Say how a command with a fault ended, and what gives that away."""
    family, folder, ended = tried.family, tried.folder, tried.ended
    if ended.code is None or ended.left:
        return "hung", f"{ended.left} processes left; {ended.errors[-2000:]}"
    if "Traceback" in ended.errors or ended.code not in (0, 1):
        return "traceback", f"code {ended.code}: {ended.errors[-4000:]}"
    if ended.code == 0:
        found = family.result(folder, ended)
        if found == wanted:
            return "as without the fault", ""
        if family.counted is not None and family.counted(ended.output):
            return "clear error", f"counted: {ended.output.splitlines()[-1]}"
        return "silent", f"{found} for {wanted}"[:2000]
    said = ended.errors.strip().splitlines()
    lines = [line for line in said if line.startswith("laion-face: error: ")]
    if len(lines) != 1 or lines != said[-1:]:
        return "silent", f"not one line: {ended.errors[-2000:]}"
    if tried.where not in lines[0]:
        return "silent", f"{tried.where} is not named: {lines[0]}"
    differs = [name for name, content in _files(folder).items() if name in whole and content != whole[name]]
    if family.name in _SAME_BYTES and differs:
        return "silent", f"half-written under their final names: {differs}; {lines[0]}"
    return "clear error", lines[0]


def _files(folder: Path) -> dict[str, bytes]:
    """Read all files that have their final names."""
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {str(name): path.read_bytes() for name, path in found.items() if not _is_hidden(name)}


def _is_hidden(name: Path) -> bool:
    return any(part.startswith((".", "_tmp")) for part in name.parts)


def _bytes_below(*names: str) -> Callable[[Path, Ended], object]:
    """Compare all files below some folders by their bytes."""

    def result(folder: Path, ended: Ended) -> object:
        return {name: content for name, content in _files(folder).items() if name.startswith(names)}

    return result


def _printed(folder: Path, ended: Ended) -> object:
    """Compare what was printed."""
    return ended.output


def _pictures(folder: Path, ended: Ended) -> object:
    """Compare what became of every sample; tars have the times in them."""
    import pyarrow.parquet as pq

    from laion_face_builder.layout import DataDir
    from laion_face_builder.verify.verify_data import picture_problems

    data = DataDir.at(folder / "data")
    rows = pq.read_table(data.sidecar(0)).to_pylist()
    assert not list(picture_problems(data, 0, deep=True)), "what verify finds"
    left = sorted(str(path) for path in data.tars(0).rglob("_tmp*"))
    return left, [tuple(row[name] for name in ("sample_id", "status", "sha256", "width", "height")) for row in rows]


_WHERE = ("--parts", "0", "--data-dir", "DATA", "--source-repo", "REPO", "--metadata", "METADATA")
PREPARE = ("prepare", "20M", *_WHERE)
DOWNLOAD = ("download", "20M", *_WHERE, "--allow-private-hosts", "--processes", "1")
PUBLISH = ("publish", "OUT", "--parts", "0", "--data-dir", "DATA")
#: Loads a dataset, and prints what is in it and in its report; arguments are the options, as `name=value`.
_LOADS = """
import hashlib, sys, laion_face
options = {"data_dir": sys.argv[2], "source_repo": sys.argv[3], "metadata": sys.argv[4], "allow_private_hosts": True}
options |= dict(word.split("=", 1) for word in sys.argv[5:])
options["streaming"] = "cache_dir" not in options
rows = laion_face.load_dataset("20M", split="train", parts="0", **options)
for row in rows:
    row["image"] = row["image"].tobytes()
    print(hashlib.sha256(repr(sorted(row.items())).encode()).hexdigest())
print(laion_face.report(rows))
"""
_LOADED = ("DATA", "REPO", "METADATA")
_READS = ("open", "read")


def _all_counted(printed: str) -> bool:
    """Say whether the report that was printed last has as many rows as were asked for, and as many as were printed."""
    *rows, report = printed.splitlines()
    found = re.match(r"(\d+) rows: (\d+) yielded, (\d+) filtered, (\d+) failed", report)
    asked, yielded, filtered, failed = map(int, found.groups()) if found else (0, -1, 0, 0)
    return asked == yielded + filtered + failed and yielded == len(rows)


_HERE = ("prepare", "20M", "--parts", "0", "--data-dir", "DATA")
_FETCHED = (*_LOADED, "images=fetch", "cache_images=CACHE")
_ARROW = (*_LOADED, "cache_dir=CACHE")
_SAME_BYTES = ("prepare", "copy", "publish", "publish with pictures")
FAMILIES = (
    Family("prepare", (*PREPARE, "--discard-sources"), _bytes_below("data/ids", "data/faces", "data/index")),
    Family(
        "copy",
        ("prepare", "20M", "--parts", "0", "--data-dir", "DATA", "--index", "PUBLISHED"),
        _bytes_below("data/index"),
    ),
    Family("download", DOWNLOAD, _pictures, "prepared", watched=("data",)),
    Family("download resized", (*DOWNLOAD, "--image-size", "64"), _pictures, "prepared", watched=("data",)),
    Family("download, temporary files", DOWNLOAD, _pictures, "prepared", watched=("tmp",)),
    Family("adopt", (*_LOADED, "images=TARS"), _printed, "prepared", _LOADS, watched=("data",)),
    Family("stream", _LOADED, _printed, "downloaded", _LOADS, watched=("data", "tmp")),
    Family(
        "stream, fetched",
        (*_LOADED, "images=fetch", "cache_images=CACHE"),
        _printed,
        "prepared",
        _LOADS,
        ("cache", "tmp"),
    ),
    Family("arrow", _ARROW, _printed, "downloaded", _LOADS, ("cache", "tmp")),
    Family("publish", PUBLISH, _bytes_below("out"), "downloaded"),
    Family("publish with pictures", (*PUBLISH, "--with-images"), _bytes_below("out"), "downloaded"),
    Family(
        "remove",
        ("remove", "DATA/list.txt", "--data-dir", "DATA"),
        _bytes_below("data/ids", "data/faces", "data/index", "data/removed.json"),
        "listed",
        watched=("data",),
    ),
    Family("stats", ("stats", "20M", *_WHERE, "--out", "OUT/stats.html"), _bytes_below("out"), "downloaded"),
    Family("show", ("show", "20M", *_WHERE, "--out", "OUT/sheet"), _bytes_below("out"), "downloaded"),
    Family("log", PREPARE, _bytes_below("data/ids", "data/faces", "data/index"), watched=("stderr",)),
    Family("log of a download", DOWNLOAD, _pictures, "prepared", watched=("stderr",)),
    Family("standard output", ("status", "20M", "--data-dir", "DATA"), _printed, "downloaded", watched=("stdout",)),
    Family("reading: stream", _LOADED, _printed, "downloaded", _LOADS, ("data",), _READS, _all_counted),
    Family("reading: arrow", _ARROW, _printed, "downloaded", _LOADS, ("data",), _READS, _all_counted),
    Family("reading: status", ("status", "20M", "--data-dir", "DATA"), _printed, "downloaded", held=_READS),
    Family("reading: publish", (*PUBLISH, "--with-images"), _bytes_below("out"), "downloaded", held=_READS),
    Family("network: prepare", PREPARE, _bytes_below("data/ids", "data/faces", "data/index"), held=NETWORK),
    Family("network: download", DOWNLOAD, _pictures, "prepared", held=NETWORK),
)


def rows(
    most: int | None = None, *, is_full: bool = False, names: Sequence[str] = (), say: Say = print
) -> Iterator[Row]:
    """Walk families, those named or all; see `Walk.walk`. What is wrong is in the rows, too."""
    with tempfile.TemporaryDirectory(prefix="faults-", dir=MEMORY) as root, Walk(Path(root)) as walk:
        for family in FAMILIES:
            if not names or family.name in names:
                yield walk.walk(family, most, is_full=is_full, say=say)


def main() -> int:
    """Print a row for each family, and what is wrong; return 1 if anything is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--brief", action="store_true", help="two points of each family")
    parser.add_argument("--full", action="store_true", help="every point, not one of each kind")
    parser.add_argument("--verbose", action="store_true", help="say of each fault what came of it")
    parser.add_argument("families", nargs="*", help="their names; all if none is given")
    given = parser.parse_args()
    bad: list[str] = []
    print(HEAD)
    most = 2 if given.brief else None
    for row in rows(most, is_full=given.full, names=given.families, say=_tell if given.verbose else lambda _: None):
        print(row, flush=True)
        bad += row.bad
    for line in bad:
        print(line, file=sys.stderr)
    return int(bool(bad))


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
