"""One miniature upstream for all tests; the environment leads there before huggingface_hub is imported.

huggingface_hub reads HF_ENDPOINT once, when it is imported. So the stand-in Hub starts with this file, and every
sandbox of the session, `sandbox` and those of `make_sandbox`, puts its repos on that one Hub under names of its own.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import pytest

from laion_face_builder.layout import DataDir
from laion_face_builder.sandbox import (
    STRANGER,
    TOKEN,
    WRITER,
    Hub,
    Sandbox,
    SandboxSpec,
    Truth,
    environment_for,
    make_content,
    write_upstream,
)
from laion_face_builder.sandbox.content import Content
from laion_face_builder.sandbox.serving import LoopbackServer
from tests.support.core_tests import DATASETS36_MODULES, is_brief, is_core
from tests.support.needs import unmet

assert "huggingface_hub" not in sys.modules, "HF_ENDPOINT would come too late"
# Examples may take what they take: the machine may have other work.
_UNTIMED = hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("random", _UNTIMED)
# The same tree has the same examples: what passed once passes again. `--hypothesis-profile=random` looks for new ones.
hypothesis.settings.register_profile("settled", _UNTIMED, derandomize=True)
hypothesis.settings.load_profile("settled")
# A shell starts what runs in its background with Ctrl-C ignored, and children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
_FOLDER = Path(tempfile.mkdtemp(prefix="laion-face-tests-"))
_HUB = Hub().start()
_SERVERS: list[LoopbackServer] = [_HUB]
for _name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "WORLD_SIZE", "RANK"):
    os.environ.pop(_name, None)
    os.environ.pop(_name.lower(), None)
os.environ.update(environment_for(_HUB, _FOLDER / "home"))
# Else this run would share its bounds per host with whatever else of this user fetches on this machine.
os.environ["XDG_RUNTIME_DIR"] = tempfile.mkdtemp(prefix="runtime-", dir=_FOLDER)
# The day that manifests note, so that no test depends on midnight.
os.environ["SOURCE_DATE_EPOCH"] = "1790000000"
# img2dataset's albumentations would ask the network for a newer version of itself.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        module = f"{item.path.parent.name}/{item.path.stem}"
        if is_core(module, item.name):
            item.add_marker("core")
        if is_brief(module, item.name):
            item.add_marker("brief")
        if module in DATASETS36_MODULES:
            item.add_marker("datasets36")
    marks = unmet(config.option.markexpr)
    left_out = [item for item in items if any(map(item.get_closest_marker, marks))]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for need in unmet(config.option.markexpr).values():
        terminalreporter.write_line(need.told, yellow=True)


def pytest_unconfigure() -> None:
    _HUB.stop()
    shutil.rmtree(_FOLDER, ignore_errors=True)


@pytest.fixture(autouse=True)
def no_faults_left() -> Iterator[None]:
    """Clear the faults that a test planted in the session's servers, so that they do not spoil the next one."""
    yield
    for server in _SERVERS:
        server.faults.clear()


@pytest.fixture(scope="session")
def hub() -> Hub:
    """Return the stand-in Hub. The environment's token may write to the namespace WRITER, STRANGER's to nothing."""
    _HUB.tokens.setdefault(STRANGER, set())
    _HUB.writers.setdefault(TOKEN, (WRITER,))
    return _HUB


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    """Serve the miniature, three parts of 1,200 rows, under upstream's own names. To change one, `make_sandbox`."""
    with Sandbox.running(_FOLDER / "sandbox", hub=_HUB) as box:
        _SERVERS.extend([box.pictures, box.metadata])
        yield box


@pytest.fixture(scope="session")
def true_rows(sandbox: Sandbox) -> Callable[[int], list[Truth]]:
    """Give `true_rows(part)`: what is known of the rows of that part's index, in order."""
    return sandbox.truth_of


class UpstreamFiles(NamedTuple):
    """`folder`/laion-face/ has the pickles, `folder`/metadata/ the Parquet files; `content` is what they say."""

    folder: Path
    content: Content

    def truth_of(self, part: int) -> list[Truth]:
        return [truth for truth in self.content.truth if truth.part == part]


@pytest.fixture(scope="session")
def upstream_files() -> UpstreamFiles:
    """Write the files alone, nothing served: two small parts."""
    content = make_content(SandboxSpec(parts=(0, 1), rows=150), ["http://pictures.invalid"])
    write_upstream(content, _FOLDER / "files")
    return UpstreamFiles(_FOLDER / "files", content)


_numbers = itertools.count(1)


@pytest.fixture
def make_sandbox() -> Iterator[Callable[[SandboxSpec], Sandbox]]:
    """Give `make_sandbox(SandboxSpec(rows=60, parts=(0,)))`: a small one for this test alone, on the same Hub."""
    with ExitStack() as stack:

        def make(spec: SandboxSpec) -> Sandbox:
            number = next(_numbers)
            folder = _FOLDER / f"sandbox-{number}"
            return stack.enter_context(Sandbox.running(folder, spec, hub=_HUB, namespace=f"sandbox-{number}"))

        yield make


class Prepared(NamedTuple):
    """A DATA_DIR with parts 0 and 2 of `sandbox` prepared and downloaded. For reading: copy it to change it."""

    data: DataDir
    sandbox: Sandbox

    @property
    def truth(self) -> list[Truth]:
        return [*self.sandbox.truth_of(0), *self.sandbox.truth_of(2)]


@pytest.fixture(scope="session")
def prepared(sandbox: Sandbox) -> Prepared:
    from laion_face_builder.examples import parts
    from laion_face_builder.index.prepare import prepare
    from laion_face_builder.options import OptionFields, Options

    fields = OptionFields(parts="0,2", allow_private_hosts=True)
    options = Options.of("20M", fields, _FOLDER / "prepared")
    prepare(options.data, options.parts, options.upstream)
    results = list(parts.download(options, parts.download_options(options, processes_count=1)))
    assert [part for part, _ in results] == [0, 2]
    return Prepared(options.data, sandbox)


class Published(NamedTuple):
    """Parts 0 and 2 of `sandbox` published to `folder`. For reading: copy it to change it."""

    folder: Path
    data: DataDir

    @property
    def files(self) -> dict[str, bytes | Path]:
        """Every file by its name, as the stand-in Hub takes them."""
        paths = [path for path in sorted(self.folder.rglob("*")) if path.is_file()]
        return {path.relative_to(self.folder).as_posix(): path for path in paths}


def _published(prepared: Prepared, name: str, **how: Any) -> Published:
    from laion_face_builder.publish.publish import publish
    from laion_face_builder.publish.request import PublishRequest

    publish(PublishRequest(prepared.data, str(_FOLDER / name), **how))
    return Published(_FOLDER / name, prepared.data)


@pytest.fixture(scope="session")
def published(prepared: Prepared) -> Published:
    """Publish the index, and a preview of five pictures."""
    return _published(prepared, "published", preview=5)


@pytest.fixture(scope="session")
def published_pictures(prepared: Prepared) -> Published:
    """Publish with pictures, in several files a part."""
    from laion_face_builder.publish.published_files import Bounds

    bounds = Bounds(row_group_bytes=300_000, row_group_rows=40, file_bytes=900_000)
    return _published(prepared, "published-pictures", with_images=True, bounds=bounds)
