"""A statement that is stored is an event too, in the same transaction, counted like all others."""

import gzip
import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text
from tests.access.conftest import plain_settings
from tests.api.test_xapi_real_data import send_all
from tests.api.xapi_service import ANN, STATEMENTS, Lrs, make_lrs, statement

from theon.api import xapi_calls, xapi_writing
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

SOURCE = "xapi:Moodle of Oak"


def counts(lrs: Lrs) -> dict[str, int]:
    """What the delivery ledger says of the key's statements, over all hours."""
    with lrs.store.transaction(Scope("oak")) as conn:
        row = conn.execute(
            text(
                "SELECT coalesce(sum(received), 0)::int AS received,"
                " coalesce(sum(accepted), 0)::int AS accepted,"
                " coalesce(sum(duplicate), 0)::int AS duplicate,"
                " coalesce(sum(rejected), 0)::int AS rejected"
                " FROM theon.delivery_counts WHERE source = :source"
            ),
            {"source": SOURCE},
        ).one()
    return dict(row._mapping)


def events(lrs: Lrs) -> list[dict[str, Any]]:
    """What is in the journal of the campus."""
    with lrs.store.transaction(Scope("oak")) as conn:
        rows = conn.execute(text("SELECT rows FROM theon.event_journal ORDER BY id")).scalars()
        return [event for row in rows for event in read_rows(row)]


def read_rows(row: bytes) -> list[dict[str, Any]]:
    import pyarrow as pa

    found: list[dict[str, Any]] = pa.ipc.open_stream(row).read_all().to_pylist()
    return found


def test_a_statement_is_an_event(lrs: Lrs) -> None:
    at = "2026-03-01T10:00:00+02:00"
    (made,) = lrs.add(statement(timestamp=at))
    (event,) = events(lrs)
    assert event["event_id"] == f"xapi:{made}"
    assert event["occurred_at"].isoformat() == "2026-03-01T08:00:00+00:00"
    assert counts(lrs) == {"received": 1, "accepted": 1, "duplicate": 0, "rejected": 0}
    with lrs.store.transaction(Scope("oak")) as conn:  # it tells of its sender's clock
        lags = text("SELECT timed, least_lag_s > 0 FROM theon.delivery_counts")
        assert tuple(conn.execute(lags).one()) == (1, True)


def test_a_statement_that_comes_again_is_counted_as_known(lrs: Lrs) -> None:
    first, second = statement(), statement()
    lrs.add(first)
    lrs.add(first, second)
    lrs.put(second, second["id"])
    assert len(events(lrs)) == 2
    assert counts(lrs) == {"received": 4, "accepted": 2, "duplicate": 2, "rejected": 0}


def test_what_is_refused_is_no_event(lrs: Lrs) -> None:
    """A batch with a conflict leaves neither statements nor events."""
    first = statement()
    lrs.add(first)
    assert lrs.post([statement(), {**first, "actor": {"mbox": "mailto:x@y"}}]).status_code == 409
    assert lrs.post([statement(), {}]).status_code == 400
    assert len(events(lrs)) == 1
    assert counts(lrs)["received"] == 1


def test_a_door_that_breaks_leaves_no_statement(lrs: Lrs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are in one transaction."""

    def broken(*args: object, **more: object) -> None:
        raise RuntimeError("the power went out")

    monkeypatch.setattr(xapi_writing, "accept", broken)
    with pytest.raises(RuntimeError, match="power"):
        lrs.post(statement())
    monkeypatch.undo()
    assert lrs.ids() == []
    assert events(lrs) == []


def test_a_statement_that_cannot_be_an_event_is_kept_and_accounted_for(lrs: Lrs) -> None:
    """A clock that is wrong by years: the store keeps the statement, the ledger says why."""
    (made,) = lrs.add(statement(timestamp="2199-01-01T00:00:00Z"))
    assert lrs.one(made)
    assert events(lrs) == []
    assert counts(lrs)["rejected"] == 1
    with lrs.store.transaction(Scope("oak")) as conn:
        letter = conn.execute(text("SELECT * FROM theon.dead_letters")).one()
    assert (letter.source, letter.format) == (SOURCE, "xapi")
    assert json.loads(bytes(letter.original))["id"] == made


def test_a_client_sends_its_share_of_a_minute(district: Store, store_settings: Settings) -> None:
    """429 and when to come back; nothing of it is taken."""
    settings = plain_settings(store_settings, client_events_per_minute=10)
    with make_lrs(district, settings) as lrs:
        lrs.add(*(statement() for _ in range(8)))
        # Eight more: what was sent just before a minute begins weighs a little less after it.
        answer = lrs.post([statement() for _ in range(8)])
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert len(lrs.ids()) == 8
        other = lrs.of("oak")
        other.add(statement())


def test_what_is_held_in_memory_is_bounded(lrs: Lrs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all requests; packed bodies count by what they unpack to."""
    monkeypatch.setattr(xapi_calls, "HELD_BYTES", 100_000)
    body = json.dumps(statement(actor={**ANN, "name": "x" * 200_000})).encode()
    kind = {"Content-Type": "application/json"}
    assert lrs.client.post(STATEMENTS, content=body, headers=kind).status_code == 429
    packed = {"content": gzip.compress(body), "headers": {**kind, "Content-Encoding": "gzip"}}
    assert lrs.client.post(STATEMENTS, **packed).status_code == 429
    for _ in range(3):
        assert lrs.post(statement(actor={**ANN, "name": "x" * 50_000})).status_code == 200


@pytest.mark.real_data
def test_the_real_statements_are_events(lrs: Lrs, moodle_data: Path) -> None:
    """Every one that is stored is accepted or its reason is known."""
    folder = moodle_data.parent / "xapi"
    for name in ("moodle", "datasim"):
        raw = gzip.decompress((folder / f"{name}_statements.json.gz").read_bytes())
        once = list({one["id"]: one for one in json.loads(raw)}.values())
        send_all(lrs, once)
    stored = len(lrs.ids(limit=500))
    assert stored == 414 + 2814
    assert counts(lrs) == {"received": stored, "accepted": stored, "duplicate": 0, "rejected": 0}
    assert len({event["event_id"] for event in events(lrs)}) == stored


def test_a_voiding_statement_is_counted_too(lrs: Lrs) -> None:
    lrs.add(statement(verb={"id": "http://adlnet.gov/expapi/verbs/voided"},
                      object={"objectType": "StatementRef", "id": str(uuid4())}))  # fmt: skip
    assert counts(lrs)["received"] == 1


def test_a_result_is_an_outcome_in_the_same_transaction(lrs: Lrs) -> None:
    """A quiz that was passed is known as an attempt as soon as the statement is taken."""
    (made,) = lrs.add(
        statement(
            verb={"id": "http://adlnet.gov/expapi/verbs/passed"},
            object={
                "id": "https://lms.example.org/quiz/1",
                "definition": {"type": "http://adlnet.gov/expapi/activities/assessment"},
            },
            result={"score": {"raw": 8, "min": 0, "max": 10}, "success": True},
            context={
                "contextActivities": {
                    "parent": [
                        {
                            "id": "https://lms.example.org/course/6",
                            "definition": {"type": "http://adlnet.gov/expapi/activities/course"},
                        }
                    ]
                }
            },
            timestamp="2026-03-01T10:00:00Z",
        )
    )
    with lrs.store.transaction(Scope("oak")) as conn:
        found = conn.execute(
            text("SELECT score, max_score FROM theon.outcome_facts WHERE event_id = :id"),
            {"id": f"xapi:{made}"},
        ).one()
    assert (found.score, found.max_score) == (8, 10)
