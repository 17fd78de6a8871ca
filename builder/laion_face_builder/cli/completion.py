"""Scripts for tab completion in a shell, which shtab makes from the parser itself."""

from __future__ import annotations

import argparse

import shtab

from laion_face_builder.cli.parsing import Parser
from laion_face_builder.download.download_options import ENCODE_FORMATS
from laion_face_builder.images.geometry import RESIZE_MODES
from laion_face_builder.options import IMAGE_MODES, KEEP_FACES, NSFW_VALUES, ON_ERROR, ON_SIZE_CHANGE
from laion_face_builder.options.export_options import CROP_FORMATS, DRAWINGS, LAYOUTS
from laion_face_builder.transforms.alignment import TEMPLATES

#: Options and positional arguments that are names of folders or files.
_FOLDERS = ("data_dir", "source_repo", "metadata", "index", "images", "cache_images", "place", "target", "folder")
_FILES = ("out", "exclude")
#: Words to offer for options for which argparse has no choices: they take other values too, or are checked later.
_WORDS = {
    "images": IMAGE_MODES,
    "keep_faces": KEEP_FACES,
    "nsfw": NSFW_VALUES,
    "on_error": ON_ERROR,
    "on_size_change": ON_SIZE_CHANGE,
    "resize_mode": RESIZE_MODES,
    "layout": LAYOUTS,
    "align": TEMPLATES,
    "draw": DRAWINGS,
    "crop_format": tuple(CROP_FORMATS),
    "encode_format": ENCODE_FORMATS,
}


def script(parser: Parser, shell: str) -> str:
    """Give the script for bash, zsh or fish. The parser is changed and cannot be used for parsing afterwards."""
    for command in parser.commands.values():
        for action in command._actions:
            _hint(action)
    return shtab.complete(parser, shell)


def _hint(action: argparse.Action) -> None:
    if action.dest in _WORDS:
        action.choices = _WORDS[action.dest]
    for names, kind in ((_FOLDERS, shtab.DIRECTORY), (_FILES, shtab.FILE)):
        if action.dest in names:
            action.complete = kind  # type: ignore[attr-defined]  # shtab looks for it; argparse knows no such name
