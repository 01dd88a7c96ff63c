"""The plan of a simulated district: campuses, courses and how each learner behaves.

Everything is drawn from one seed with numpy's generators, which give the same numbers on
every machine and whatever the number of threads.
"""

from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
from numpy.typing import NDArray

from theon.errors import InputError

ENROLMENTS = 6
"""Courses per learner, where a campus has as many."""

FIRST_USER_ID = 101
FIRST_COURSE_ID = 11
PROFILES = ("reading", "discussing", "testing", "mixed")
NEVER = 1_000_000

SUBJECTS = (
    "Mathematics", "Biology", "History", "English Literature", "Physics", "Geography",
    "Chemistry", "Computer Science", "French", "Art and Design", "Economics", "Music Theory",
    "Physical Education", "Spanish", "Civics", "Statistics", "Philosophy", "Environmental Science",
    "Drama", "Media Studies",
)  # fmt: skip


@dataclass(frozen=True)
class CampusPlan:
    """A campus and its calendar.

    Attributes:
        slug: the campus id that Theon uses.
        name: what a person calls it.
        timezone: IANA name.
        share: part of the district's learners, 0 to 1.
        holidays: (first day, last day) in days since the period began, both included.
        outage_days_ago: how many days before the end of the period phones could not deliver
            their events; they arrive in the second delivery. 0: never.
    """

    slug: str
    name: str
    timezone: str
    share: float
    holidays: tuple[tuple[int, int], ...]
    outage_days_ago: int


CAMPUSES = (
    CampusPlan("harbour", "Harbour School", "Europe/London", 0.42, ((35, 39),), 12),
    CampusPlan("riverside", "Riverside Academy", "America/New_York", 0.33, ((21, 21),), 19),
    CampusPlan("banyan", "Banyan School", "Asia/Kolkata", 0.25, ((29, 30),), 11),
)


@dataclass(frozen=True)
class District:
    """What is simulated. Build it with `plan_district`.

    Attributes:
        seed: any number from 0.
        first_day: a Monday, local to each campus.
        weeks: length of the period.
        learners: people of the whole district.
        courses: courses of the whole district.
        events: how many log rows to aim at, all deliveries without duplicates; the true
            number differs by chance, by less than 5 % from about 100,000 on.
        campuses: at least one.
    """

    seed: int
    first_day: date
    weeks: int
    learners: int
    courses: int
    events: int
    campuses: tuple[CampusPlan, ...]

    @property
    def until(self) -> date:
        """The last day, a Sunday."""
        return self.first_day + timedelta(days=7 * self.weeks - 1)

    def campus_sizes(self) -> list[tuple[int, int]]:
        """(learners, courses) of each campus, in order; they add up to the district's."""
        shares = np.cumsum([campus.share for campus in self.campuses])
        cuts = np.round(shares / shares[-1] * self.learners).astype(int)
        course_cuts = np.round(shares / shares[-1] * self.courses).astype(int)
        learners = np.diff(cuts, prepend=0)
        courses = np.diff(course_cuts, prepend=0)
        return [(int(a), int(b)) for a, b in zip(learners, courses, strict=True)]


def last_sunday_before(day: date) -> date:
    """The Sunday before `day`; a week earlier when `day` itself is a Sunday."""
    return day - timedelta(days=day.isoweekday())


def plan_district(
    *,
    until: date,
    seed: int = 1,
    learners: int = 1500,
    courses: int = 40,
    weeks: int = 8,
    events: int | None = None,
    campuses: tuple[CampusPlan, ...] = CAMPUSES,
) -> District:
    """Plan a district whose last day is `until`.

    Args:
        until: a Sunday; the period ends with it.
        seed: the same seed and arguments give the same rows, to the byte.
        learners: people of the district, at least ten per campus.
        courses: courses of the district, at least one per campus.
        weeks: full weeks, Monday to Sunday.
        events: log rows to aim at; by default 90 a learner and week, so that the usual
            district has more than a million.
        campuses: their plans.

    Raises:
        InputError: an argument is out of range; says which.
    """
    _check(until.isoweekday() == 7, f"{until} is not a Sunday")
    _check(seed >= 0, f"seed {seed} is negative")
    _check(len(campuses) > 0, "a district has at least one campus")
    _check(learners >= 10 * len(campuses), f"{learners} learners are less than ten per campus")
    _check(
        len(campuses) <= courses <= 190 * len(campuses) + learners,
        f"{courses} courses do not fit {learners} learners on {len(campuses)} campuses",
    )
    _check(1 <= weeks <= 260, f"{weeks} weeks are not between 1 and 260")
    wanted = 90 * learners * weeks if events is None else events
    _check(wanted > 0, f"{wanted} events are too few")
    first = until - timedelta(days=7 * weeks - 1)
    return District(seed, first, weeks, learners, courses, wanted, campuses)


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise InputError(
            what, where="simulation", next_step="Change the option; `theon demo --help` lists them."
        )


def course_name(index: int) -> str:
    """The name of the `index`-th course of a campus: subject and year group."""
    return f"{SUBJECTS[index % len(SUBJECTS)]} {7 + index // len(SUBJECTS) % 6}"


@dataclass(frozen=True)
class World:
    """The people and courses of one campus, as arrays.

    Attributes:
        rate: per learner, visits relative to the mean; mean 1 over the campus.
        first_week: per learner, the week in which they begin.
        quiet_week: per learner, the week from which they are not seen; `NEVER` for most.
        evening: per learner, share of visits outside school hours, 0 to 1.
        weekend: per learner, factor on Saturday and Sunday.
        on_phone: per learner, whether they use the app.
        enrolled: (learners, up to `ENROLMENTS`) course indices.
        interest: same shape, weight of each course for its learner.
        profile: per course, index into `PROFILES`.
        depth: per course, factor on the length of a visit.
        timetable: (courses, 7) weight of each weekday.
    """

    rate: NDArray[np.float64]
    first_week: NDArray[np.int64]
    quiet_week: NDArray[np.int64]
    evening: NDArray[np.float64]
    weekend: NDArray[np.float64]
    on_phone: NDArray[np.bool_]
    enrolled: NDArray[np.int64]
    interest: NDArray[np.float64]
    profile: NDArray[np.int64]
    depth: NDArray[np.float64]
    timetable: NDArray[np.float64]


def build_world(district: District, campus_index: int) -> World:
    """Draw the people and courses of one campus."""
    learners, courses = district.campus_sizes()[campus_index]
    rng = np.random.default_rng([district.seed, campus_index, 7])
    rate = rng.lognormal(0.0, 0.6, learners)
    last = district.weeks - 1
    # One in twenty fades away at some point, one in eighty of all in the very last week.
    quiet = np.where(
        rng.random(learners) < 0.05, rng.integers(max(last // 3, 1), last + 2, learners), NEVER
    )
    quiet = np.where(rng.random(learners) < 0.0125, max(last, 1), quiet)
    late_start = np.where(rng.random(learners) < 0.05, rng.integers(0, last // 3 + 1, learners), 0)

    popularity = 1.0 / np.arange(1, courses + 1) ** 0.55
    rng.shuffle(popularity)
    chosen = min(ENROLMENTS, courses)
    # The k largest of log(weight) + Gumbel noise are a weighted draw without replacement;
    # rows go in blocks, so that a very large campus does not need every pair of the two at once.
    enrolled = np.empty((learners, chosen), dtype=np.int64)
    for start in range(0, learners, 4096):
        block = slice(start, min(start + 4096, learners))
        noise = rng.gumbel(size=(block.stop - start, courses)) + np.log(popularity)
        enrolled[block] = np.argpartition(noise, courses - chosen, axis=1)[:, courses - chosen :]
    return World(
        rate=rate / rate.mean(),
        first_week=late_start,
        quiet_week=quiet,
        evening=rng.beta(2.0, 4.0, learners),
        weekend=rng.gamma(2.0, 0.5, learners),
        on_phone=rng.random(learners) < 0.35,
        enrolled=enrolled,
        interest=rng.gamma(2.0, 1.0, (learners, chosen)) + 0.05,
        profile=rng.integers(0, len(PROFILES), courses),
        depth=rng.uniform(0.45, 1.8, courses),
        timetable=rng.gamma(1.6, 1.0, (courses, 7)) + 0.15,
    )
