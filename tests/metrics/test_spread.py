"""What the files' own statistics say of how many events lie in which hour."""

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from theon.lake.table import LakeFile
from theon.metrics import derive

DAY_S = 86_400


def _file(path: Path, seconds: list[int], row_group_size: int) -> LakeFile:
    at = pa.array([s * 1_000_000 for s in seconds], pa.timestamp("us", tz="UTC"))
    pq.write_table(pa.table({"occurred_at": at}), path, row_group_size=row_group_size)
    ends = [datetime.fromtimestamp(s, UTC) for s in (min(seconds), max(seconds))]
    return LakeFile(str(path), "north", len(seconds), 0, *ends)


def test_every_event_is_counted_and_every_hour_is_there(tmp_path: Path) -> None:
    seconds = [n * 1_000 for n in range(500)]
    found = derive.spread_over_hours([_file(tmp_path / "a.parquet", seconds, 70)])
    assert found is not None
    assert sum(found.values()) == len(seconds)
    assert {s // 3600 for s in seconds} <= set(found)


def test_row_groups_out_of_order_say_too_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(derive, "MAX_OVERLAP_EVENTS", 20)
    ordered = [n * 3_600 for n in range(100)]
    mixed = ordered[::2] + ordered[1::2]
    assert derive.spread_over_hours([_file(tmp_path / "a.parquet", ordered, 10)]) is not None
    assert derive.spread_over_hours([_file(tmp_path / "b.parquet", mixed * 3, 10)]) is None


def test_a_date_far_off_is_not_spread(tmp_path: Path) -> None:
    far = [0, 20_000 * DAY_S]
    assert derive.spread_over_hours([_file(tmp_path / "a.parquet", far, 10)]) is None
