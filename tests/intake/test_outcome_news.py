"""Whoever watches hears of outcomes as they are accepted: what kind and where, not of whom."""

import asyncio
import time
from typing import Any

from arriving import arrival

from theon.events.outcome_news import OutcomeNews
from theon.intake.door import accept
from theon.metrics.live import Listener, LiveHub
from theon.roster.campuses import get_campus
from theon.store.engine import Store
from theon.store.scope import Scope

NOW = int(time.time()) - 60


def test_outcomes_are_told_once_they_are_accepted(store: Store, lincoln: str) -> None:
    campus = get_campus(store, lincoln)
    hub = LiveHub(store)

    def send(rows: list[dict[str, Any]], *, undone: bool = False) -> None:
        given = [{"at": NOW, "user_id": "5", "course_id": "6", **row} for row in rows]
        try:
            with store.transaction(Scope(lincoln)) as conn:
                accept(conn, campus, "http:test", arrival(given))
                if undone:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            pass

    ended = {"event_name": "AssessmentCompleted", "other": '{"assessment_id": "1", "score": 1}'}
    handed_in = {"event_name": "SubmissionCreated", "other": '{"assignment_id": "2"}'}

    async def watch() -> list[OutcomeNews]:
        listener = Listener(Scope(lincoln))
        hub.add(listener)
        try:
            await listener.take(60)
            await asyncio.to_thread(send, [{"id": "0", **ended}], undone=True)
            await asyncio.to_thread(
                send,
                [
                    {"id": "1", **ended},
                    {"id": "2", **ended, "user_id": "7"},
                    {"id": "3", **handed_in},
                    {"id": "4", "event_name": "\\core\\event\\course_viewed"},
                ],
            )
            await asyncio.to_thread(send, [{"id": "1", **ended}])  # known
            found: list[OutcomeNews] = []
            while sum(news.count for news in found) < 3:
                found += (await listener.take(60)).news
            await asyncio.sleep(1)
            return found + (await listener.take(0.1)).news
        finally:
            hub.remove(listener)

    found = asyncio.run(watch())
    assert sorted((news.campus, news.course_id, news.kind, news.count) for news in found) == [
        (lincoln, "6", "attempt", 2),
        (lincoln, "6", "submission", 1),
    ]
