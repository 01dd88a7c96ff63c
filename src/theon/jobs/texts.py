"""What PostgreSQL can keep: texts without NUL, whole characters, finite numbers."""

from collections.abc import Mapping
from math import isfinite
from typing import Any

from theon.errors import InputError

DEEPEST = 100  # levels of lists and objects in each other


def find_fault(value: Any, name: str) -> str | None:
    """What in JSON values cannot be kept, in words that name its place; None if all can.

    Args:
        value: texts, numbers, lists and objects of them.
        name: of the whole, with which the places begin.
    """
    rest: list[tuple[str, Any, int]] = [(name, value, 0)]
    while rest:  # not by recursion: how deep it goes is for whoever sent it to say
        place, found, depth = rest.pop()
        if depth > DEEPEST:
            return f"{name} has more than {DEEPEST} levels of lists and objects in each other"
        if isinstance(found, str):
            fault = _of_text(found)
            if fault is not None:
                return f"{place} {fault}"
        elif isinstance(found, float) and not isfinite(found):
            return f"{place} is no finite number"
        elif isinstance(found, Mapping):
            for key, part in found.items():
                fault = _of_text(str(key))
                if fault is not None:
                    return f"a name in {place} {fault}"
                rest.append((f"{place}.{key}", part, depth + 1))
        elif isinstance(found, list | tuple):
            rest += [(f"{place}[{n}]", part, depth + 1) for n, part in enumerate(found)]
    return None


def check_texts(value: Any, name: str, *, where: str) -> None:
    """Refuse JSON values that cannot be kept.

    Raises:
        InputError: says what is wrong, and where in the value.
    """
    fault = find_fault(value, name)
    if fault is not None:
        raise InputError(fault, where=where, next_step="Leave it out, or write it another way.")


def _of_text(words: str) -> str | None:
    if "\0" in words:
        return "has a NUL character, which no text in the database can have"
    try:
        words.encode()
    except UnicodeEncodeError:
        return "has half of a character (a lone surrogate), which is no text"
    return None
