"""Runs the tests, and the demo, on the built wheel in fresh environments outside the tree.

    python tests/matrix.py test               the environments that docs/quick-start.md claims, most of them in brief
    python tests/matrix.py test NAME …        these, at full length
    python tests/matrix.py test --write       every environment that can be had here; that page then claims what held
    python tests/matrix.py demo               the demo, as installed
    python tests/matrix.py develop [NAME]     an editable install in .venv (newest) or .venv-NAME, for developing

The sdist is built and unpacked, the wheel is built from it and installed, and the unpacked tests are run from an empty
folder: nothing of the checkout is on the path. The page's table of versions is compared with what the run found.

Needs nothing but the standard library; uv, which it gets for itself, makes an environment in seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
#: Has the table of versions.
PAGE = ROOT / "docs" / "quick-start.md"
UV = "uv==0.13.9"
#: What is not taken from an environment's own time: the test tools, torch, which is pinned to a build without CUDA,
#: shtab, of which only a new version knows fish, and protego, of which only a new version is safe from hostile files.
TIMELESS = (
    *("accelerate", "cuda-toolkit", "duckdb", "hypothesis", "jsonschema", "mlcroissant", "polars", "polars-runtime-32"),
    *("protego", "pytest", "pytest-timeout", "pytest-xdist", "shtab", "torch", "torchdata", "triton"),
)
#: Dependencies of img2dataset that compile for minutes where their newest version has no wheel: an earlier one does.
COMPILED = ("simsimd", "stringzilla")
SHOWN = ("datasets", "huggingface_hub", "pyarrow", "numpy", "pillow")
BEGIN, END = "<!-- versions: written by `make versions` -->", "<!-- end of versions -->"


@dataclass(frozen=True)
class Environment:
    """One row of the matrix.

    Attributes:
        name: of the environment.
        python: its version, such as "3.12".
        tests: a mark of pytest's, or an expression of them; empty for all tests.
        brief: the same for a run of all that the page claims, which has 45 minutes on two cores.
        until: the day whose newest libraries it has; None means those of constraints.txt.
        pins: requirements that fix a version.
        is_lowest: whether it has the lowest versions that pyproject.toml allows, all at once.
        extra: what of pyproject.toml's optional dependencies it has.
    """

    name: str
    python: str = "3.11"
    tests: str = "core"
    brief: str = "brief"
    until: str | None = None
    pins: tuple[str, ...] = ()
    is_lowest: bool = False
    extra: str = "test"


OLD = Environment(
    "datasets-3.6", tests="core or datasets36", until="2025-10-30", pins=("datasets==3.6.0", "huggingface_hub<1")
)
NEWEST = Environment("newest", tests="", brief="", extra="test,audit")
#: Of the older ones each has another Python, where that does not matter to what it is for.
MATRIX = (
    NEWEST,
    OLD,
    Environment("datasets-4.0", until="2025-10-30", pins=("datasets==4.0.0", "huggingface_hub<1")),
    Environment("datasets-4.4", until="2025-12-25", pins=("datasets==4.4.2",)),
    Environment("datasets-4.8", python="3.12", until="2026-04-15", pins=("datasets==4.8.0",)),
    Environment("datasets-5.0", until="2026-06-25", pins=("datasets==5.0.0",)),
    Environment("datasets-5.1", python="3.13", until="2026-10-20", pins=("datasets==5.1.0",)),
    Environment("lowest", python="3.10", is_lowest=True),
    Environment("python-3.14", python="3.14", until="2026-11-25"),
)
#: Spark and Ray have an environment of their own, which the page's table does not name: who has none needs none.
ENGINES = Environment("engines", tests="engines", until="2026-11-25", extra="engines")


class Uv:
    """uv, in an environment of its own that is made when it is first needed."""

    def __init__(self) -> None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = cache / "laion-face-make" / UV
        self._program = folder / "bin" / "uv"
        if not self._program.exists():
            run([sys.executable, "-m", "venv", "--clear", str(folder)])
            run([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", UV])
        # What pip was told about this machine holds for uv as well.
        links = os.environ.get("PIP_FIND_LINKS")
        self._environment = {"UV_HTTP_TIMEOUT": "60", **({"UV_FIND_LINKS": links} if links else {}), **os.environ}
        self._environment.pop("VIRTUAL_ENV", None)

    def __call__(self, *arguments: str) -> None:
        """Run a command of uv's, up to three times, since registries may hang."""
        for left in (2, 1, 0):
            try:
                return run([str(self._program), "--quiet", *arguments], env=self._environment, timeout=400)
            except subprocess.SubprocessError:
                if not left:
                    raise

    def environment(self, environment: Environment, folder: Path, *what: str) -> Path:
        """Make `environment` in `folder` with `what` installed; give its Python."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        self("venv", "--clear", "--python", _require(interpreter(environment)), str(folder))
        python = folder / "bin" / "python"
        constraints = folder / "constraints.txt"
        constraints.write_text("".join(f"{line}\n" for line in _constraints(environment)), encoding="utf-8")
        how = ["--constraint", str(constraints)]
        how += [word for name in COMPILED for word in ("--only-binary", name)]
        if environment.until:
            how += ["--exclude-newer", environment.until]
            how += [word for name in TIMELESS for word in ("--exclude-newer-package", f"{name}={_tomorrow()}")]
        if environment.is_lowest:
            # What is installed by then stays when the wheel and the test tools come.
            project = ("--requirements", str(ROOT / "pyproject.toml"), "--extra", "plots")
            self("pip", "install", "--python", str(python), "--resolution", "lowest-direct", *project)
        self("pip", "install", "--python", str(python), *how, *what)
        self("pip", "check", "--python", str(python))
        return python


@dataclass(frozen=True)
class Built:
    """What is tested: the wheel, the unpacked sdist with the tests, and a folder for environments, gone at the end."""

    wheel: Path
    tree: Path
    work: Path

    def installed(self, extra: str) -> str:
        """Give the requirement of the wheel with one extra."""
        return f"laion-face[{extra}] @ {self.wheel.as_uri()}" if extra else str(self.wheel)


@contextmanager
def built(uv: Uv) -> Iterator[Built]:
    """Build the sdist, the wheel from it, and unpack the sdist, all outside the tree."""
    with tempfile.TemporaryDirectory(prefix="laion-face-make-") as folder:
        work = Path(folder)
        uv("build", "--out-dir", str(work / "dist"), str(ROOT))
        (wheel,), (sdist,) = work.glob("dist/*.whl"), work.glob("dist/*.tar.gz")
        with tarfile.open(sdist) as archive:
            archive.extractall(work)
        tree = work / sdist.name.removesuffix(".tar.gz")
        # pytest puts the folder of the package `tests` on the path: what is imported has to be what is installed.
        (tree / "laion_face.py").unlink()
        (work / "empty").mkdir()
        yield Built(wheel, tree, work)


def run(command: Sequence[str], **how: Any) -> None:
    """Run a command that has to succeed."""
    subprocess.run(command, check=True, **how)


def isolated(python: Path, *arguments: str) -> list[str]:
    """Give the command that runs `python` without the current folder, and without what PYTHONPATH may name."""
    return [str(python), "-I", *arguments]


def interpreter(environment: Environment) -> str | None:
    """Give the Python to make the environment with; None if there is none of that version here."""
    if environment.python == f"{sys.version_info[0]}.{sys.version_info[1]}":
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found = glob(f"{pyenv}/versions/{environment.python}.*/bin/python")
    for place in filter(None, [shutil.which(f"python{environment.python}"), *found]):
        # A pyenv shim may stand for nothing.
        if subprocess.run([place, "-c", ""], capture_output=True, check=False).returncode == 0:
            return place
    return None


def _require(interpreter: str | None) -> str:
    assert interpreter, "no such Python here"
    return interpreter


def _constraints(environment: Environment) -> list[str]:
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if environment.is_lowest:
        return []
    if environment.until:
        pinned = [line for line in pinned if line.partition("==")[0] in TIMELESS]
    return [*pinned, *environment.pins]


def _tomorrow() -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(time.time() + 86_400))


def versions(python: Path) -> list[str]:
    """Give the versions that the table shows, Python's first; what is imported has to be the installed wheel."""
    code = (
        "import json, platform, importlib.metadata as m, laion_face, laion_face_builder\n"
        f"found = [platform.python_version().rpartition('.')[0], *map(m.version, {SHOWN!r})]\n"
        "print(json.dumps([laion_face.__file__, laion_face_builder.__file__, found]))"
    )
    done = subprocess.run(isolated(python, "-c", code), check=True, stdout=subprocess.PIPE)
    *places, found = json.loads(done.stdout)
    for place in places:
        assert python.parents[1] in Path(place).parents, f"{place} is not the installed wheel"
    return list(found)


def test(tests: str, python: Path, what: Built, old: Path | None, more: Sequence[str]) -> bool:
    """Run the tests of this mark in one environment; say whether they passed."""
    own = {"LAION_FACE_DATASETS_36_PYTHON": str(old)} if old else {}
    shell = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    chosen = ["-m", tests] if tests else []
    # Every test has servers, folders and processes of its own, and waits for them: three keep two cores busy.
    spread = ["--numprocesses", "3", "--dist", "worksteal"]
    where = ["--rootdir", str(what.tree), "-c", str(what.tree / "pyproject.toml"), str(what.tree / "tests")]
    command = isolated(python, "-m", "pytest", *spread, *chosen, *where, *more)
    return subprocess.run(command, cwd=what.work / "empty", env=shell | own, check=False).returncode == 0


def run_matrix(names: Sequence[str], *, write: bool, more: Sequence[str]) -> int:
    """Run these environments, or in brief those that the page claims, or all if it is written; give the exit code."""
    is_brief = not names and not write
    names = names or ([one.name for one in MATRIX] if write else sorted(claimed()))
    chosen = [environment for environment in (*MATRIX, ENGINES) if environment.name in names]
    needs_old = NEWEST in chosen and OLD not in chosen
    uv, rows, failed = Uv(), {}, []
    with built(uv) as what:
        old = None
        # First the oldest: the newest compares itself with it.
        for environment in sorted([*chosen, *([OLD] if needs_old else [])], key=lambda one: one is not OLD):
            if interpreter(environment) is None:
                say(f"{environment.name}: no Python {environment.python} here, not run")
                continue
            start = time.monotonic()
            python = uv.environment(environment, what.work / environment.name, what.installed(environment.extra))
            found = versions(python)
            say(
                f"{environment.name}: Python {found[0]}, "
                + ", ".join(map(" ".join, zip(SHOWN, found[1:], strict=True)))
            )
            old = python if environment is OLD else old
            if environment not in chosen:
                continue
            tests = environment.brief if is_brief else environment.tests
            passed = test(tests, python, what, old, more)
            rows[environment.name] = row(environment, found) if passed else ""
            failed += [] if passed else [environment.name]
            say(f"{environment.name}: {'passed' if passed else 'FAILED'} in {time.monotonic() - start:.0f} s")
            if environment is not OLD:
                shutil.rmtree(what.work / environment.name)
    if failed:
        say(f"failed: {', '.join(failed)}")
    return compare(rows, write=write) or int(bool(failed))


def row(environment: Environment, found: Sequence[str]) -> str:
    """Give the line of the table; there is none for what failed, since that is not claimed."""
    tests = environment.tests.replace("core or datasets36", "core and more") or "all"
    return "| " + " | ".join([environment.name, *found, tests, "passed"]) + " |"


def claimed() -> dict[str, str]:
    """Give the rows of the page's table by the name of the environment."""
    table = PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]
    rows = {line.split("|")[1].strip(): line for line in table.splitlines() if line.startswith("| ")}
    return {name: line for name, line in rows.items() if name != "environment"}


def compare(rows: dict[str, str], *, write: bool) -> int:
    """Compare the page's table with the rows of this run, or write these into it; give the exit code."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    table, after = rest.split(END)
    head = f"| environment | Python | {' | '.join(SHOWN)} | tests | |"
    there = claimed()
    merged = {**there, **rows}
    lines = [head, "|---" * (len(SHOWN) + 4) + "|", *filter(None, (merged.get(one.name) for one in MATRIX))]
    made = "\n" + "\n".join(lines) + "\n"
    if write:
        PAGE.write_text(f"{before}{BEGIN}{made}{END}{after}", encoding="utf-8")
    elif made.strip() != table.strip():
        say(f"The table of versions in {PAGE.name} is not what this run found; `make versions` writes it:\n{made}")
        return 1
    return 0


def demo(arguments: Sequence[str]) -> int:
    """Run the demo as installed."""
    uv = Uv()
    with built(uv) as what:
        python = uv.environment(NEWEST, what.work / "demo", what.installed(""))
        versions(python)
        return subprocess.run([str(python.parent / "laion-face"), "demo", *arguments], check=False).returncode


def develop(name: str) -> int:
    """Make an editable environment in the tree."""
    (environment,) = (one for one in MATRIX if one.name == name)
    folder = ROOT / (".venv" if environment is NEWEST else f".venv-{name}")
    Uv().environment(environment, folder, "--editable", f"{ROOT}[dev,{environment.extra}]")
    return 0


def say(text: str) -> None:
    """Say on stdout what happens, between the outputs of others."""
    print(f"== {text}", flush=True)


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("test", "demo", "develop"))
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(one.name for one in (*MATRIX, ENGINES)))
    parser.add_argument("--write", action="store_true", help="write the table of versions")
    parser.add_argument(
        "--pytest", action="append", default=[], metavar="ARGUMENT", help="a further argument of pytest"
    )
    given = parser.parse_intermixed_args()
    if given.command == "demo":
        return demo(given.names)
    if unknown := set(given.names) - {one.name for one in (*MATRIX, ENGINES)}:
        parser.error(f"no environment {', '.join(sorted(unknown))}")
    if given.command == "develop":
        return max(develop(name) for name in given.names or [NEWEST.name])
    return run_matrix(given.names, write=given.write, more=given.pytest)


if __name__ == "__main__":
    sys.exit(main())
