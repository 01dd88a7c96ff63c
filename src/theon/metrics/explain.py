"""Explain: from one published value to the events behind it."""

from dataclasses import dataclass
from datetime import date
from typing import Any

import pyarrow as pa
from sqlalchemy import text

from theon.errors import InputError
from theon.events.activity import ActivityRules, load_rules
from theon.lake.engine import open_engine, open_scratch
from theon.lake.table import EventLake
from theon.metrics import kernel
from theon.metrics.catalog import Metric
from theon.metrics.window import Window, first_day, period_window
from theon.outcomes.columns import present_rows
from theon.roster.campuses import Campus, get_campus
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

RETRACTED = "retracted"  # why an event does not count that another one takes back


@dataclass(frozen=True)
class Explanation:
    """Why a value is what it is.

    Attributes:
        value: the published row, column to value; empty if there is none.
        events: every event that agrees with the key, in order: local_time, event_id, user_id,
            course_id, event_name, counts (bool), reason (why not), gap_s (seconds since the
            learner's previous counted event in the course), time_spent_s (what of it counts),
            and a boolean per measure.
        facts: what events say of outcomes, up to the end of the period, in order: local_time,
            event_id, kind, item_id, attempt, state, score, max_score. Empty where the metric has
            no outcome columns.
        totals: what the counted events and the facts come to, by the names of the metric's columns.
        sentences: the same in words.
    """

    value: dict[str, object]
    events: pa.Table
    facts: pa.Table
    totals: dict[str, object]
    sentences: list[str]


def explain(
    store: Store,
    lake: EventLake,
    settings: Settings,
    metric: Metric,
    *,
    campus: str,
    key: dict[str, str],
) -> Explanation:
    """Find the events behind one row of a metric.

    Args:
        store: where the row is published.
        lake: where its events are.
        settings: the session limit.
        metric: the definition.
        campus: slug.
        key: the grain without campus, values as text; dates in ISO 8601.

    Raises:
        InputError: the key does not fit the metric's grain, or a date is none or does not
            begin a period.
    """
    found = get_campus(store, campus)
    start = _check_key(metric, key)
    window = period_window(found, start, metric.period, settings.session_limit_s)
    rules = load_rules()
    events = _events(lake, settings, window, key, rules)
    value = _published_row(store, metric, campus, key)
    totals = _totals(events, rules)
    facts = _FACTS.empty_table()
    if metric.family("outcome"):
        facts = _facts(store, window, key)
        totals |= _outcomes(store, metric, found, key)
    return Explanation(
        value, events, facts, totals, _sentences(metric, value, events, facts, totals, settings)
    )


_FACT_FIELDS: "list[pa.Field[Any]]" = [
    pa.field("local_time", pa.timestamp("us")),
    pa.field("event_id", pa.string()),
    pa.field("kind", pa.string()),
    pa.field("item_id", pa.string()),
    pa.field("attempt", pa.string()),
    pa.field("state", pa.string()),
    pa.field("score", pa.float64()),
    pa.field("max_score", pa.float64()),
]
_FACTS = pa.schema(_FACT_FIELDS)


def _facts(store: Store, window: Window, key: dict[str, str]) -> pa.Table:
    """The facts about a learner in a course, and about the course, up to the end of the window."""
    with store.transaction(Scope(window.campus.slug)) as conn:
        rows = conn.execute(
            text(
                "SELECT timezone(:timezone, occurred_at) AS local_time, event_id, kind, item_id,"
                " attempt, state, score, max_score FROM theon.outcome_facts"
                " WHERE campus_id = :campus AND user_id IN (:user, '') AND course_id = :course"
                " AND occurred_at < :until ORDER BY occurred_at, length(event_id), event_id"
            ),
            {
                "timezone": window.campus.timezone,
                "campus": window.campus.id,
                "user": key["user_id"],
                "course": key["course_id"],
                "until": window.end,
            },
        )
        return pa.Table.from_pylist([dict(row) for row in rows.mappings()], _FACTS)


def _outcomes(
    store: Store, metric: Metric, campus: Campus, key: dict[str, str]
) -> dict[str, object]:
    """The outcome columns by the facts that are there; nulls where they give no row."""
    learner = (key["user_id"], key["course_id"])
    with store.transaction(Scope(campus.slug)) as conn:
        rows = present_rows(conn, campus.id, campus.timezone, metric.outcome_sql, learner)
    start = date.fromisoformat(key[metric.period_column])
    mine = next((row for row in rows if row[metric.period_column] == start), {})
    return {c.name: mine.get(c.name) for c in metric.family("outcome")}


def _published_row(
    store: Store, metric: Metric, campus: str, key: dict[str, str]
) -> dict[str, object]:
    columns = ", ".join(c.name for c in metric.columns if c.name != "campus")
    where = " AND ".join(f"m.{k} = :{k}" for k in key)
    with store.transaction(Scope(campus)) as conn:
        row = (
            conn.execute(
                text(
                    f"SELECT c.slug AS campus, {columns} FROM metrics.{metric.name} m"
                    " JOIN theon.campuses c ON c.id = m.campus_id"
                    f" WHERE c.slug = :campus AND {where}"
                ),
                {
                    "campus": campus,
                    **key,
                    metric.period_column: date.fromisoformat(key[metric.period_column]),
                },
            )
            .mappings()
            .one_or_none()
        )
    return dict(row) if row else {}


def _check_key(metric: Metric, key: dict[str, str]) -> date:
    missing = [k for k in metric.keys if k not in key]
    unknown = [k for k in key if k not in metric.keys]
    if missing or unknown:
        raise InputError(
            f"{metric.name} has one row per {', '.join(metric.grain)}"
            + (f"; missing: {', '.join(missing)}" if missing else "")
            + (f"; not part of it: {', '.join(unknown)}" if unknown else ""),
            next_step=f"Give {', '.join(metric.keys)}.",
        )
    given = key[metric.period_column]
    try:
        start = date.fromisoformat(given)
    except ValueError as error:
        raise InputError(f"{given!r} is no date", next_step="Write it as 2026-09-14.") from error
    begins = first_day(start, metric.period)
    if begins != start:
        raise InputError(
            f"{given} does not begin a {metric.period}",
            next_step=f"The {metric.period} it lies in begins at {begins.isoformat()}.",
        )
    return start


def _events(
    lake: EventLake,
    settings: Settings,
    window: Window,
    key: dict[str, str],
    rules: ActivityRules,
) -> pa.Table:
    columns = [*kernel.EVENT_COLUMNS, "event_id"]
    given = [(k, v) for k, v in key.items() if k in ("user_id", "course_id")]
    where = " AND ".join(f"{k} = ?" for k, _ in given) or "true"
    measures = ", ".join(f"{sql} AND counts AS {name}" for name, sql in rules.measures.items())
    start, end = int(window.start.timestamp()), int(window.end.timestamp())
    with open_engine(settings) as engine:
        query = f"""
        SELECT timezone('{window.campus.timezone}', occurred_at) AS local_time, event_id, user_id,
            course_id, event_name, counts, reason, gap_s,
            CASE WHEN gap_s <= {settings.session_limit_s} THEN gap_s ELSE 0 END AS time_spent_s,
            {", ".join(rules.measures)}
        FROM (
            SELECT *, {measures}, CASE WHEN counts THEN second_ - lag(second_) OVER (
                PARTITION BY user_id, course_id, counts ORDER BY second_, event_id) END AS gap_s
            FROM (
                SELECT *, epoch_us(occurred_at) // 1000000 AS second_,
                    CASE WHEN retracted THEN '{RETRACTED}' ELSE {rules.reason_sql()} END AS reason,
                    reason IS NULL AS counts
                FROM ({window.events_sql(engine, lake, columns, mark_retracted=True)})
                WHERE {where}
            )
        ) WHERE second_ >= {start} AND second_ < {end}
        ORDER BY occurred_at, event_id"""
        events: pa.Table = engine.sql(query, params=[v for _, v in given]).to_arrow_table()
    return events


def _totals(events: pa.Table, rules: ActivityRules) -> dict[str, object]:
    sums = ", ".join(f"count(*) FILTER ({name})::INTEGER AS {name}" for name in rules.measures)
    with open_scratch() as engine:
        engine.register("events_", events)
        [totals] = (
            engine.sql(
                "SELECT count(*) AS total_actions, "
                "count(DISTINCT date_trunc('day', local_time)) AS active_days, "
                "coalesce(sum(time_spent_s), 0)::BIGINT AS time_spent_s, "
                "count(DISTINCT user_id) AS learners, count(DISTINCT course_id) AS courses, "
                f"{sums} FROM events_ WHERE counts"
            )
            .to_arrow_table()
            .to_pylist()
        )
    return dict(totals)


def _agree(published: object, given: object) -> bool:
    """Whether a value is what was found; no activity at all may be published as nothing."""
    return published == given or (published is None and given == 0)


def _reasons(events: pa.Table) -> list[tuple[str, int]]:
    with open_scratch() as engine:
        engine.register("events_", events)
        return engine.sql(
            "SELECT reason, count(*) AS n FROM events_ WHERE NOT counts "
            "GROUP BY reason ORDER BY n DESC, reason"
        ).fetchall()


def _sentences(
    metric: Metric,
    value: dict[str, object],
    events: pa.Table,
    facts: pa.Table,
    totals: dict[str, object],
    settings: Settings,
) -> list[str]:
    sentences = [f"{metric.question} {totals['total_actions']} of {events.num_rows} events count."]
    sentences += [f"{count} do not count: {reason}." for reason, count in _reasons(events)]
    sentences.append(
        f"Time spent is {totals['time_spent_s']} s: the gaps of at most "
        f"{settings.session_limit_s} s between a learner's consecutive counted events in a course."
    )
    if metric.family("outcome"):
        sentences.append(f"Outcomes rest on {facts.num_rows} facts up to the end of the period.")
    if not value:
        sentences.append("No row is published for this key.")
        return sentences
    wrong = [
        f"{c.name} is {value[c.name]}, these events give {totals[c.name]}"
        for c in [*metric.family("activity"), *metric.family("outcome")]
        if c.name in totals and not _agree(value[c.name], totals[c.name])
    ]
    sentences += [f"Published {w}: run `theon metrics refresh`." for w in wrong]
    if not wrong:
        sentences.append("The published row is exactly what these events give.")
    return sentences
