"""What intake does in the background."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from arriving import arrival

from theon.bootstrap import job_kinds, job_schedules
from theon.intake import jobs
from theon.intake.jobs import CompactLake, run_compaction
from theon.lake.compaction import Compacted
from theon.lake.table import EventLake
from theon.settings import Settings
from theon.store.engine import Store

AT = int(datetime(2026, 9, 14, 9, 0, tzinfo=UTC).timestamp())


@dataclass
class Context:
    """What a compaction uses of its job's context."""

    store: Store
    settings: Settings
    campus: str
    said: dict[str, Any] = field(default_factory=dict)

    def log(self, message: str, **details: Any) -> None:
        self.said |= details


def test_the_lake_of_a_campus_is_compacted_every_hour(
    store: Store, lake: EventLake, settings: Settings, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Only what has been there for hours; what was merged a day ago is deleted."""
    for turn in range(1, 10):
        rows = arrival([{"id": f"{turn}", "at": AT + turn}]).events.drop_columns(["ordinal"])
        pq.write_table(rows, tmp_path / "staged.parquet")
        lake.land(tmp_path / "staged.parquet", "lincoln", turn=turn, fresh_after=datetime.now(UTC))
    ctx = Context(store, settings, "lincoln")
    assert run_compaction(ctx, CompactLake()) == Compacted()  # type: ignore[arg-type]
    monkeypatch.setattr(jobs, "SETTLED_S", -1)
    assert run_compaction(ctx, CompactLake()) == Compacted(9, 1, 9)  # type: ignore[arg-type]
    assert ctx.said == {"merged": 9, "written": 1, "deleted": 0, "cleared": 0}


def test_its_kind_and_schedule_are_registered() -> None:
    assert "lake.compact" in job_kinds()
    [schedule] = [s for s in job_schedules() if s.kind == "lake.compact"]
    assert schedule.per_campus
