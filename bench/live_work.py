"""How long after an event was accepted it is told and shown: the whole of `theon serve`.

`python -m bench.live_work TASK EVENTS` prints one line of JSON as `bench.work` does. A campus with
eight weeks of history is served; for a minute a client sends a thousand events a second. Another
listens to the stream (`minute`), or the overview is open in a real browser (`page`). An activity is
told when the figures of the stream count it, an outcome by a message; on the page both are shown
when its figures of now count them. EVENTS of the present hour are there before the minute begins.
"""

import http.client
import json
import os
import sys
import tempfile
import threading
import time
from bisect import bisect_left
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
from tests.browser import Browser, Page
from websockets.sync.client import ClientConnection, connect

from bench import data
from bench.http_work import NDJSON, serving
from bench.work import ROW_SCHEMA, Result, timed
from theon.bootstrap import Theon
from theon.intake.pipeline import ingest
from theon.metrics.refresh import refresh
from theon.simulation.files import write_logstore

RATE_PER_S = 1_000
BATCH = 50
OUTCOME_EVERY = 50
MINUTE_S = float(os.environ.get("BENCH_LIVE_S", "60"))
HISTORY_EVENTS = 500_000
WEEKS = 8
LEARNERS, COURSES = 690, 18  # as in the history
LAST_WAIT_S = 30.0


def _prepare(held: int, theon: Theon, folder: Path) -> None:
    """Give the campus its history, and `held` events in the present hour."""
    log = folder / "log.csv"
    today = datetime.now(UTC).date()
    until = today - timedelta(days=today.isoweekday())  # the last Sunday
    write_logstore(log, events=HISTORY_EVENTS, until=until, weeks=WEEKS)
    ingest(
        theon.store, theon.lake, theon.settings, location=str(log), format="moodle-logstore",
        campus=data.CAMPUS,
    )  # fmt: skip
    if held:
        theon.lake.append(_of_this_hour(folder, held), data.CAMPUS)
    refresh(theon.store, theon.lake, theon.settings)


def _of_this_hour(folder: Path, count: int) -> Path:
    """A staged file of events from the beginning of the present hour until now."""
    now = datetime.now(UTC)
    begin = now.replace(minute=0, second=0, microsecond=0)
    step = max((now - begin) / count, timedelta(microseconds=1))
    columns: dict[str, Any] = {field.name: pa.nulls(count, field.type) for field in ROW_SCHEMA}
    columns |= {
        "event_id": pa.array([f"held-{n}" for n in range(count)], pa.string()),
        "source": pa.array(["http:bench"] * count, pa.string()),
        "occurred_at": pa.array(
            [begin + step * n for n in range(count)], ROW_SCHEMA.field("occurred_at").type
        ),
        "user_id": pa.array([str(n * 7 % LEARNERS + 100) for n in range(count)], pa.string()),
        "course_id": pa.array([str(n % COURSES + 2) for n in range(count)], pa.string()),
        "event_name": pa.array(["\\core\\event\\course_viewed"] * count, pa.string()),
        "component": pa.array(["core"] * count, pa.string()),
        "action": pa.array(["viewed"] * count, pa.string()),
        "target": pa.array(["course"] * count, pa.string()),
        "origin": pa.array(["web"] * count, pa.string()),
    }
    path = folder / "held.parquet"
    pq.write_table(pa.table(columns, schema=ROW_SCHEMA), path, compression="zstd")
    return path


class Sender(threading.Thread):
    """Sends at a steady rate; `accepted` says when how many activities and outcomes were."""

    def __init__(
        self, port: int, key: dict[str, str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(name="sender")
        self._port = port
        self._clock = clock
        self._headers = {**NDJSON, **key}
        self.accepted: list[tuple[float, int, int]] = []
        self.post_s: list[float] = []
        self.failure: str | None = None
        self.sent_per_s = 0

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port)
        run = uuid4().hex[:8]
        sent, begun = 0, time.monotonic()
        while sent < RATE_PER_S * MINUTE_S:
            time.sleep(max(0.0, begun + sent / RATE_PER_S - time.monotonic()))
            body = b"\n".join(_event(run, n) for n in range(sent, sent + BATCH))
            posted = time.monotonic()
            connection.request("POST", "/api/v1/events", body, self._headers)
            answer = connection.getresponse()
            said = json.loads(answer.read())
            if answer.status != 202 or said["accepted"] != BATCH:
                self.failure = f"{answer.status}: {str(said)[:300]}"
                return
            sent += BATCH
            outcomes = sent // OUTCOME_EVERY
            self.accepted.append((self._clock(), sent - outcomes, outcomes))
            self.post_s.append(time.monotonic() - posted)
        self.sent_per_s = round(sent / (time.monotonic() - begun))


def _event(run: str, n: int) -> bytes:
    event: dict[str, Any] = {
        "id": f"{run}-{n}",
        "occurred_at": datetime.now(UTC).isoformat(),
        "user_id": str(n * 7 % LEARNERS + 100),
        "course_id": str(n % COURSES + 2),
    }
    if (n + 1) % OUTCOME_EVERY == 0:
        event["event_name"] = "AssessmentCompleted"
        event["other"] = {"assessment_id": f"{run}-{n}", "attempt": "1", "score": n % 11,
                          "max_score": 10}  # fmt: skip
    else:
        event |= {"event_name": "\\core\\event\\course_viewed", "component": "core",
                  "action": "viewed", "target": "course"}  # fmt: skip
    return json.dumps(event).encode()


def minute(held: int) -> Result:
    """Accepted to told, in seconds."""
    with serving(partial(_prepare, held)) as (port, key):
        url = f"ws://127.0.0.1:{port}/api/v1/stream"
        with connect(url, additional_headers=key, proxy=None, max_size=None) as socket:
            return timed(lambda: _measure(socket, port, key))


def _measure(socket: ClientConnection, port: int, key: dict[str, str]) -> Result:
    before = _actions(json.loads(socket.recv(30)))
    sender = Sender(port, key)
    sender.start()
    activities: list[tuple[int, float]] = [(0, 0.0)]
    outcomes: list[tuple[int, float]] = [(0, 0.0)]
    wanted = int(RATE_PER_S * MINUTE_S)
    while activities[-1][0] + outcomes[-1][0] < wanted and sender.failure is None:
        message = json.loads(socket.recv(LAST_WAIT_S))
        now = time.monotonic()
        if message["type"] == "metrics":
            activities.append((_actions(message) - before, now))
        else:
            outcomes.append((outcomes[-1][0] + message["count"], now))
    sender.join()
    assert sender.failure is None, sender.failure
    posts = sorted(sender.post_s)
    return {
        "activity": _waits(activities, [(at, count) for at, count, _ in sender.accepted]),
        "outcome": _waits(outcomes, [(at, count) for at, _, count in sender.accepted]),
        "post_p95_ms": round(posts[len(posts) * 95 // 100] * 1000, 1),
        "sent_per_s": sender.sent_per_s,
    }


# Each change of the figures of now, by the clock of the sender: seconds of the epoch, actions of
# today, quizzes of this week.
RECORD = """(() => {
  const number = (place) => Number(document.querySelector(place).textContent.replaceAll(',', ''));
  const note = () => window.noted.push(
    [Date.now() / 1000, number('#now tbody tr td:nth-of-type(3)'), number('#outcomes td')]);
  window.noted = [];
  note();
  new MutationObserver(note).observe(document.querySelector('.now').parentElement,
    {subtree: true, childList: true, characterData: true});
})()"""


def page(held: int) -> Result:
    """Accepted to shown, in seconds."""
    with (
        serving(partial(_prepare, held)) as (port, key),
        tempfile.TemporaryDirectory(prefix="theon-bench-") as profile,
    ):
        browser = Browser(Path(profile))
        try:
            shown = browser.open(f"http://127.0.0.1:{port}/?campus={data.CAMPUS}", width=1280)
            return timed(lambda: _measure_page(shown, port, key))
        finally:
            browser.close()


def _measure_page(shown: Page, port: int, key: dict[str, str]) -> Result:
    shown.ask(RECORD)
    sender = Sender(port, key, clock=time.time)
    sender.start()
    sender.join()
    assert sender.failure is None, sender.failure
    wanted = int(RATE_PER_S * MINUTE_S)
    until_s = time.monotonic() + LAST_WAIT_S
    noted: list[tuple[float, int, int]] = []
    while not noted or sum(noted[-1][1:]) - sum(noted[0][1:]) < wanted:
        assert time.monotonic() < until_s, noted[-1:]
        time.sleep(0.5)
        noted = [tuple(one) for one in shown.ask("window.noted")]
    _, actions, quizzes = noted[0]
    activities = [(count - actions, at) for at, count, _ in noted]
    outcomes = [(count - quizzes, at) for at, _, count in noted]
    return {
        "activity": _waits(activities, [(at, count) for at, count, _ in sender.accepted]),
        "outcome": _waits(outcomes, [(at, count) for at, _, count in sender.accepted]),
        "sent_per_s": sender.sent_per_s,
    }


def _waits(told: list[tuple[int, float]], accepted: list[tuple[float, int]]) -> dict[str, Any]:
    """Seconds from each answer of the door to the first message that counts what it accepted."""
    counts = [count for count, _ in told]
    assert counts == sorted(counts)  # what was told is never taken back
    # Told before the client has the answer is told at once.
    waits = sorted(max(0.0, told[bisect_left(counts, count)][1] - at) for at, count in accepted)
    return {
        "p50_s": round(waits[len(waits) // 2], 3),
        "p95_s": round(waits[len(waits) * 95 // 100], 3),
        "max_s": round(waits[-1], 3),
        "messages": len(told) - 1,
    }


def _actions(message: dict[str, Any]) -> int:
    return int(message["today"]["actions"])


TASKS = {"minute": minute, "page": page}


def main() -> None:
    task, events = sys.argv[1], int(sys.argv[2])
    print(json.dumps(TASKS[task](events)))


if __name__ == "__main__":
    main()
