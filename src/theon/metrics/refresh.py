"""Refresh: bring the published metrics up to what the lake holds now.

For each campus: which hours changed since the version last processed, their cells, the days
these can change, the metric rows that rest on these days; then one transaction that checks
that nobody else was quicker, publishes, moves the manifests and the cursor. Everything before
that transaction can be lost without a trace, everything in it happens together.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from sqlalchemy import Connection, text

from theon.errors import ConflictError
from theon.events import outcomes
from theon.events.activity import ActivityRules, load_rules
from theon.lake.engine import open_engine, sql_list
from theon.lake.table import EventLake, LakeFile
from theon.metrics import derive, kernel
from theon.metrics.announce import announce
from theon.metrics.catalog import Metric, load_catalog
from theon.metrics.manifest import Manifest, load_manifest, save_manifest, sweep
from theon.metrics.outcomes import rewrite_outcomes
from theon.metrics.publish import publish
from theon.metrics.rows import affected_keys, days_of_keys, keep_days, metric_rows
from theon.metrics.tables import analyze_tables, ensure_tables, swap_views
from theon.observability.progress import ProgressReporter, SilentProgress
from theon.roster.campuses import Campus, list_campuses
from theon.settings import Settings
from theon.store import outbox
from theon.store.engine import Store
from theon.store.scope import Scope

ATTEMPTS = 5
MANY_ROWS = 5_000
# Rows of up to this many keys are held in memory between the engine and the database: some MB.
FEW_KEYS = 50_000
ORPHANS_AFTER_S = 24 * 3600
# Named so that fault tests can stop a refresh right after any of its steps.
Checkpoint = Callable[[str], None]


@dataclass
class RefreshSummary:
    """What a refresh did.

    Attributes:
        events: events read again (all of each reopened hour).
        hours: reopened hours; those with activity where all were.
        days: reopened local days.
        cells: live cells of the reopened hours.
        rows_written: metric to rows written or removed in PostgreSQL.
        campuses: slugs of campuses in which something was refreshed.
        elapsed_s: wall-clock seconds.
    """

    events: int = 0
    hours: int = 0
    days: int = 0
    cells: int = 0
    rows_written: dict[str, int] = field(default_factory=dict)
    campuses: list[str] = field(default_factory=list)
    elapsed_s: float = 0.0


@dataclass
class _State:
    """What PostgreSQL says about one campus before the refresh."""

    generation: int
    lake_version: int
    rules_hash: str | None
    outcome_rules_hash: str | None
    timezone: str | None
    session_limit_s: int | None
    definitions: dict[str, tuple[str, int]]
    cells: Manifest
    days: Manifest


@dataclass
class _Work:
    """One campus's refresh on its way through the stages."""

    bench: derive.Workbench
    state: _State
    version: int
    stale: set[str]
    hours: dict[int, int]
    all_cells: bool
    all_days: bool
    kept: bool = False
    written: dict[str, int] = field(default_factory=dict)


def refresh(
    store: Store,
    lake: EventLake,
    settings: Settings,
    *,
    rebuild: bool = False,
    campus: str | None = None,
    catalog: dict[str, Metric] | None = None,
    rules: ActivityRules | None = None,
    outcome_rules: outcomes.OutcomeRules | None = None,
    progress: ProgressReporter | None = None,
    checkpoint: Checkpoint | None = None,
) -> RefreshSummary:
    """Refresh every campus (or one).

    Args:
        store: where metrics are published.
        lake: where events are.
        settings: session limit, memory.
        rebuild: compute everything again from the events, whatever is there.
        campus: slug of the only campus to refresh.
        catalog: definitions; the shipped ones unless given.
        rules: activity rules; the shipped ones unless given.
        outcome_rules: outcome rules; the shipped ones unless given.
        progress: where progress goes.
        checkpoint: called with the name of each step that was just completed.

    Raises:
        ConflictError: others kept refreshing the same campus; nothing of this one was kept.
        InputError: a definition does not fit.
        UnavailableError: lake or database cannot be reached.
    """
    started = time.monotonic()
    catalog = catalog or load_catalog()
    ensure_tables(store, catalog)
    summary = RefreshSummary()
    for found in list_campuses(store, Scope.district()):
        if campus is None or found.slug == campus:
            run = _CampusRefresh(
                store,
                lake,
                settings,
                found,
                catalog,
                rules or load_rules(),
                outcome_rules or outcomes.load_rules(),
                progress or SilentProgress(),
                checkpoint or (lambda _: None),
            )
            run.run(summary, rebuild=rebuild)
    swap_views(store, catalog)
    summary.elapsed_s = time.monotonic() - started
    return summary


@dataclass
class _CampusRefresh:
    store: Store
    lake: EventLake
    settings: Settings
    campus: Campus
    catalog: dict[str, Metric]
    rules: ActivityRules
    outcome_rules: outcomes.OutcomeRules
    progress: ProgressReporter
    checkpoint: Checkpoint

    def run(self, summary: RefreshSummary, *, rebuild: bool) -> None:
        for _ in range(ATTEMPTS):
            try:
                self._attempt(summary, rebuild=rebuild)
                return
            except _OvertakenError:
                continue
        raise ConflictError(
            "other processes kept refreshing the same campus",
            where=f"campus {self.campus.slug}",
            next_step="Its metrics are theirs, and right. Run the command again.",
        )

    def _attempt(self, summary: RefreshSummary, *, rebuild: bool) -> None:
        state = self._load_state()
        home = self.settings.home_dir
        all_cells = (
            rebuild or state.rules_hash != self.rules.hash or state.cells.lost_files(home) > 0
        )
        if all_cells:
            state.cells.clear()
        changed, files, version = self.lake.changes(
            self.campus.slug, -1 if all_cells else state.lake_version
        )
        all_days = (
            all_cells
            or state.days.lost_files(home) > 0
            or state.timezone != self.campus.timezone
            or state.session_limit_s != self.settings.session_limit_s
        )
        stale = {
            name
            for name, metric in self.catalog.items()
            if all_days or state.definitions.get(name) != (metric.hash, metric.version)
        }
        derive_outcomes = rebuild or state.outcome_rules_hash != self.outcome_rules.hash
        current = not changed and not stale and not derive_outcomes
        if current and version == state.lake_version:
            return
        if not files and not changed and not state.definitions:
            return  # a campus without events, such as the district itself
        outcome_rows = self._rewrite_outcomes(files, stale, derive=derive_outcomes)
        with open_engine(self.settings, ordered=False) as engine:
            bench = derive.Workbench(
                engine,
                self.settings.home_dir,
                self.campus,
                self.rules,
                self.settings.session_limit_s,
                self.progress,
                files,
            )
            work = _Work(
                bench,
                state,
                version,
                stale,
                hours_of_files(bench, changed, complete=all_cells),
                all_cells,
                all_days,
            )
            for stage in STAGES:
                stage.run(self, work)
        hours, written = work.hours, work.written
        self.checkpoint("committed")
        analyze_tables(
            self.store,
            [self.catalog[name] for name, rows in written.items() if rows >= MANY_ROWS],
        )
        for name, rows in [*written.items(), *outcome_rows.items()]:
            summary.rows_written[name] = summary.rows_written.get(name, 0) + rows
        summary.events += sum(hours.values())
        summary.hours += len(state.cells.parts if all_cells else hours)
        summary.days += len(state.days.dirty)
        summary.cells += state.cells.rows(hours)
        summary.campuses.append(self.campus.slug)

    def _load_state(self) -> _State:
        who = {"campus": self.campus.id}
        with self.store.transaction(Scope(self.campus.slug)) as conn:
            conn.execute(
                text(
                    "INSERT INTO theon.refresh_state (campus_id) VALUES (:campus)"
                    " ON CONFLICT DO NOTHING"
                ),
                who,
            )
            row = conn.execute(
                text(
                    "SELECT generation, lake_version, rules_hash, outcome_rules_hash, timezone,"
                    " session_limit_s"
                    " FROM theon.refresh_state WHERE campus_id = :campus"
                ),
                who,
            ).one()
            definitions = conn.execute(
                text(
                    "SELECT metric, definition_hash, version FROM theon.metric_versions"
                    " WHERE campus_id = :campus"
                ),
                who,
            )
            generation, lake_version, rules_hash, outcome_rules_hash, timezone, limit_s = row
            return _State(
                generation,
                lake_version,
                rules_hash,
                outcome_rules_hash,
                timezone,
                limit_s,
                definitions={name: (digest, version) for name, digest, version in definitions},
                cells=load_manifest(conn, self.campus.id, "cells", "hour"),
                days=load_manifest(conn, self.campus.id, "days", "day"),
            )

    def _rewrite_outcomes(
        self, files: list[LakeFile], stale: set[str], *, derive: bool
    ) -> dict[str, int]:
        """Outcome columns that are out of date as a whole; in a transaction before the commit.

        The rest is the observers' at all times. A crash before the commit does this again.
        """
        metrics = [m for m in self.catalog.values() if derive or m.name in stale]
        if not derive and not any(m.family("outcome") for m in metrics):
            return {}
        rules = self.outcome_rules if derive else None
        with self.progress.step(f"Outcomes ({self.campus.slug})", unit="metrics"):
            return rewrite_outcomes(self.store, self.settings, self.campus, files, metrics, rules)

    def correlate(self, work: _Work) -> None:
        """Cells: what each learner did in each course, hour by hour, whatever the source."""
        before = work.state.cells.live_sql(work.bench.home, set(work.hours))
        first = work.all_cells or not work.state.cells.parts
        derive.build_cells(work.bench, work.state.cells, work.hours, complete=first)
        self.checkpoint("cells written")
        if not work.all_days:
            derive.find_changed_cells(work.bench, before, work.state.cells, set(work.hours))

    def analyse_sessions(self, work: _Work) -> None:
        """Days: the gaps between cells, within the session limit, are time spent."""
        bench, state = work.bench, work.state
        if work.all_days:
            state.days.clear()
            wanted = derive.days_of_cells(bench, state.cells)
        else:
            wanted = derive.find_changed_days(bench)
        derive.build_days(bench, state.cells, state.days, wanted, patch=not work.all_days)
        self.checkpoint("days written")

    def calculate(self, work: _Work) -> None:
        """What the changed rows of the metrics rest on; the rows follow as they are stored."""
        current = [metric for name, metric in self.catalog.items() if name not in work.stale]
        work.kept = bool(current) and keep_days(work.bench, current, work.state.days)

    def aggregate_and_store(self, work: _Work) -> None:
        """The rows of every metric, in the one transaction that commits the refresh."""
        bench, state = work.bench, work.state
        with self.store.transaction(Scope(self.campus.slug)) as conn:
            self._lock(conn, state.generation)
            self._write_rows(conn, work)
            gone = save_manifest(conn, self.campus.id, state.cells)
            gone += save_manifest(conn, self.campus.id, state.days)
            self._move_cursor(conn, work.version)
            if any(work.written.values()):
                announce(conn, self.campus.slug)
                self._tell_kafka(conn, work.written)
            self.checkpoint("before commit")
        for path in gone:
            (bench.home / path).unlink(missing_ok=True)
        with self.store.transaction(Scope(self.campus.slug)) as conn:
            folder = bench.home / "derived" / self.campus.slug
            sweep(conn, self.campus.id, folder, bench.home, time.time() - ORPHANS_AFTER_S)

    def _write_rows(self, conn: Connection, work: _Work) -> None:
        """Compute and publish metric after metric.

        Where the rows are few, the database writes those of one metric while the engine computes
        those of the next.
        """
        bench, days, written = work.bench, work.state.days, work.written
        begun: Future[int] | None = None
        with (
            ThreadPoolExecutor(1) as writer,
            self.progress.step(
                f"Publishing metrics ({self.campus.slug})", len(self.catalog), "metrics"
            ) as step,
        ):
            for name, metric in self.catalog.items():
                keys = None if name in work.stale else affected_keys(bench, metric)
                if keys is not None and keys.num_rows == 0:
                    step.advance()
                    continue
                wanted = None if keys is None else days_of_keys(metric, keys)
                few = work.kept and keys is not None and keys.num_rows <= FEW_KEYS
                kept = work.kept and keys is not None
                rows = metric_rows(bench, metric, days, wanted, kept=kept)
                held = rows.read_all() if few else rows
                self._written(written, begun)
                begun = writer.submit(publish, conn, metric, self.campus.id, held, keys)
                written[name] = 0
                if not few:  # the writer reads from the engine, which serves one at a time
                    self._written(written, begun)
                    begun = None
                step.advance()
            self._written(written, begun)

    def _written(self, written: dict[str, int], begun: Future[int] | None) -> None:
        """Wait for the metric that was begun last."""
        if begun is not None:
            name = next(reversed(written))
            written[name] = begun.result()
            self.checkpoint(f"{name} written")

    def _lock(self, conn: Connection, generation: int) -> None:
        """Hold the campus against other refreshes and check that none came first."""
        now = conn.execute(
            text("SELECT generation FROM theon.refresh_state WHERE campus_id = :campus FOR UPDATE"),
            {"campus": self.campus.id},
        ).scalar_one()
        if now != generation:
            raise _OvertakenError

    def _tell_kafka(self, conn: Connection, written: dict[str, int]) -> None:
        """Have Kafka told what changed, where there is one."""
        rows = {name: count for name, count in written.items() if count}
        if self.settings.kafka_brokers is not None:
            data = {"metrics": sorted(rows), "rows": rows}
            outbox.announce(conn, self.campus.id, outbox.ANALYTICS_UPDATED, data)

    def _move_cursor(self, conn: Connection, version: int) -> None:
        conn.execute(
            text(
                "UPDATE theon.refresh_state SET generation = generation + 1,"
                " lake_version = :version, rules_hash = :rules, timezone = :timezone,"
                " outcome_rules_hash = :outcome_rules,"
                " session_limit_s = :limit_s, refreshed_at = now() WHERE campus_id = :campus"
            ),
            {
                "campus": self.campus.id,
                "version": version,
                "rules": self.rules.hash,
                "outcome_rules": self.outcome_rules.hash,
                "timezone": self.campus.timezone,
                "limit_s": self.settings.session_limit_s,
            },
        )
        conn.execute(
            text(
                "INSERT INTO theon.metric_versions"
                " (campus_id, metric, definition_hash, version, refreshed_at)"
                " VALUES (:campus, :metric, :hash, :version, now())"
                " ON CONFLICT (campus_id, metric) DO UPDATE SET"
                " definition_hash = excluded.definition_hash, version = excluded.version,"
                " refreshed_at = excluded.refreshed_at"
            ),
            [
                {"campus": self.campus.id, "metric": m.name, "hash": m.hash, "version": m.version}
                for m in self.catalog.values()
            ],
        )


@dataclass(frozen=True)
class Stage:
    """A stage of the pipeline: its name, and what does it."""

    name: str
    run: Callable[[_CampusRefresh, _Work], None]


STAGES = (
    Stage("correlate user activity", _CampusRefresh.correlate),
    Stage("analyse sessions", _CampusRefresh.analyse_sessions),
    Stage("calculate metrics", _CampusRefresh.calculate),
    Stage("aggregate and store", _CampusRefresh.aggregate_and_store),
)


class _OvertakenError(Exception):
    """Somebody else refreshed this campus meanwhile; begin again from what they left."""


def hours_of_files(
    bench: derive.Workbench, files: list[LakeFile], *, complete: bool = False
) -> dict[int, int]:
    """Hour to number of events in it, over `files`.

    Args:
        bench: the shared state.
        files: which files.
        complete: they are all there are; then about that number, and hours without any between
            the others, are good enough (`derive.build_cells`) and need no reading.
    """
    if not files:
        return {}
    roughly = derive.spread_over_hours(files) if complete else None
    if roughly is not None:
        return roughly
    return dict(
        bench.engine.sql(
            f"SELECT epoch_us(occurred_at) // {kernel.HOUR_S * 1_000_000} AS hour_, count(*) FROM "
            f"read_parquet({sql_list([f.path for f in files])}, hive_partitioning = false) "
            "GROUP BY hour_"
        ).fetchall()
    )
