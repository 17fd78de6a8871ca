"""The parser of the command line: the commands, and the options of each."""

from __future__ import annotations

import argparse
import dataclasses
import re
from functools import partial
from pathlib import Path
from typing import Any

from laion_face_builder import __version__
from laion_face_builder.cli import commands
from laion_face_builder.cli.output import FORMATS
from laion_face_builder.cli.parsing import Parser, sample_id
from laion_face_builder.distribute import DISTRIBUTORS
from laion_face_builder.layout import CONFIG_PARTS, DATA_DIR_VARIABLE, default_data_dir

SHELLS = ("bash", "zsh", "fish")
_OF_TOKENS = (
    "Hub token; everybody on this machine can see it in the list of processes, so better set the variable HF_TOKEN or "
    "log in with `hf auth login`; default: the token from these"
)
_GROUPS = {
    "source": "sources",
    "which": "which parts",
    "filter": "which samples",
    "join": "tables to join",
    "pictures": "pictures",
    "resize": "resizing and blurring",
    "images": "pictures",
    "max_copies": "placeholders",
    "blur_faces": "pictures of a download whose faces were blurred",
    "stream": "fetching ahead",
    "transfer": "fetching",
}
#: Options of which argparse itself knows the words.
_CHOICES = {"distributor": DISTRIBUTORS}


def make_parser() -> Parser:
    """Give the parser of the whole command line."""
    parser = Parser(prog="laion-face", description="LAION-Face for Hugging Face datasets.")
    parser.add_argument("--version", action="version", version=__version__)
    parser.set_defaults(run=commands.run_nothing)
    _add_debug(parser)
    subparsers = parser.add_subparsers(metavar="COMMAND")
    for add in _COMMANDS:
        add(subparsers)
    return parser


def _add_prepare(subparsers: Any) -> None:
    command = _command(subparsers, "prepare", commands.run_prepare, "make the index from ids, detections and metadata")
    _add_config(command)
    _add_options(command, "source", "which")
    command.add_argument(
        "--discard-sources", action="store_true", help="delete each downloaded source once it is no longer needed"
    )
    command.add_argument(
        "--processes",
        type=int,
        default=None,
        metavar="N",
        help="files, or parts, to work on at the same time, with up to 1.3 GB of memory each; default: one for each "
        "processor, at most 4",
    )
    command.add_argument(
        "--distributor",
        choices=DISTRIBUTORS,
        default=None,
        help="who does the work: processes of this machine, or a Spark or Ray cluster; default: threads, or processes "
        "if DATA_DIR is an address such as s3://bucket/data",
    )
    _add_dry_run(command)
    _add_format(command)


def _add_download(subparsers: Any) -> None:
    from laion_face_builder.download.download_options import TYPED, DownloadOptions

    command = _command(subparsers, "download", commands.run_download, "download pictures into tars, like img2dataset")
    _add_config(command)
    _add_options(command, "source", "which", "filter", "join", "resize", "transfer")
    for spec in dataclasses.fields(DownloadOptions):
        if "help" in spec.metadata:
            _add_option(command, spec, TYPED.get(spec.name, ""), choices=_CHOICES.get(spec.name))
    command.add_argument(
        "--shards",
        default=None,
        metavar="I/N",
        help="download only every Nth tar, from the Ith on, counted from 0: for one of N jobs that share DATA_DIR; a "
        "last download without --shards completes each part",
    )
    command.add_argument(
        "--retry-failed",
        type=int,
        default=0,
        metavar="N",
        help="how many times to try failed samples again; rounds of earlier runs count; default: %(default)s",
    )
    command.add_argument(
        "--clean-tars",
        action="store_true",
        help="rewrite tars that hold broken pictures, which earlier versions left in them, without these pictures",
    )
    _add_dry_run(command)
    _add_format(command)


def _add_faces(subparsers: Any) -> None:
    command = _command(subparsers, "faces", commands.run_faces, "print detections of single samples, as JSON lines")
    command.add_argument("sample_ids", metavar="ID", nargs="+", type=sample_id, help="as in the column sample_id")
    _add_data_dir(command)
    _add_format(command, default="json")


def _add_status(subparsers: Any) -> None:
    command = _command(subparsers, "status", commands.run_status, "show what is prepared and downloaded")
    command.add_argument("config", metavar="CONFIG", nargs="?", default="50M", choices=sorted(CONFIG_PARTS))
    _add_data_dir(command)
    _add_format(command)


def _add_publish(subparsers: Any) -> None:
    command = _command(subparsers, "publish", commands.run_publish, "publish what is prepared, to a folder or the Hub")
    command.add_argument(
        "target", metavar="TARGET", help='a folder, or a Hub dataset "owner/name" ("./a/b" is a folder)'
    )
    _add_data_dir(command)
    _add_publishing(command)
    _add_dry_run(command)
    _add_format(command)


def _add_verify(subparsers: Any) -> None:
    command = _command(
        subparsers, "verify", commands.run_verify, "list what is wrong with a DATA_DIR or a published copy, a line each"
    )
    command.add_argument(
        "place", metavar="PLACE", nargs="?", help="DATA_DIR, published folder or Hub dataset; default: --data-dir"
    )
    _add_data_dir(command)
    command.add_argument("--deep", action="store_true", help="check every picture and page, not only samples of them")
    command.add_argument(
        "--removed", metavar="LIST", help="list instead where anything that this file names is left, as for remove"
    )
    _add_hub(command)
    _add_format(command)


def _add_remove(subparsers: Any) -> None:
    command = _command(
        subparsers,
        "remove",
        commands.run_remove,
        "take down ids, URLs, hosts and pictures wherever they are, and keep to it from then on",
    )
    command.add_argument(
        "list",
        metavar="LIST",
        nargs="?",
        help="file of sample ids, URLs, hosts, SHA-256s or MD5s, - for the standard input; without one what was begun "
        "goes on, and further places follow",
    )
    _add_data_dir(command)
    for flag, metavar, text in (
        ("--target", "TARGET", "published folder or Hub dataset to take it out of as well"),
        ("--export", "OUT", "folder of an export to take it out of as well"),
    ):
        command.add_argument(flag, metavar=metavar, action="append", help=f"{text}; may be given several times")
    command.add_argument("--cache-images", metavar="DIR", help="folder of a picture cache to take it out of as well")
    command.add_argument(
        "--cache-dir", metavar="DIR", help="folder of Arrow caches to take it out of; default: that of datasets"
    )
    command.add_argument("--reason", default="", metavar="TEXT", help="why, kept beside it; default: none")
    command.add_argument(
        "--from-metadata",
        metavar="NEW",
        help="newer metadata of LAION's, as --metadata takes it: rows that it no longer has are taken down too",
    )
    command.add_argument(
        "--most-gone",
        type=float,
        default=0.2,
        metavar="SHARE",
        help="largest share of the rows that --from-metadata may take down, from 0 to 1; default: %(default)s",
    )
    command.add_argument(
        "--from-published",
        metavar="INDEX",
        help="published folder or Hub dataset, as --index takes it: what was taken down there is taken down too",
    )
    command.add_argument(
        "--squash-history",
        action="store_true",
        help="delete the earlier commits of Hub datasets, which else go on serving what was taken down",
    )
    _add_hub(command)
    _add_dry_run(command)
    _add_format(command)


def _add_show(subparsers: Any) -> None:
    command = _command(
        subparsers, "show", commands.run_show, "draw a contact sheet: pictures, boxes, landmarks, scores, captions"
    )
    _add_config(command)
    _add_options(command, "source", "which", "filter", "join", "pictures", "resize", "transfer")
    command.add_argument("--count", type=int, default=24, help="examples to show; default: %(default)s")
    command.add_argument("--columns", type=int, default=4, help="columns of the sheet; default: %(default)s")
    command.add_argument(
        "--out",
        type=Path,
        default=Path("contact-sheet"),
        help="file to write: a .png picture or an .html page; without a suffix both; default: %(default)s",
    )
    _add_dry_run(command)
    _add_format(command)


def _add_stats(subparsers: Any) -> None:
    command = _command(
        subparsers, "stats", commands.run_stats, "count what a filter keeps, and how faces, sizes and failures vary"
    )
    _add_config(command)
    _add_options(command, "source", "which", "filter", "join", "images", "max_copies", "blur_faces", "transfer")
    command.add_argument("--out", type=Path, default=Path("stats.html"), help="page to write; default: %(default)s")
    command.add_argument(
        "--audit",
        action="store_true",
        help="show a sample of the pictures to a second face detector, and count where it agrees: pictures of the "
        "tars, or with --images fetch of the web; needs laion-face[audit]",
    )
    command.add_argument(
        "--audit-rows",
        type=int,
        default=100,
        metavar="N",
        help="how many pictures --audit looks at; default: %(default)s",
    )
    _add_dry_run(command)
    _add_format(command)
    # The option's name before there was --format.
    command.add_argument(
        "--json", dest="format", action="store_const", const="json", default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )


def _add_export(subparsers: Any) -> None:
    from laion_face_builder.options.export_options import EXPORT_TYPED, ExportOptions

    command = _command(
        subparsers, "export", commands.run_export, "write pictures or faces as files, tars, lists or tables for others"
    )
    command.add_argument("out", metavar="OUT", type=Path, help="folder to write to; an export there goes on")
    group = command.add_argument_group("what is written")
    for spec in dataclasses.fields(ExportOptions):
        _add_option(group, spec, EXPORT_TYPED.get(spec.name, ""), **_destination(spec.name))
    command.add_argument(
        "--config", default="50M", choices=sorted(CONFIG_PARTS), help="config to read; default: %(default)s"
    )
    _add_data_dir(command)
    command.add_argument("--token", default=None, help=_OF_TOKENS)
    _add_options(command, "source", "which", "filter", "join", "pictures", "resize", "transfer")
    command.add_argument(
        "--shards",
        default=None,
        metavar="I/N",
        help="export only every Nth shard, from the Ith on, counted from 0: for one of N jobs that share OUT; the last "
        "to end writes the lists over all",
    )
    command.add_argument(
        "--processes",
        type=int,
        default=None,
        metavar="N",
        help="processes that work; default: one where pictures come from the web, else one for each core, at most 16",
    )
    _add_dry_run(command)
    _add_format(command)


def _destination(name: str) -> dict[str, str]:
    """Say where argparse puts an option whose flag has another name."""
    from laion_face_builder.options.export_options import EXPORT_TYPED

    return {"dest": name} if name in EXPORT_TYPED else {}


def _add_demo(subparsers: Any) -> None:
    command = _command(subparsers, "demo", commands.run_demo, "run every step on a tiny dataset made on this machine")
    command.add_argument("folder", nargs="?", default="demo", type=Path, help="where to write; default: %(default)s")
    _add_dry_run(command)
    _add_format(command)


def _add_completion(subparsers: Any) -> None:
    command = _command(
        subparsers, "completion", partial(commands.run_completion, make_parser), "print a script for tab completion"
    )
    command.add_argument("shell", metavar="SHELL", choices=SHELLS, help=f"your shell: {', '.join(SHELLS)}")


#: In the order in which `--help` lists them.
_COMMANDS = (
    _add_prepare,
    _add_download,
    _add_faces,
    _add_status,
    _add_publish,
    _add_remove,
    _add_verify,
    _add_show,
    _add_stats,
    _add_export,
    _add_demo,
    _add_completion,
)


def _command(subparsers: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = subparsers.add_parser(name, help=text, description=text)
    command.set_defaults(run=run)
    _add_debug(command)
    return command


def _add_debug(parser: argparse.ArgumentParser) -> None:
    """Add --debug, which may stand before and after the command: `failures` looks for it among the words."""
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks of errors")


def _add_format(command: argparse.ArgumentParser, default: str = "human") -> None:
    command.add_argument(
        "--format",
        choices=FORMATS,
        default=default,
        help="print results for people, print them as JSON, or print errors only; default: %(default)s",
    )


def _add_dry_run(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--dry-run", action="store_true", help="say what would be fetched, made and removed, and touch nothing"
    )


def _add_config(command: argparse.ArgumentParser) -> None:
    command.add_argument("config", metavar="CONFIG", choices=sorted(CONFIG_PARTS), help=" or ".join(CONFIG_PARTS))
    _add_data_dir(command)
    command.add_argument("--token", default=None, help=_OF_TOKENS)


def _add_publishing(command: argparse.ArgumentParser) -> None:
    from laion_face_builder.publish.manifest import GATES

    command.add_argument("--parts", default=None, help='parts, such as "0,2,5-7"; default: all that are there')
    command.add_argument(
        "--include", default=None, help="file of sample ids, URLs or hosts to publish, and nothing else"
    )
    command.add_argument("--exclude", default=None, help="file of sample ids, URLs, hosts or hashes to leave out")
    _add_options(command, "join")
    command.add_argument("--with-images", action="store_true", help="add pictures from the tars, for private repos")
    command.add_argument(
        "--pictures-only", action="store_true", help="with pictures: leave out rows that have none, else null"
    )
    command.add_argument(
        "--preview", type=int, default=0, metavar="N", help="add a config `preview` with N pictures; default: none"
    )
    command.add_argument("--private", action="store_true", help="make the Hub dataset private")
    command.add_argument(
        "--public-pictures", action="store_true", help="confirm that you may show every picture to everybody"
    )
    command.add_argument(
        "--gated",
        nargs="?",
        const="auto",
        choices=GATES,
        default=None,
        help="have the Hub ask people for name, purpose and a promise, and let them in at once (auto; --gated alone) "
        "or as you decide (manual), or ask no more (off); default: as it is",
    )
    command.add_argument(
        "--contact",
        metavar="EMAIL_OR_URL",
        default=None,
        help="whom the card names for people who want to be left out; default: as it is",
    )
    _add_hub(command)


def _add_hub(command: argparse.ArgumentParser) -> None:
    command.add_argument("--revision", default=None, help="branch of the Hub dataset; default: main")
    command.add_argument("--token", default=None, help=_OF_TOKENS)


def _add_data_dir(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--data-dir", default=None, help=f"where parts are kept; default: ${DATA_DIR_VARIABLE} or {default_data_dir()}"
    )


def _add_options(command: argparse.ArgumentParser, *groups: str) -> None:
    """Add the options of these groups, or of these names, spelled as the config's fields but with dashes."""
    from laion_face_builder.options import OptionFields

    for name in groups:
        group = command.add_argument_group(_GROUPS[name])
        for spec in dataclasses.fields(OptionFields):
            if name in (spec.metadata["group"], spec.name):
                _add_option(group, spec)


def _add_option(group: Any, spec: dataclasses.Field[Any], typed: str = "", **more: Any) -> None:
    from laion_face_builder.options import option_names

    flag, names = typed or _flag(spec.name), {*option_names(), "data_dir"}
    # Where the text names another option, it does so as that is typed here.
    words = re.compile(r"[a-z]+(_[a-z]+)+")
    text = words.sub(lambda word: _flag(word[0]) if word[0] in names else word[0], spec.metadata["help"])
    text = text.replace("%", "%%")
    if spec.metadata["kind"] is bool:
        group.add_argument(flag, action="store_true", help=text)
        return
    if spec.metadata.get("is_repeated"):
        group.add_argument(flag, action="append", default=spec.default, help=f"{text}; may be given several times")
        return
    text = text if spec.default is None else f"{text}; default: %(default)s"
    group.add_argument(flag, type=spec.metadata["kind"], default=spec.default, help=text, **more)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
