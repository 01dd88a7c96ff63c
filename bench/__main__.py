"""`python -m bench [PART]`: run the measurements and print one table.

Parts: ingest, memory, kernel, late, jobs, queue, http, kafka, live. Ours and theirs run in turn,
each in a process of its own, as often as `BENCH_REPEATS` says; the best run of each counts. Sizes
come from `BENCH_EVENTS`, `BENCH_JOBS`, `BENCH_QUEUE`, `BENCH_HTTP` and `BENCH_KAFKA`;
`BENCH_LIVE_S` is how long live is measured.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from bench import data, report

REPEATS = int(os.environ.get("BENCH_REPEATS", "2"))
JOBS = int(os.environ.get("BENCH_JOBS", "20000"))
LATENCIES = 400
FULL_HOUR = 3_500_000
LIVE_RATE = 1_000
SHORT_QUEUE = 10_000
KAFKA = int(os.environ.get("BENCH_KAFKA", "2000000"))
HTTP = int(os.environ.get("BENCH_HTTP", "100000"))
QUEUE = int(os.environ.get("BENCH_QUEUE", "1000000"))
RESULTS = Path(__file__).parent / "results.json"
console = Console(width=130)


@dataclass
class Line:
    """One line of the table; `ratio` is ours through theirs, unless the name says otherwise."""

    part: str
    name: str
    ours: float
    theirs: float
    ratio: float
    target: str
    holds: bool
    unit: str = "s"


def run(task: str, count: int, *, module: str = "work", unit: str = "events") -> dict[str, Any]:
    """Run one task in a process of its own."""
    console.print(f"  {task} on {count:,} {unit} …", end="")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", f"bench.{module}", task, str(count)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    console.print(f" {result['seconds']:.2f} s, {result['peak_mb']} MB")
    return result


def best(
    *tasks: tuple[str, int], module: str = "work", unit: str = "events"
) -> list[dict[str, Any]]:
    """The fastest run of each task, the tasks taken in turn."""
    runs = [
        [run(task, count, module=module, unit=unit) for task, count in tasks]
        for _ in range(REPEATS)
    ]
    return [min(column, key=lambda r: r["seconds"]) for column in zip(*runs, strict=True)]


def prepare(events: int) -> None:
    """Make the log and ingest it, if that was not done before."""
    data.log_csv(events)
    if not (data.home(events) / "lake").exists():
        run("ours_ingest", events)


def at_most(part: str, name: str, ours: float, theirs: float, limit: float) -> Line:
    """A line whose ratio may be `limit` at most."""
    return Line(part, name, ours, theirs, ours / theirs, f"≤ {limit:g}", ours / theirs <= limit)


def at_least(
    part: str, name: str, ours: float, theirs: float, limit: float, unit: str = "/s"
) -> Line:
    """A line of speeds, so the ratio has to be `limit` at least."""
    ratio = ours / theirs
    return Line(part, name, ours, theirs, ratio, f"≥ {limit:g}", ratio >= limit, unit)


def kernel() -> list[Line]:
    """Events to weeks against one window query over all events."""
    prepare(data.EVENTS)
    prepare(data.POSTGRES_EVENTS)
    ours, weeks, duck, click = best(
        ("ours_kernel", data.EVENTS),
        ("ours_weeks", data.EVENTS),
        ("theirs_duckdb", data.EVENTS),
        ("theirs_clickhouse", data.EVENTS),
    )
    small, postgres = best(
        ("ours_kernel", data.POSTGRES_EVENTS), ("theirs_postgres", data.POSTGRES_EVENTS)
    )
    lines = [
        at_most(
            "kernel", "events → week, window in DuckDB", ours["seconds"], duck["seconds"], 0.75
        ),
        at_most(
            "kernel", "events → week, window in ClickHouse", ours["seconds"], click["seconds"], 0.75
        ),
        at_most("kernel", "cells → week, window in DuckDB", weeks["seconds"], duck["seconds"], 0.3),
    ]
    faster = postgres["seconds"] / small["seconds"]
    lines.append(
        Line(
            "kernel",
            f"times faster than PostgreSQL, {data.POSTGRES_EVENTS:,} events",
            small["seconds"],
            postgres["seconds"],
            faster,
            "≥ 15",
            faster >= 15,
        )
    )
    digests = {r["digest"] for r in (ours, weeks, duck, click)}
    lines.append(
        Line(
            "kernel",
            "different results of the four (identical: 1)",
            len(digests),
            1,
            len(digests),
            "= 1",
            len(digests) == 1,
            "",
        )
    )
    return lines


def ingest() -> list[Line]:
    """A logstore CSV to the committed lake against DuckDB's CSV to Parquet."""
    ours, theirs = best(("ours_ingest", data.EVENTS), ("theirs_csv_to_parquet", data.EVENTS))
    lake_s = ours["seconds"] - ours["outcomes_s"]
    parquet_s = theirs["seconds"]
    return [
        at_most("ingest", "CSV → committed lake, DuckDB's CSV → Parquet", lake_s, parquet_s, 2.5),
        at_most("ingest", "the same, and what it says of outcomes", ours["seconds"], parquet_s, 5),
    ]


def memory() -> list[Line]:
    """Peak memory of ingest and rebuild, and that it does not grow with the history."""
    lines = []
    for task in ("ours_ingest", "ours_rebuild"):
        data.log_csv(data.SMALL_EVENTS)
        prepare(data.SMALL_EVENTS)
        prepare(data.EVENTS)
        small, large = (
            run(task, data.SMALL_EVENTS)["peak_mb"],
            run(task, data.EVENTS)["peak_mb"],
        )
        what = task.removeprefix("ours_")
        lines.append(
            Line("memory", f"{what}: peak, limit 1,500 MB", large, 1500, large / 1500, "≤ 1",
                 large <= 1500, "MB")
        )  # fmt: skip
        lines.append(
            Line("memory", f"{what}: {data.EVENTS:,} events through {data.SMALL_EVENTS:,}", large,
                 small, large / small, "≤ 1.25", large <= 1.25 * small, "MB")
        )  # fmt: skip
    return lines


def late() -> list[Line]:
    """A refresh after a thousand late events in fifty hours against a rebuild of the activity."""
    prepare(data.EVENTS)
    run("ours_refresh", data.EVENTS)
    rebuild, recent, scattered = best(
        ("ours_rebuild", data.EVENTS),
        ("ours_late", data.EVENTS),
        ("ours_late_scattered", data.EVENTS),
    )
    activity_s = rebuild["seconds"] - rebuild["outcomes_s"]
    return [
        at_most("late", f"refresh after 1,000 late events in {hours}, rebuild", ours, theirs, 0.03)
        for hours, ours, theirs in (
            ("the last 50 hours", recent["seconds"], activity_s),
            ("50 hours drawn from 20 weeks", scattered["seconds"], activity_s),
        )
    ]


def jobs_task(task: str, count: int) -> dict[str, Any]:
    return run(task, count, module="jobs_work", unit="jobs")


def jobs() -> list[Line]:
    """Jobs that do nothing against bare Celery and Procrastinate; latency."""
    celery, bare, local, procrastinate = best(
        ("ours_jobs_celery", JOBS),
        ("theirs_jobs_celery", JOBS),
        ("ours_jobs_embedded", JOBS),
        ("theirs_jobs_procrastinate", JOBS),
        module="jobs_work",
        unit="jobs",
    )
    lines = [
        at_least("jobs", name, JOBS / ours["seconds"], JOBS / theirs["seconds"], limit)
        for name, ours, theirs, limit in (
            ("no-op jobs on Redis, bare Celery prefork", celery, bare, 0.7),
            ("no-op jobs in one process, Procrastinate", local, procrastinate, 3),
        )
    ]
    for delivery in ("embedded", "celery"):
        found = jobs_task(f"ours_latency_{delivery}", LATENCIES)
        for name, limit_ms in (("p50", 15), ("p99", 100)):
            ms = found[f"{name}_ms"]
            lines.append(
                Line("jobs", f"{delivery}: enqueued to begun, idle, {name}; limit", ms, limit_ms,
                     ms / limit_ms, "≤ 1", ms <= limit_ms, "ms")
            )  # fmt: skip
    return lines


def queue() -> list[Line]:
    """A queue of a million jobs: handing out of it, also under an old snapshot; its first pages."""
    short, long = (jobs_task("ours_dispatch", count) for count in (SHORT_QUEUE, QUEUE))
    lines = [
        at_least("queue", f"{name}, of {SHORT_QUEUE:,} queued", ours, short["per_s"], 0.7)
        for name, ours in (
            (f"handed out of {QUEUE:,} queued", long["per_s"]),
            ("the same while a snapshot is held for a minute", long["held_per_s"]),
        )
    ]
    for name, pages in (("", "lists_ms"), (", snapshot held", "held_lists_ms")):
        which, ms = max(long[pages].items(), key=lambda item: item[1])
        lines.append(
            Line("queue", f"slowest first page of jobs, p95 ({which}){name}; limit", ms, 50,
                 ms / 50, "≤ 1", ms <= 50, "ms")
        )  # fmt: skip
    return lines


def http() -> list[Line]:
    """Events over HTTP from one client process, durable when answered, against an LRS."""
    ours, theirs = best(
        ("ours_batches", HTTP), ("theirs_ralph", HTTP), module="http_work", unit="events"
    )
    singles = run("ours_singles", HTTP // 10, module="http_work")
    batches = HTTP - 2 * 500  # the first two warm up
    per_s = batches / ours["seconds"]
    single_per_s = (HTTP // 10 - 100) / singles["seconds"]
    return [
        at_least("http", "events in batches of 500, durable; target", per_s, 25_000, 1),
        at_least("http", f"the same, Ralph on its file back end, {HTTP:,}", per_s,
                 batches / theirs["seconds"], 10),
        at_least("http", "single events on 32 connections; target", single_per_s, 1_500, 1),
    ]  # fmt: skip


def kafka() -> list[Line]:
    """Topics that are full, to the lake and the metrics; broker and consumer share the machine."""
    small, large = (
        run("ours_kafka", count, module="kafka_work", unit="messages")
        for count in (KAFKA // 4, KAFKA)
    )
    mb, before = large["peak_mb"], small["peak_mb"]
    return [
        at_least("kafka", "messages to lake and metrics, target", large["per_s"], 40_000, 1),
        Line("kafka", f"peak of {KAFKA:,} messages through that of {KAFKA // 4:,}", mb,
             before, mb / before, "≤ 1.25", mb <= 1.25 * before, "MB"),
    ]  # fmt: skip


def live() -> list[Line]:
    """From accepted to told by the stream, in a full hour too, and to shown by a browser."""
    lines = []
    for task, held, done in (
        ("page", 0, "shown on the overview"), ("minute", 0, "told"), ("minute", FULL_HOUR, "told"),
    ):  # fmt: skip
        found = run(task, held, module="live_work", unit="events of this hour")
        where = f", {held:,} events in the hour" if held else ""
        for kind, limit_s in (("activity", 3), ("outcome", 1)):
            for name, target in (("p50", ""), ("p95", "≤ 1")):
                ours = found[kind][f"{name}_s"]
                lines.append(
                    Line("live", f"{kind}: accepted to {done}, {name}{where}; limit", ours, limit_s,
                         ours / limit_s, target, not target or ours <= limit_s)
                )  # fmt: skip
        # Else less was measured than is claimed.
        sent = f"events sent while {done}{where}, wanted"
        lines.append(at_least("live", sent, found["sent_per_s"], LIVE_RATE, 0.95))
        console.print(f"    {found}")
    return lines


PARTS: dict[str, Callable[[], list[Line]]] = {
    "ingest": ingest,
    "memory": memory,
    "kernel": kernel,
    "late": late,
    "jobs": jobs,
    "queue": queue,
    "http": http,
    "kafka": kafka,
    "live": live,
}
OF_JOBS = ("jobs", "queue")
OF_ARRIVALS = ("http", "kafka", "live")


def main() -> int:
    """Run one part or all, print the table, write `bench/results.json`."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("part", nargs="?", choices=sorted(PARTS), help="one part; all unless given")
    chosen = parser.parse_args().part
    lines: list[Line] = []
    for name in [chosen] if chosen else PARTS:
        console.print(f"[bold]{name}[/bold]")
        lines += PARTS[name]()
    title = report.what(_log_of(chosen or ""))
    table = Table(title=title, caption=machine())
    for column in ("name (ours, theirs)", "ours", "theirs", "ratio", "target", "holds"):
        table.add_column(column, justify="left" if column.startswith("name") else "right")
    for line in lines:
        table.add_row(
            line.name,
            f"{line.ours:,.2f} {line.unit}".strip(),
            f"{line.theirs:,.2f} {line.unit}".strip(),
            f"{line.ratio:.3f}",
            line.target,
            "yes" if line.holds else "NO",
        )
    console.print(table)
    write(lines)
    report.write()
    return 0 if all(line.holds for line in lines) else 1


def machine() -> str:
    """The machine's size and the date."""
    memory_gb = psutil.virtual_memory().total / 2**30
    today = datetime.now(UTC).date()
    return (
        f"{os.cpu_count()} cores, {memory_gb:.0f} GB, Python {platform.python_version()}, {today}"
    )


def write(lines: list[Line]) -> None:
    """Merge into `bench/results.json`: parts that were not run keep their last figures."""
    before: list[dict[str, Any]] = []
    if RESULTS.exists():
        before = json.loads(RESULTS.read_text())["lines"]
    ran = {line.part for line in lines}
    kept = [line for line in before if line["part"] not in ran]
    new = [{**asdict(line), "machine": machine(), "events": _log_of(line.part)} for line in lines]
    RESULTS.write_text(json.dumps({"lines": kept + new}, indent=2, ensure_ascii=False) + "\n")


def _log_of(part: str) -> int:
    """Events of the log that a part works on; for parts without one, what `report.what` knows."""
    if part in OF_JOBS:
        return report.JOBS
    return report.ARRIVALS if part in OF_ARRIVALS else data.EVENTS


if __name__ == "__main__":
    sys.exit(main())
