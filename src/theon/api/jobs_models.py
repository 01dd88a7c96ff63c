"""What the API of background jobs takes and answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from theon.errors import InputError
from theon.jobs.figures import (
    DeadLetters,
    KindFigures,
    Pause,
    QueueFigures,
    WorkerFigures,
)
from theon.jobs.health import Bottleneck
from theon.jobs.moves import Done
from theon.jobs.query import JobDetails, JobSummary, Remaining
from theon.jobs.schedule_rows import ScheduleState
from theon.jobs.search import SYNONYMS, JobFilter, parse_search
from theon.jobs.texts import find_fault

LARGEST_ID = 2**63 - 1
LONGEST_DELAY_S = 10 * 365 * 86_400.0
IDS_AT_MOST = 2_000
IDS_ANSWERED = 1_000  # of an action for very many jobs
BATCH_AT_MOST = 1_000
CHANGES_OF_ACTION = ("changed", "asked", "skipped", "refused")


def _keepable(value: Any) -> Any:
    fault = find_fault(value, "it")
    if fault is not None:
        raise ValueError(fault)
    return value


def _in_utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


JobId = Annotated[int, Field(ge=0, le=LARGEST_ID)]
Words = Annotated[str, Field(max_length=2_000), AfterValidator(_keepable)]
Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_keepable)]
Json = Annotated[Any, AfterValidator(_keepable)]
# Without a zone it is UTC, as in the search language.
Moment = Annotated[datetime, AfterValidator(_in_utc)]
Names = Annotated[list[Name], Field(max_length=100)]
Priority = Literal["urgent", "high", "normal", "low", "background"]
WindowS = Annotated[float, Field(ge=60, le=30 * 86_400.0, allow_inf_nan=False)]


class Strict(BaseModel):
    """A body or query in which a name that is not known is refused rather than ignored."""

    model_config = ConfigDict(extra="forbid")


class Problem(BaseModel):
    """Every answer that is no success."""

    error: str
    next_step: str


# -- which jobs ----------------------------------------------------------------------------


class JobsWanted(Strict):
    """Which jobs: those that match all that is said; of values of one name, any."""

    q: Annotated[Words, Field(description="words, such as: kind:import campus:north lost")] = ""
    state: Names = []
    kind: Annotated[Names, Field(description="whole names, or rooms such as metrics")] = []
    category: Names = []
    queue: Names = []
    campus: Annotated[Names, Field(description="slugs; each with all campuses below")] = []
    owner: Names = []
    error: Annotated[Names, Field(description="classes of errors, such as KeyError")] = []
    created_from: Moment | None = None
    created_before: Moment | None = None
    ended_from: Moment | None = None
    ended_before: Moment | None = None

    def as_filter(self) -> JobFilter:
        """The filter.

        Raises:
            InputError: words or a state mean nothing, or words and a parameter say the same.
        """
        said: dict[str, Any] = {
            "states": tuple(SYNONYMS.get(state, state) for state in self.state),
            "kinds": tuple(self.kind),
            "categories": tuple(self.category),
            "queues": tuple(self.queue),
            "campuses": tuple(self.campus),
            "owners": tuple(self.owner),
            "error_kinds": tuple(self.error),
            "created_from": self.created_from,
            "created_before": self.created_before,
            "ended_from": self.ended_from,
            "ended_before": self.ended_before,
        }
        typed = vars(parse_search(self.q))
        for name, value in typed.items():
            if value and said.get(name):
                raise InputError(
                    f"q and a parameter both say something of {name.replace('_', ' ')}",
                    where="filter",
                    next_step="Say it in one of the two places.",
                )
        return JobFilter(**typed | {name: value for name, value in said.items() if value})


class JobsListed(JobsWanted):
    """A list's filter, and which page of it."""

    limit: Annotated[int, Field(ge=1, le=1_000)] = 50
    cursor: Annotated[Words | None, Field(description="next_cursor of the page before")] = None


class JobsPage(BaseModel):
    """Jobs, newest first; `next_cursor` is null after the last.

    `complete` is false where a filter that no index serves stopped after a bounded number of
    jobs: the page may be short or empty, and `next_cursor` goes on from there.
    """

    jobs: tuple[JobSummary, ...]
    next_cursor: str | None
    complete: bool


class Depths(BaseModel):
    """How many jobs of the caller's scope are in each state."""

    states: dict[str, int]


class KindShown(BaseModel):
    """A kind of job that the caller may run.

    `arguments` is a JSON schema. Where `arguments_are_free` is false only a system administrator
    chooses other arguments than the usual ones.
    """

    name: str
    summary: str
    queue: str
    category: str
    arguments: dict[str, Any]
    arguments_are_free: bool
    max_attempts: int
    max_lost: int
    timeout_s: float
    memory_mb: int
    at_once: int | None
    at_once_per_owner: int | None
    per_minute: float | None


class KindsShown(BaseModel):
    """The kinds of jobs that the caller may run."""

    kinds: list[KindShown]


@dataclass(frozen=True)
class JobShown(JobDetails):
    """All about one job, and why it waits; empty if it does not."""

    why_waiting: str = ""


class JobEvent(BaseModel):
    """A job as it is now, for those who watch it.

    `percent` is 0 to 100, `remaining` a range in seconds; either may be unknown.
    """

    id: int
    kind: str
    queue: str
    category: str
    campus: str
    owner: str
    state: str
    reason: str
    priority: str
    percent: float | None
    done: float | None
    total: float | None
    operation: str | None
    remaining: Remaining | None
    attempts: int
    max_attempts: int
    cancel_asked: bool
    error_kind: str | None
    error: str | None
    changed_at: datetime
    started_at: datetime | None
    ended_at: datetime | None

    @classmethod
    def of(cls, job: JobSummary) -> "JobEvent":
        """What a summary tells those who watch."""
        given = {name: value for name, value in vars(job).items() if name in cls.model_fields}
        return cls(**given, percent=percent(job.done, job.total))


def percent(done: float | None, total: float | None) -> float | None:
    """How much is done, 0 to 100; None if nobody knows."""
    if done is None or total is None or total <= 0:
        return None
    return round(100 * min(1.0, max(0.0, done / total)), 1)


# -- running jobs --------------------------------------------------------------------------


class JobWanted(Strict):
    """A job to be run; its owner is who asks."""

    kind: Name
    arguments: Json = Field(default_factory=dict)
    campus: Annotated[Name | None, Field(description="slug; the caller's own unless given")] = None
    priority: Priority = "normal"
    delay_s: Annotated[float, Field(ge=0, le=LONGEST_DELAY_S, allow_inf_nan=False)] = 0.0
    ready_at: Annotated[Moment | None, Field(description="instead of delay_s")] = None
    deadline_at: Moment | None = None
    after: Annotated[
        list[JobId | Name],
        Field(max_length=IDS_AT_MOST, description="ids, or labels of the batch"),
    ] = []
    label: Annotated[Name | None, Field(description="a name inside the batch")] = None
    idempotency_key: Name | None = None

    @model_validator(mode="after")
    def _one_time(self) -> Self:
        if self.delay_s and self.ready_at:
            raise ValueError("give delay_s or ready_at, not both")
        return self


class JobsToRun(Strict):
    """Jobs that may need each other by their labels: all are enqueued or none."""

    jobs: Annotated[list[JobWanted], Field(min_length=1, max_length=BATCH_AT_MOST)]


class Enqueued(BaseModel):
    """A job of a batch; `new` is false if its idempotency key was known."""

    id: int
    label: str | None
    new: bool


class JobsEnqueued(BaseModel):
    """The jobs of a batch, in its order."""

    jobs: list[Enqueued]


# -- actions -------------------------------------------------------------------------------


class Reason(Strict):
    """Why, for the record."""

    reason: Words = ""


class RetryWanted(Strict):
    """Other arguments; its own unless given."""

    arguments: Json = None


class PriorityWanted(Strict):
    """The new priority."""

    priority: Priority


class ActionWanted(Strict):
    """An action for many jobs: by ids (all or nothing) or by filter."""

    action: Literal["cancel", "retry", "discard", "prioritise"]
    ids: Annotated[list[JobId] | None, Field(min_length=1, max_length=IDS_AT_MOST)] = None
    filter: JobsWanted | None = None
    reason: Words = ""
    priority: Annotated[Priority | None, Field(description="of prioritise")] = None
    arguments: Annotated[Json, Field(description="of retry: for all of the jobs")] = None

    @model_validator(mode="after")
    def _says_what_it_needs(self) -> Self:
        if (self.ids is None) == (self.filter is None):
            raise ValueError("give ids or filter, one of the two")
        if (self.action == "prioritise") != (self.priority is not None):
            raise ValueError("priority belongs to prioritise, which needs it")
        if self.arguments is not None and self.action != "retry":
            raise ValueError("arguments belong to retry")
        return self

    def as_filter(self) -> JobFilter:
        """The filter, if it was given.

        Raises:
            InputError: it says nothing, or what it says means nothing.
        """
        chosen = (self.filter or JobsWanted()).as_filter()
        if chosen == JobFilter():
            raise InputError(
                "a filter that says nothing is all jobs",
                where="filter",
                next_step="Say at least one thing, such as a state.",
            )
        return chosen


class PreviewShown(BaseModel):
    """What an action would change; `exact` is false where there are more than were counted."""

    count: int
    exact: bool
    sample: tuple[int, ...]


class ActionDone(BaseModel):
    """What an action did: how many of each, and the first 1,000.

    `asked` are those of the changed that run and end in a moment; `skipped` were left alone, and
    `refused` cannot be retried, each with why.
    """

    counts: dict[str, int]
    changed: list[int]
    asked: list[int]
    skipped: dict[int, str]
    refused: dict[int, str]

    @classmethod
    def of(cls, done: Done) -> "ActionDone":
        """What `theon.jobs.admin` says."""
        return cls(
            counts={name: len(getattr(done, name)) for name in CHANGES_OF_ACTION},
            changed=list(done.changed[:IDS_ANSWERED]),
            asked=list(done.asked[:IDS_ANSWERED]),
            skipped=_first(done.skipped),
            refused=_first(done.refused),
        )


def _first(found: Mapping[int, str]) -> dict[int, str]:
    return dict(list(found.items())[:IDS_ANSWERED])


# -- queues, schedules, workers ------------------------------------------------------------


class QueueShown(BaseModel):
    """A queue now and in the window; `paused` is where it rests."""

    model_config = ConfigDict(from_attributes=True)

    queue: str
    depth: dict[str, int]
    waiting: int
    ended_per_minute: float
    wait_p50_s: float | None
    wait_p95_s: float | None
    paused: list[Pause] = []

    @classmethod
    def of(cls, figures: QueueFigures, pauses: list[Pause]) -> "QueueShown":
        """A queue with those pauses that are its own."""
        shown = cls.model_validate(figures)
        shown.paused = [p for p in pauses if (p.subject, p.value) == ("queue", shown.queue)]
        return shown


class QueuesShown(BaseModel):
    """The queues; `window_s` seconds are covered, fewer than asked for where much ended."""

    window_s: float
    queues: list[QueueShown]


class PauseOfQueue(Strict):
    """Where and until when a queue rests, and why."""

    campus: Annotated[Name | None, Field(description="slug; with all campuses below")] = None
    reason: Words = ""
    until: Moment | None = None


class PauseWanted(PauseOfQueue):
    """A pause of a queue, a kind, or a campus."""

    subject: Literal["queue", "kind", "campus"]
    value: Annotated[Name, Field(description="name of the queue or kind; slug of the campus")]


class ResumeOfQueue(Strict):
    """Where a queue goes on: in the campus in which it was paused."""

    campus: Name | None = None


class ResumeWanted(ResumeOfQueue):
    """What goes on."""

    subject: Literal["queue", "kind", "campus"]
    value: Name


class PausesShown(BaseModel):
    """Everything of the caller's scope that rests."""

    pauses: list[Pause]


class SchedulesWanted(Strict):
    """Which schedules, and how much of each."""

    name: Name | None = None
    campus: Name | None = None
    upcoming: Annotated[int, Field(ge=0, le=50)] = 5
    runs: Annotated[int, Field(ge=0, le=100)] = 10


class SchedulesShown(BaseModel):
    """The schedules of the caller's scope, by name and campus."""

    schedules: list[ScheduleState]


class OfCampus(Strict):
    """Only in this campus; in every campus of the caller's scope unless given."""

    campus: Name | None = None


class SchedulesChanged(BaseModel):
    """In how many campuses a schedule was paused or resumed; 0 if it was so already."""

    campuses: int


class JobsOfSchedule(BaseModel):
    """The jobs that a schedule was run with."""

    jobs: list[int]


class WorkersShown(BaseModel):
    """The workers that were heard of in the last day."""

    workers: list[WorkerFigures]


class DeadLettersShown(BaseModel):
    """Dead letters by kind and class of error, the largest group first."""

    groups: list[DeadLetters]


class TargetShown(BaseModel):
    """A target; `met` is null where there is nothing to say."""

    model_config = ConfigDict(from_attributes=True)

    name: str
    value: float | None
    limit: float
    above: bool
    met: bool | None


class HealthShown(BaseModel):
    """How the job system does over `window_s` seconds."""

    model_config = ConfigDict(from_attributes=True)

    window_s: float
    targets: list[TargetShown]
    queues: list[QueueShown]
    kinds: list[KindFigures]
    slowest: list[KindFigures]
    most_failing: list[KindFigures]
    bottleneck: Bottleneck
