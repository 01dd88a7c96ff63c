"""What a connector hands to the door: canonical events, and what could not become one."""

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from theon.events.schema import EVENT_SCHEMA, PARTITION_COLUMNS

ORDINAL = "ordinal"
EVENT_COLUMNS = [f for f in EVENT_SCHEMA if f.name not in PARTITION_COLUMNS]
# The columns of the lake's data files and the place of each event in what was sent.
ARRIVAL_SCHEMA = pa.schema([*EVENT_COLUMNS, pa.field(ORDINAL, pa.int32(), nullable=False)])

_REFUSED: "list[pa.Field[Any]]" = [
    pa.field(ORDINAL, pa.int32(), nullable=False),
    pa.field("reason", pa.string(), nullable=False),  # one of a few short phrases
    pa.field("detail", pa.string()),  # the value that did not fit
    pa.field("original", pa.binary(), nullable=False),  # what was sent, byte for byte
    pa.field("place", pa.string()),  # where it stood, for people: 'user-events/0 at 17'
]
REFUSED_SCHEMA = pa.schema(_REFUSED)

REUSED_ID = "id used for another event"
NO_CAMPUS = "no campus named"
UNKNOWN_CAMPUS = "no such campus"


def no_refused() -> pa.Table:
    """An empty table of `REFUSED_SCHEMA`."""
    return REFUSED_SCHEMA.empty_table()


@dataclass(frozen=True)
class Arrival:
    """Events that came together, read and checked; nothing is stored yet.

    Attributes:
        format: the mapping that read them, by which what is refused can be read again.
        events: `ARRIVAL_SCHEMA`.
        originals: what was sent, as text or bytes; an ordinal is an index into it.
        refused: `REFUSED_SCHEMA`: what the mapping could not read.
        places: where each stood, by ordinal, if there is more to say than its ordinal.
        came_s: when they came, epoch seconds, if they came as they were sent: then their times
            tell of the sender's clock. None of what was kept somewhere, such as a dead letter.
        waited: by ordinal, whether one was kept somewhere all the same.
    """

    format: str
    events: pa.Table
    originals: "pa.Array[Any] | pa.ChunkedArray[Any]"
    refused: pa.Table = field(default_factory=no_refused)
    places: "pa.Array[Any] | pa.ChunkedArray[Any] | None" = None
    came_s: float | None = None
    waited: "pa.Array[Any] | None" = None

    @property
    def received(self) -> int:
        """How many were sent."""
        return self.events.num_rows + self.refused.num_rows


@dataclass(frozen=True)
class Receipt:
    """What became of an arrival; the events are durable once the transaction commits.

    Attributes:
        received: how many were sent.
        accepted: new events.
        duplicates: ordinals of events that were known, with the same content.
        refused: `REFUSED_SCHEMA`; with what the door itself refused.
    """

    received: int
    accepted: int
    duplicates: list[int]
    refused: pa.Table
