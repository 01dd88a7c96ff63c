"""The pipeline: six stages from an event to whoever wants to know, for every source alike.

Connectors (HTTP, Kafka, xAPI, files, Moodle's database) only feed the first stage. Each stage reads
what the one before it has made durable; one that was stopped catches up.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from theon.errors import TheonError
from theon.intake.door import accept
from theon.intake.journal import CHANNEL, LANDING_EVENTS
from theon.intake.landing import campuses_to_land, land
from theon.lake.compaction import CLASSES, compact
from theon.lake.table import EventLake
from theon.loops import Loop
from theon.metrics import refresh as metrics
from theon.metrics.announce import announce
from theon.metrics.refresh import refresh
from theon.roster.campuses import get_campus, list_campuses
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

# From one round of a process to the next: events of a second share their landing and refresh, which
# take a quarter of a second of one core. A round that takes longer is followed by as long a pause,
# so that those who send events get half of the machine at least.
ROUND_S = 1.0
LOOK_S = 5.0
PAUSE_AFTER_ERROR_S = 5.0
# After so many landings their files are merged, at once: every reader opens each of them.
LANDINGS_TO_MERGE = 32
MOST_MERGED_EVENTS = CLASSES[1]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """A stage, the function that is its heart, and when it is done."""

    name: str
    function: Callable[..., Any]
    runs: str


_DURING = "in a refresh"
STAGES = (
    Stage("collect and validate", accept, "in the transaction of whoever brings events"),
    *(Stage(stage.name, stage.run, _DURING) for stage in metrics.STAGES),
    Stage("notify on significant change", announce, "in the transaction that stores the rows"),
)


def land_all(store: Store, lake: EventLake, settings: Settings) -> dict[str, int]:
    """Bring the events that have been accepted by now into the lake.

    Returns:
        Slug of each campus that had some, and how many were new in the lake.

    Raises:
        ConflictError: other processes kept winning; what is not done now is done next time.
        UnavailableError: lake or database cannot be reached.
    """
    with store.transaction(Scope.district()) as conn:
        waiting = campuses_to_land(conn)
    found: dict[str, int] = {}
    for slug in waiting:
        owner = get_campus(store, slug)
        # One that is not full took all there was: what came meanwhile is for the next round, or
        # under a steady stream this would never end and no metric move.
        while (landed := land(store, lake, settings, owner)) is not None:
            found[slug] = found.get(slug, 0) + landed.new
            if landed.new + landed.known < LANDING_EVENTS:
                break
    return found


class Lander(Loop):
    """Catches up whenever events were accepted, by whichever process."""

    def __init__(self, store: Store, lake: EventLake, settings: Settings) -> None:
        """Name what it works with; it runs after `start`."""
        super().__init__("lander")
        self._store, self._lake, self._settings = store, lake, settings
        self._behind: set[str] = set()  # landed, and the metrics have not moved yet
        # Whether events may have landed that this one does not know of: one before it may have
        # ended in between, and a connection that broke does not say what was still done by it.
        self._unsure = True
        self._unmerged: Counter[str] = Counter()  # landings since files were last merged

    def run(self) -> None:
        """Until `stop`: hear of events, or look every few seconds, and catch up."""
        # A round takes in all there is: what was told during one asks for one more, not for many.
        heard = self._store.listen(CHANNEL, timeout_s=lambda: ROUND_S, latest=True)
        looked = 0.0
        for slug in heard:
            if self._stopping.is_set():
                return
            if slug is None and time.monotonic() - looked < LOOK_S:
                continue
            looked = time.monotonic()
            self._round()
            took_s = time.monotonic() - looked
            self._stopping.wait(max(took_s, ROUND_S - took_s))

    def _round(self) -> None:
        try:
            landed = land_all(self._store, self._lake, self._settings).keys()
            self._behind |= landed
            self._unmerged.update(landed)
            if self._unsure:
                everyone = list_campuses(self._store, Scope.district())
                self._behind |= {campus.slug for campus in everyone}
                self._unsure = False
            for slug in sorted(self._behind) if self._settings.real_time_analytics else ():
                refresh(self._store, self._lake, self._settings, campus=slug)
                self._behind.discard(slug)
            for slug in sorted(landed):
                if self._unmerged[slug] >= LANDINGS_TO_MERGE:
                    self._merge(slug)
        except TheonError as error:
            _log.warning("accepted events wait: %s", error.message)
            self._pause()
        except Exception:
            _log.exception("accepted events wait")
            self._pause()

    def _pause(self) -> None:
        self._unsure = True
        self._stopping.wait(PAUSE_AFTER_ERROR_S)

    def _merge(self, slug: str) -> None:
        del self._unmerged[slug]
        compact(
            self._lake,
            self._settings,
            slug,
            fan_in=LANDINGS_TO_MERGE,
            most_events=MOST_MERGED_EVENTS,
        )
