"""The book of intake runs: what was read, what became of it, and which rows were refused."""

import json
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
from sqlalchemy import Connection, text

from theon.intake.delivery import keep_letters, record_delivery
from theon.intake.intents import Intent, forget_intent, new_name, write_intent
from theon.intake.staged import MOST_LISTED, REJECT_SCHEMA, Staged
from theon.jobs.context import clean
from theon.lake.table import AppendResult
from theon.roster.campuses import Campus
from theon.settings import Settings
from theon.store.bulk import copy_in
from theon.store.engine import Store
from theon.store.scope import Scope

EXIT_WITH_REJECTS = 3
# Why a row was rejected is known of those that are listed.
UNLISTED = "not listed: too many of one batch"


def delivery_source(source_format: str) -> str:
    """What the delivery ledger calls files of a format, or databases read by it."""
    return f"database:{source_format}" if source_format == "moodle-db" else f"file:{source_format}"


def workspace_of(settings: Settings, run_id: int) -> Path:
    """The folder of a run's staged files; gone when the run has ended."""
    return settings.home_dir / "tmp" / f"intake-{run_id}"


@dataclass(frozen=True)
class IngestSummary:
    """What one `ingest` did, in rows and events.

    Attributes:
        run_id: its number in the book.
        state: `completed` or `completed_with_rejects`.
        read: rows of the source, good and bad.
        new: events the lake did not hold before.
        known: events it held already, or rows the source itself repeats.
        rejected: rows that could not be read.
        reasons: good rows by why they do not count as activity; `activity` for those that do.
        notes: sentences for the person.
        rejects_file: CSV of the rejected rows, None without any.
    """

    run_id: int
    state: str
    read: int
    new: int
    known: int
    rejected: int
    reasons: dict[str, int]
    notes: tuple[str, ...]
    rejects_file: Path | None

    @property
    def exit_status(self) -> int:
        """0: all good; 3: done, but rows were rejected or the source ended early."""
        return 0 if self.state == "completed" else EXIT_WITH_REJECTS


def _by_reason(staged: Staged) -> Counter[str]:
    refused = Counter(map(str, staged.rejects["reason"].to_pylist()))
    unlisted = staged.rejected - staged.rejects.num_rows
    if unlisted:
        refused[UNLISTED] = unlisted
    return refused


@dataclass
class Run:
    """One run while it goes on; every step is written down at once."""

    store: Store
    settings: Settings
    campus: Campus
    format: str
    location: str
    id: int
    read: int = 0
    new: int = 0
    known: int = 0
    rejected: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    incomplete: bool = False
    listed: int = 0
    unlisted: int = 0

    @classmethod
    def begin(
        cls, store: Store, settings: Settings, campus: Campus, *, source_format: str, location: str
    ) -> "Run":
        """Open a run. One of the same source that never ended was interrupted: say so."""
        key = {"campus": campus.id, "format": source_format, "location": location}
        with store.transaction(Scope(campus.slug)) as conn:
            left = conn.execute(
                text(
                    "UPDATE theon.intake_runs SET state = 'interrupted', finished_at = now() "
                    "WHERE campus_id = :campus AND format = :format AND location = :location "
                    "AND state = 'running' RETURNING id"
                ),
                key,
            ).scalars()
            for orphan in left.all():
                shutil.rmtree(workspace_of(settings, orphan), ignore_errors=True)
            number = conn.execute(
                text(
                    "INSERT INTO theon.intake_runs (campus_id, format, location) "
                    "VALUES (:campus, :format, :location) RETURNING id"
                ),
                key,
            ).scalar_one()
        return cls(store, settings, campus, source_format, location, int(number))

    @property
    def workspace(self) -> Path:
        """The folder of its staged files."""
        return workspace_of(self.settings, self.id)

    @property
    def rejects_file(self) -> Path:
        """Where the rejected rows of this run are listed."""
        return self.settings.home_dir / "rejects" / f"{self.id}.csv"

    def intend(self, staged: Staged) -> str:
        """Write down that a batch is about to be appended; the name to append it under."""
        name = new_name()
        intent = Intent(
            self.id,
            self.campus.slug,
            delivery_source(self.format),
            self.location,
            name,
            self.read,
            staged.read,
            staged.rows,
            staged.known,
            dict(_by_reason(staged)),
        )
        write_intent(self.workspace, intent)
        return name

    def record(self, staged: Staged, added: AppendResult, reasons: dict[str, int]) -> None:
        """Write down one batch that is in the lake, here and in the delivery ledger."""
        self.read += staged.read
        self.new += added.new
        self.known += added.known + staged.known
        self.rejected += staged.rejected
        self.reasons.update(reasons)
        self.incomplete = self.incomplete or bool(staged.incomplete)
        notes = map(clean, filter(None, (*staged.notes, staged.incomplete)))
        self.notes += [note for note in notes if note not in self.notes]
        listed = staged.rejects.slice(0, MOST_LISTED - self.listed)
        self.listed += listed.num_rows
        self.unlisted += staged.rejected - listed.num_rows
        self._list_rejects(listed)
        with self.store.transaction(Scope(self.campus.slug)) as conn:
            self._write(conn, "running")
            kept = self._keep_letters(conn, staged)
            record_delivery(
                conn,
                self.campus.id,
                delivery_source(self.format),
                received=staged.read,
                accepted=added.new,
                duplicate=added.known + staged.known,
                refused=_by_reason(staged),
                dead_lettered=kept,
            )
        forget_intent(self.workspace)

    def _keep_letters(self, conn: Connection, staged: Staged) -> int:
        """Keep what can be read again; returns how many. All rejects are listed with the run."""
        unread = staged.unread
        if unread is None or not unread.refused.num_rows:
            return 0
        return keep_letters(
            conn,
            self.campus.id,
            delivery_source(self.format),
            unread.format,
            unread.refused,
            anywhere=True,
        )

    def finish(self) -> IngestSummary:
        """Close the run."""
        if self.unlisted:
            self.notes.append(f"{self.unlisted} more rejected rows are counted but not listed.")
        bad = bool(self.rejected) or self.incomplete
        state = "completed_with_rejects" if bad else "completed"
        with self.store.transaction(Scope(self.campus.slug)) as conn:
            self._write(conn, state)
        return IngestSummary(
            self.id,
            state,
            self.read,
            self.new,
            self.known,
            self.rejected,
            dict(self.reasons),
            tuple(self.notes),
            self.rejects_file if self.rejected else None,
        )

    def fail(self, state: str, error: str) -> None:
        """Close the run as `failed` or `interrupted`; what is in the lake stays there."""
        with self.store.transaction(Scope(self.campus.slug)) as conn:
            conn.execute(
                # The counts stay those of what was recorded.
                text(
                    "UPDATE theon.intake_runs SET state = :state, error = :error,"
                    " finished_at = now() WHERE campus_id = :campus AND id = :id"
                ),
                {
                    "state": state,
                    "error": clean(error),
                    "campus": self.campus.id,
                    "id": self.id,
                },
            )

    def _write(self, conn: Connection, state: str) -> None:
        conn.execute(
            text(
                "UPDATE theon.intake_runs SET state = :state, "
                "finished_at = CASE WHEN :state = 'running' THEN NULL ELSE now() END, "
                "rows_read = :read, events_new = :new, events_known = :known, "
                "rows_rejected = :rejected, reasons = CAST(:reasons AS jsonb), "
                "notes = CAST(:notes AS jsonb) WHERE campus_id = :campus AND id = :id"
            ),
            {
                "state": state,
                "read": self.read,
                "new": self.new,
                "known": self.known,
                "rejected": self.rejected,
                "reasons": json.dumps(dict(self.reasons)),
                "notes": json.dumps(self.notes),
                "campus": self.campus.id,
                "id": self.id,
            },
        )

    def _list_rejects(self, rejects: pa.Table) -> None:
        if not rejects.num_rows:
            return
        with self.store.transaction(Scope(self.campus.slug)) as conn:
            conn.execute(
                text(
                    "CREATE TEMPORARY TABLE incoming_rejects (line_number bigint, reason text, "
                    "detail text, original text) ON COMMIT DROP"
                )
            )
            copy_in(conn, "incoming_rejects", rejects)
            conn.execute(
                text(
                    "INSERT INTO theon.intake_rejects (run_id, campus_id, location, line_number, "
                    "reason, detail, original) SELECT :id, :campus, :location, line_number, "
                    "reason, detail, original FROM incoming_rejects"
                ),
                {"id": self.id, "campus": self.campus.id, "location": self.location},
            )
        file = self.rejects_file
        file.parent.mkdir(parents=True, exist_ok=True)
        begun = file.exists()
        with file.open("ab") as out:
            pacsv.write_csv(
                rejects.cast(REJECT_SCHEMA), out, pacsv.WriteOptions(include_header=not begun)
            )
