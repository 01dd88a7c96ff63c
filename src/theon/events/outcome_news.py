"""News of outcomes for whoever watches: what kind, in which course, how many, and of whom nothing.

They travel on the channel on which campuses say that their metrics changed, so both come in the
order in which they were committed.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

# PostgreSQL carries 8,000 bytes at once.
LARGEST_BYTES = 7_900
# More kinds and courses than this in one transaction are told as a change of the campus only.
MOST_NEWS = 2_000


@dataclass(frozen=True, order=True)
class OutcomeNews:
    """Outcomes of one kind in one course.

    Attributes:
        campus: slug.
        course_id: None where the outcome is of no course.
        kind: as in the rules of outcomes.
        count: how many were accepted.
    """

    campus: str
    course_id: str | None
    kind: str
    count: int


def announce_outcomes(conn: Connection, channel: str, news: Iterable[OutcomeNews]) -> None:
    """Tell the listeners of a channel, once this transaction is committed.

    Args:
        conn: the transaction that accepts the outcomes.
        channel: on which watchers listen.
        news: of one campus; without any nothing is told.
    """
    found = list(news)
    if not found or len(found) > MOST_NEWS:
        return
    conn.execute(
        text("SELECT pg_notify(:channel, told) FROM unnest(CAST(:told AS text[])) AS t (told)"),
        {"channel": channel, "told": pack(found)},
    )


def pack(news: list[OutcomeNews]) -> list[str]:
    """News of one campus as texts that a channel carries."""
    packed: list[str] = []
    parts: list[str] = []
    size = 0
    head = json.dumps({"campus": news[0].campus})[:-1] + ', "outcomes": ['
    for one in news:
        part = json.dumps([one.kind, one.course_id, one.count])
        if parts and len(head) + size + len(part) + 2 > LARGEST_BYTES:
            packed.append(head + ", ".join(parts) + "]}")
            parts, size = [], 0
        if len(head) + len(part) + 2 <= LARGEST_BYTES:  # a course's id may be any text
            parts.append(part)
            size += len(part) + 2
    if parts:
        packed.append(head + ", ".join(parts) + "]}")
    return packed


def unpack(told: str) -> list[OutcomeNews] | None:
    """What `pack` made; None if it is something else, such as a campus's slug."""
    if not told.startswith("{"):
        return None
    found: dict[str, Any] = json.loads(told)
    return [
        OutcomeNews(found["campus"], course, kind, count)
        for kind, course, count in found["outcomes"]
    ]
