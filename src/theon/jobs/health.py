"""How the job system does, in figures and in a sentence: what holds jobs up, and what to do."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from theon.jobs import figures
from theon.jobs.figures import (
    KindFigures,
    Pause,
    QueueFigures,
    Target,
    Window,
)

NAMED_KINDS = 5
ENOUGH_ATTEMPTS = 20  # of a kind, before its failures are called a bottleneck
LONG_WAIT_S = 60.0


@dataclass(frozen=True)
class Bottleneck:
    """What holds jobs up most, in a sentence, and what to do about it."""

    sentence: str
    recommendation: str


NOTHING = Bottleneck("Nothing holds jobs up.", "There is nothing to do.")


@dataclass(frozen=True)
class Health:
    """How the job system does.

    Attributes:
        window_s: seconds that the figures cover; less than asked for where very many attempts
            ended.
        targets: the five of C10, see `figures.targets`.
        queues: every queue that has jobs.
        kinds: every kind of which an attempt ended in the window.
        slowest: kinds by the 95th percentile of their runs.
        most_failing: kinds by how many attempts failed or were lost.
        bottleneck: what to look at first.
    """

    window_s: float
    targets: tuple[Target, ...]
    queues: tuple[QueueFigures, ...]
    kinds: tuple[KindFigures, ...]
    slowest: tuple[KindFigures, ...]
    most_failing: tuple[KindFigures, ...]
    bottleneck: Bottleneck


def health(
    conn: Connection, *, window_s: float = figures.WINDOW_S, window: Window | None = None
) -> Health:
    """The figures of a window, up to now unless it is given, of the scope of `conn`."""
    window = window or figures.look_back(conn, window_s)
    kinds = figures.kind_figures(conn, window)
    queues = figures.queue_figures(conn, window)
    found = figures.targets(conn, kinds, window)
    pauses = [*figures.pauses_above(conn), *figures.list_pauses(conn)]
    slowest = sorted(kinds, key=lambda kind: kind.run_p95_s or 0.0, reverse=True)
    failing = sorted(kinds, key=lambda kind: kind.failed + kind.lost, reverse=True)
    return Health(
        window.seconds,
        found,
        tuple(queues),
        tuple(kinds),
        tuple(kind for kind in slowest if kind.run_p95_s is not None)[:NAMED_KINDS],
        tuple(kind for kind in failing if kind.failed + kind.lost)[:NAMED_KINDS],
        find_bottleneck(queues, kinds, found, pauses, figures.served_queues(conn)),
    )


def find_bottleneck(
    queues: Sequence[QueueFigures],
    kinds: Sequence[KindFigures],
    targets: Sequence[Target],
    pauses: Sequence[Pause],
    served: Collection[str],
) -> Bottleneck:
    """What holds jobs up most: what stands still before what fails before what is slow.

    `served` are the queues whose jobs some worker begins.
    """
    values = {target.name: target.value for target in targets}
    candidates = (
        _without_worker(queues, served),
        _at_rest(queues, pauses),
        _failing(kinds),
        _full(kinds, values.get("utilisation")),
        _held_back(queues),
        _slow(kinds, values.get("mean_run")),
    )
    return next((found for group in candidates for found in group), NOTHING)


def _without_worker(
    queues: Sequence[QueueFigures], served: Collection[str]
) -> Iterator[Bottleneck]:
    for queue in _by_depth(queues):
        if queue.waiting and queue.queue not in served:
            yield Bottleneck(
                f"No worker takes jobs of the queue {queue.queue}, and {_jobs(queue.waiting)}.",
                f"Start one: theon worker --queues {queue.queue}",
            )


def _at_rest(queues: Sequence[QueueFigures], pauses: Sequence[Pause]) -> Iterator[Bottleneck]:
    at_rest = {pause.value: pause for pause in pauses if pause.subject == "queue"}
    for queue in _by_depth(queues):
        pause = at_rest.get(queue.queue)
        if queue.waiting and pause is not None:
            why = f" ({pause.reason})" if pause.reason else ""
            yield Bottleneck(
                f"The queue {queue.queue} is paused in {pause.campus} by {pause.paused_by}{why}, "
                f"and {_jobs(queue.waiting)}.",
                "Resume it when the reason is over.",
            )


def _failing(kinds: Sequence[KindFigures]) -> Iterator[Bottleneck]:
    for kind in sorted(kinds, key=lambda kind: kind.failed + kind.lost, reverse=True):
        if kind.attempts >= ENOUGH_ATTEMPTS and kind.failure_share >= figures.FAILURES:
            error = f", mostly with {kind.error_kind}" if kind.error_kind else ""
            yield Bottleneck(
                f"{kind.kind} fails in {kind.failure_share:.0%} of {kind.attempts:,} attempts"
                f"{error}: they are made again and take the place of others.",
                "Look at its errors, mend the cause, then retry its dead letters."
                if kind.failed >= kind.lost
                else "Its workers die of it: look at its memory and give it a limit that fits.",
            )


def _full(kinds: Sequence[KindFigures], utilisation: float | None) -> Iterator[Bottleneck]:
    if utilisation is None or utilisation < figures.UTILISATION or not kinds:
        return
    busiest = max(kinds, key=lambda kind: kind.busy_s)
    share = busiest.busy_s / (sum(kind.busy_s for kind in kinds) or 1.0)
    yield Bottleneck(
        f"Workers are busy {utilisation:.0%} of their time; {busiest.kind} takes {share:.0%} "
        "of that.",
        f"Add slots or a worker, run {busiest.kind} when less is to be done, or make it faster.",
    )


def _held_back(queues: Sequence[QueueFigures]) -> Iterator[Bottleneck]:
    for queue in sorted(queues, key=lambda queue: queue.wait_p95_s or 0.0, reverse=True):
        if queue.wait_p95_s is not None and queue.wait_p95_s > LONG_WAIT_S:
            yield Bottleneck(
                f"One in twenty jobs of the queue {queue.queue} waits more than "
                f"{_duration(queue.wait_p95_s)}.",
                "Look at why one of them waits: a cap, a rate limit, memory or a need holds it.",
            )


def _slow(kinds: Sequence[KindFigures], mean_run_s: float | None) -> Iterator[Bottleneck]:
    if mean_run_s is None or mean_run_s < figures.MEAN_RUN_S:
        return
    ran = [kind for kind in kinds if kind.run_mean_s is not None]
    slowest = max(ran, key=lambda kind: (kind.run_mean_s or 0.0) * kind.completed)
    yield Bottleneck(
        f"A run takes {_duration(mean_run_s)} on average; most of that is {slowest.kind}, with "
        f"{_duration(slowest.run_mean_s or 0.0)}.",
        f"Cut {slowest.kind} into smaller jobs, or give it a queue and workers of its own.",
    )


def _by_depth(queues: Sequence[QueueFigures]) -> list[QueueFigures]:
    return sorted(queues, key=lambda queue: queue.waiting, reverse=True)


def _jobs(count: int) -> str:
    return "one job waits" if count == 1 else f"{count:,} jobs wait"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7_200 else f"{seconds / 3600:.1f} h"
