"""The functions that run the commands. Each imports its heavy libraries itself, so that the others start at once.

The shapes of the JSON documents are in `schemas`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from laion_face_builder.cli.output import Output, say
from laion_face_builder.errors import OptionError, ShardsGivenUp
from laion_face_builder.layout import CONFIG_PARTS, DataDir
from laion_face_builder.log import logger
from laion_face_builder.shown import counted

if TYPE_CHECKING:
    from laion_face_builder.cli.parsing import Parser
    from laion_face_builder.download.part import PartResult
    from laion_face_builder.forecast import Forecast
    from laion_face_builder.publish.manifest import Manifest


def options_of(given: argparse.Namespace, *, anywhere: bool = False) -> Any:
    """Validate the options of a command that takes a config.

    Args:
        anywhere: whether the command's DATA_DIR may be an address such as s3://bucket/data.
    """
    from laion_face_builder.options import OptionFields, Options, option_names

    named = {name: getattr(given, name) for name in option_names() if hasattr(given, name)}
    fields = OptionFields(**{**named, **_lists_of_stdin(named)})
    data = DataDir.kept_at(given.data_dir) if anywhere else DataDir.at(given.data_dir)
    return Options.of(given.config, fields, data, given.token)


def _lists_of_stdin(named: Mapping[str, Any]) -> dict[str, Any]:
    """Read the list that was given as "-", a line each as in a file.

    Raises:
        OptionError: there are two such; BadFile: a line has none of the known forms.
    """
    from laion_face_builder.index.exclusion import parse_exclusion

    asked = [name for name in ("include", "exclude") if named.get(name) == "-"]
    if len(asked) > 1:
        raise OptionError("--include - and --exclude -: the standard input is one list. Give the other one as a file")
    return {name: parse_exclusion(sys.stdin.read().splitlines(), "-") for name in asked}


def run_nothing(given: argparse.Namespace) -> None:
    """Show the next steps: no command was named."""
    from laion_face_builder.cli import welcome

    for line in welcome.lines(DataDir.at(None)):
        say(line)


def run_prepare(given: argparse.Namespace) -> None:
    """Make the indexes, or copy published ones."""
    from laion_face_builder import status
    from laion_face_builder.index.copying import copy_parts
    from laion_face_builder.index.prepare import prepare
    from laion_face_builder.index.prepare_forecast import forecast_copy, forecast_prepare

    options = options_of(given, anywhere=True)
    if options.index is not None:
        if options.data.address is not None:
            raise OptionError(f"data_dir={options.data.where}: a published index is copied to a folder of this machine")
        copied = (options.data, options.parts, options.index, options.upstream.token)
        if given.dry_run:
            return _foretell(forecast_copy(*copied), given)
        copy_parts(*copied)
    else:
        how = {"discard_sources": given.discard_sources, "processes": given.processes}
        if given.dry_run:
            return _foretell(forecast_prepare(options.data, options.parts, options.upstream, **how), given)
        prepare(options.data, options.parts, options.upstream, distributor=given.distributor, **how)
    Output(given.format).document(lambda: status.as_json(options.data, options.parts))


def run_download(given: argparse.Namespace) -> None:
    """Download the pictures."""
    from laion_face_builder.examples import beside, parts
    from laion_face_builder.options import LEFT

    options, out = options_of(given, anywhere=True), Output(given.format)
    if options.join is not None or options.filters.join_how != LEFT:
        parts.require_prepared(options)
        options = beside.with_columns(options, is_made=given.dry_run)
    how = parts.download_options(
        options,
        processes_count=given.processes,
        distributor=given.distributor,
        samples_per_shard=given.samples_per_shard,
        encode_format=given.encode_format,
        encode_quality=given.encode_quality,
        ignore_space=given.ignore_space,
    )
    if given.dry_run:
        if given.shards is not None:
            raise OptionError("--shards: --dry-run tells of all shards; leave --shards out")
        return _foretell(parts.forecast_download(options, how, given.retry_failed), given)
    results: dict[int, PartResult] = {}
    try:
        for part, result in parts.download(options, how, given.retry_failed, given.shards, clean=given.clean_tars):
            results[part] = result
            out.document(partial(dict, part=part, **vars(result)))
    except ShardsGivenUp:  # of one part; the others have their results
        out.lines(_download_table(results))
        raise
    out.lines(_download_table(results))


def run_faces(given: argparse.Namespace) -> int:
    """Print the faces of single samples; return 1 if some are not there."""
    from laion_face_builder.index.detections import faces_of
    from laion_face_builder.index.removals import settled

    out, data, missing = Output(given.format), DataDir.at(given.data_dir), set(given.sample_ids)
    settled(data)
    for found in faces_of(data, given.sample_ids):
        missing.discard(found.sample_id)
        out.lines(_face_lines(found.sample_id, found.part, found.faces))
        out.document(partial(vars, found))
    for sample_id in sorted(missing):
        logger.warning("%d: no detections in the parts that are prepared in %s", sample_id, data.root)
    return 1 if missing else 0


def run_status(given: argparse.Namespace) -> None:
    """Print what is prepared and downloaded."""
    from laion_face_builder import status
    from laion_face_builder.index.removals import settled
    from laion_face_builder.sources import data_store

    data, parts = DataDir.kept_at(given.data_dir), CONFIG_PARTS[given.config]
    with data_store.at_work(data) as here:
        settled(here)
    out = Output(given.format)
    out.lines(status.lines(data, parts))
    out.document(lambda: status.as_json(data, parts))


def run_publish(given: argparse.Namespace) -> None:
    """Publish what is prepared."""
    from laion_face_builder.publish.publish import publish
    from laion_face_builder.publish.publish_forecast import forecast_publish
    from laion_face_builder.publish.request import PublishRequest

    names = (
        *("target", "parts", "with_images", "preview", "private", "public_pictures", "revision", "token"),
        *("include", "exclude", "join", "join_how", "pictures_only", "gated", "contact"),
    )
    asked = {name: getattr(given, name) for name in names}
    request = PublishRequest(DataDir.at(given.data_dir), **{**asked, **_lists_of_stdin(asked)})
    if given.dry_run:
        return _foretell(forecast_publish(request), given)
    manifest = publish(request)
    Output(given.format).document(lambda: _published(given.target, manifest))


def run_remove(given: argparse.Namespace) -> None:
    """Take down what is listed."""
    from laion_face_builder.removal.removal_forecast import forecast_removal
    from laion_face_builder.removal.removal_request import RemovalRequest, lines
    from laion_face_builder.removal.remove import remove
    from laion_face_builder.values import folder

    request = RemovalRequest(
        DataDir.kept_at(given.data_dir),
        None if given.list is None else _listed("remove", given.list),
        given.reason,
        given.from_metadata,
        given.most_gone,
        given.from_published,
        tuple(given.target or ()),
        tuple(folder("export", one) for one in given.export or ()),
        None if given.cache_images is None else folder("cache_images", given.cache_images),
        None if given.cache_dir is None else folder("cache_dir", given.cache_dir),
        given.revision,
        given.token,
        given.squash_history,
    )
    if given.dry_run:
        return _foretell(forecast_removal(request), given)
    taken, out = remove(request), Output(given.format)
    out.lines(lines(taken))
    out.document(lambda: {"data_dir": request.data.where, "places": [one.as_dict() for one in taken]})


def _listed(option: str, path: str) -> Any:
    """Read a list, a file or "-" for the standard input.

    Raises:
        OptionError: there is no such file; BadFile: a line of it is none of the known forms.
    """
    from laion_face_builder.index.exclusion import parse_exclusion
    from laion_face_builder.options.plain import read_list

    return parse_exclusion(sys.stdin.read().splitlines(), "-") if path == "-" else read_list(option, path)


def run_verify(given: argparse.Namespace) -> int:
    """Print what is wrong with a place; return 1 if anything is."""
    from laion_face_builder.verify.verify import verify
    from laion_face_builder.verify.verify_removed import verify_removed

    out = Output(given.format)
    place = given.place or str(DataDir.at(given.data_dir).root)
    if given.removed is None:
        found = verify(place, deep=given.deep, revision=given.revision, token=given.token)
    else:
        listed = _listed("removed", given.removed)
        found = verify_removed(place, listed, deep=given.deep, revision=given.revision, token=given.token)
    problems = []
    for problem in found.problems:
        problems.append(problem)
        out.lines([problem])
    out.document(lambda: {"place": place, "problems": problems})
    logger.info("%s: %s", found.about, counted(len(problems), "problem") if problems else "all as it should be")
    return int(bool(problems))


def run_show(given: argparse.Namespace) -> None:
    """Draw a contact sheet."""
    from laion_face_builder.inspect.command_line import as_typed, to_look_at
    from laion_face_builder.inspect.inspect_forecast import forecast_show
    from laion_face_builder.inspect.show import Sheet, show

    out = Output(given.format)
    wanted = Sheet(given.out, given.count, given.columns, f"{as_typed('show', vars(given))} --count {given.count}")
    options = to_look_at(options_of(given), given.parts, is_dry_run=given.dry_run)
    if given.dry_run:
        return _foretell(forecast_show(options, wanted), given)
    files = list(map(str, show(options, wanted)))
    out.lines(files)
    out.document(lambda: {"files": files})


def run_stats(given: argparse.Namespace) -> None:
    """Count, print the numbers and write the page."""
    from laion_face_builder.inspect.audit import audit, check_rows
    from laion_face_builder.inspect.command_line import as_typed, to_look_at
    from laion_face_builder.inspect.counts import count
    from laion_face_builder.inspect.inspect_forecast import forecast_stats
    from laion_face_builder.inspect.plots import require_matplotlib
    from laion_face_builder.inspect.second_detector import second_detector
    from laion_face_builder.inspect.stats import as_json, lines, write_page

    out, rows = Output(given.format), given.audit_rows if given.audit else None
    check_rows(given.audit_rows)
    options = to_look_at(options_of(given), given.parts, is_dry_run=given.dry_run)
    require_matplotlib()
    detector = second_detector() if given.audit else None
    if given.dry_run:
        return _foretell(forecast_stats(options, given.out, rows), given)
    # First what is asked of fewer pictures: where there are none, it is said before everything is counted.
    audited = audit(options, detector, given.audit_rows) if detector is not None else None
    stats, typed = count(options), as_typed("stats", vars(given))
    write_page(given.out, stats, f"{typed} --audit --audit-rows {rows}" if given.audit else typed, audited)
    out.lines(lines(stats, audited))
    out.document(lambda: as_json(stats, audited))
    logger.info("%s: the same with plots", given.out)


def run_export(given: argparse.Namespace) -> None:
    """Export examples as files."""
    from laion_face_builder.export.export_forecast import forecast_export
    from laion_face_builder.export.exporter import ExportRequest, export
    from laion_face_builder.inspect.command_line import to_look_at
    from laion_face_builder.options.export_options import ExportOptions
    from laion_face_builder.values import folder

    how = ExportOptions(**{spec.name: getattr(given, spec.name) for spec in dataclasses.fields(ExportOptions)})
    options = how.read_with(to_look_at(options_of(given), given.parts, is_dry_run=given.dry_run))
    request = ExportRequest(options, how, folder("out", given.out), given.shards, given.processes)
    if given.dry_run:
        return _foretell(forecast_export(request), given)
    counts, out = export(request), Output(given.format)
    out.lines([f"{given.out}: {counts}"])
    out.document(lambda: {"out": str(given.out), **counts.as_dict()})


def run_demo(given: argparse.Namespace) -> None:
    """Run the demo."""
    from laion_face_builder.sandbox.demo import forecast_demo, run_demo

    if given.dry_run:
        return _foretell(forecast_demo(given.folder), given)
    out = Output(given.format)
    figures = run_demo(given.folder, lambda line: out.lines([line]), is_quiet=given.format == "quiet")
    out.document(lambda: figures)


def run_completion(make_parser: Callable[[], Parser], given: argparse.Namespace) -> None:
    """Print the completion script for a shell."""
    from laion_face_builder.cli.completion import script

    say(script(make_parser(), given.shell))


def _foretell(forecast: Forecast, given: argparse.Namespace) -> None:
    """Print what would be done, and raise what the real run would refuse with."""
    out = Output(given.format)
    out.lines(forecast.lines())
    out.document(forecast.as_dict)
    if forecast.refusal is not None:
        raise forecast.refusal


def _download_table(results: dict[int, PartResult]) -> Iterator[str]:
    yield f"{'part':>4}  {'asked for':>10}  {'usable':>10}  {'share':>6}  {'size':>9}  rounds  most failures"
    for part, result in results.items():
        yield _download_line(part, result)


def _download_line(part: int, result: PartResult) -> str:
    from laion_face_builder.files import human_size

    failures = ", ".join(f"{reason} {count:,}" for reason, count in result.failures.most_common(3))
    return (
        f"{part:>4}  {result.rows - result.filtered:>10,}  {result.ok:>10,}  {result.success_rate:>6.1%}  "
        f"{human_size(result.bytes):>9}  {result.rounds + 1:>6}  {failures or '-'}"
    )


def _face_lines(sample_id: int, part: int, faces: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield f"{sample_id}, part {part}: {len(faces)} face{'' if len(faces) == 1 else 's'}"
    for face in faces:
        marks = "  ".join(_numbers(point) for point in face["landmarks"])
        yield f"  score {face['score']:.3f}  box {_numbers(face['box'])}  landmarks {marks}"


def _numbers(values: Iterable[float]) -> str:
    return ",".join(f"{value:.1f}" for value in values)


def _published(target: str, manifest: Manifest) -> dict[str, Any]:
    names = ("name", "part", "rows", "size", "sha256")
    files = [{name: getattr(entry, name) for name in names} for entry in manifest.entries.values()]
    return {"target": target, "kind": manifest.kind, "parts": list(manifest.parts), "files": files}
