"""A run that ends between the lake's commit and its record is recorded all the same, once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from moodle_logs import log_row, write_log
from test_json_files import lines, native

from theon.intake import json_files, pipeline, runs
from theon.intake.runs import IngestSummary
from theon.lake.table import EventLake
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

Take = Callable[..., IngestSummary]


class Killed(BaseException):
    """Ends a run as SIGKILL does: nobody cleans up behind it."""


def figures(store: Store, slug: str) -> tuple[Any, ...]:
    """(received, accepted, duplicate, rejected) of the ledger, and the same of the runs."""
    with store.transaction(Scope(slug)) as conn:
        ledger = conn.exec_driver_sql(
            "SELECT sum(received), sum(accepted), sum(duplicate), sum(rejected)"
            " FROM theon.delivery_counts"
        ).one()
        book = conn.exec_driver_sql(
            "SELECT sum(rows_read), sum(events_new), sum(events_known), sum(rows_rejected)"
            " FROM theon.intake_runs"
        ).one()
    assert tuple(ledger) == tuple(book)
    return tuple(map(int, ledger))


@pytest.fixture
def dies(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int, BaseException], None]:
    """dies(step, n, error): the n-th call of a step ends the run, before or after it."""

    def arm(step: str, number: int, error: BaseException) -> None:
        owner, name, after = {
            "before the append": (EventLake, "append", False),
            "after the append": (EventLake, "append", True),
            "while outcomes are observed": (pipeline, "_observe", False),
            "before the record": (runs, "record_delivery", False),
            "after the record": (runs, "forget_intent", False),
        }[step]
        real, calls = getattr(owner, name), iter(range(1, 100))

        def step_(*given: Any, **options: Any) -> Any:
            hit = next(calls) == number
            if hit and not after:
                raise error
            done = real(*given, **options)
            if hit:
                raise error
            return done

        monkeypatch.setattr(owner, name, step_)

    return arm


STEPS = [
    "before the append",
    "after the append",
    "while outcomes are observed",
    "before the record",
    "after the record",
]


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "interrupted"])
@pytest.mark.parametrize("step", STEPS)
def test_what_a_cut_off_run_has_brought_is_accepted_once_in_the_ledger(
    take: Take,
    dies: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    lake: EventLake,
    store: Store,
    settings: Settings,
    lincoln: str,
    tmp_path: Path,
    step: str,
    killed: bool,
) -> None:
    """Received is accepted, duplicate and rejected; accepted is what the lake holds."""
    monkeypatch.setattr(json_files, "PART_EVENTS", 1)
    folder = tmp_path / "logs"
    folder.mkdir()
    for number in range(3):
        rows = [native(2 * number), {"id": "bad"}, native(2 * number + 1), native(2 * number)]
        (folder / f"{number}.ndjson").write_bytes(lines(rows))
    with monkeypatch.context() as dying:
        if killed:
            for name in ("settle_intents", "is_intended"):
                dying.setattr(pipeline, name, lambda *_: True)
            dying.setattr(runs.Run, "fail", lambda *_: None)
        dies(step, 2, Killed() if killed else KeyboardInterrupt())
        with pytest.raises((Killed, KeyboardInterrupt)):
            take(folder, "ndjson")
    monkeypatch.undo()
    if not killed:
        assert figures(store, lincoln)[1] == sum(file.rows for file in lake.files())
    for expected in (6, 0):
        summary = take(folder, "ndjson")
        assert (summary.read, summary.rejected) == (12, 3)
        received, accepted, duplicate, rejected = figures(store, lincoln)
        assert accepted == 6 == sum(file.rows for file in lake.files())
        assert received == accepted + duplicate + rejected
        assert summary.new <= expected
    left = [path.name for path in (settings.home_dir / "tmp").iterdir()]
    assert not [name for name in left if name.startswith("intake-")]


def test_other_sources_leave_the_record_of_a_cut_off_run_to_its_own(
    take: Take,
    dies: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    store: Store,
    lincoln: str,
    tmp_path: Path,
) -> None:
    log, events = write_log(tmp_path / "log.csv", [log_row(1), log_row(2)]), tmp_path / "e.ndjson"
    events.write_bytes(lines([native(1)]))
    with monkeypatch.context() as dying:
        for name in ("settle_intents", "is_intended"):
            dying.setattr(pipeline, name, lambda *_: True)
        dies("after the append", 1, Killed())
        with pytest.raises(Killed):
            take(log, "moodle-logstore")
    monkeypatch.undo()
    take(events, "ndjson")
    assert figures(store, lincoln)[1] == 1
    assert take(log, "moodle-logstore").known == 2
    assert figures(store, lincoln) == (5, 3, 2, 0)
