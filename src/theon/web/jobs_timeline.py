"""The life of a job as a picture: a lane for each attempt, from its wait to its end."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from theon.jobs.query import Change

WIDTH = 1_000.0
LANE_HEIGHT = 22
LEAST_WIDTH = 3.0  # so that a moment can still be seen
LANES_AT_MOST = 40

ENDED = ("completed", "failed", "cancelled")


@dataclass(frozen=True)
class Segment:
    """A stay in a state; places in units of which the picture is `WIDTH` wide."""

    state: str
    start: datetime
    end: datetime
    lane: int
    x: float
    width: float
    reason: str

    @property
    def seconds(self) -> float:
        """How long the stay was."""
        return (self.end - self.start).total_seconds()

    @property
    def y(self) -> int:
        """Where the lane begins."""
        return self.lane * LANE_HEIGHT


@dataclass(frozen=True)
class Timeline:
    """The picture; `left_out` counts lanes that are too old to be drawn."""

    segments: tuple[Segment, ...]
    lanes: int
    start: datetime
    end: datetime
    left_out: int

    @property
    def height(self) -> int:
        """Of all lanes, in the same units as their places."""
        return max(1, self.lanes) * LANE_HEIGHT


def timeline(history: Sequence[Change], now: datetime) -> Timeline | None:
    """Where the job was when, from its history (oldest first); None without one.

    A lane begins where a job begins to wait, and ends with the attempt, or where it ended
    without one. What an ended job does until somebody retries it is not drawn.
    """
    if not history:
        return None
    lanes: list[list[tuple[Change, datetime]]] = [[]]
    for number, step in enumerate(history):
        last = number + 1 == len(history)
        until = now if last else history[number + 1].at
        if step.after in ENDED:
            lanes[-1].append((step, step.at))
            if not last and history[number + 1].after not in ENDED:
                lanes.append([])
            continue
        if step.before == "running" and lanes[-1]:
            lanes.append([])
        lanes[-1].append((step, max(step.at, until)))
    shown = lanes[-LANES_AT_MOST:]
    start = next(step.at for lane in shown for step, _ in lane)
    end = max(start, *(until for lane in shown for _, until in lane))
    span_s = max((end - start).total_seconds(), 1e-3)
    segments = []
    for number, lane in enumerate(shown):
        for step, until in lane:
            x = (step.at - start).total_seconds() / span_s * WIDTH
            wide = (until - step.at).total_seconds() / span_s * WIDTH
            wide = min(max(wide, LEAST_WIDTH), WIDTH)
            x = min(max(x, 0.0), WIDTH - wide)
            segments.append(
                Segment(
                    step.after, step.at, until, number, round(x, 1), round(wide, 1), step.reason
                )
            )
    return Timeline(tuple(segments), len(shown), start, end, len(lanes) - len(shown))
