"""The pages of the delivery ledger over two schools, and what their sources sent."""

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
from fastapi import FastAPI
from fastapi.testclient import TestClient
from jobs_overviews_site import ACCOUNTS, EVIL
from jobs_site import Visitor
from sqlalchemy import text
from tests.access.conftest import PASSWORD, plain_settings, sign_in
from tests.intake.plain_reader import read

from theon.access.accounts import add_account
from theon.access.requests import Access
from theon.api.sign_in import add_sign_in
from theon.intake.arrivals import Arrival
from theon.intake.clock_search import words_of
from theon.intake.clocks import Verdict
from theon.intake.door import accept
from theon.intake.gaps import CLOCK, MOODLE_IDS, SILENCE, Gap, notice
from theon.jobs.kinds import Kinds
from theon.jobs.schedules import Scheduler
from theon.roster.campuses import add_campus, get_campus
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope
from theon.web.delivery import add_delivery_pages
from theon.web.jobs_pages import add_jobs_pages
from theon.web.sign_in import add_sign_in_pages

AT = int(time.time()) - 3600


class DeliverySite:
    """The pages, and who may visit them."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self.store = store
        add_campus(store, "oak", "Europe/London", f"Oak {EVIL}")
        add_campus(store, "elm", "America/New_York", "Elm")
        self.app = FastAPI()
        add_sign_in(self.app, Access(store, plain_settings(settings)))
        add_sign_in_pages(self.app)
        kinds = Kinds([])
        add_jobs_pages(self.app, store, kinds, Scheduler(store, kinds, ()))
        add_delivery_pages(self.app, read)

    def add(self, name: str) -> None:
        role, campus = ACCOUNTS[name]
        add_account(self.store, name=name, password=PASSWORD, role=role, campus=campus)

    def visitor(self, name: str) -> Visitor:
        """Somebody who is signed in."""
        self.add(name)
        client = TestClient(self.app, follow_redirects=False)
        sign_in(client, name)
        return Visitor(client)

    def send(self, campus: str, *lines: Any, source: str = "http:lms") -> list[int]:
        """What a source sends; gives the ids of the dead letters of it that wait."""
        originals = pa.array(
            [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines],
            pa.binary(),
        )
        found = read("native", originals, pa.array(["-"] * len(lines)))
        sent = Arrival("native", found.events, originals, found.refused)
        with self.store.transaction(Scope(campus)) as conn:
            accept(conn, get_campus(self.store, campus), source, sent)
            ids = conn.execute(
                text("SELECT id FROM theon.dead_letters WHERE source = :source ORDER BY id"),
                {"source": source},
            )
            return list(ids.scalars())

    def gap(self, campus: str, words: str = "Ids 3 to 4 are missing.", first: int = 3) -> int:
        with self.store.transaction(Scope(campus)) as conn:
            own = get_campus(self.store, campus).id
            notice(conn, own, Gap(MOODLE_IDS, "moodle", words, first, first + 1, 2))
            return max(conn.execute(text("SELECT id FROM theon.delivery_gaps")).scalars())

    def clock(self, campus: str, source: str, off_s: int) -> None:
        """A clock that was found to be off."""
        since = datetime.now(UTC) - timedelta(hours=9)
        found = Verdict("ahead" if off_s > 0 else "behind", off_s, since, 6, 12_345, 678)
        with self.store.transaction(Scope(campus)) as conn:
            own = get_campus(self.store, campus).id
            notice(conn, own, Gap(CLOCK, source, words_of(found), from_at=since, off_s=off_s))

    def fill(self) -> None:
        """A week of three sources, one of them with a name that wants to be more."""
        hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
        for n, (campus, source) in enumerate(
            [("oak", "http:lms"), ("oak", f"kafka:{EVIL}"), ("elm", "file:moodle-logstore")]
        ):
            self.send(campus, {"id": "a", "at": AT}, {"id": "b", "at": AT}, source=source)
            self.send(campus, {"id": "a", "at": AT}, EVIL.encode(), {"x": EVIL * n}, source=source)
            self._past(campus, source, 900 + 700 * n, hour)
        self.gap("oak", f"The site has 2 log rows that are missing here. {EVIL}")
        with self.store.transaction(Scope("elm")) as conn:
            own = get_campus(self.store, "elm").id
            words = "Nothing has come for 5.0 of the hours in which it usually sends."
            since = datetime.now(UTC) - timedelta(hours=7)
            notice(conn, own, Gap(SILENCE, "file:moodle-logstore", words, from_at=since))
        self.clock("oak", "http:lms", 3 * 3600 - 7)
        self.clock("oak", f"kafka:{EVIL}", -19_800)

    def _past(self, campus: str, source: str, events: int, hour: datetime) -> None:
        """What came in the hours before this one, which is that of the first sending or later."""
        rows = [
            {
                "campus": campus,
                "source": source,
                "hour": hour - timedelta(hours=back),
                "received": (received := events * (1 + (back * 7) % 5)),
                "rejected": received // 20 if back % 6 == 0 else 0,
            }
            for back in range(1, 7 * 24)
            if 7 <= (hour - timedelta(hours=back)).hour <= 16
        ]
        with self.store.transaction(Scope(campus)) as conn:
            conn.execute(
                text(
                    "INSERT INTO theon.delivery_counts (campus_id, source, hour, received,"
                    " accepted, rejected, last_at) SELECT id, :source, :hour, :received,"
                    " CAST(:received AS bigint) - :rejected, :rejected, :hour"
                    " FROM theon.campuses WHERE slug = :campus"
                ),
                rows,
            )

    def letter(self, number: int) -> Any:
        with self.store.transaction(Scope.district()) as conn:
            return conn.execute(
                text("SELECT * FROM theon.dead_letters WHERE id = :id"), {"id": number}
            ).one()
