"""Jobs that the tests of workers run in real processes."""

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import text

from theon.jobs.errors import PermanentError, TransientError
from theon.jobs.kinds import Backoff, Kinds, job

SOURCE = "tests.jobs.kinds_for_tests:kinds"
AT_ONCE = Backoff(first_s=0.0, jitter=0.0)
BRIEF_S = 2.0  # in which a job on a busy machine still comes to note something


@dataclass(frozen=True)
class Step:
    """What a job does, and where it leaves a note of it."""

    n: int = 0
    seconds: float = 0.0
    notes: str = ""
    how: str = ""


@dataclass(frozen=True)
class Answer:
    n: int
    at: datetime
    place: Path


def note(args: Step, **what: Any) -> None:
    with Path(args.notes).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"pid": os.getpid(), **what}) + "\n")


def gate(notes: str) -> Path:
    """The file that lets jobs with these notes go on."""
    return Path(notes + ".gate")


def hold(args: Step) -> None:
    """Wait until the test lets this job go on."""
    while not gate(args.notes).exists():
        time.sleep(0.02)


@job("try.answer", queue="try")
def answer(ctx: Any, args: Step) -> Answer:
    """Return a dataclass."""
    return Answer(args.n * 2, datetime(2026, 1, 2, tzinfo=UTC), Path("/x"))


@job("try.nothing", queue="try")
def nothing(ctx: Any, args: Step) -> None:
    """Do nothing."""


@job("try.pid", queue="try")
def pid(ctx: Any, args: Step) -> int:
    """Say which process this is."""
    return os.getpid()


@job("try.context", queue="try")
def context(ctx: Any, args: Step) -> dict[str, Any]:
    """Say what the context knows, and whose rows its transaction sees."""
    with ctx.transaction() as conn:
        scope = conn.execute(text("SELECT current_setting('theon.scope')")).scalar_one()
    ctx.log("seen", scope=scope)
    return {
        "job": ctx.job_id, "attempt": ctx.attempt, "campus": ctx.campus, "owner": ctx.owner,
        "scope": scope, "home": str(ctx.settings.home), "cancelled": ctx.cancelled,
    }  # fmt: skip


@job("try.wait", queue="try", timeout_s=60, backoff=AT_ONCE)
def wait(ctx: Any, args: Step) -> str:
    """Note the process, tell progress, wait: so many seconds or, as `how` says, for the test."""
    note(args, n=args.n, attempt=ctx.attempt)
    ctx.progress(1, 4, f"step {args.n}")
    if args.how == "hold":
        hold(args)
    time.sleep(args.seconds)
    return "waited"


@job("try.brief", queue="try", timeout_s=BRIEF_S, max_attempts=1)
def brief(ctx: Any, args: Step) -> None:
    """Take longer than it may."""
    note(args)
    time.sleep(60)


@job("try.stubborn", queue="try", timeout_s=BRIEF_S, max_attempts=1)
def stubborn(ctx: Any, args: Step) -> None:
    """Take longer than it may, and swallow the request to end."""
    note(args)
    while True:
        try:
            time.sleep(60)
        except BaseException:
            note(args, swallowed=True)


@job("try.greedy", queue="try", memory_mb=300, max_attempts=1)
def greedy(ctx: Any, args: Step) -> None:
    """Take more memory than it may."""
    held = []
    for _ in range(40):
        held.append(bytearray(os.urandom(1) * (20 << 20)))
        time.sleep(0.02)
    time.sleep(60)


@job("try.fat", queue="try", memory_mb=1024)
def fat(ctx: Any, args: Step) -> int:
    """Leave a lot of memory behind in the process, within its own limit."""
    _kept.append(bytearray(b"x" * (250 << 20)))
    time.sleep(0.1)
    return os.getpid()


_kept: list[bytearray] = []


@job("try.slim", queue="try", memory_mb=300, max_attempts=1)
def slim(ctx: Any, args: Step) -> int:
    """Need little memory, for long enough to be measured."""
    time.sleep(1.5)
    return os.getpid()


@job("try.checkpoint", queue="try", max_attempts=3, backoff=AT_ONCE)
def checkpoint(ctx: Any, args: Step) -> list[Any]:
    """Fail after a checkpoint, and go on from it."""
    if ctx.saved is None:
        ctx.checkpoint({"at": 41})
        raise TransientError("the first attempt fails")
    return [ctx.saved["at"] + 1, ctx.attempt]


@job("try.resume", queue="try", timeout_s=60)
def resume(ctx: Any, args: Step) -> int:
    """Keep a checkpoint and wait; from a checkpoint, end at once."""
    if ctx.saved is not None:
        return int(ctx.saved)
    try:
        ctx.checkpoint(6)
        note(args)
        time.sleep(60)
    finally:
        ctx.checkpoint(7)
    return 0


@job("try.fail", queue="try", max_attempts=3, backoff=Backoff(first_s=100, jitter=0.0))
def fail(ctx: Any, args: Step) -> None:
    """Fail in the way that `how` says."""
    if args.how == "transient":
        raise TransientError("the line is busy", where="line 4")
    if args.how == "permanent":
        raise PermanentError("there is no such line")
    if args.how == "nul":
        raise ValueError("a\0b \ud800")
    if args.how == "exit":
        raise SystemExit(3)
    raise KeyError("gone")


@job("try.strange", queue="try", max_attempts=1)
def strange(ctx: Any, args: Step) -> Any:
    """Return what can hardly be kept."""
    ctx.progress(float("nan"), float("inf"), "a\0b")
    return {
        "object": object(), "nan": [float("nan")], "nul": "a\0b", "half": "\ud800",
        "huge": "x" * 5_000_000, "large": "y" * 3_000_000,
    }[args.how]  # fmt: skip


@job("try.die", queue="try", max_lost=3, backoff=AT_ONCE)
def die(ctx: Any, args: Step) -> None:
    """End its own process."""
    if args.how == "exit":
        os._exit(7)
    os.kill(os.getpid(), signal.SIGSEGV if args.how == "segfault" else signal.SIGKILL)


@job("try.effect", queue="try", timeout_s=60, max_attempts=1)
def effect(ctx: Any, args: Step) -> None:
    """Commit an effect with the finish; or, as `how` says, not."""
    with ctx.transaction() as conn:
        conn.execute(
            text(
                "INSERT INTO theon.job_audit (campus_id, actor, action, subject)"
                " SELECT id, 'job', 'effect', :n FROM theon.campuses WHERE slug = :campus"
            ),
            {"n": str(args.n), "campus": ctx.campus},
        )
        note(args)
        if args.how == "late":
            hold(args)
        ctx.finish(conn, {"n": args.n})
        if args.how == "rollback":
            raise TransientError("after the finish, before the commit")
        if args.how == "hold":
            hold(args)  # the row of the job stays locked
    if args.how == "long":
        time.sleep(args.seconds)


@job("try.parent", queue="try", timeout_s=BRIEF_S, max_attempts=1)
def parent(ctx: Any, args: Step) -> None:
    """Start a program that would outlive the job."""
    program = subprocess.Popen(["sleep", "300"])
    note(args, program=program.pid)
    time.sleep(60)


def kinds() -> Kinds:
    return Kinds(
        [
            answer, nothing, pid, context, wait, brief, stubborn, greedy, fat, slim, checkpoint,
            resume, fail, strange, die, effect, parent,
        ]
    )  # fmt: skip
