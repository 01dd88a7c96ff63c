"""What a running attempt may use: the real `JobContext`, in the process of the job."""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pydantic_core import PydanticSerializationError, to_jsonable_python
from sqlalchemy import Connection, text

from theon.jobs import ledger
from theon.jobs.errors import PermanentError
from theon.jobs.ledger import Attempt
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope, set_scope

PROGRESS_EVERY_S = 0.25
OPERATION_CHARS = 500
RESULT_BYTES = 4_000_000

_log = logging.getLogger("theon.jobs.run")


class ChildStore:
    """The store of a job's process: opened when a job first wants it, kept for later jobs."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._store: Store | None = None

    def get(self) -> Store:
        """The open store.

        Raises:
            UnavailableError: the database does not answer.
        """
        if self._store is None:
            self._store = Store.open(self.settings)
        return self._store


class AttemptContext:
    """See `theon.jobs.kinds.JobContext`."""

    def __init__(
        self,
        attempt: Attempt,
        store: ChildStore,
        tell: Callable[[list[Any]], bool],
        cancelled: Callable[[], bool],
    ) -> None:
        """Args as follow.

        Args:
            attempt: that runs.
            store: of this process.
            tell: sends progress to the supervisor; False if it cannot now.
            cancelled: whether the supervisor said so.
        """
        self.job_id = attempt.job_id
        self.attempt = attempt.attempt
        self.campus = attempt.campus
        self.owner = attempt.owner
        self.saved = attempt.saved
        self.settings = store.settings
        self._message = attempt.message
        self._store = store
        self._tell = tell
        self._cancelled = cancelled
        self._unsent: list[Any] | None = None
        self._told_at_s = 0.0

    @property
    def store(self) -> Store:
        """The store of this process, opened at the first use."""
        return self._store.get()

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked for the job to be cancelled; its process is ended soon."""
        return self._cancelled()

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction in the scope of the job's campus."""
        with self.store.transaction(Scope(self.campus)) as conn:
            yield conn

    def progress(self, done: float, total: float | None = None, operation: str = "") -> None:
        """Tell how far the job is; cheap, may be called often."""
        self._unsent = [_finite(done), _finite(total), clean(operation)[:OPERATION_CHARS] or None]
        if time.monotonic() - self._told_at_s >= PROGRESS_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Send the progress that was held back, so that the last one is not lost."""
        unsent, self._unsent = self._unsent, None
        if unsent is None:
            return
        if self._tell(unsent):
            self._told_at_s = time.monotonic()
        elif self._unsent is None:
            self._unsent = unsent

    def checkpoint(self, state: Any) -> None:
        """Keep `state` (JSON) for the next attempt; durable when this returns.

        Raises:
            LostLeaseError: the attempt does not own the job any more.
            PermanentError: `state` is not JSON.
        """
        kept = as_json(state, "the checkpoint")
        with self.store.transaction(Scope.district()) as conn:
            ledger.checkpoint(conn, self._message, kept)
        self.saved = kept

    def log(self, message: str, **details: Any) -> None:
        """Write a line to the log with the job's id."""
        tail = "".join(f" {name}={value!r}" for name, value in details.items())
        _log.info("job %d, attempt %d: %s%s", self.job_id, self.attempt, message, tail)

    def finish(self, conn: Connection, result: Any = None) -> None:
        """Complete the job in the transaction of its effect, under its token.

        Raises:
            LostLeaseError: another attempt owns the job; the transaction must roll back.
            PermanentError: `result` is not JSON.
        """
        kept = as_json(result, "the result")
        # Jobs of other campuses may wait for this one, and the campus's scope would hide them.
        scope = conn.execute(text("SELECT current_setting('theon.scope', true)")).scalar()
        set_scope(conn, Scope.district())
        ledger.complete(conn, self._message, kept)
        set_scope(conn, Scope(scope or ""))


def as_json(value: Any, name: str) -> Any:
    """`value` as JSON values that PostgreSQL can keep; dataclasses become objects.

    Raises:
        PermanentError: it cannot be JSON, or is too large.
    """
    try:
        found = to_jsonable_python(value, inf_nan_mode="null")
        dumped = json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
    except (PydanticSerializationError, ValueError, TypeError, RecursionError) as error:
        raise PermanentError(
            f"{name} cannot be kept as JSON: {error}",
            next_step="Return numbers, texts, lists, objects or dataclasses of them.",
        ) from error
    # JSON's own escape, if its backslash is not escaped itself.
    if b"\\u0000" in dumped.replace(b"\\\\", b""):
        raise PermanentError(f"{name} has a NUL character in a text, which cannot be kept")
    if len(dumped) > RESULT_BYTES:
        raise PermanentError(
            f"{name} has {len(dumped) / 1e6:.1f} MB; at most {RESULT_BYTES / 1e6:.0f} MB are kept",
            next_step="Write it into a table or a file and return where it is.",
        )
    return found


def clean(words: str) -> str:
    """`words` without what PostgreSQL cannot keep in a text: NUL and halves of characters."""
    return words.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def _finite(number: float | None) -> float | None:
    if number is None:
        return None
    value = float(number)
    return value if math.isfinite(value) else None
