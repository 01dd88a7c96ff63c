"""`theon ingest`."""

from enum import StrEnum
from typing import Annotated

import typer

from theon import cli_common


class SourceFormat(StrEnum):
    """What `theon ingest` reads."""

    MOODLE_REPORT = "moodle-report"
    MOODLE_LOGSTORE = "moodle-logstore"
    MOODLE_DB = "moodle-db"
    NDJSON = "ndjson"
    XAPI = "xapi"
    EDX = "edx"


_REPLAY = {
    each: " Or mend and replay them as dead letters: theon intake dead-letters list --source"
    f" file:{each}"
    for each in (SourceFormat.NDJSON, SourceFormat.XAPI, SourceFormat.EDX)
}


def ingest(
    location: Annotated[
        str,
        typer.Argument(help="A file (CSV, XLSX or JSON, .gz too), a folder, or a database's URL."),
    ],
    source_format: Annotated[
        SourceFormat,
        typer.Option(
            "--format",
            help="moodle-report: a log report downloaded in Moodle; moodle-logstore: the table "
            "logstore_standard_log as CSV; moodle-db: Moodle's own database, read only; ndjson: "
            "events in Theon's own JSON, one per line; xapi: xAPI statements; edx: tracking logs "
            "of Open edX. Of the last three, a folder of files is read as well.",
        ),
    ],
    campus: Annotated[str, typer.Option(help="Slug of the campus the events belong to.")],
    course: Annotated[
        str | None, typer.Option(help="Course id, for the report of a single course.")
    ] = None,
    prefix: Annotated[
        str, typer.Option(help="Prefix of the tables of a Moodle database.")
    ] = "mdl_",
) -> None:
    """Read events into the lake; what is there already is recognised, never counted twice.

    Example: theon ingest logstore_standard_log.csv.gz --format moodle-logstore --campus lincoln

    Example: theon ingest /edx/var/log/tracking --format edx --campus lincoln

    Example: theon ingest mysql://reader@db/moodle --format moodle-db --campus lincoln
    """
    from theon.intake.pipeline import ingest as run_ingest  # noqa: PLC0415

    with cli_common.open_theon() as theon:
        summary = run_ingest(
            theon.store,
            theon.lake,
            theon.settings,
            location=location,
            format=source_format.value,
            campus=campus,
            course=course,
            prefix=prefix,
            progress=cli_common.progress(),
        )
    typer.echo(
        f"read {summary.read:,} · new {summary.new:,} · known {summary.known:,}"
        f" · rejected {summary.rejected:,}"
    )
    for reason, rows in sorted(summary.reasons.items(), key=lambda item: -item[1]):
        typer.echo(f"{reason}\t{rows}")
    for note in summary.notes:
        typer.secho(note, fg=typer.colors.YELLOW, err=True)
    if summary.rejects_file is not None:
        typer.secho(
            f"Rejected rows are listed in {summary.rejects_file}. "
            "Mend them and ingest the file again; nothing is counted twice."
            + _REPLAY.get(source_format, ""),
            fg=typer.colors.RED,
            err=True,
        )
    if summary.exit_status:
        raise typer.Exit(summary.exit_status)
