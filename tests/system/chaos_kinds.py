"""The jobs of the chaos run: innocent ones of several kinds, and a poison."""

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import Connection, text

from theon.jobs.errors import PermanentError, TransientError
from theon.jobs.kinds import Backoff, Kinds, job

SOURCE = "tests.system.chaos_kinds:kinds"
QUEUE = "chaos"
SOON = Backoff(first_s=0.3, factor=2.0, longest_s=5.0)
# The cap is for a job that kills its workers, again and again. Here machines die every few
# seconds of something else; that none of the losses beyond the second had company is checked.
INNOCENT: dict[str, Any] = {
    "queue": QUEUE, "max_attempts": 8, "max_lost": 12, "timeout_s": 60, "memory_mb": 512,
    "backoff": SOON,
}  # fmt: skip

EFFECTS = """
CREATE TABLE theon.chaos_effects (
    n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id bigint NOT NULL,
    attempt int NOT NULL,
    pid int NOT NULL
)"""


@dataclass(frozen=True)
class Work:
    """What a job does.

    Attributes:
        seconds: it takes.
        failures: attempts of its own that fail.
    """

    seconds: float = 0.0
    failures: int = 0


def _effect(ctx: Any, conn: Connection) -> None:
    conn.execute(
        text("INSERT INTO theon.chaos_effects (job_id, attempt, pid) VALUES (:j, :a, :p)"),
        {"j": ctx.job_id, "a": ctx.attempt, "p": os.getpid()},
    )


@job("chaos.short", **INNOCENT)
def short(ctx: Any, args: Work) -> float:
    """Take a moment."""
    time.sleep(args.seconds)
    return args.seconds


@job("chaos.effect", **INNOCENT)
def effect(ctx: Any, args: Work) -> None:
    """Write an effect with the finish, and take a moment between the two."""
    with ctx.transaction() as conn:
        _effect(ctx, conn)
        time.sleep(args.seconds)
        ctx.finish(conn, "done")


@job("chaos.long", **INNOCENT)
def long(ctx: Any, args: Work) -> int:
    """Go on from the last checkpoint; the last step writes the effect."""
    steps = max(1, round(args.seconds / 0.25))
    for step in range(ctx.saved or 0, steps):
        time.sleep(0.25)
        ctx.progress(step + 1, steps, "steps")
        ctx.checkpoint(step + 1)
    with ctx.transaction() as conn:
        _effect(ctx, conn)
        ctx.finish(conn, steps)
    return steps


@job("chaos.flaky", **INNOCENT)
def flaky(ctx: Any, args: Work) -> None:
    """Fail a few times, after an effect that is rolled back, then write it."""
    with ctx.transaction() as conn:
        _effect(ctx, conn)
        if ctx.attempt <= args.failures:
            raise TransientError("the line is busy")
        ctx.finish(conn)


@job("chaos.unlucky", **INNOCENT)
def unlucky(ctx: Any, args: Work) -> None:
    """Lose the process twice, as by somebody's hand; then run, alone, and write the effect."""
    losses = ctx.saved or 0
    if losses < 2:
        ctx.checkpoint(losses + 1)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(args.seconds)
    with ctx.transaction() as conn:
        _effect(ctx, conn)
        ctx.finish(conn)


@job("chaos.poison", queue=QUEUE, max_lost=3, timeout_s=60, memory_mb=512, backoff=SOON)
def poison(ctx: Any, args: Work) -> None:
    """Kill the worker: its supervisor and the server of its processes."""
    time.sleep(args.seconds)
    forks = psutil.Process().parent()
    supervisor = forks.parent() if forks else None
    if forks is None or supervisor is None:
        raise PermanentError("this process has no supervisor")
    if not any(Path(word).name == "chaos_worker.py" for word in supervisor.cmdline()):
        time.sleep(60)  # it is dead already, and this process is about to be
    for process in (supervisor, forks):
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    time.sleep(60)


def kinds() -> Kinds:
    return Kinds([short, effect, long, flaky, unlucky, poison])


WITH_EFFECT = ("chaos.effect", "chaos.long", "chaos.flaky", "chaos.unlucky")
