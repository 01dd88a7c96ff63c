"""What may be skipped: with CI=true a test marked `service` or `real_data` runs or fails.

On a developer's machine MariaDB, Chromium or psql may be missing. Continuous integration
installs them (`tools/services`), so there a skipped test means that nobody looked. Only the
real Moodle site may be absent everywhere; the tests that went without it are named at the end.
"""

import os
from collections.abc import Generator

import pytest

# How `moodle_data` begins its reason; such a skip is forgiven even with CI=true.
NO_DATA = "the real Moodle site is not beside the project"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With CI=true, turn a skip that hides something into a failure that gives its reason."""
    report = yield
    if os.environ.get("CI") != "true" or not report.skipped or hasattr(report, "wasxfail"):
        return report
    reason = skip_reason(report)
    real_data = item.get_closest_marker("real_data") is not None
    forgiven = real_data and NO_DATA in reason
    if (real_data or item.get_closest_marker("service") is not None) and not forgiven:
        report.outcome = "failed"
        report.longrepr = (
            f"{reason}\nWith CI=true this test must not be skipped, for it is marked `service` or "
            "`real_data`. `tools/services install` brings what it needs."
        )
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the tests of the real site that were skipped."""
    skipped = [
        report
        for report in terminalreporter.stats.get("skipped", [])
        if "real_data" in report.keywords
    ]
    if skipped:
        terminalreporter.section("tests of the real Moodle site that were skipped")
        for report in sorted(skipped, key=lambda r: r.nodeid):
            terminalreporter.write_line(f"{report.nodeid}: {skip_reason(report)}")


def skip_reason(report: pytest.TestReport) -> str:
    """Why a test was skipped, in its own words."""
    found = report.longrepr
    words = found[2] if isinstance(found, tuple) else str(found)
    return words.removeprefix("Skipped: ")
