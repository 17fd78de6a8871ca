"""Reports: counts add up over processes, survive in the cache, and are told to the user."""

import logging
import multiprocessing
from collections import Counter

from laion_face_builder.examples import report
from laion_face_builder.examples.report import Report, Tally


def count(folder, yielded, failed):
    with Tally(folder) as tally:
        for _ in range(yielded):
            tally.yielded()
        for _ in range(failed):
            tally.failed("http_404", "http://Gone.example/a.jpg")
        tally.filtered()


def test_tallies_of_several_processes_add_up():
    folder = report.new_folder()
    count(folder, 2, 1)
    child = multiprocessing.get_context("spawn").Process(target=count, args=(folder, 3, 4))
    child.start()
    child.join()
    assert report.read(folder) == Report(2, 5, Counter(http_404=5), Counter({"gone.example": 5}))
    assert str(report.read(folder)) == "12 rows: 5 yielded, 2 filtered, 5 failed (http_404 5)"


def test_a_finished_report_is_kept(tmp_path):
    counts = Report(1, 1, Counter(timeout=1), Counter({"slow.example": 1}))
    report.keep(counts, tmp_path)
    assert report.read(tmp_path) == counts


def test_a_tally_whose_folder_has_gone_stays_quiet(tmp_path):
    count(tmp_path / "gone", 1, 1)
    assert not (tmp_path / "gone").exists()


def test_many_hosts_are_put_together_and_none_is_lost(tmp_path):
    with Tally(None) as tally:
        for number in range(5000):
            tally.failed("timeout", f"http://host-{number}.example/")
            tally.failed("timeout", "http://often.example/")
    hosts = tally.counts.hosts
    assert len(hosts) <= 2 * report.MOST_HOSTS + 1
    assert sum(hosts.values()) == tally.counts.failures == 10_000
    assert hosts["often.example"] == 5000


def test_a_warning_says_why_nearly_everything_fails(caplog):
    with caplog.at_level(logging.WARNING, "laion_face"):
        count(None, 20, 600)
        assert caplog.text.count("% of the pictures fail: http_404") == 1
        assert "gone.example" in caplog.text
        caplog.clear()
        count(None, 900, 300)
    assert caplog.text == ""


def test_a_line_at_the_end_says_what_failed(caplog):
    with caplog.at_level(logging.INFO, "laion_face"):
        count(None, 2, 1)
    assert caplog.messages == ["4 rows: 2 yielded, 1 filtered, 1 failed (http_404 1)"]
