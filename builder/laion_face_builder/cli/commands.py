"""What each command does. Heavy libraries are imported when it is done, so that the others start at once."""

from __future__ import annotations

import argparse
import json
import logging
from typing import Any

from laion_face_builder.layout import CONFIG_PARTS, DataDir

logger = logging.getLogger("laion_face")


def options_of(given: argparse.Namespace) -> Any:
    """Validate the options of a command that takes a config."""
    from laion_face_builder.options import OptionFields, Options, option_names

    fields = OptionFields(**{name: value for name, value in vars(given).items() if name in option_names()})
    return Options.of(given.config, fields, given.data_dir, given.token)


def run_prepare(given: argparse.Namespace) -> None:
    """Make the indexes."""
    from laion_face_builder.index.copying import copy_parts
    from laion_face_builder.index.prepare import prepare

    options = options_of(given)
    if options.index is not None:
        copy_parts(options.data, options.parts, options.index, options.upstream.token)
        return
    how = {"discard_sources": given.discard_sources, "processes": given.processes}
    prepare(options.data, options.parts, options.upstream, **how)


def run_download(given: argparse.Namespace) -> None:
    """Download the pictures, a JSON line a part."""
    from laion_face_builder.examples import parts

    options = options_of(given)
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


def run_faces(given: argparse.Namespace) -> int:
    """Print the faces of single samples; 1 if some are not there."""
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


def run_status(given: argparse.Namespace) -> None:
    """Print what is there."""
    from laion_face_builder import status

    data, parts = DataDir.at(given.data_dir), CONFIG_PARTS[given.config]
    for line in [json.dumps(status.as_json(data, parts))] if given.format == "json" else status.lines(data, parts):
        print(line)


def run_publish(given: argparse.Namespace) -> None:
    """Publish what is prepared."""
    from laion_face_builder.publish.publish import publish
    from laion_face_builder.publish.request import PublishRequest

    names = ("target", "parts", "with_images", "preview", "private", "public_pictures", "revision", "token", "exclude")
    publish(PublishRequest(DataDir.at(given.data_dir), **{name: getattr(given, name) for name in names}))


def run_verify(given: argparse.Namespace) -> int:
    """Print what is wrong; 1 if anything is."""
    from laion_face_builder.publish.verify import verify

    place = given.place or str(DataDir.at(given.data_dir).root)
    found = verify(place, deep=given.deep, revision=given.revision, token=given.token)
    count = 0
    for count, problem in enumerate(found.problems, 1):  # noqa: B007 - the last one is how many there are
        print(problem, flush=True)
    logger.info("%s: %s", found.about, f"{count} problems" if count else "all as it should be")
    return int(count > 0)


def run_show(given: argparse.Namespace) -> None:
    """Draw a contact sheet."""
    from laion_face_builder.looks.show import Sheet, show
    from laion_face_builder.looks.typed import as_typed, to_look_at

    wanted = Sheet(given.out, given.count, given.columns, f"{as_typed('show', vars(given))} --count {given.count}")
    for file in show(to_look_at(options_of(given), given.parts), wanted):
        print(file)


def run_stats(given: argparse.Namespace) -> None:
    """Count, print the numbers, write the page."""
    from laion_face_builder.looks.counts import count
    from laion_face_builder.looks.stats import as_json, lines, write_page
    from laion_face_builder.looks.typed import as_typed, to_look_at

    stats = count(to_look_at(options_of(given), given.parts))
    write_page(given.out, stats, as_typed("stats", vars(given)))
    for line in [json.dumps(as_json(stats))] if given.json else lines(stats):
        print(line)
    logger.info("%s: the same with plots", given.out)


def run_demo(given: argparse.Namespace) -> None:
    """Run the demo."""
    from laion_face_builder.demo import run_demo

    run_demo(given.folder)
