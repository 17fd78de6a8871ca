"""Counts add up over processes and survive in the cache."""

import multiprocessing

from laion_face_builder.examples import report
from laion_face_builder.examples.report import Report, Tally


def count(folder, yielded, failed):
    with Tally(folder) as tally:
        for _ in range(yielded):
            tally.tick()
            tally.counts.yielded += 1
        for _ in range(failed):
            tally.tick()
            tally.counts.failed["http_404"] += 1


def test_tallies_of_several_processes_add_up():
    folder = report.new_folder()
    count(folder, 2, 1)
    child = multiprocessing.get_context("spawn").Process(target=count, args=(folder, 3, 4))
    child.start()
    child.join()
    assert report.read(folder) == Report(10, 0, 5, {"http_404": 5})
    assert str(report.read(folder)) == "10 rows: 5 yielded, 0 filtered, 5 failed (http_404 5)"


def test_a_finished_report_is_kept(tmp_path):
    counts = Report(3, 1, 1)
    counts.failed["timeout"] = 1
    report.keep(counts, tmp_path)
    assert report.read(tmp_path) == counts


def test_a_tally_whose_folder_has_gone_stays_quiet(tmp_path):
    with Tally(tmp_path / "gone") as tally:
        tally.tick()
    assert not (tmp_path / "gone").exists()
