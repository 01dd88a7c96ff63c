"""`theon metrics …`."""

import json
import sys
from contextlib import nullcontext
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from theon import cli_common
from theon.errors import InputError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

metrics_app = typer.Typer(
    help="Metrics: compute, export, explain and check them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

MetricName = Annotated[str, typer.Argument(help="A metric; `theon metrics list` names them.")]


class FileFormat(StrEnum):
    """What `theon metrics export` writes."""

    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


@metrics_app.command("list")
def metrics_list() -> None:
    """List the metrics: name, grain, the question each answers; tab-separated.

    Example: theon metrics list
    """
    from theon.metrics.catalog import load_catalog  # noqa: PLC0415

    for metric in load_catalog().values():
        typer.echo(f"{metric.name}\t{', '.join(metric.grain)}\t{metric.question}")


@metrics_app.command("refresh")
def metrics_refresh(
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="All hours, not only those that changed.")
    ] = False,
) -> None:
    """Compute the metrics that the events since last time change.

    Example: theon metrics refresh
    """
    from theon.metrics.refresh import refresh  # noqa: PLC0415
    from theon.pipeline import land_all  # noqa: PLC0415

    with cli_common.open_theon() as theon:
        land_all(theon.store, theon.lake, theon.settings)
        summary = refresh(
            theon.store, theon.lake, theon.settings, rebuild=rebuild, progress=cli_common.progress()
        )
    typer.echo(
        f"events {summary.events:,} · hours {summary.hours:,} · cells {summary.cells:,}"
        f" · {summary.elapsed_s:.1f} s"
    )
    for name, rows in summary.rows_written.items():
        typer.echo(f"{name}\t{rows}")


@metrics_app.command("export")
def metrics_export(
    name: MetricName,
    campus: Annotated[
        str, typer.Option(help="A campus and all below it; `district` is everything.")
    ] = "district",
    file_format: Annotated[
        FileFormat, typer.Option("--format", help="Format of the file.")
    ] = FileFormat.CSV,
    output: Annotated[
        Path | None, typer.Option(help="File to write; else standard output.")
    ] = None,
) -> None:
    """Write a metric's rows, sorted by key, to a file or to standard output.

    Example: theon metrics export user_course_week --campus lincoln --format csv > weeks.csv
    """
    from theon.metrics.catalog import get_metric  # noqa: PLC0415
    from theon.metrics.export import export  # noqa: PLC0415
    from theon.roster.campuses import get_campus  # noqa: PLC0415
    from theon.store.scope import Scope  # noqa: PLC0415

    metric = get_metric(name)
    with cli_common.open_theon() as theon:
        scope = Scope(get_campus(theon.store, campus).slug)
        with _opened(output) as out:
            rows = export(theon.store, metric, scope=scope, format=file_format.value, out=out)
    typer.echo(f"{rows:,} rows of {name}", err=True)


def _opened(output: Path | None) -> "AbstractContextManager[BinaryIO]":
    if output is None:
        return nullcontext(sys.stdout.buffer)
    try:
        return output.open("wb")
    except OSError as error:
        raise InputError(
            f"the file cannot be written: {error.strerror}",
            where=str(output),
            next_step="Give --output another path.",
        ) from error


@metrics_app.command("explain")
def metrics_explain(
    name: MetricName,
    campus: Annotated[str, typer.Option(help="Slug of the campus.")],
    user: Annotated[str | None, typer.Option(help="Learner's id.")] = None,
    course: Annotated[str | None, typer.Option(help="Course id.")] = None,
    day: Annotated[str | None, typer.Option(help="Local day, 2026-09-14.")] = None,
    week: Annotated[str | None, typer.Option(help="Its Monday, 2026-09-14.")] = None,
    month: Annotated[str | None, typer.Option(help="Its first day, 2026-09-01.")] = None,
) -> None:
    """Show the events behind one value, and why each counts or does not.

    Give the options that the metric's grain names; `theon metrics list` shows it.

    Example: theon metrics explain user_course_week --campus lincoln --user 115 --course 6 \
--week 2026-09-14
    """
    from theon.metrics.catalog import get_metric  # noqa: PLC0415
    from theon.metrics.explain import explain  # noqa: PLC0415

    metric = get_metric(name)
    given = {
        "user_id": user,
        "course_id": course,
        "day": day,
        "week_start": week,
        "month_start": month,
    }
    key = {column: value for column, value in given.items() if value is not None}
    with cli_common.open_theon() as theon:
        found = explain(theon.store, theon.lake, theon.settings, metric, campus=campus, key=key)
    for sentence in found.sentences:
        typer.echo(sentence)
    typer.echo("")
    typer.echo(json.dumps(found.value, default=_shown, indent=2, ensure_ascii=False))
    for table in (found.events, found.facts):
        if table.num_rows:
            typer.echo("")
            typer.echo("\t".join(table.column_names))
            for row in zip(*(column.to_pylist() for column in table.columns), strict=True):
                typer.echo("\t".join("" if cell is None else str(cell) for cell in row))


def _shown(value: object) -> str:
    """A date or instant as the export writes it."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return str(value)


@metrics_app.command("verify")
def metrics_verify(
    campus: Annotated[str | None, typer.Option(help="Slug of a campus; else all of them.")] = None,
) -> None:
    """Compute everything again from the events and compare; exit status 1 if anything differs.

    Example: theon metrics verify
    """
    from theon.metrics.verify import verify  # noqa: PLC0415

    with cli_common.open_theon() as theon:
        report = verify(
            theon.store, theon.lake, theon.settings, campus=campus, progress=cli_common.progress()
        )
    for difference in report.differences:
        typer.echo(difference.sentence())
    more = report.rows_different - len(report.differences)
    if more:
        typer.echo(f"… and {more:,} more")
    typer.echo(f"{report.rows_compared:,} rows compared, {report.rows_different:,} differ")
    if not report.ok:
        typer.echo(
            "Run `theon metrics refresh` if events have come since the last one; what still "
            "differs is mended by `theon metrics refresh --rebuild`.",
            err=True,
        )
        raise typer.Exit(1)
