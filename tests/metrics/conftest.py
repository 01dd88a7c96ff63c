"""A small district to compute in: events from short rows, refresh, published rows."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from theon.events.schema import EVENT_SCHEMA
from theon.lake.table import AppendResult, EventLake
from theon.metrics.catalog import load_catalog
from theon.metrics.export import published_rows
from theon.metrics.refresh import RefreshSummary, refresh
from theon.roster.campuses import add_campus
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

Row = dict[str, Any]
STAGED = pa.schema([f for f in EVENT_SCHEMA if f.name != "campus"])
DEFAULTS: Row = {
    "source": "moodle-log",
    "user_id": "5",
    "course_id": "6",
    "event_name": "\\core\\event\\course_viewed",
    "component": "core",
    "action": "viewed",
    "origin": "web",
    "anonymous": False,
}


@dataclass
class District:
    """A store and a lake of its own; every campus name is used once."""

    store: Store
    settings: Settings
    folder: Path
    numbers: Any = field(default_factory=itertools.count)

    @property
    def lake(self) -> EventLake:
        return EventLake(self.settings)

    def campus(self, timezone: str = "Europe/London") -> str:
        slug = f"campus-{next(self.numbers)}"
        add_campus(self.store, slug, timezone)
        return slug

    def put(self, campus: str, rows: Iterable[Row]) -> AppendResult:
        """Append events given as rows: `at` (datetime or epoch seconds), `id`, and what differs."""
        return self.lake.append(self.stage(rows), campus)

    def stage(self, rows: Iterable[Row]) -> Path:
        """The rows of `put` as a staged file."""
        full = []
        for given in rows:
            row = {**dict.fromkeys(STAGED.names), **DEFAULTS, **given}
            at = row.pop("at")
            row["occurred_at"] = datetime.fromtimestamp(at, UTC) if isinstance(at, int) else at
            row["event_id"] = row.pop("id")
            full.append(row)
        path = self.folder / f"staged-{next(self.numbers)}.parquet"
        pq.write_table(pa.Table.from_pylist(full, STAGED), path)
        return path

    def refresh(self, campus: str, **options: Any) -> RefreshSummary:
        return refresh(self.store, self.lake, self.settings, campus=campus, **options)

    def rows(self, campus: str, metric: str) -> list[Row]:
        found = published_rows(self.store, load_catalog()[metric], Scope(campus))
        return [{k: v for k, v in row.items() if k != "campus"} for row in found.to_pylist()]

    def all_rows(self, campus: str) -> dict[str, list[Row]]:
        return {name: self.rows(campus, name) for name in load_catalog()}


@pytest.fixture
def make_district(store: Store, store_settings: Settings, tmp_path: Path) -> Callable[[], District]:
    """Districts on one database, each with a folder (lake, cells) of its own."""
    numbers = itertools.count()
    campus_numbers = itertools.count()

    def make() -> District:
        folder = tmp_path / f"district-{next(numbers)}"
        folder.mkdir()
        settings = store_settings.model_copy(update={"home": folder})
        return District(store, settings, folder, campus_numbers)

    return make


@pytest.fixture
def district(make_district: Callable[[], District]) -> District:
    return make_district()
