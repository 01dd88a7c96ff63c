"""The door: every event is accepted once, whatever is sent how often, and nothing goes unsaid."""

import threading
import time
from datetime import UTC, datetime

import pyarrow as pa
import pytest
from arriving import arrival, delivered
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from theon.events.retractions import RETRACTED_SCHEMA
from theon.intake import delivery
from theon.intake.arrivals import REFUSED_SCHEMA, REUSED_ID, Arrival, Receipt
from theon.intake.door import accept
from theon.intake.journal import read_journal
from theon.metrics.catalog import load_catalog
from theon.metrics.tables import ensure_tables
from theon.roster.campuses import Campus, add_campus, get_campus
from theon.store.engine import Store
from theon.store.scope import Scope

NOW = int(time.time()) - 3600


@pytest.fixture
def campus(store: Store) -> Campus:
    add_campus(store, "lincoln", "Europe/London")
    return get_campus(store, "lincoln")


def send(store: Store, campus: Campus, sent: Arrival, source: str = "http:test") -> Receipt:
    with store.transaction(Scope(campus.slug)) as conn:
        return accept(conn, campus, source, sent)


def journal_ids(store: Store, campus: Campus) -> list[str]:
    with store.transaction(Scope(campus.slug)) as conn:
        _, events = read_journal(conn, campus.id)
    return sorted(events["event_id"].to_pylist())


def test_a_known_event_is_a_duplicate(store: Store, campus: Campus) -> None:
    sent = [{"id": "a", "at": NOW}, {"id": "b", "at": NOW}]
    assert send(store, campus, arrival(sent)).accepted == 2
    again = send(store, campus, arrival([*sent, {"id": "c", "at": NOW}]))
    assert (again.received, again.accepted, again.duplicates) == (3, 1, [0, 1])
    assert journal_ids(store, campus) == ["a", "b", "c"]
    assert delivered(store, campus.slug) == (5, 3, 2, 0, 0)


def test_an_event_is_the_same_by_another_source_and_with_other_empty_fields(
    store: Store, campus: Campus
) -> None:
    send(store, campus, arrival([{"id": "a", "at": NOW}]))
    other = {"id": "a", "at": NOW, "source": "kafka:user-events"}
    more = {"id": "b", "at": NOW, "other": "{}", "ip": "::1", "edulevel": 2}
    again = send(store, campus, arrival([other, more]), "kafka:user-events")
    assert (again.accepted, again.duplicates) == (1, [0])


def test_an_id_used_for_another_event_is_refused_and_its_bytes_are_kept(
    store: Store, campus: Campus
) -> None:
    send(store, campus, arrival([{"id": "a", "at": NOW}]))
    again = send(store, campus, arrival([{"id": "a", "at": NOW, "user_id": "7"}]))
    assert (again.accepted, again.duplicates) == (0, [])
    [row] = again.refused.to_pylist()
    assert (row["ordinal"], row["reason"], row["detail"]) == (0, REUSED_ID, "a")
    with store.transaction(Scope(campus.slug)) as conn:
        letter = conn.execute(text("SELECT * FROM theon.dead_letters")).one()
    assert (letter.reason, letter.source, letter.format) == (REUSED_ID, "http:test", "native")
    assert b'"user_id": "7"' in bytes(letter.original)
    assert delivered(store, campus.slug) == (2, 1, 0, 1, 1)


def test_inside_one_batch_the_first_of_an_id_decides(store: Store, campus: Campus) -> None:
    same, other = {"id": "a", "at": NOW}, {"id": "a", "at": NOW + 1}
    got = send(store, campus, arrival([same, same, other]))
    assert (got.accepted, got.duplicates, got.refused["ordinal"].to_pylist()) == (1, [1], [2])


def test_what_the_mapping_refused_is_counted_by_reason(store: Store, campus: Campus) -> None:
    bad = pa.Table.from_pylist(
        [
            {"ordinal": n, "reason": reason, "detail": None, "original": b"\xff", "place": None}
            for n, reason in enumerate(["not JSON", "not JSON", "no id"])
        ],
        REFUSED_SCHEMA,
    )
    nothing = arrival([])
    got = send(store, campus, Arrival("native", nothing.events, nothing.originals, bad))
    assert (got.received, got.accepted, got.refused.num_rows) == (3, 0, 3)
    with store.transaction(Scope(campus.slug)) as conn:
        reasons = conn.execute(
            text("SELECT reason, events FROM theon.delivery_reasons ORDER BY reason")
        ).all()
    assert [tuple(row) for row in reasons] == [("no id", 1), ("not JSON", 2)]
    assert delivered(store, campus.slug) == (3, 0, 0, 3, 3)


def test_beyond_the_limit_letters_are_counted_and_not_kept(
    store: Store, campus: Campus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "MOST_LETTERS", 1)
    send(store, campus, arrival([{"id": "a", "at": NOW}]))
    for at in (NOW + 1, NOW + 2):
        send(store, campus, arrival([{"id": "a", "at": at}, {"id": "a", "at": at + 9}]))
    assert delivered(store, campus.slug) == (5, 1, 0, 4, 1)


def test_campuses_do_not_share_ids_or_letters(store: Store, campus: Campus) -> None:
    add_campus(store, "south", "UTC")
    south = get_campus(store, "south")
    send(store, campus, arrival([{"id": "a", "at": NOW}]))
    assert send(store, south, arrival([{"id": "a", "at": NOW + 5}])).accepted == 1
    assert journal_ids(store, south) == ["a"]
    assert delivered(store, south.slug) == (1, 1, 0, 0, 0)


def test_a_rolled_back_transaction_leaves_nothing(store: Store, campus: Campus) -> None:
    with store.transaction(Scope(campus.slug)) as conn:
        accept(conn, campus, "http:test", arrival([{"id": "a", "at": NOW}]))
        conn.get_transaction().rollback()
    assert journal_ids(store, campus) == []
    assert delivered(store, campus.slug) == (0, 0, 0, 0, 0)
    assert send(store, campus, arrival([{"id": "a", "at": NOW}])).accepted == 1


def test_senders_at_the_same_time_get_every_event_accepted_once(
    store: Store, campus: Campus
) -> None:
    """Four senders repeat overlapping batches, in opposite orders: no deadlock, no double."""
    accepted = []

    def sender(number: int) -> None:
        rows = [{"id": str(n), "at": NOW + n} for n in range(number * 5, number * 5 + 40)]
        for turn in range(6):
            sent = rows if turn % 2 else rows[::-1]
            accepted.append(send(store, campus, arrival(sent)).accepted)

    threads = [threading.Thread(target=sender, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(accepted) == 24
    assert sum(accepted) == 55
    assert journal_ids(store, campus) == sorted(map(str, range(55)))


EVENTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1)), max_size=12)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(batches=st.lists(EVENTS, max_size=4))
def test_whatever_comes_the_ledger_adds_up(
    store: Store, batches: list[list[tuple[int, int]]]
) -> None:
    """Of each id the first content is accepted; the same again is known, another is refused."""
    with store.transaction(Scope.district()) as conn:
        number = conn.execute(text("SELECT count(*) FROM theon.campuses")).scalar_one()
    add_campus(store, f"campus-{number}", "UTC")
    campus = get_campus(store, f"campus-{number}")
    content: dict[int, int] = {}
    want = [0, 0, 0]
    for batch in batches:
        got = send(store, campus, arrival([{"id": str(i), "at": NOW + c} for i, c in batch]))
        fate = []
        for i, c in batch:
            known = content.get(i)
            content.setdefault(i, c)
            fate.append(0 if known is None else 1 if known == c else 2)
        assert got.accepted == fate.count(0)
        assert got.duplicates == [n for n, f in enumerate(fate) if f == 1]
        assert got.refused["ordinal"].to_pylist() == [n for n, f in enumerate(fate) if f == 2]
        want = [have + fate.count(kind) for kind, have in enumerate(want)]
    assert delivered(store, campus.slug)[:4] == (sum(want), *want)
    assert journal_ids(store, campus) == sorted(map(str, content))


def test_an_outcome_is_known_with_the_event_and_lost_with_it(store: Store, campus: Campus) -> None:
    """D4: the observers' columns move in the transaction that accepts the event."""
    ensure_tables(store, load_catalog())
    sent = [
        {
            "id": "quiz",
            "at": NOW,
            "event_name": "AssessmentCompleted",
            "component": "mod_quiz",
            "other": '{"assessment_id": "q", "attempt": 1, "score": 3, "max_score": 4}',
        }
    ]
    scores = text("SELECT quizzes_avg_score FROM metrics.user_course_week")
    with store.transaction(Scope(campus.slug)) as conn:
        accept(conn, campus, "http:test", arrival(sent))
        assert list(conn.execute(scores).scalars()) == [75.0]
        conn.get_transaction().rollback()
    for _ in range(2):
        send(store, campus, arrival(sent))
        with store.transaction(Scope(campus.slug)) as conn:
            assert list(conn.execute(scores).scalars()) == [75.0]


def test_what_is_taken_back_needs_no_new_event(store: Store, campus: Campus) -> None:
    """Ids and times are enough, whoever gives them; again, it changes nothing."""
    gone = pa.table({"event_id": ["a"], "occurred_at": [datetime.fromtimestamp(NOW, UTC)]})
    gone = gone.cast(RETRACTED_SCHEMA)
    for _ in range(2):
        with store.transaction(Scope(campus.slug)) as conn:
            accept(conn, campus, "erasure", arrival([]), retracted=gone)
    with store.transaction(Scope(campus.slug)) as conn:
        _, events = read_journal(conn, campus.id)
    (event,) = events.to_pylist()
    assert (event["event_id"], event["object_id"]) == ("retraction:a", "a")
    assert event["occurred_at"] == gone["occurred_at"][0].as_py()
