"""The command line. Data go to stdout, talk and progress to stderr; a known error is one line and a non-zero exit."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from laion_face_builder import __version__
from laion_face_builder.errors import LaionFaceError
from laion_face_builder.layout import CONFIG_PARTS, DATA_DIR_VARIABLE, DataDir, default_data_dir
from laion_face_builder.shown import hushed

logger = logging.getLogger("laion_face")

_OF_TOKENS = (
    "Hub token, for all on this machine to see in the list of processes: better set the variable HF_TOKEN, or log in "
    "with `hf auth login`; these are the default"
)

_GROUPS = {
    "source": "where from",
    "which": "which parts",
    "filter": "which samples",
    "pictures": "pictures",
    "resize": "resizing and blurring",
    "images": "pictures",
    "stream": "fetching ahead",
    "transfer": "fetching",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit code: 0, 1 after a known error, 130 after Ctrl-C."""
    given = _parser().parse_args(arguments)
    _talk_to_stderr()
    try:
        return int(given.run(given) or 0)
    except LaionFaceError as error:
        print(f"laion-face: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("laion-face: interrupted; run the same command again to go on", file=sys.stderr)
        _leave_threads(130)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone, as `| head` does.
        sys.stderr.close()
        return 0


def _leave_threads(code: int) -> None:
    """Ends the program at once if threads are at work: Python would wait for them, and all files are whole anyway."""
    if threading.active_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="laion-face", description="LAION-Face for Hugging Face datasets.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    for add in _COMMANDS:
        add(commands)
    return parser


def _add_prepare(commands: Any) -> None:
    command = _command(commands, "prepare", _prepare, "ids, detections and metadata -> the index")
    _add_config(command)
    _add_options(command, "source", "which")
    command.add_argument(
        "--discard-sources", action="store_true", help="delete each downloaded source once what it is for is written"
    )
    command.add_argument(
        "--processes",
        type=int,
        default=None,
        metavar="N",
        help="files, and parts, that are worked on at the same time, 1.3 GB each; default: one a processor, at most 4",
    )


def _add_download(commands: Any) -> None:
    command = _command(commands, "download", _download, "pictures, by img2dataset")
    _add_config(command)
    _add_options(command, "source", "which", "filter", "resize", "transfer")
    command.add_argument(
        "--encode-format", default=None, help="of resized or blurred pictures: jpg (default), png, webp"
    )
    command.add_argument(
        "--encode-quality", type=int, default=None, help="likewise, 1 to 100, of png 0 to 9; default: 95, of png 6"
    )
    command.add_argument("--processes", type=int, default=None, help="processes of img2dataset; default: one a core")
    command.add_argument("--threads", type=int, default=64, help="threads of each; default: %(default)s")
    command.add_argument(
        "--samples-per-shard", type=int, default=10_000, help="samples in one tar; default: %(default)s"
    )
    command.add_argument(
        "--retry-failed",
        type=int,
        default=0,
        metavar="N",
        help="rounds over the failed samples there are to be in all; default: %(default)s",
    )


def _add_faces(commands: Any) -> None:
    command = _command(commands, "faces", _faces, "detections of single samples, as JSON lines")
    command.add_argument("sample_ids", metavar="ID", nargs="+", type=int)
    _add_data_dir(command)


def _add_status(commands: Any) -> None:
    command = _command(commands, "status", _status, "what is prepared and downloaded")
    command.add_argument("config", metavar="CONFIG", nargs="?", default="50M", choices=sorted(CONFIG_PARTS))
    _add_data_dir(command)
    command.add_argument(
        "--format", choices=("human", "json"), default="human", help="a table, or JSON; default: %(default)s"
    )


def _add_publish(commands: Any) -> None:
    command = _command(commands, "publish", _publish, "a no-code copy: a folder, or a Hub dataset")
    command.add_argument(
        "target", metavar="TARGET", help='a folder, or a Hub dataset "owner/name" ("./a/b" is a folder)'
    )
    _add_data_dir(command)
    _add_publishing(command)


def _add_verify(commands: Any) -> None:
    command = _command(commands, "verify", _verify, "what is wrong with a DATA_DIR or a published place, a line each")
    command.add_argument(
        "place", metavar="PLACE", nargs="?", help="DATA_DIR, published folder or Hub dataset; default: --data-dir"
    )
    _add_data_dir(command)
    command.add_argument("--deep", action="store_true", help="hash every picture, read every page; default: samples")
    _add_hub(command)


def _add_show(commands: Any) -> None:
    command = _command(commands, "show", _show, "a contact sheet: pictures, boxes, landmarks, scores, captions")
    _add_config(command)
    _add_options(command, "source", "which", "filter", "pictures", "resize", "transfer")
    command.add_argument("--count", type=int, default=24, help="examples; default: %(default)s")
    command.add_argument("--columns", type=int, default=4, help="of the sheet; default: %(default)s")
    command.add_argument(
        "--out",
        type=Path,
        default=Path("contact-sheet"),
        help="a .png picture, an .html page; both without a suffix; default: %(default)s",
    )


def _add_stats(commands: Any) -> None:
    command = _command(commands, "stats", _stats, "what a filter keeps, and how faces, sizes and failures are spread")
    _add_config(command)
    _add_options(command, "source", "which", "filter", "images")
    command.add_argument("--out", type=Path, default=Path("stats.html"), help="the page; default: %(default)s")
    command.add_argument("--json", action="store_true", help="the numbers as JSON instead of a table")


def _add_demo(commands: Any) -> None:
    command = _command(commands, "demo", _demo, "the whole job on a miniature upstream on this machine")
    command.add_argument("folder", nargs="?", default="demo", type=Path, help="where to; default: %(default)s")


#: In the order in which `--help` lists them.
_COMMANDS = (
    _add_prepare,
    _add_download,
    _add_faces,
    _add_status,
    _add_publish,
    _add_verify,
    _add_show,
    _add_stats,
    _add_demo,
)


def _command(commands: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    command.set_defaults(run=run)
    return command


def _add_config(command: argparse.ArgumentParser) -> None:
    command.add_argument("config", metavar="CONFIG", choices=sorted(CONFIG_PARTS), help=" or ".join(CONFIG_PARTS))
    _add_data_dir(command)
    command.add_argument("--token", default=None, help=_OF_TOKENS)


def _add_publishing(command: argparse.ArgumentParser) -> None:
    command.add_argument("--parts", default=None, help='such as "0,2,5-7"; default: those that are there')
    command.add_argument("--exclude", default=None, help="file of sample ids, URLs, hosts, SHA-256s or MD5s")
    command.add_argument("--with-images", action="store_true", help="with pictures, from the tars: for private repos")
    command.add_argument(
        "--preview", type=int, default=0, metavar="N", help="a config `preview` with N pictures; default: none"
    )
    command.add_argument("--private", action="store_true", help="make the Hub dataset private")
    command.add_argument(
        "--public-pictures", action="store_true", help="you have the right to show every picture to everybody"
    )
    _add_hub(command)


def _add_hub(command: argparse.ArgumentParser) -> None:
    command.add_argument("--revision", default=None, help="branch of the Hub dataset; default: main")
    command.add_argument("--token", default=None, help=_OF_TOKENS)


def _add_data_dir(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--data-dir", default=None, help=f"where parts live; default: ${DATA_DIR_VARIABLE} or {default_data_dir()}"
    )


def _add_options(command: argparse.ArgumentParser, *groups: str) -> None:
    """The options of these groups, or of that name, under the config's names with dashes."""
    from laion_face_builder.options import OptionFields

    for name in groups:
        group = command.add_argument_group(_GROUPS[name])
        for spec in dataclasses.fields(OptionFields):
            if name in (spec.metadata["group"], spec.name):
                _add_option(group, spec)


def _add_option(group: Any, spec: dataclasses.Field[Any]) -> None:
    flag, text = f"--{spec.name.replace('_', '-')}", spec.metadata["help"]
    if spec.metadata["kind"] is bool:
        group.add_argument(flag, action="store_true", help=text)
    else:
        shown = "" if spec.default is None else f"; default: {spec.default}"
        group.add_argument(
            flag, type=spec.metadata["kind"], default=spec.default, help=(text + shown).replace("%", "%%")
        )


def _options(given: argparse.Namespace) -> Any:
    from laion_face_builder.options import OptionFields, Options, option_names

    fields = OptionFields(**{name: value for name, value in vars(given).items() if name in option_names()})
    return Options.of(given.config, fields, given.data_dir, given.token)


def _prepare(given: argparse.Namespace) -> None:
    from laion_face_builder.index.copying import copy_parts
    from laion_face_builder.index.prepare import prepare

    options = _options(given)
    if options.index is not None:
        copy_parts(options.data, options.parts, options.index, options.upstream.token)
        return
    how = {"discard_sources": given.discard_sources, "processes": given.processes}
    prepare(options.data, options.parts, options.upstream, **how)


def _download(given: argparse.Namespace) -> None:
    from laion_face_builder.examples import parts

    options = _options(given)
    how = parts.download_options(
        options,
        processes_count=given.processes,
        thread_count=given.threads,
        samples_per_shard=given.samples_per_shard,
        encode_format=given.encode_format,
        encode_quality=given.encode_quality,
    )
    for part, result in parts.download(options, how, given.retry_failed):
        print(json.dumps({"part": part, **vars(result)}))


def _faces(given: argparse.Namespace) -> int:
    from laion_face_builder.index.detections import faces_of

    missing = set(given.sample_ids)
    for found in faces_of(DataDir.at(given.data_dir), given.sample_ids):
        missing.discard(found.sample_id)
        print(json.dumps({"sample_id": found.sample_id, "part": found.part, "faces": found.faces}))
    for sample_id in sorted(missing):
        logger.warning(
            "%d: no detections in the parts that are prepared in %s", sample_id, DataDir.at(given.data_dir).root
        )
    return 1 if missing else 0


def _status(given: argparse.Namespace) -> None:
    from laion_face_builder import status

    data, parts = DataDir.at(given.data_dir), CONFIG_PARTS[given.config]
    for line in [json.dumps(status.as_json(data, parts))] if given.format == "json" else status.lines(data, parts):
        print(line)


def _publish(given: argparse.Namespace) -> None:
    from laion_face_builder.publish.publish import publish
    from laion_face_builder.publish.request import PublishRequest

    names = ("target", "parts", "with_images", "preview", "private", "public_pictures", "revision", "token", "exclude")
    publish(PublishRequest(DataDir.at(given.data_dir), **{name: getattr(given, name) for name in names}))


def _verify(given: argparse.Namespace) -> int:
    from laion_face_builder.publish.verify import verify

    place = given.place or str(DataDir.at(given.data_dir).root)
    found = verify(place, deep=given.deep, revision=given.revision, token=given.token)
    count = 0
    for count, problem in enumerate(found.problems, 1):  # noqa: B007 - the last one is how many there are
        print(problem, flush=True)
    logger.info("%s: %s", found.about, f"{count} problems" if count else "all as it should be")
    return int(count > 0)


def _show(given: argparse.Namespace) -> None:
    from laion_face_builder.looks.show import Sheet, show
    from laion_face_builder.looks.typed import as_typed, to_look_at

    wanted = Sheet(given.out, given.count, given.columns, f"{as_typed('show', vars(given))} --count {given.count}")
    for file in show(to_look_at(_options(given), given.parts), wanted):
        print(file)


def _stats(given: argparse.Namespace) -> None:
    from laion_face_builder.looks.counts import count
    from laion_face_builder.looks.stats import as_json, lines, write_page
    from laion_face_builder.looks.typed import as_typed, to_look_at

    stats = count(to_look_at(_options(given), given.parts))
    write_page(given.out, stats, as_typed("stats", vars(given)))
    for line in [json.dumps(as_json(stats))] if given.json else lines(stats):
        print(line)
    logger.info("%s: the same with plots", given.out)


def _demo(given: argparse.Namespace) -> None:
    from laion_face_builder.demo import run_demo

    run_demo(given.folder)


class _Parser(argparse.ArgumentParser):
    """Quotes what was typed wrong, but no password or token in it."""

    def error(self, message: str) -> NoReturn:
        """Says what is wrong and ends the program."""
        super().error(hushed(message))


def _talk_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
