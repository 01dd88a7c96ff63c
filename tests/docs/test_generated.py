"""The generated pages are those of this version, and name everything there is."""

import subprocess
import sys
from dataclasses import replace
from typing import Annotated

import pytest
import typer
from pydantic import Field
from tests.docs.conftest import ROOT
from typer.main import get_command

from docs import generate
from theon.events.activity import load_rules
from theon.metrics.catalog import load_catalog
from theon.settings import Settings


@pytest.mark.parametrize("name", generate.PAGES)
def test_a_generated_page_is_up_to_date(name):
    """Else: `make docs`, and commit what changed."""
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == generate.PAGES[name]()


def test_the_check_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "docs.generate", "--check"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_a_stale_page_fails_the_check_and_is_written_by_make_docs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(generate, "FOLDER", tmp_path)
    assert generate.main(["--check"]) == 1
    assert "docs/metrics.md is out of date" in capsys.readouterr().err
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0


def test_everything_says_what_it_is():
    assert generate.undescribed() == []


def test_a_command_or_option_without_a_text_is_found():
    program = typer.Typer()

    @program.command("quiet")
    def quiet(level: Annotated[int, typer.Option()] = 1) -> None:
        pass

    @program.command("loud")
    def loud() -> None:
        """Say it.

        Example: theon loud
        """

    found = generate.undescribed(program=get_command(program))
    assert found == ["theon quiet: help with an example", "theon quiet: level"]


def test_a_setting_without_a_text_is_found():
    class More(Settings):
        extra: Annotated[int, Field(validation_alias="THEON_EXTRA")] = 1

    assert generate.undescribed(settings=More) == ["THEON_EXTRA"]


def test_a_column_without_a_text_is_found():
    metric = load_catalog()["user_day"]
    columns = (replace(metric.columns[0], description=""), *metric.columns[1:])
    catalog = {"user_day": replace(metric, columns=columns)}
    assert generate.undescribed(catalog=catalog) == ["user_day.campus"]


def test_every_setting_metric_column_reason_and_measure_is_named():
    settings, metrics = generate.settings_page(), generate.metrics_page()
    for name, field in Settings.model_fields.items():
        assert f"`{generate.variable(name, field)}`" in settings
    for metric in load_catalog().values():
        assert f"## {metric.name}\n\n{metric.question}" in metrics
        for column in metric.columns:
            assert f"| `{column.name}` | {column.type} |" in metrics
    for reason in load_rules().reasons:
        assert f"\n| {reason} | " in metrics
    for measure in load_rules().measures:
        assert f"\n| `{measure}` | " in metrics


def test_limits_and_units_of_settings_are_shown():
    page = generate.settings_page()
    assert "| `1800` | 900 to 86,400 seconds |" in page
    assert "| `512` | 200 megabytes or more |" in page


@pytest.mark.parametrize("status", [0, 1, 2, 3, 4, 5, 130, 143])
def test_every_exit_status_is_explained_once(status):
    rows = [line for line in generate.commands_page().splitlines() if f"| `{status}` | " in line]
    statuses = [row for row in rows if row.startswith(f"| `{status}` ")]
    assert len(statuses) == 1
    assert len(statuses[0]) > len(f"| `{status}` |  |")
