"""The visits and events of one campus, a day at a time.

A day of a campus is one block of arrays: memory depends on the busiest day, not on the
number of events. Nothing here loops over visits or events.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from theon.simulation.district import (
    FIRST_COURSE_ID,
    FIRST_USER_ID,
    CampusPlan,
    District,
    World,
    build_world,
)
from theon.simulation.moodle_events import (
    COURSE,
    DASHBOARD,
    GRADED,
    KINDS,
    LOGIN,
    LOGIN_FAILED,
    NOTIFICATION,
)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

WEEKDAY = np.array([1.28, 1.12, 1.06, 1.0, 0.84, 0.22, 0.36])
HOLIDAY = 0.12
LESSONS_H = np.array([8.5, 9.5, 10.75, 11.75, 13.5, 14.5])
HOUR_S = 3600
DAY_S = 24 * HOUR_S
MODULES_PER_COURSE = 1000
ADMIN_ID = 2
NO_REPLY_ID = -10


@dataclass(frozen=True)
class Block:
    """Log rows of one campus and day, in order of time. All arrays have one length.

    Attributes:
        kind: index into `KINDS`.
        user: Moodle user id; 0 nobody, below 0 the system.
        course: Moodle course id; 0 for the site.
        module: course module id; 0 for none.
        at: epoch seconds, UTC.
        ip: the last three numbers of a 10.x.y.z address as one number.
        phone: 1 where the row came through the app (origin `ws`).
        real_user: who was logged in as `user`; 0 for themselves.
        late: whether the row could not be delivered in time.
    """

    kind: Ints
    user: Ints
    course: Ints
    module: Ints
    at: Ints
    ip: Ints
    phone: NDArray[np.bool_]
    real_user: Ints
    late: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.at)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> "Block":
        """The rows at these positions, or where the mask is true."""
        return Block(**{name: values[rows] for name, values in vars(self).items()})

    @staticmethod
    def join(blocks: list["Block"]) -> "Block":
        """One block after the other."""
        return Block(
            **{n: np.concatenate([getattr(b, n) for b in blocks]) for n in vars(blocks[0])}
        )


def simulate_days(district: District, campus_index: int) -> Iterator[Block]:
    """Yield each day's rows of one campus; seven blocks a week, some perhaps empty."""
    campus = district.campuses[campus_index]
    world = build_world(district, campus_index)
    visits_per_day = _visits_per_day(district, campus, world, campus_index)
    offsets = _utc_offsets(district, ZoneInfo(campus.timezone))
    for day in range(7 * district.weeks):
        rng = np.random.default_rng([district.seed, campus_index, 11, day])
        yield _simulate_day(
            district,
            campus,
            world,
            day,
            visits_per_learner=visits_per_day[day],
            offsets=offsets,
            rng=rng,
        )


def _day_factors(district: District, campus: CampusPlan, campus_index: int) -> Floats:
    """How busy each day is, without the learners: weekday, term, holidays."""
    rng = np.random.default_rng([district.seed, campus_index, 5])
    days = np.arange(7 * district.weeks)
    week = days // 7
    term = 0.86 + 0.24 * week / max(district.weeks - 1, 1)
    mood = rng.normal(1.0, 0.05, district.weeks).clip(0.85, 1.15)
    factors: Floats = WEEKDAY[days % 7] * term * mood[week]
    for first, last in campus.holidays:
        factors[(days >= first) & (days <= last)] *= HOLIDAY
    return factors


def _presence(world: World, day: int) -> Floats:
    """Each learner's factor on a day: there or not, and how they keep weekends."""
    week = day // 7
    there = (world.first_week <= week) & (week < world.quiet_week)
    weekend = world.weekend if day % 7 >= 5 else 1.0
    return world.rate * there * weekend


def _visits_per_day(
    district: District, campus: CampusPlan, world: World, campus_index: int
) -> list[float]:
    """Per day, visits of a learner with factor 1, so that the events come out as planned."""
    factors = _day_factors(district, campus, campus_index)
    presence = np.array([_presence(world, day).sum() for day in range(len(factors))])
    rng = np.random.default_rng([district.seed, campus_index, 3])
    sample = rng.choice(len(world.rate), 20_000, p=world.rate / world.rate.sum())
    weekdays = rng.choice(7, len(sample), p=WEEKDAY / WEEKDAY.sum())
    courses = _choose_courses(world, sample, weekdays, rng)
    # Cron adds 0.12 rows a visit, see `_system_rows`.
    mean_length = float(_lengths(world, courses, rng).mean()) + 0.12
    learners = district.campus_sizes()[campus_index][0]
    wanted = district.events * learners / district.learners
    visits = wanted / mean_length / float((factors * presence).sum())
    return [float(factor * visits) for factor in factors]


def _choose_courses(
    world: World, learner: Ints, weekday: int | Ints, rng: np.random.Generator
) -> Ints:
    """A course for each visit: what the learner is keen on and what the day has."""
    options = world.enrolled[learner]
    days = np.broadcast_to(weekday, len(learner))
    weights = world.interest[learner] * world.timetable[options, days[:, None]]
    ladder = weights.cumsum(axis=1)
    drawn = rng.random(len(learner)) * ladder[:, -1]
    slot = (ladder < drawn[:, None]).sum(axis=1).clip(max=options.shape[1] - 1)
    chosen: Ints = options[np.arange(len(learner)), slot]
    return chosen


def _lengths(world: World, course: Ints, rng: np.random.Generator) -> Ints:
    """Actions per visit: at least 2, on average about 14, seldom above 60."""
    drawn = rng.gamma(1.7, 7.2, len(course)) * world.depth[course]
    return np.minimum(2 + drawn, 120).astype(np.int64)


def _start_times(world: World, learner: Ints, day: int, rng: np.random.Generator) -> Floats:
    """Local hours since midnight at which visits begin."""
    count = len(learner)
    lesson = LESSONS_H[rng.integers(0, len(LESSONS_H), count)] + rng.gamma(2.0, 0.13, count)
    if day % 7 >= 5:
        return rng.normal(15.5, 3.0, count).clip(8.0, 22.9)
    evening = rng.normal(19.6, 1.4, count).clip(6.5, 22.9)
    return np.where(rng.random(count) < world.evening[learner], evening, lesson)


def _utc_offsets(district: District, zone: ZoneInfo) -> Ints:
    """Seconds to take from local time, per local hour of the period and one day more."""
    start = datetime.combine(district.first_day, time())
    hours = (7 * district.weeks + 1) * 24
    found = ((start + timedelta(hours=h)).replace(tzinfo=zone).utcoffset() for h in range(hours))
    return np.array([int((offset or timedelta()).total_seconds()) for offset in found])


# Kinds drawn for an action, as one rising ladder per profile: profile p covers p to p + 1.
_WEIGHTS = np.array([kind.weights for kind in KINDS]).T
_LADDER = (
    _WEIGHTS.cumsum(axis=1) / _WEIGHTS.sum(axis=1)[:, None] + np.arange(len(_WEIGHTS))[:, None]
).ravel()
_LEVEL = np.array([kind.contextlevel for kind in KINDS])
_IS_WS = np.array([kind.origin == "ws" for kind in KINDS])
_COMPONENTS = sorted({kind.component for kind in KINDS})
_COMPONENT = np.array([_COMPONENTS.index(kind.component) for kind in KINDS])


def _simulate_day(
    district: District,
    campus: CampusPlan,
    world: World,
    day: int,
    *,
    visits_per_learner: float,
    offsets: Ints,
    rng: np.random.Generator,
) -> Block:
    visits = rng.poisson(_presence(world, day) * visits_per_learner)
    learner = np.repeat(np.arange(len(visits)), visits)
    count = len(learner)
    course = _choose_courses(world, learner, day % 7, rng)
    second_course = _choose_courses(world, learner, day % 7, rng)
    switches = rng.random(count) < 0.15
    start_h = _start_times(world, learner, day, rng)
    length = _lengths(world, course, rng)
    phone = world.on_phone[learner] & (rng.random(count) < 0.6)
    signs_in = rng.random(count) < 0.6
    as_other = rng.random(count) < 0.0006
    # On the outage day no phone delivers between 9 and 15 o'clock; now and then one does so
    # on any other day.
    days_left = 7 * district.weeks - day
    outage = (days_left == campus.outage_days_ago) & (start_h > 9.0) & (start_h < 15.0)
    late = phone & (outage | (rng.random(count) < 0.0008))

    visit = np.repeat(np.arange(count), length)
    first = length.cumsum() - length
    place = np.arange(len(visit)) - first[visit]
    gap = rng.lognormal(3.3, 1.0, len(visit))
    pause = rng.random(len(visit))
    gap = np.where(pause < 0.035, rng.uniform(300, 1500, len(visit)), gap)
    gap = np.where(pause < 0.006, rng.uniform(1500, 5400, len(visit)), gap)
    gap[place == 0] = 0.0
    elapsed = gap.cumsum()
    elapsed -= elapsed[first[visit]] if len(visit) else 0.0
    local_s = (day * DAY_S + start_h[visit] * HOUR_S + elapsed).astype(np.int64)

    in_second = switches[visit] & (place > 0.6 * length[visit])
    event_course = np.where(in_second, second_course[visit], course[visit])
    profile = world.profile[event_course]
    kind = np.searchsorted(_LADDER, rng.random(len(visit)) + profile, side="right")
    kind -= profile * len(KINDS)
    kind = kind.clip(0, len(KINDS) - 1)
    opening = place - np.where(signs_in, 0, 2)[visit]
    kind = np.where(place == np.where(signs_in, 2, 0)[visit], KINDS.index(COURSE), kind)
    kind = np.where(signs_in[visit] & (opening == 0), KINDS.index(LOGIN), kind)
    kind = np.where(signs_in[visit] & (opening == 1), KINDS.index(DASHBOARD), kind)

    people = Block(
        kind=kind,
        user=FIRST_USER_ID + learner[visit],
        course=FIRST_COURSE_ID + event_course,
        module=rng.integers(0, 24, len(visit)),
        at=local_s,
        ip=learner[visit],
        phone=phone[visit],
        real_user=np.where(as_other, ADMIN_ID, 0)[visit],
        late=late[visit],
    )
    rows = Block.join([people, _system_rows(world, day, count, rng)])
    rows = rows.take(rows.at < 7 * district.weeks * DAY_S)
    return _finish(rows, district, offsets)


def _system_rows(world: World, day: int, visits: int, rng: np.random.Generator) -> Block:
    """What no learner did: cron's notices and grades, and failed sign-ins."""
    count = rng.poisson(visits * 0.12)
    kind = rng.choice(
        [KINDS.index(NOTIFICATION), KINDS.index(GRADED), KINDS.index(LOGIN_FAILED)],
        count,
        p=[0.6, 0.3, 0.1],
    )
    user = np.where(kind == KINDS.index(NOTIFICATION), NO_REPLY_ID, 0)
    user = np.where(kind == KINDS.index(GRADED), ADMIN_ID, user)
    return Block(
        kind=kind,
        user=user,
        course=FIRST_COURSE_ID + rng.integers(0, len(world.profile), count),
        module=rng.integers(0, 24, count),
        at=day * DAY_S + rng.integers(0, DAY_S, count),
        ip=np.zeros(count, dtype=np.int64),
        phone=np.zeros(count, dtype=bool),
        real_user=np.zeros(count, dtype=np.int64),
        late=np.zeros(count, dtype=bool),
    )


def _finish(rows: Block, district: District, offsets: Ints) -> Block:
    """Local to UTC, ids that fit the kind, and the order of time."""
    level = _LEVEL[rows.kind]
    midnight = int(datetime.combine(district.first_day, time(), UTC).timestamp())
    course = np.where(level >= 50, rows.course, 0)
    number = _COMPONENT[rows.kind] * 24 + rows.module
    module = np.where(level == 70, rows.course * MODULES_PER_COURSE + number, 0)
    done = Block(
        kind=rows.kind,
        user=rows.user,
        course=course,
        module=module,
        at=midnight + rows.at - offsets[rows.at // HOUR_S],
        ip=rows.ip,
        phone=rows.phone | _IS_WS[rows.kind],
        real_user=rows.real_user,
        late=rows.late,
    )
    return done.take(np.argsort(done.at, kind="stable"))
