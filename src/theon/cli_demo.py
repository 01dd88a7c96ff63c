"""`theon demo`: a simulated district from nothing to a page."""

import json
import time
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from theon import cli_common
from theon.errors import InputError

if TYPE_CHECKING:
    from theon.bootstrap import Theon
    from theon.simulation import Delivery, District

MANIFEST = "demo.json"
DELIVERIES = "deliveries.json"


@dataclass(frozen=True)
class Plan:
    """What the demo in this THEON_HOME simulates; it is kept, so that a second run agrees."""

    seed: int
    learners: int
    courses: int
    weeks: int
    until: str  # the last day, ISO 8601


@dataclass
class Outcome:
    """What the demo did.

    Attributes:
        read: rows read from files.
        known: rows that the lake held already.
        hours_reopened: hours that the late delivery made Theon compute again.
        seconds: wall time of ingest and refresh.
    """

    read: int = 0
    known: int = 0
    hours_reopened: int = 0
    seconds: float = 0.0


def demo(
    no_serve: Annotated[
        bool, typer.Option("--no-serve", help="End after the computation.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, another district.")] = 1,
    learners: Annotated[int, typer.Option(help="Learners of the three campuses.")] = 1500,
    courses: Annotated[int, typer.Option(help="Courses of the three campuses.")] = 40,
    weeks: Annotated[int, typer.Option(help="Full weeks, ending last Sunday.")] = 8,
) -> None:
    """Simulate a district, ingest its log, compute its metrics and show the page.

    Example: theon demo
    Example: theon demo --no-serve --learners 300
    """
    with cli_common.open_theon() as theon:
        wanted = Plan(seed, learners, courses, weeks, _last_sunday().isoformat())
        for line in _build(theon, wanted):
            typer.echo(line)
        if no_serve:
            typer.echo(f"The page: theon serve, then http://127.0.0.1:{theon.settings.port}")
        else:
            from theon.cli_serve import serve_pages  # noqa: PLC0415

            serve_pages(theon)


def _last_sunday() -> date:
    from theon.simulation import last_sunday_before  # noqa: PLC0415

    return last_sunday_before(datetime.now(UTC).date())


def _build(theon: "Theon", wanted: Plan) -> list[str]:
    """Do all of it; return what to say at the end."""
    from theon.simulation import plan_district, write_district  # noqa: PLC0415

    progress = cli_common.progress()
    folder = theon.settings.home_dir / "demo"
    plan = _agreed_plan(folder / MANIFEST, wanted)
    district = plan_district(
        until=date.fromisoformat(plan.until),
        seed=plan.seed,
        learners=plan.learners,
        courses=plan.courses,
        weeks=plan.weeks,
    )
    deliveries = _known_deliveries(district, folder)
    if deliveries is None:
        deliveries = write_district(district, folder, progress=progress)
        _keep_deliveries(deliveries, folder)
    _add_roster(theon, deliveries)
    outcome = _compute(theon, deliveries)
    return _report(theon, district, deliveries, outcome)


def _agreed_plan(manifest: Path, wanted: Plan) -> Plan:
    """The plan of an earlier demo in this folder, or the wanted one, which is then kept."""
    if not manifest.exists():
        manifest.parent.mkdir(parents=True, exist_ok=True)
        manifest.write_text(json.dumps(asdict(wanted)), encoding="utf-8")
        return wanted
    earlier = Plan(**json.loads(manifest.read_text(encoding="utf-8")))
    differs = [
        f"--{name} {getattr(earlier, name)}"
        for name in ("seed", "learners", "courses", "weeks")
        if getattr(earlier, name) != getattr(wanted, name)
    ]
    if differs:
        raise InputError(
            f"an earlier demo is here, made with {' '.join(differs)}",
            where=str(manifest),
            next_step="Use the same options, or another folder: THEON_HOME=~/theon-2 theon demo …",
        )
    return earlier


def _known_deliveries(district: "District", folder: Path) -> "list[Delivery] | None":
    """The files of an earlier demo; the plan is the same, so they would be written as they are."""
    from theon.simulation import Delivery  # noqa: PLC0415

    try:
        counts = json.loads((folder / DELIVERIES).read_text(encoding="utf-8"))
        found = [
            Delivery(
                campus=campus,
                main=folder / f"{campus.slug}.csv",
                late=folder / f"{campus.slug}-late.csv",
                **counts[campus.slug],
            )
            for campus in district.campuses
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if all(d.main.exists() and d.late.exists() for d in found) else None


def _keep_deliveries(deliveries: "list[Delivery]", folder: Path) -> None:
    names = ("courses", "events", "late_events", "duplicates")
    counts = {d.campus.slug: {name: getattr(d, name) for name in names} for d in deliveries}
    (folder / DELIVERIES).write_text(json.dumps(counts), encoding="utf-8")


def _add_roster(theon: "Theon", deliveries: "list[Delivery]") -> None:
    import pyarrow as pa  # noqa: PLC0415

    from theon.roster.campuses import add_campus  # noqa: PLC0415
    from theon.roster.people_and_courses import upsert_courses  # noqa: PLC0415
    from theon.simulation.district import FIRST_COURSE_ID, course_name  # noqa: PLC0415

    for delivery in deliveries:
        plan = delivery.campus
        campus = add_campus(theon.store, plan.slug, plan.timezone, plan.name)
        names = [course_name(index) for index in range(delivery.courses)]
        ids = [str(FIRST_COURSE_ID + index) for index in range(delivery.courses)]
        table = pa.table({"course_id": ids, "short_name": names, "full_name": names})
        upsert_courses(theon.store, campus, table)


def _compute(theon: "Theon", deliveries: "list[Delivery]") -> Outcome:
    """Both deliveries, each followed by a refresh, as they would come in real life."""
    from theon.intake.pipeline import ingest  # noqa: PLC0415
    from theon.metrics.refresh import refresh  # noqa: PLC0415

    progress = cli_common.progress()
    outcome = Outcome()
    begun = time.monotonic()
    for second in (False, True):
        for delivery in deliveries:
            summary = ingest(
                theon.store,
                theon.lake,
                theon.settings,
                location=str(delivery.late if second else delivery.main),
                format="moodle-logstore",
                campus=delivery.campus.slug,
                progress=progress,
            )
            outcome.read += summary.read
            outcome.known += summary.known
        done = refresh(theon.store, theon.lake, theon.settings, progress=progress)
        if second:
            outcome.hours_reopened = done.hours
    outcome.seconds = time.monotonic() - begun
    return outcome


def _report(
    theon: "Theon", district: "District", deliveries: "list[Delivery]", outcome: Outcome
) -> list[str]:
    from sqlalchemy import text  # noqa: PLC0415

    from theon.store.scope import Scope  # noqa: PLC0415

    with theon.store.transaction(Scope.district()) as conn:
        learners, courses, weeks = conn.execute(
            text(
                "SELECT count(DISTINCT (campus_id, user_id)), count(DISTINCT (campus_id,"
                " course_id)), count(DISTINCT week_start) FROM metrics.user_course_week"
            )
        ).one()
    events = sum(d.events + d.late_events for d in deliveries)
    duplicates = sum(d.duplicates for d in deliveries)
    return [
        "",
        f"{events:,} events of {learners:,} learners in {courses} courses on "
        f"{len(deliveries)} campuses over {weeks} weeks ({district.first_day} to "
        f"{district.until}, seed {district.seed})",
        f"{outcome.read:,} rows read, {outcome.known:,} recognised as known ({duplicates:,} are "
        "duplicates in the second delivery); none counted twice",
        f"{outcome.hours_reopened:,} hours reopened by late events",
        f"{outcome.read / max(outcome.seconds, 1e-9):,.0f} events a second: ingest and metrics "
        f"took {outcome.seconds:.1f} s",
        "Look closer: theon metrics list · theon metrics verify · theon doctor",
    ]
