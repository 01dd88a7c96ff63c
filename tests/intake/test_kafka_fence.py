"""Whoever takes messages in, as often and as late as they like: each message counts once."""

import json
from dataclasses import dataclass, field

import pytest
from confluent_kafka import TIMESTAMP_CREATE_TIME, Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from theon.intake.journal import read_journal
from theon.intake.kafka_batches import OvertakenError, take_in
from theon.intake.kafka_offsets import (
    CUT_OFF,
    EXPIRED,
    MADE_ANEW,
    CutOffError,
    Extent,
    Lost,
    Place,
    Position,
    rewind,
    settle,
    standings,
)
from theon.intake.kafka_reader import MessageReader
from theon.roster.campuses import Campus, get_campus
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

GROUP, TOPIC = "group", "user-events"
LENGTH = 12


def message(place: Place, offset: int) -> Message:
    said = {"type": "UserEnrolled", "timestamp": "2026-11-20T10:00:00Z", "userId": offset}
    return Message(
        topic=place[0],
        partition=place[1],
        offset=offset,
        value=json.dumps(said).encode(),
        timestamp=(TIMESTAMP_CREATE_TIME, 1_790_000_000_000),
    )


@dataclass
class Consumer:
    """One that reads only when it is told to, and so may be as late as can be."""

    store: Store
    reader: MessageReader
    positions: dict[Place, Position] = field(default_factory=dict)

    def assign(self, place: Place) -> None:
        with self.store.transaction(Scope.district()) as conn:
            self.positions[place], _ = settle(conn, GROUP, place, Extent(0, LENGTH))

    def read(self, count: int) -> None:
        batch = {}
        for place, position in self.positions.items():
            end = min(position.next_offset + count, LENGTH)
            if end > position.next_offset:
                batch[place] = [message(place, n) for n in range(position.next_offset, end)]
        if not batch:
            return
        try:
            moves = take_in(self.store, GROUP, self.reader, batch, self.positions)
        except OvertakenError as error:
            for place in error.places:
                del self.positions[place]
            return
        for move in moves:
            self.positions[move.place] = Position(move.next_offset)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("assign"), st.integers(0, 2), st.integers(0, 1)),
        st.tuples(st.just("read"), st.integers(0, 2), st.integers(1, 7)),
        st.tuples(st.just("rewind"), st.integers(0, LENGTH), st.integers(0, 1)),
    ),
    max_size=25,
)


@pytest.fixture
def campus(store: Store, lincoln: str) -> Campus:
    return get_campus(store, lincoln)


@given(steps=steps)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_in_any_order_of_assignments_late_writes_and_rewinds_each_message_counts_once(
    store: Store, campus: Campus, steps: list[tuple[str, int, int]]
) -> None:
    with store.transaction(Scope.district()) as conn:
        for table in ("kafka_offsets", "event_ids", "event_journal", "delivery_counts"):
            conn.execute(text(f"DELETE FROM theon.{table}"))
    configured = Settings(kafka_brokers="127.0.0.1:9", kafka_campus=campus.slug)
    consumers = [Consumer(store, MessageReader(store, configured)) for _ in range(3)]
    for action, which, number in steps:
        if action == "assign":
            consumers[which].assign((TOPIC, number))
        elif action == "read":
            consumers[which].read(number)
        else:
            with store.transaction(Scope.district()) as conn:
                rewind(conn, GROUP, (TOPIC, number), which)
    for partition in (0, 1):
        with store.transaction(Scope.district()) as conn:
            rewind(conn, GROUP, (TOPIC, partition), 0)
        consumers[0].assign((TOPIC, partition))
    consumers[0].read(LENGTH)
    with store.transaction(Scope.district()) as conn:
        _, events = read_journal(conn, campus.id)
        at = {place[1]: s.next_offset for place, s in standings(conn, GROUP).items()}
    wanted = [f"kafka:{TOPIC}:{p}:{n}" for p in (0, 1) for n in range(LENGTH)]
    assert sorted(events["event_id"].to_pylist()) == sorted(wanted)
    assert at == {0: LENGTH, 1: LENGTH}


PLACE = (TOPIC, 0)


def read_to(
    store: Store, extent: Extent, group: str = GROUP, **how: bool
) -> tuple[Position, Lost | None]:
    with store.transaction(Scope.district()) as conn:
        return settle(conn, group, PLACE, extent, **how)


def test_a_partition_begins_where_the_broker_begins(store: Store) -> None:
    """What expired before anybody knew of Theon is no gap."""
    assert read_to(store, Extent(5, 9, "t1")) == (Position(5, 0, "t1"), None)
    assert read_to(store, Extent(5, 9, "t1")) == (Position(5, 0, "t1"), None)


def test_what_expired_unread_is_a_gap_once(store: Store) -> None:
    read_to(store, Extent(0, 9, "t1"))
    assert read_to(store, Extent(4, 9, "t1"))[1] == Lost(PLACE, EXPIRED, 0, 4)
    assert read_to(store, Extent(4, 9, "t1"))[1] is None


def test_another_topic_of_the_same_name_is_read_from_its_beginning(store: Store) -> None:
    read_to(store, Extent(7, 9, "t1"))
    position, gap = read_to(store, Extent(0, 100, "t2"))
    assert position == Position(0, 1, "t2")
    assert gap == Lost(PLACE, MADE_ANEW, 7, None)


def test_a_topic_is_the_same_for_every_group(store: Store) -> None:
    """Or messages without an id would have another in another group, and count again."""
    read_to(store, Extent(7, 9, "t1"))
    read_to(store, Extent(0, 9, "t2"))
    assert read_to(store, Extent(0, 9, "t2"), "late")[0] == Position(0, 1, "t2")
    assert read_to(store, Extent(0, 9, "t4"), "late")[0] == Position(0, 2, "t4")
    assert read_to(store, Extent(0, 9, "t4"))[0] == Position(0, 2, "t4")
    assert read_to(store, Extent(0, 9, None), "of a broker that tells no ids")[0] == Position(0, 2)


def test_a_partition_that_ends_too_early_is_believed_only_in_the_end(store: Store) -> None:
    """A new leader may not know yet how far it goes."""
    read_to(store, Extent(7, 9, "t1"))
    with pytest.raises(CutOffError):
        read_to(store, Extent(0, 5, "t1"))
    position, gap = read_to(store, Extent(0, 5, "t1"), cut_off=True)
    assert position == Position(5, 0, "t1")
    assert gap == Lost(PLACE, CUT_OFF, 5, 7)


def test_reading_goes_back_and_never_forward(store: Store) -> None:
    """What lies between would never be read, and nobody would be told."""
    read_to(store, Extent(7, 9))
    with store.transaction(Scope.district()) as conn:
        assert not rewind(conn, GROUP, PLACE, 8)
        assert standings(conn, GROUP)[PLACE].next_offset == 7
        assert rewind(conn, GROUP, PLACE, 3)
        assert standings(conn, GROUP)[PLACE].next_offset == 3


def test_offsets_are_the_districts(store: Store, campus: Campus) -> None:
    """A campus sees none of them, and moves none."""
    read_to(store, Extent(0, 9))
    with store.transaction(Scope(campus.slug)) as conn:
        assert standings(conn, GROUP) == {}
        assert not rewind(conn, GROUP, PLACE, 0)
    assert read_to(store, Extent(0, 9))[0] == Position(0)
