"""Reads messages of Kafka as events: whose they are, which of two forms they have, what they say.

Two forms may be mixed in a topic: Theon's native events (`mappings/native.toml`), and the plain
messages of a learning management system, which have a `type` (`mappings/messages.toml`). The campus
is a header `campus`, else a field `campus`, else that of THEON_KAFKA_CAMPUS.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka import Message

from theon.intake.arrivals import ARRIVAL_SCHEMA, ORDINAL, REFUSED_SCHEMA, Arrival
from theon.intake.kafka_batches import Batch, Delivery
from theon.intake.kafka_offsets import Place, Position
from theon.intake.mapped import map_lines
from theon.lake.engine import open_scratch
from theon.roster.campuses import Campus, list_campuses
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import DISTRICT, Scope

Column: TypeAlias = Any  # pa.Array; what is computed of one has no narrower type in its stubs
Flags: TypeAlias = np.ndarray[tuple[int], np.dtype[np.bool_]]

NATIVE, PLAIN = "native", "messages"
NO_CAMPUS = "no campus named"
UNKNOWN_CAMPUS = "no such campus"
NOT_TAKEN = "could not be taken in"
_HEADER = "campus"

# What is looked for stands in few lines, so most are not parsed here.
_LOOK = f"""
    SELECT coalesce(campus_given, CASE WHEN said[1] <> '' THEN said[1] END) AS campus,
        coalesce(said[2] <> '' AND said[3] IS NULL, false) AS plain,
        coalesce(inside, false) AS inside
    FROM (SELECT {ORDINAL}, campus_given, CASE
            WHEN (contains(line, '"{_HEADER}"') OR contains(line, '"type"')) AND json_valid(line)
            THEN json_extract_string(line, ['$.campus', '$.type', '$.event_name']) END AS said,
            said IS NOT NULL AND json_exists(line, '$.campus') AS inside
        FROM sent_)
    ORDER BY {ORDINAL}
"""
_WITHOUT_CAMPUS = f"""
    SELECT json_merge_patch(line, '{{"campus": null}}') AS line FROM sent_ ORDER BY {ORDINAL}
"""


@dataclass(frozen=True)
class _Sent:
    """The messages of one topic, flat.

    Attributes:
        values: what was sent, binary; an empty text for a message without one.
        headers: campus that a header names, or null.
        partitions, offsets, generations: int64; where each stood.
    """

    topic: str
    values: Column
    headers: Column
    partitions: Column
    offsets: Column
    generations: Column

    def take(self, at: Column) -> "_Sent":
        """Some of them."""
        columns = (self.values, self.headers, self.partitions, self.offsets, self.generations)
        return _Sent(self.topic, *(column.take(at) for column in columns))

    def places(self) -> Column:
        """For people: 'user-events/0 at 17'."""
        return _joined(f"{self.topic}/", self.partitions, " at ", self.offsets)

    def ids(self) -> Column:
        """An id for messages without one. Offsets of a topic that was made anew are others."""
        numbers = _joined("#", self.generations)
        anew = pc.if_else(np.asarray(self.generations) > 0, numbers, "")
        return _joined(f"kafka:{self.topic}", anew, ":", self.partitions, ":", self.offsets)


@dataclass(frozen=True)
class _Looked:
    """What is seen at a glance, message by message.

    Attributes:
        lines: text, or binary where some are no UTF-8.
        campuses: which each names, or null.
        plain: whether it is a plain message.
        inside: whether it names a campus in a field.
    """

    lines: Column
    campuses: Column
    plain: Flags
    inside: Column


class MessageReader:
    """Reads batches for one consumer; not for two threads at once."""

    def __init__(self, store: Store, settings: Settings) -> None:
        """Open an engine; the campuses are read when they are needed."""
        self._store = store
        self._default = settings.kafka_campus
        self._campuses: dict[str, Campus] = {}
        self._engine: duckdb.DuckDBPyConnection = open_scratch()
        self._engine.execute("SET threads = 1")

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
        looked = self._look(sent)
        named = pc.fill_null(looked.campuses, "").dictionary_encode()
        self._know(named.dictionary.to_pylist())
        groups = np.asarray(named.indices) * 2 + looked.plain
        deliveries = []
        for group in np.unique(groups):
            slug = named.dictionary[int(group) // 2].as_py()
            at = pa.array(np.flatnonzero(groups == group))
            of_group = sent if len(at) == len(groups) else sent.take(at)
            campus = self._campuses.get(slug)
            form = PLAIN if group % 2 else NATIVE
            why: tuple[str, str | None] | None = None if fault is None else (NOT_TAKEN, fault)
            if campus is None:
                why = (UNKNOWN_CAMPUS, slug) if slug else (NO_CAMPUS, None)
            if why is None:
                lines = looked.lines.take(at)
                if form == NATIVE:
                    lines = self._without_campus(lines, looked.inside.take(at))
                arrival = self._read(form, lines, of_group)
            else:
                arrival = _refusing(form, of_group, *why)
            owner = campus or self._campuses[DISTRICT]
            deliveries.append(Delivery(owner, f"kafka:{sent.topic}", arrival))
        return deliveries

    def _read(self, form: str, lines: Column, sent: _Sent) -> Arrival:
        columns = {ORDINAL: _ordinals(sent), "line": lines, "default_id": sent.ids()}
        mapped = map_lines(self._engine, pa.table(columns), form)
        refused, places = mapped.refused, sent.places()
        if refused.num_rows:
            at = refused[ORDINAL].combine_chunks()
            given = {"original": sent.values.take(at), "place": places.take(at)}
            columns = {name: given.get(name, refused[name]) for name in REFUSED_SCHEMA.names}
            refused = pa.table(columns, schema=REFUSED_SCHEMA)
        return Arrival(form, mapped.events, sent.values, refused, places)

    def _look(self, sent: _Sent) -> _Looked:
        lines = texts = sent.values
        try:
            lines = texts = sent.values.cast(pa.string())
        except pa.ArrowInvalid:  # some are no UTF-8; these say nothing that could be looked for
            texts = pa.array([_decoded(value) for value in sent.values.to_pylist()], pa.string())
        found = self._run(
            _LOOK, {ORDINAL: _ordinals(sent), "line": texts, "campus_given": sent.headers}
        )
        campuses = found["campus"].combine_chunks()
        if self._default is not None:
            default: Any = self._default  # the stubs know arrays only
            campuses = pc.fill_null(campuses, default)
        plain, inside = found["plain"].to_numpy(), found["inside"].combine_chunks()
        return _Looked(lines, campuses, plain, inside)

    def _without_campus(self, lines: Column, inside: Column) -> Column:
        """A native event has no field `campus`: it is the message's."""
        if not inside.true_count:
            return lines
        named = lines.filter(inside).cast(pa.string())
        bare = self._run(_WITHOUT_CAMPUS, {ORDINAL: pa.array(range(len(named))), "line": named})
        return pc.replace_with_mask(lines, inside, bare["line"].combine_chunks().cast(lines.type))

    def _run(self, query: str, columns: dict[str, Column]) -> pa.Table:
        self._engine.register("sent_", pa.table(columns))
        try:
            found: pa.Table = self._engine.sql(query).to_arrow_table()
            return found
        finally:
            self._engine.unregister("sent_")

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
    numbers = np.repeat(np.array([number for _, number in batch], np.int64), sizes)
    ages = np.array([positions[place].generation for place in batch], np.int64)
    return _Sent(
        topic,
        pa.array([message.value() or b"" for message in messages], pa.binary()),
        pa.array([_header(message) for message in messages], pa.string()),
        pa.array(numbers),
        pa.array([message.offset() for message in messages], pa.int64()),
        pa.array(np.repeat(ages, sizes)),
    )


def _header(message: Message) -> str | None:
    headers: Any = message.headers() or ()
    for name, value in headers:
        if name == _HEADER and value:
            return str(value, "utf-8", "replace")
    return None


def _decoded(value: bytes) -> str | None:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


def _refusing(form: str, sent: _Sent, reason: str, detail: str | None) -> Arrival:
    """All of it refused."""
    count = len(sent.values)
    columns = [
        _ordinals(sent),
        pa.array([reason] * count, pa.string()),
        pa.array([detail] * count, pa.string()),
        sent.values,
        sent.places(),
    ]
    refused = pa.table(columns, schema=REFUSED_SCHEMA)
    return Arrival(form, ARRIVAL_SCHEMA.empty_table(), sent.values, refused, columns[-1])


def _ordinals(sent: _Sent) -> Column:
    return pa.array(np.arange(len(sent.values), dtype=np.int32))


def _joined(*parts: Any) -> Column:
    """Texts and numbers, element by element, without anything between them."""
    texts: Any = [part if isinstance(part, str) else part.cast(pa.string()) for part in parts]
    return pc.binary_join_element_wise(*texts, "")
