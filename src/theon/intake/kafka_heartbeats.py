"""Which consumers of Kafka there are and how they do: each writes a row every few seconds."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

from theon.store.scope import DISTRICT

ALIVE_S = 20.0
_FORGET_S = 3600.0


@dataclass(frozen=True)
class Heartbeat:
    """A row of `kafka_consumers`; `partitions` read 'user-events/0'."""

    id: str
    group: str
    host: str
    pid: int
    state: str
    partitions: list[str]
    messages: int
    error: str | None
    started_at: datetime
    silent_s: float = 0.0

    @property
    def alive(self) -> bool:
        """Whether it was heard of lately."""
        return self.silent_s < ALIVE_S


def beat(conn: Connection, heartbeat: Heartbeat) -> None:
    """Write how a consumer does; rows of those that are long gone are removed."""
    conn.execute(
        text("DELETE FROM theon.kafka_consumers WHERE heartbeat_at < now() - :old * interval '1s'"),
        {"old": _FORGET_S},
    )
    conn.execute(
        text(
            "INSERT INTO theon.kafka_consumers (id, campus_id, group_id, host, pid, state,"
            " partitions, messages, error, started_at) SELECT :id, id, :group, :host, :pid,"
            " :state, :partitions, :messages, :error, :started_at FROM theon.campuses"
            f" WHERE slug = '{DISTRICT}' ON CONFLICT (id) DO UPDATE SET state = excluded.state,"
            " partitions = excluded.partitions, messages = excluded.messages,"
            " error = excluded.error, heartbeat_at = clock_timestamp()"
        ),
        {
            "id": heartbeat.id,
            "group": heartbeat.group,
            "host": heartbeat.host,
            "pid": heartbeat.pid,
            "state": heartbeat.state,
            "partitions": heartbeat.partitions,
            "messages": heartbeat.messages,
            "error": heartbeat.error,
            "started_at": heartbeat.started_at,
        },
    )


def end(conn: Connection, consumer_id: str) -> None:
    """Take out the row of a consumer that ended in order."""
    conn.execute(text("DELETE FROM theon.kafka_consumers WHERE id = :id"), {"id": consumer_id})


def consumers(conn: Connection, group: str) -> list[Heartbeat]:
    """The consumers of a group that were heard of within the hour."""
    rows = conn.execute(
        text(
            "SELECT id, group_id, host, pid, state, partitions, messages, error, started_at,"
            " extract(epoch FROM clock_timestamp() - heartbeat_at)::float8"
            " FROM theon.kafka_consumers WHERE group_id = :group ORDER BY started_at, id"
        ),
        {"group": group},
    )
    return [Heartbeat(*row) for row in rows]
