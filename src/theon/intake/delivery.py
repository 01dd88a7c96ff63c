"""The delivery ledger: what each source sent, hour by hour, and what became of it.

It is written in the transaction that accepts the events, so it agrees with them always. The row of
a source and an hour is locked until that transaction ends, so it is written last.
"""

import hashlib
from collections import Counter
from typing import Any

import pyarrow as pa
from sqlalchemy import Connection, text

from theon.intake.clocks import NO_LAGS, Lags

# Of one source in one hour. Beyond it letters are counted, and not kept: whoever sends garbage
# must not fill the disk.
MOST_LETTERS = 10_000
LONGEST_ORIGINAL_BYTES = 1 << 20
VALIDATE = "collect and validate"

_HOUR = "date_trunc('hour', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'"


def record_delivery(
    conn: Connection,
    campus_id: int,
    source: str,
    *,
    received: int,
    accepted: int,
    duplicate: int,
    refused: Counter[str],
    dead_lettered: int,
    lags: Lags = NO_LAGS,
) -> None:
    """Add to what `source` has sent in this hour.

    Args:
        conn: the transaction that accepts the events.
        campus_id: whose source.
        source: its name, as people know it.
        received: events that came.
        accepted: events that were new.
        duplicate: events that were known.
        refused: events by why they were refused.
        dead_lettered: those of them that are kept.
        lags: what the new ones tell of the source's clock.
    """
    key = {"campus": campus_id, "source": source}
    conn.execute(
        text(
            "INSERT INTO theon.delivery_counts AS c (campus_id, source, hour, received, accepted,"
            " duplicate, rejected, dead_lettered, timed, ahead, least_lag_s, last_at)"
            f" VALUES (:campus, :source, {_HOUR}, :received, :accepted, :duplicate, :rejected,"
            " :dead, :timed, :ahead, :least_lag_s, clock_timestamp())"
            " ON CONFLICT (campus_id, source, hour) DO UPDATE SET"
            " received = c.received + excluded.received,"
            " accepted = c.accepted + excluded.accepted,"
            " duplicate = c.duplicate + excluded.duplicate,"
            " rejected = c.rejected + excluded.rejected,"
            " dead_lettered = c.dead_lettered + excluded.dead_lettered,"
            " timed = c.timed + excluded.timed, ahead = c.ahead + excluded.ahead,"
            " least_lag_s = least(c.least_lag_s, excluded.least_lag_s),"
            " last_at = greatest(c.last_at, excluded.last_at)"
        ),
        {
            **key,
            "received": received,
            "accepted": accepted,
            "duplicate": duplicate,
            "rejected": refused.total(),
            "dead": dead_lettered,
            "timed": lags.timed,
            "ahead": lags.ahead,
            "least_lag_s": lags.least_s,
        },
    )
    if refused:
        conn.execute(
            text(
                "INSERT INTO theon.delivery_reasons AS r (campus_id, source, hour, reason, events)"
                f" VALUES (:campus, :source, {_HOUR}, :reason, :events)"
                " ON CONFLICT (campus_id, source, hour, reason)"
                " DO UPDATE SET events = r.events + excluded.events"
            ),
            [{**key, "reason": reason, "events": n} for reason, n in sorted(refused.items())],
        )


def keep_letters(
    conn: Connection,
    campus_id: int,
    source: str,
    source_format: str,
    refused: pa.Table,
    stage: str = VALIDATE,
    *,
    anywhere: bool = False,
) -> int:
    """Keep what was refused, byte for byte and once, as far as there is room in this hour.

    What this source has sent before, in the same bytes at the same place, is left out as long as
    that is kept: a topic may be read again.

    Args:
        conn: the transaction that accepts the events.
        campus_id: whose source.
        source: its name.
        source_format: by which it was read.
        refused: `REFUSED_SCHEMA`.
        stage: of the pipeline, which refused them.
        anywhere: whether what stood elsewhere is the same too: lines of a log move with it.

    Returns:
        How many were kept: those of up to a megabyte, up to `MOST_LETTERS` in the hour.
    """
    refused = _not_kept(conn, campus_id, source, refused, anywhere=anywhere)
    kept = conn.execute(
        text(
            "SELECT coalesce(max(dead_lettered), 0) FROM theon.delivery_counts"
            f" WHERE campus_id = :campus AND source = :source AND hour = {_HOUR}"
        ),
        {"campus": campus_id, "source": source},
    ).scalar_one()
    rows = [
        {
            "campus": campus_id,
            "source": source,
            "format": source_format,
            "stage": stage,
            "reason": row["reason"],
            "detail": row["detail"],
            "place": row["place"],
            "original": row["original"],
        }
        for row in refused.slice(0, max(MOST_LETTERS - kept, 0)).to_pylist()
        if len(row["original"]) <= LONGEST_ORIGINAL_BYTES
    ]
    if rows:
        conn.execute(
            text(
                "INSERT INTO theon.dead_letters (campus_id, source, format, stage, reason, detail,"
                " place, original) VALUES (:campus, :source, :format, :stage, :reason, :detail,"
                " :place, :original)"
            ),
            rows,
        )
    return len(rows)


def _not_kept(
    conn: Connection, campus_id: int, source: str, refused: pa.Table, *, anywhere: bool
) -> pa.Table:
    """The first of each original and place, of those that no dead letter of the source holds.

    Where nobody knows the place (a body that was sent), another of the same bytes may be meant.
    """
    places: list[str | None] = refused["place"].to_pylist()
    sent: list[Any] = refused["original"].to_pylist()
    originals = [hashlib.md5(one, usedforsecurity=False).hexdigest() for one in sent]
    held = conn.execute(
        text(
            "SELECT md5(original) AS original, place FROM theon.dead_letters"
            " WHERE campus_id = :campus AND source = :source AND md5(original) = ANY (:originals)"
        ),
        {"campus": campus_id, "source": source, "originals": originals},
    )
    seen = {(row.original, "" if anywhere else row.place) for row in held}
    new = []
    for number, (original, place) in enumerate(zip(originals, places, strict=True)):
        key = (original, "" if anywhere else place)
        if key not in seen or key[1] is None:
            new.append(number)
            seen.add(key)
    return refused.take(pa.array(new, pa.int64()))
