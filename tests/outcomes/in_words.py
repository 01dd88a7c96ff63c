"""The outcome columns of `user_course_week` by the words of their descriptions, event by event."""

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

Row = dict[str, Any]
Key = tuple[str, str, Any]


def expected_weeks(events: Iterable[Row], zone: ZoneInfo) -> dict[Key, tuple[Any, ...]]:
    """(user, course, Monday) to (attempted, average, submitted, progress, completed).

    Args:
        events: rows as for `native_events`, in any order; a repeated id counts once.
        zone: of the campus.
    """
    once = {row["event_id"]: row for row in events}
    ordered = sorted(
        once.values(), key=lambda r: (r["occurred_at"], len(r["event_id"]), r["event_id"])
    )
    things: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    structures: dict[str, Row] = {}
    for row in ordered:
        name, other, course = row["event_name"], row["other"], row["course_id"]
        if name == "CourseStructure":
            structures[course] = other
            continue
        thing = (_kind(name), row["user_id"], course, _item(other), str(other.get("attempt", "")))
        if name.endswith("Removed"):
            things[thing] = []
        else:
            things[thing].append(row)

    def monday(at: datetime) -> Any:
        day = at.astimezone(zone).date()
        return day - timedelta(days=day.weekday())

    quizzes: dict[Key, dict[str, dict[int, float | None]]] = defaultdict(lambda: defaultdict(dict))
    assignments: dict[Key, set[str]] = defaultdict(set)
    activities: dict[Key, dict[str, bool]] = defaultdict(dict)
    for (kind, user, course, item, attempt), rows in things.items():
        if not rows:
            continue
        if kind == "attempt":
            begun = [r for r in rows if r["event_name"] == "AssessmentStarted"] or rows
            scores = [r["other"]["score"] for r in rows if r["other"].get("score") is not None]
            tops = [
                r["other"]["max_score"] for r in rows if r["other"].get("max_score") is not None
            ]
            graded = scores and tops and tops[-1] > 0
            percent = 100 * scores[-1] / tops[-1] if graded else None
            week = user, course, monday(begun[0]["occurred_at"])
            quizzes[week][item][int(attempt)] = percent
        elif kind == "submission" and rows[-1]["event_name"] == "SubmissionCreated":
            last = [r for r in rows if r["event_name"] == "SubmissionCreated"][-1]
            assignments[user, course, monday(last["occurred_at"])].add(item)
        elif kind == "completion" and any(r["event_name"] == "ActivityCompleted" for r in rows):
            since = len(rows) - 1
            while since and rows[since - 1]["event_name"] == rows[-1]["event_name"]:
                since -= 1
            done = rows[-1]["event_name"] == "ActivityCompleted"
            activities[user, course, monday(rows[since]["occurred_at"])][item] = done
    found: dict[Key, tuple[Any, ...]] = {}
    for user, course, week in sorted({*quizzes, *assignments, *activities}):
        percents = [
            [p for _, p in sorted(attempts.items()) if p is not None][-1]
            for attempts in quizzes[user, course, week].values()
            if any(p is not None for p in attempts.values())
        ]
        found[user, course, week] = (
            len(quizzes[user, course, week]),
            sum(percents) / len(percents) if percents else None,
            len(assignments[user, course, week]),
            _progress(structures.get(course), activities, user, course, week),
            sum(activities[user, course, week].values()),
        )
    return found


def _progress(
    structure: Row | None, activities: dict[Key, dict[str, bool]], user: str, course: str, week: Any
) -> float | None:
    if structure is None or structure["completable"] <= 0:
        return None
    counted = structure.get("activities")
    done = {
        item
        for (u, c, w), items in activities.items()
        for item, complete in items.items()
        if (u, c) == (user, course) and w <= week and complete
        if counted is None or item in counted
    }
    return min(100.0, 100 * len(done) / structure["completable"])


def _by_id(event_id: str) -> tuple[int, str]:
    return len(event_id), event_id


def _told(rows: list[Row], name: str) -> list[float]:
    return [r["other"][name] for r in rows if r["other"].get(name) is not None]


def _kind(name: str) -> str:
    for start, kind in (("Assessment", "attempt"), ("Submission", "submission")):
        if name.startswith(start):
            return kind
    return "completion"


def _item(other: Row) -> str:
    return str(next(v for k, v in other.items() if k.endswith("_id")))
