"""What a job is: a typed dataclass of arguments, a function, and how it is to be run.

Declaring one has no effect by itself: `bootstrap.job_kinds` lists the kinds of all rooms.
"""

import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, is_dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import Any, Protocol, TypeVar

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Connection

from theon.errors import InputError
from theon.jobs.errors import UnknownKindError
from theon.settings import Settings
from theon.store.engine import Store


class JobContext(Protocol):
    """What a running job may use. `theon.jobs.context` has the one that real attempts get."""

    job_id: int
    attempt: int
    campus: str  # slug; also the scope of `transaction`
    owner: str
    store: Store
    settings: Settings
    saved: Any  # the last checkpoint of an earlier attempt, or None

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked for the job to be cancelled; its process is ended soon."""

    def progress(self, done: float, total: float | None = None, operation: str = "") -> None:
        """Tell how far the job is; cheap, may be called often."""

    def checkpoint(self, state: Any) -> None:
        """Keep `state` (JSON) for the next attempt; durable when this returns."""

    def log(self, message: str, **details: Any) -> None:
        """Write a line to the log with the job's id."""

    def transaction(self) -> AbstractContextManager[Connection]:
        """A transaction in the scope of the job's campus."""

    def finish(self, conn: Connection, result: Any = None) -> None:
        """Complete the job in the transaction of its effect, under its token.

        Raises:
            LostLeaseError: another attempt owns the job; the transaction must roll back.
        """


A = TypeVar("A")
R = TypeVar("R")


@dataclass(frozen=True)
class Backoff:
    """How long to wait before the next attempt: exponential, with jitter.

    Attributes:
        first_s: seconds after the first failure.
        factor: by which each further wait is longer.
        longest_s: no wait is longer.
        jitter: share of the wait that is drawn by chance, 0 to 1, so that jobs that failed
            together do not come back together.
    """

    first_s: float = 2.0
    factor: float = 3.0
    longest_s: float = 3600.0
    jitter: float = 0.5

    def wait_s(self, failures: int, chance: float) -> float:
        """Seconds to wait after `failures` failures (1, 2, …); `chance` is in [0, 1)."""
        # The exponent is bounded so that many failures do not overflow.
        whole = min(self.longest_s, self.first_s * self.factor ** min(failures - 1, 64))
        return whole * (1 - self.jitter * chance)


@dataclass(frozen=True)
class JobKind:
    """One kind of job.

    Attributes:
        name: `room.verb`, such as `metrics.refresh`.
        function: called as `function(ctx, arguments)` in a process of its own.
        arguments: dataclass of the arguments; JSON is validated against it.
        queue: workers choose queues.
        category: how people group kinds: `analytics`, `import`, `report`, `reward`, `system`.
        max_attempts: failures of its own that it may have.
        max_lost: workers it may lose before it is a dead letter.
        timeout_s: seconds an attempt may take.
        memory_mb: resident megabytes an attempt may take.
        backoff: waits between attempts.
        at_once: how many may run at the same time; None is any number.
        at_once_per_owner: the same for one owner.
        per_minute: how many may begin in a minute.
        size: how large a job is, from its arguments, to predict how long it takes.
        summary: first line of the function's docstring.
    """

    name: str
    function: Callable[[Any, Any], Any]
    arguments: type[Any]
    queue: str = "default"
    category: str = "system"
    max_attempts: int = 3
    max_lost: int = 3
    timeout_s: float = 600.0
    memory_mb: int = 1024
    backoff: Backoff = field(default_factory=Backoff)
    at_once: int | None = None
    at_once_per_owner: int | None = None
    per_minute: float | None = None
    size: Callable[[Any], float] | None = None
    summary: str = ""

    @cached_property
    def _adapter(self) -> TypeAdapter[Any]:
        return TypeAdapter(self.arguments)

    def parse(self, arguments: Any) -> Any:
        """The arguments as the kind's dataclass.

        Raises:
            InputError: they do not validate; names each field and what is wrong with it.
        """
        try:
            return self._adapter.validate_python(arguments)
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, e['loc'])) or 'arguments'}: {e['msg']}" for e in error.errors()
            )
            raise InputError(
                f"the arguments do not fit: {faults}",
                where=f"job {self.name}",
                next_step=f"It takes {self.signature}.",
            ) from error

    def dump(self, arguments: Any) -> Any:
        """The arguments as JSON values, after validation."""
        return self._adapter.dump_python(self.parse(arguments), mode="json")

    @property
    def schema(self) -> dict[str, Any]:
        """The arguments as a JSON schema, for forms and other programs."""
        return self._adapter.json_schema()

    @property
    def signature(self) -> str:
        """The arguments in words: `campus: str | None = None, rebuild: bool = False`."""
        text = str(inspect.signature(self.arguments)).split(" -> ")[0]
        return text.strip("()") or "no arguments"


def job(name: str, **options: Any) -> Callable[[Callable[[Any, Any], Any]], JobKind]:
    """Declare a function `(ctx, arguments) -> result` as a kind of job.

    Args:
        name: `room.verb`.
        **options: attributes of `JobKind`.

    Raises:
        InputError: the function does not say that its second argument is a dataclass, or a
            limit does not fit.
    """

    def declare(function: Callable[[Any, Any], Any]) -> JobKind:
        names = list(inspect.signature(function).parameters)
        hints = typing.get_type_hints(function)
        arguments = hints.get(names[1]) if len(names) == 2 else None
        if not (isinstance(arguments, type) and is_dataclass(arguments)):
            raise InputError(
                "a job is a function of (ctx, args), and args is annotated with a dataclass",
                where=f"job {name}",
            )
        summary = (inspect.getdoc(function) or "").partition("\n")[0]
        kind = JobKind(name, function, arguments, summary=summary, **options)
        if kind.max_attempts < 1 or kind.timeout_s <= 0 or kind.memory_mb < 1:
            raise InputError(
                "max_attempts and memory_mb are at least 1, timeout_s is above 0",
                where=f"job {name}",
            )
        return kind

    return declare


class Kinds(Mapping[str, JobKind]):
    """The kinds that this installation has code for."""

    def __init__(self, kinds: Iterable[JobKind]) -> None:
        """Index `kinds` by name.

        Raises:
            InputError: two have the same name.
        """
        self._kinds: dict[str, JobKind] = {}
        for kind in kinds:
            if kind.name in self._kinds:
                raise InputError("two kinds have this name", where=f"job {kind.name}")
            self._kinds[kind.name] = kind

    def __getitem__(self, name: str) -> JobKind:
        """The kind of this name.

        Raises:
            UnknownKindError: there is none; names those that are spelt nearly so.
        """
        if name not in self._kinds:
            near = get_close_matches(name, self._kinds, n=2)
            hint = f" (did you mean {' or '.join(near)}?)" if near else ""
            raise UnknownKindError(
                f"there is no job {name!r}{hint}",
                where="jobs",
                next_step=f"There are: {', '.join(sorted(self._kinds))}.",
            )
        return self._kinds[name]

    def __contains__(self, name: object) -> bool:
        return name in self._kinds

    def __iter__(self) -> typing.Iterator[str]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)
