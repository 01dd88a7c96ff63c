"""Reads messages of Kafka as events: whose they are, and what they say (`mappings/messages.toml`).

The campus is a header `campus`, else a field `campus`, else that of THEON_KAFKA_CAMPUS.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka import Message

from theon.intake.arrivals import (
    ARRIVAL_SCHEMA,
    NO_CAMPUS,
    REFUSED_SCHEMA,
    UNKNOWN_CAMPUS,
    Arrival,
)
from theon.intake.kafka_batches import Batch, Delivery
from theon.intake.kafka_offsets import Place, Position
from theon.intake.mapped import read_arrival
from theon.lake.engine import open_single
from theon.roster.campuses import Campus, list_campuses
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import DISTRICT, Scope

Column: TypeAlias = Any  # pa.Array; what is computed of one has no narrower type in its stubs

MAPPING = "messages"
NOT_TAKEN = "could not be taken in"
FRESH_S = 300  # a message that is not older comes as it is sent; clocks differ by less
_NAME = "campus"
_NAMED = (
    f"SELECT CASE WHEN json_valid(line) THEN json_extract_string(line, '$.{_NAME}') END AS campus"
    " FROM lines_ ORDER BY place"
)


@dataclass(frozen=True)
class _Sent:
    """The messages of one topic, flat.

    Attributes:
        values: what was sent, binary; an empty text for a message without one.
        headers: campus that a header names, or null.
        partitions, offsets, generations: int64; where each stood.
        times_ms: int64; when each was sent or the broker got it, epoch milliseconds, or -1.
    """

    topic: str
    values: Column
    headers: Column
    partitions: Column
    offsets: Column
    generations: Column
    times_ms: Column

    def take(self, at: Column) -> "_Sent":
        """Some of them."""
        columns = (self.values, self.headers, self.partitions, self.offsets, self.generations)
        return _Sent(self.topic, *(column.take(at) for column in (*columns, self.times_ms)))

    def places(self) -> Column:
        """For people: 'user-events/0 at 17'; a replay makes the id of it, see `ids`."""
        return _joined(self.topic, self._anew(), "/", self.partitions, " at ", self.offsets)

    def ids(self) -> Column:
        """An id for messages without one. Offsets of a topic that was made anew are others."""
        return _joined(f"kafka:{self.topic}", self._anew(), ":", self.partitions, ":", self.offsets)

    def waited(self, now_s: float) -> Column:
        """Which lay in the topic, or before it: their events say nothing of their sender's clock.

        Where nobody says when a message was sent, it counts as one of these.
        """
        return pa.array(np.asarray(self.times_ms) < (now_s - FRESH_S) * 1000)

    def _anew(self) -> Column:
        numbers = _joined("#", self.generations)
        return pc.if_else(np.asarray(self.generations) > 0, numbers, "")


class MessageReader:
    """Reads batches for one consumer; not for two threads at once."""

    def __init__(self, store: Store, settings: Settings) -> None:
        """Open an engine; the campuses are read when they are needed."""
        self._store = store
        self._default = settings.kafka_campus
        self._campuses: dict[str, Campus] = {}
        self._engine: duckdb.DuckDBPyConnection = open_single()

    def read(
        self, batch: Batch, positions: Mapping[Place, Position], fault: str | None = None
    ) -> list[Delivery]:
        """See `kafka_batches.Reader`.

        Raises:
            UnavailableError: the database is away.
        """
        topics: dict[str, dict[Place, Sequence[Message]]] = {}
        for place, messages in batch.items():
            topics.setdefault(place[0], {})[place] = messages
        return [
            delivery
            for topic, of_topic in topics.items()
            for delivery in self._of_topic(_flat(topic, of_topic, positions), fault)
        ]

    def _of_topic(self, sent: _Sent, fault: str | None) -> list[Delivery]:
        named = self._named(sent).dictionary_encode()
        self._know(named.dictionary.to_pylist())
        whose = np.asarray(named.indices)
        deliveries = []
        for number, slug in enumerate(named.dictionary.to_pylist()):
            of_campus = sent
            if len(named.dictionary) > 1:
                of_campus = sent.take(pa.array(np.flatnonzero(whose == number)))
            # The district has no learners of its own.
            campus = None if slug == DISTRICT else self._campuses.get(slug)
            why: tuple[str, str | None] | None = None if fault is None else (NOT_TAKEN, fault)
            if campus is None:
                why = (UNKNOWN_CAMPUS, slug) if slug else (NO_CAMPUS, None)
            if why is None:
                now_s = time.time()
                arrival = read_arrival(
                    of_campus.values,
                    MAPPING,
                    default_ids=of_campus.ids(),
                    places=of_campus.places(),
                    came_s=now_s,
                    waited=of_campus.waited(now_s),
                )
            else:
                arrival = _refusing(of_campus, *why)
            owner = campus or self._campuses[DISTRICT]
            deliveries.append(Delivery(owner, f"kafka:{sent.topic}", arrival))
        return deliveries

    def _named(self, sent: _Sent) -> Column:
        """The slug that each message names, or the setting's, or an empty text."""
        found = sent.headers
        within: Column = pc.match_substring(sent.values, f'"{_NAME}"')
        if pc.any(within).as_py():
            at = pa.array(np.flatnonzero(within))
            lines = pa.array([_decoded(v) for v in sent.values.take(at).to_pylist()], pa.string())
            self._engine.register("lines_", pa.table({"place": at, "line": lines}))
            try:
                inside = self._engine.sql(_NAMED).to_arrow_table()["campus"].combine_chunks()
            finally:
                self._engine.unregister("lines_")
            given = pc.replace_with_mask(pa.nulls(len(found), pa.string()), within, inside)
            found = pc.coalesce(found, given)
        default: Any = self._default or ""  # the stubs know arrays only
        return pc.fill_null(found, default)

    def _know(self, slugs: list[str]) -> None:
        """Read the campuses again if one is named that is not known."""
        if not {*slugs, DISTRICT} - {""} <= self._campuses.keys():
            found = list_campuses(self._store, Scope.district())
            self._campuses = {campus.slug: campus for campus in found}


def _flat(
    topic: str, batch: Mapping[Place, Sequence[Message]], positions: Mapping[Place, Position]
) -> _Sent:
    messages = [message for of_place in batch.values() for message in of_place]
    sizes = [len(of_place) for of_place in batch.values()]
    numbers = np.array([number for _, number in batch], np.int64)
    ages = np.array([positions[place].generation for place in batch], np.int64)
    return _Sent(
        topic,
        pa.array([message.value() or b"" for message in messages], pa.binary()),
        pa.array(_campuses(messages), pa.string()),
        pa.array(np.repeat(numbers, sizes)),
        pa.array([message.offset() for message in messages], pa.int64()),
        pa.array(np.repeat(ages, sizes)),
        # A message without a time has a kind of time that says so, and -1 as well.
        pa.array([message.timestamp()[1] for message in messages], pa.int64()),
    )


def _campuses(messages: list[Message]) -> list[str | None]:
    headers: list[Any] = [message.headers() for message in messages]
    return [_campus(given) if given else None for given in headers]


def _campus(headers: list[tuple[str, bytes | None]]) -> str | None:
    return next((str(v, "utf-8", "replace") for name, v in headers if name == _NAME and v), None)


def _decoded(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def _refusing(sent: _Sent, reason: str, detail: str | None) -> Arrival:
    """All of it refused."""
    count = len(sent.values)
    columns = [
        pa.array(range(count), pa.int32()),
        pa.array([reason] * count, pa.string()),
        pa.array([detail] * count, pa.string()),
        sent.values,
        sent.places(),
    ]
    refused = pa.table(columns, schema=REFUSED_SCHEMA)
    return Arrival(MAPPING, ARRIVAL_SCHEMA.empty_table(), sent.values, refused, columns[-1])


def _joined(*parts: Any) -> Column:
    """Texts and numbers, element by element, without anything between them."""
    texts: Any = [part if isinstance(part, str) else part.cast(pa.string()) for part in parts]
    return pc.binary_join_element_wise(*texts, "")
