"""What was done to jobs, and how long one still takes, in words."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from theon.errors import InputError
from theon.jobs.context import clean
from theon.jobs.moves import Done
from theon.jobs.query import Remaining
from theon.web.jobs_base import duration

REASONS_TOLD = 4
IDS_TOLD = 3
DEEPEST = 50

DID = {
    "cancel": "cancelled", "retry": "to be run again", "discard": "discarded",
    "prioritise": "given another priority",
}  # fmt: skip
BUTTONS = {
    "cancel": "Cancel", "retry": "Retry", "discard": "Discard", "prioritise": "Change priority",
}  # fmt: skip


def number_of_jobs(number: int) -> str:
    """`1 job`, `12 jobs`."""
    return f"{number:,} job" if number == 1 else f"{number:,} jobs"


def told(action: str, done: Done) -> str:
    """What an action did: how many changed, end in a moment, were skipped or refused, and why."""
    parts = [f"{number_of_jobs(len(done.changed))} {DID[action]}."]
    if done.asked:
        asked = len(done.asked)
        ends = "ends" if asked == 1 else "end"
        parts.append(f"{asked:,} of them still ran and {ends} in a moment.")
    for word, reasons in (("skipped", done.skipped), ("refused", done.refused)):
        if reasons:
            parts.append(f"{len(reasons):,} {word}: {_grouped(reasons)}.")
    return " ".join(parts)


def _grouped(reasons: Mapping[int, str]) -> str:
    """`it is completed (jobs 3, 5 and 12 more)`, for the most frequent reasons."""
    ids: dict[str, list[int]] = defaultdict(list)
    for job_id, why in sorted(reasons.items()):
        ids[why].append(job_id)
    most = sorted(ids.items(), key=lambda item: -len(item[1]))
    said = [f"{why} ({_some(found)})" for why, found in most[:REASONS_TOLD]]
    if len(most) > REASONS_TOLD:
        said.append(f"and {len(most) - REASONS_TOLD:,} other reasons")
    return "; ".join(said)


def _some(ids: Sequence[int]) -> str:
    shown = ", ".join(map(str, ids[:IDS_TOLD]))
    more = len(ids) - IDS_TOLD
    return f"{'job' if len(ids) == 1 else 'jobs'} {shown}" + (
        f" and {more:,} more" if more > 0 else ""
    )


def time_left(left: Remaining) -> str:
    """How long a running job still takes, as a range."""
    if left.high_s < 1:
        late = left.basis == "history"
        return "longer than such jobs usually take" if late else "done in a moment"
    low, high = _in_whole_units(left.low_s), _in_whole_units(left.high_s)
    if left.low_s < 1:
        return f"up to {high} left"
    return f"{low} left" if low == high else f"{low} to {high} left"


def _in_whole_units(seconds: float) -> str:
    """A guess in tenths of a second would claim too much."""
    return duration(seconds) if seconds >= 9.5 else f"{seconds:.0f} s"


def pretty(value: Any) -> str:
    """JSON for people."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def read_json(words: str) -> Any:
    """The JSON that somebody typed; nothing at all is no arguments.

    Raises:
        InputError: it is no JSON, or has what the ledger cannot keep.
    """
    if not words.strip():
        return {}
    try:
        value = json.loads(words, parse_constant=_no_constant)
        _check(value, DEEPEST)
    except RecursionError:
        raise _unkeepable("is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"the arguments are not JSON: {error.msg}",
            where=f"line {error.lineno}, letter {error.colno}",
            next_step=f"See line {error.lineno}, letter {error.colno}. Names and texts stand in "
            'double quotes: {"rebuild": true}.',
        ) from error
    except ValueError as error:  # a number with too many digits
        raise _unkeepable("has a number that is too long") from error
    return value


def _no_constant(word: str) -> Any:
    raise _unkeepable(f"has {word}, which is no JSON")


def _check(value: Any, depth: int) -> None:
    if depth == 0:
        raise _unkeepable("is nested too deeply")
    if isinstance(value, str) and clean(value) != value:
        raise _unkeepable("has a NUL character or half of one")
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        raise _unkeepable("has a number that is too large")
    if isinstance(value, dict):
        for name, part in value.items():
            _check(name, depth)
            _check(part, depth - 1)
    elif isinstance(value, list):
        for part in value:
            _check(part, depth - 1)


def _unkeepable(what: str) -> InputError:
    return InputError(f"the JSON of the arguments {what}", where="arguments")
