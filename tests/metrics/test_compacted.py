"""Metrics do not know in which files of the lake their events are."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.metrics.conftest import District
from theon.lake.compaction import compact
from theon.metrics import refresh as refreshing

AT = int(datetime(2026, 9, 14, 9, 0, tzinfo=UTC).timestamp())
REGISTERED = datetime(2026, 1, 1, tzinfo=UTC)


def land(district: District, campus: str, turn: int, *, hours: int = 0) -> None:
    """Two events of two learners, by way of a file that landed."""
    rows = [
        {"id": f"{turn}-{user}", "at": AT + 3600 * hours + 60 * turn, "user_id": user}
        for user in ("5", "6")
    ]
    staged = district.stage(rows)
    district.lake.land(staged, campus, turn=turn, fresh_after=REGISTERED)


def test_nothing_is_read_again_because_files_were_merged(
    district: District, monkeypatch: pytest.MonkeyPatch
) -> None:
    campus = district.campus()
    for turn in range(1, 10):
        land(district, campus, turn, hours=turn % 3)
    district.refresh(campus)
    before = district.all_rows(campus)
    assert compact(district.lake, district.settings, campus).merged == 9
    summary = district.refresh(campus)
    assert (summary.events, summary.hours, summary.days) == (0, 0, 0)
    assert not any(summary.rows_written.values())
    assert district.all_rows(campus) == before
    district.refresh(campus, rebuild=True)
    assert district.all_rows(campus) == before


def test_what_was_merged_before_its_refresh_is_refreshed(district: District) -> None:
    campus, whole = district.campus(), district.campus()
    for turn in range(1, 12):
        land(district, campus, turn, hours=turn % 2)
        land(district, whole, turn, hours=turn % 2)
        if turn == 4:
            district.refresh(campus)
        if turn in (6, 9):
            compact(district.lake, district.settings, campus, fan_in=3)
    district.refresh(campus)
    district.refresh(whole)
    assert district.all_rows(campus) == district.all_rows(whole)


def test_a_refresh_that_began_before_a_compaction_ends_well(district: District) -> None:
    """The files that it reads are there for a day more."""
    campus = district.campus()
    for turn in range(1, 10):
        land(district, campus, turn)

    merged = []
    changes = district.lake.changes

    class Lake(type(district.lake)):  # type: ignore[misc]
        def changes(self, slug: str, since: int) -> object:
            found = changes(slug, since)
            if not merged:
                merged.append(compact(district.lake, district.settings, campus))
            return found

    refreshing.refresh(district.store, Lake(district.settings), district.settings, campus=campus)
    assert merged[0].merged == 9
    found = district.all_rows(campus)
    assert all(Path(file.path).exists() for file in district.lake.files(campus))
    district.refresh(campus, rebuild=True)
    assert district.all_rows(campus) == found
