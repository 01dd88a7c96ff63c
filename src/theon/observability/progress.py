"""Progress of a long step: one port, a bar on a terminal and a silent one for tests."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text


class Step(Protocol):
    """One running step."""

    def advance(self, amount: int = 1) -> None:
        """Say that `amount` more units are done."""

    def total(self, total: int) -> None:
        """Say how many units there are, once known."""


class ProgressReporter(Protocol):
    """Opens steps; each is closed when its block ends."""

    def step(
        self, operation: str, total: int | None = None, unit: str = ""
    ) -> AbstractContextManager[Step]:
        """Begin `operation` with `total` units of `unit` (None: not known yet)."""


class _SilentStep:
    def advance(self, amount: int = 1) -> None:
        pass

    def total(self, total: int) -> None:
        pass


class SilentProgress:
    """Reports nothing: for tests and for callers that show progress themselves."""

    @contextmanager
    def step(self, operation: str, total: int | None = None, unit: str = "") -> Iterator[Step]:
        """See `ProgressReporter.step`."""
        del operation, total, unit
        yield _SilentStep()


class _BarStep:
    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar = bar
        self._task = task

    def advance(self, amount: int = 1) -> None:
        self._bar.advance(self._task, amount)

    def total(self, total: int) -> None:
        self._bar.update(self._task, total=total)


class _Count(ProgressColumn):
    """`455,740 of 455,740 events`; the total is left out while it is not known."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        super().__init__(Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        """The text of one task."""
        total = "" if task.total is None else f" of {task.total:,.0f}"
        return Text(f"{task.completed:,.0f}{total} {self._unit}".rstrip())


class TerminalProgress:
    """A bar per step on standard error, with time elapsed and remaining."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)

    @contextmanager
    def step(self, operation: str, total: int | None = None, unit: str = "") -> Iterator[Step]:
        """See `ProgressReporter.step`."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            _Count(unit),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console, transient=False) as bar:
            task = bar.add_task(operation, total=total)
            yield _BarStep(bar, task)
            if bar.tasks[0].total is None:
                done = max(int(bar.tasks[0].completed), 1)
                bar.update(task, total=done, completed=done)
            elif not bar.finished:
                bar.update(task, completed=bar.tasks[0].total)
