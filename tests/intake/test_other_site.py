"""The log of another Moodle site is refused before anything of it is taken."""

from collections.abc import Callable
from pathlib import Path

import pytest
from moodle_logs import LOG_COLUMNS, lake_rows, log_row, write_log

from theon.errors import InputError
from theon.intake import other_site
from theon.intake.runs import IngestSummary
from theon.lake.table import EventLake

Take = Callable[..., IngestSummary]
FIRST_S = 1_789_286_401


def site(numbers: range, user: str = "115", step_s: int = 60) -> list[dict[str, str]]:
    return [log_row(n, timecreated=str(FIRST_S + step_s * n), userid=user) for n in numbers]


def test_a_log_whose_ids_stand_for_other_rows_is_refused_whole(
    take: Take, lake: EventLake, tmp_path: Path
) -> None:
    take(write_log(tmp_path / "one.csv", site(range(1, 20))), "moodle-logstore")
    other = write_log(tmp_path / "other.csv", site(range(1, 40), user="7", step_s=30))
    with pytest.raises(InputError, match="another Moodle site") as refused:
        take(other, "moodle-logstore")
    assert "of 19 ids that were looked at 19 stand" in str(refused.value)
    assert "id 1 is" in str(refused.value)
    assert "campus of its own" in str(refused.value.next_step)
    assert lake_rows(lake, "SELECT count(*), min(user_id) FROM events") == [(19, "115")]


def test_a_longer_log_of_the_same_site_is_not_refused(take: Take, tmp_path: Path) -> None:
    take(write_log(tmp_path / "one.csv", site(range(1, 20))), "moodle-logstore")
    longer = write_log(tmp_path / "two.csv", site(range(10, 40)))
    summary = take(longer, "moodle-logstore")
    assert (summary.new, summary.known) == (20, 10)


def test_an_export_with_fewer_columns_is_the_same_site(take: Take, tmp_path: Path) -> None:
    take(write_log(tmp_path / "one.csv", site(range(1, 20))), "moodle-logstore")
    few = ["id", "timecreated", "userid", "courseid", "eventname"]
    assert set(few) < set(LOG_COLUMNS)
    summary = take(write_log(tmp_path / "two.csv", site(range(1, 20)), few), "moodle-logstore")
    assert (summary.new, summary.known) == (0, 19)


def test_a_few_rows_that_were_changed_do_not_keep_out_the_others(
    take: Take, tmp_path: Path
) -> None:
    take(write_log(tmp_path / "one.csv", site(range(1, 20))), "moodle-logstore")
    changed = [*site(range(1, 5), user="9"), *site(range(5, 30))]
    summary = take(write_log(tmp_path / "two.csv", changed), "moodle-logstore")
    assert (summary.new, summary.known) == (10, 19)
    [note] = summary.notes
    assert "of 19 ids that were looked at 4 stand for something else" in note


def test_of_a_long_log_some_rows_are_looked_at(
    take: Take, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(other_site, "LOOKED_AT", 5)
    take(write_log(tmp_path / "one.csv", site(range(1, 200))), "moodle-logstore")
    with pytest.raises(InputError, match="of 5 ids that were looked at 5 stand"):
        take(write_log(tmp_path / "two.csv", site(range(1, 200), user="7")), "moodle-logstore")
