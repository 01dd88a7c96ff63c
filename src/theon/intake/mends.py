"""Mends: small changes that make a dead letter readable, made in a copy before it is replayed.

A mend is a list of steps, as JSON:

    {"do": "set", "field": "occurred_at", "value": "2026-11-26T08:00:00Z"}
    {"do": "rename", "field": "userid", "to": "user_id"}
    {"do": "remove", "field": "extra"}
    {"do": "replace", "text": "NaN", "by": "null"}

A field is a key of the JSON object, or a JSON pointer to one further in: `/data/score`. To remove
or rename a field that a letter does not have changes nothing.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from theon.errors import InputError

MOST_STEPS = 20
LARGEST_BYTES = 1 << 20
_NEEDED = {
    "set": ("field", "value"),
    "rename": ("field", "to"),
    "remove": ("field",),
    "replace": ("text", "by"),
}


class UnfitMendError(InputError):
    """A mend cannot be made in this letter."""


@dataclass(frozen=True)
class Step:
    """One change; which of the others it needs depends on `do`."""

    do: str
    field: str = ""
    value: Any = None
    to: str = ""
    text: str = ""
    by: str = ""


@dataclass(frozen=True)
class Mend:
    """Steps, made in this order; none of them is a mend that changes nothing."""

    steps: tuple[Step, ...] = ()

    def as_json(self) -> list[dict[str, Any]]:
        """The steps as they are written."""
        return [
            {"do": step.do, **{name: asdict(step)[name] for name in _NEEDED[step.do]}}
            for step in self.steps
        ]

    def apply(self, original: bytes) -> bytes:
        """A mended copy.

        Raises:
            UnfitMendError: a field is to be changed and the letter is no JSON object, or it would
                become too large.
        """
        for step in self.steps:
            if step.do == "replace":
                original = original.replace(step.text.encode(), step.by.encode())
            else:
                original = _dump(_change(_load(original), step))
            if len(original) > LARGEST_BYTES:
                raise UnfitMendError("the mend makes it larger than a megabyte", where="mend")
        return original


def read_mend(steps: Sequence[Any]) -> Mend:
    """A mend from its JSON.

    Raises:
        InputError: a step is none; says which and why.
    """
    if len(steps) > MOST_STEPS:
        raise _wrong(f"there are more than {MOST_STEPS} steps", "mend")
    return Mend(tuple(_read_step(step, f"mend, step {n}") for n, step in enumerate(steps, 1)))


def _read_step(step: Any, where: str) -> Step:
    if not isinstance(step, dict) or step.get("do") not in _NEEDED:
        raise _wrong(f"a step does one of {', '.join(_NEEDED)}", where)
    needed = _NEEDED[step["do"]]
    if set(step) != {"do", *needed}:
        raise _wrong(f"{step['do']} takes {' and '.join(needed)}, and nothing else", where)
    for name in needed:
        if name != "value" and not isinstance(step[name], str):
            raise _wrong(f"{name} is a text", where)
    if not step.get("field", "x") or not step.get("text", "x") or not step.get("to", "x"):
        raise _wrong("a field, or the text to replace, is empty", where)
    try:
        json.dumps(step, allow_nan=False).encode()
        "".join(value for value in step.values() if isinstance(value, str)).encode()
    except (ValueError, RecursionError) as error:
        raise _wrong("a value cannot be written as JSON", where) from error
    return Step(**step)


def _wrong(what: str, where: str) -> InputError:
    return InputError(
        what,
        where=where,
        next_step='Such as {"do": "set", "field": "user_id", "value": "5"}; '
        "docs/guides/delivery.md shows all.",
    )


# -- JSON ----------------------------------------------------------------------------------


def _load(original: bytes) -> dict[str, Any]:
    try:
        found = json.loads(original)
    except (ValueError, RecursionError) as error:
        raise UnfitMendError(
            "it is no JSON, so no field of it can be changed",
            where="mend",
            next_step="Replace the text that is wrong first.",
        ) from error
    if not isinstance(found, dict):
        raise UnfitMendError("it is no JSON object, so it has no fields", where="mend")
    return found


def _dump(value: dict[str, Any]) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:  # half a character, which JSON can write and UTF-8 cannot
        return json.dumps(value, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise UnfitMendError("it holds a number that JSON cannot write", where="mend") from error


def _change(whole: dict[str, Any], step: Step) -> dict[str, Any]:
    *above, name = _path(step.field)
    place = _inside(whole, above, make=step.do == "set")
    if place is None:
        return whole
    if step.do == "set":
        place[name] = step.value
    elif name in place:
        value = place.pop(name)
        if step.do == "rename":
            *above, name = _path(step.to)
            target = _inside(whole, above, make=True)
            assert target is not None  # noqa: S101 - it was made
            target[name] = value
    return whole


def _path(field: str) -> list[str]:
    if not field.startswith("/"):
        return [field]
    return [part.replace("~1", "/").replace("~0", "~") for part in field[1:].split("/")]


def _inside(whole: dict[str, Any], path: Sequence[str], *, make: bool) -> dict[str, Any] | None:
    """The object at a path; None where there is none and none is to be made."""
    place = whole
    for name in path:
        inner = place.get(name)
        if not isinstance(inner, dict):
            if not make:
                return None
            inner = place[name] = {}
        place = inner
    return place
