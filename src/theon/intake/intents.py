"""Intents: what a run of `ingest` is about to append, written down before it does.

The lake's commit and PostgreSQL's are two. A run that ends between them, killed or interrupted, has
brought events that no delivery tells of, and the next reading would take them for known. So what is
to be recorded lies in the run's workspace under the name of the lake's new file; whoever finds it
there asks the lake whether the file came to be, and the book whether it is recorded.
"""

import json
import os
import shutil
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

from sqlalchemy import text

from theon.intake.delivery import record_delivery
from theon.lake.table import EventLake
from theon.roster.campuses import Campus
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

_NAME = "intent.json"


@dataclass(frozen=True)
class Intent:
    """A batch that is about to be appended.

    Attributes:
        run_id: of the run.
        campus, source, location: whose, what the delivery ledger calls it, which file or database.
        file: name that its events have in the lake; see `EventLake.append`.
        before: rows that the run had recorded before it.
        read, rows, known: of the batch; see `Staged`.
        refused: its rejects by reason.
    """

    run_id: int
    campus: str
    source: str
    location: str
    file: str
    before: int
    read: int
    rows: int
    known: int
    refused: dict[str, int]


def new_name() -> str:
    """A name for a file of the lake that nobody has given before."""
    return uuid4().hex


def write_intent(workspace: Path, intent: Intent) -> None:
    """Write down what is about to be appended; it is on the disk when this returns."""
    half = workspace / f"{_NAME}.half"
    with half.open("w", encoding="utf-8") as out:
        json.dump(asdict(intent), out)
        out.flush()
        os.fsync(out.fileno())
    half.replace(workspace / _NAME)


def forget_intent(workspace: Path) -> None:
    """It is recorded, or was not done."""
    (workspace / _NAME).unlink(missing_ok=True)


def is_intended(workspace: Path) -> bool:
    """Whether something was about to be appended, and is not settled."""
    return (workspace / _NAME).exists()


def settle_intents(
    store: Store, lake: EventLake, settings: Settings, campus: Campus, source: str, location: str
) -> None:
    """Record what ended runs of this source brought and could not tell of any more.

    Whoever calls it holds the source, so that no run of it is at work.
    """
    for path in sorted((settings.home_dir / "tmp").glob(f"intake-*/{_NAME}")):
        try:
            intent = Intent(**json.loads(path.read_text("utf-8")))
        except FileNotFoundError:  # of another source, whose run has just recorded it
            continue
        if (intent.campus, intent.source, intent.location) == (campus.slug, source, location):
            new = lake.appended(campus.slug, intent.file)
            if new is not None:
                _record(store, campus, intent, new)
            shutil.rmtree(path.parent, ignore_errors=True)


def _record(store: Store, campus: Campus, intent: Intent, new: int) -> None:
    known = intent.rows - new + intent.known
    refused = Counter(intent.refused)
    with store.transaction(Scope(campus.slug)) as conn:
        written = conn.execute(
            text(
                "UPDATE theon.intake_runs SET rows_read = rows_read + :read,"
                " events_new = events_new + :new, events_known = events_known + :known,"
                " rows_rejected = rows_rejected + :rejected"
                " WHERE campus_id = :campus AND id = :run AND rows_read = :before RETURNING id"
            ),
            {
                "read": intent.read,
                "new": new,
                "known": known,
                "rejected": refused.total(),
                "campus": campus.id,
                "run": intent.run_id,
                "before": intent.before,
            },
        )
        if written.first() is None:
            return  # it was recorded, and only the intent was left
        record_delivery(
            conn,
            campus.id,
            intent.source,
            received=intent.read,
            accepted=new,
            duplicate=known,
            refused=refused,
            dead_lettered=0,  # the next reading keeps them
        )
