"""The README's table of measurements says what `bench/results.json` says."""

import pytest
from bench import report

LINE = {
    "part": "kernel",
    "name": "events → week",
    "ours": 1203.4,
    "theirs": 2406.8,
    "ratio": 0.5,
    "target": "≤ 0.75",
    "holds": True,
    "unit": "s",
    "machine": "2 cores, 8 GB, Python 3.11.7, 2026-11-22",
    "events": 20_000_000,
}


def test_a_line_of_the_results_is_a_row_of_the_table():
    text = report.block({"lines": [LINE]})
    assert text.startswith("20,000,000 events; 2 cores, 8 GB, Python 3.11.7, 2026-11-22:\n")
    assert text.endswith("| events → week | 1,203.40 s | 2,406.80 s | 0.5 | ≤ 0.75 | yes |")


def test_what_does_not_hold_says_so():
    assert report.block({"lines": [LINE | {"holds": False}]}).endswith("| no |")


def test_runs_of_another_size_or_machine_are_tables_of_their_own():
    """Figures that were not measured together do not stand side by side."""
    small = LINE | {"events": 2_000_000}
    elsewhere = LINE | {"machine": "64 cores"}
    text = report.block({"lines": [LINE, small, elsewhere, LINE]})
    assert text.count(report.HEAD) == 3
    assert text.count("| events → week |") == 4


def test_the_readme_changes_between_the_marks_only():
    readme = f"before\n{report.BEGIN}\nyesterday\n{report.END}\nafter\n"
    once = report.filled(readme, {"lines": [LINE]})
    assert once.startswith(f"before\n{report.BEGIN}\n20,000,000")
    assert once.endswith(f"| yes |\n{report.END}\nafter\n")
    assert "yesterday" not in once
    assert report.filled(once, {"lines": [LINE]}) == once


@pytest.mark.parametrize("readme", ["", report.BEGIN, report.END, report.END + report.BEGIN])
def test_a_readme_without_the_marks_is_left_alone(readme):
    with pytest.raises(ValueError, match="lacks the marks"):
        report.filled(readme, {"lines": [LINE]})
