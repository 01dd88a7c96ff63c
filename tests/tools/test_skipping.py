"""The rules of skipping, on small test runs of their own."""

import pytest

pytest_plugins = ["pytester"]

SERVICE = """
    import pytest
    @pytest.mark.service
    def test_page():
        pytest.skip("there is no Chromium")
"""
NO_SITE = """
    import pytest
    from tests.skipping import NO_DATA
    @pytest.fixture
    def moodle_data():
        pytest.skip(f"{NO_DATA} (somewhere)")
    @pytest.mark.service
    @pytest.mark.real_data
    def test_site(moodle_data):
        pass
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    """Runs a test file's text with these rules: `run(text, ci=True)`."""
    pytester.makeini("[pytest]\nmarkers =\n    service: s\n    real_data: r\n")

    def run(text: str, *, ci: bool) -> pytest.RunResult:
        monkeypatch.setenv("CI", "true" if ci else "")
        pytester.makepyfile(text)
        return pytester.runpytest_inprocess("-p", "tests.skipping", "-p", "no:xdist")

    return run


def test_a_skipped_service_test_fails_in_continuous_integration_with_its_reason(run):
    result = run(SERVICE, ci=True)
    result.stdout.fnmatch_lines(["*there is no Chromium*", "*tools/services install*"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_a_developer_may_go_without_a_service(run):
    run(SERVICE, ci=False).assert_outcomes(skipped=1)


def test_a_service_test_skipped_by_its_mark_fails_as_well(run):
    """`skipif` skips before any fixture runs; the rule is the same."""
    text = SERVICE.replace("@pytest.mark.service", "@pytest.mark.service\n    "
                           "@pytest.mark.skipif(True, reason='not here')")  # fmt: skip
    result = run(text, ci=True)
    result.stdout.fnmatch_lines(["*not here*"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_an_ordinary_test_may_be_skipped_anywhere(run):
    run(SERVICE.replace("@pytest.mark.service", ""), ci=True).assert_outcomes(skipped=1)


def test_the_real_site_may_be_absent_anywhere_and_its_tests_are_named(run):
    for ci in (True, False):
        result = run(NO_SITE, ci=ci)
        result.assert_outcomes(skipped=1)
        result.stdout.fnmatch_lines(["*test_site: the real Moodle site is not beside*"])


@pytest.mark.parametrize("marks", ["service real_data", "real_data"])
def test_a_service_that_is_missing_is_not_excused_by_the_real_site(run, marks):
    text = NO_SITE.replace('f"{NO_DATA} (somewhere)"', '"MariaDB is not installed"')
    if "service" not in marks:
        text = text.replace("@pytest.mark.service", "")
    result = run(text, ci=True)
    result.stdout.fnmatch_lines(["*MariaDB is not installed*"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_an_expected_failure_is_no_skip(run):
    text = SERVICE.replace('pytest.skip("there is no Chromium")', "raise AssertionError")
    text = text.replace("@pytest.mark.service", "@pytest.mark.service\n    @pytest.mark.xfail")
    run(text, ci=True).assert_outcomes(xfailed=1)
