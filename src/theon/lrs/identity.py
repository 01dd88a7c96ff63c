"""When two statements say the same, and by which keys a statement is found."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Any
from uuid import UUID

from theon.lrs.statements import CONTEXT_ACTIVITIES, identifiers

# What a store adds or changes, and the time, which is compared by itself.
_NOT_COMPARED = ("id", "stored", "authority", "version", "timestamp", "attachments")
# Hundredths of a second are the finest that is compared of a duration.
_FRACTION = re.compile(r"[.,]([0-9]{0,2})[0-9]*S$")


class Key(StrEnum):
    """By what a statement is asked for."""

    VERB = "verb"
    REGISTRATION = "registration"
    ACTIVITY = "activity"
    RELATED_ACTIVITY = "related activity"
    AGENT = "agent"
    RELATED_AGENT = "related agent"


def digest(*parts: str) -> UUID:
    """128 bits that stand for some texts, however long."""
    words = "".join(f"{len(part)}:{part}" for part in parts)
    return UUID(bytes=hashlib.blake2b(words.encode(), digest_size=16).digest())


def fingerprint(statement: Mapping[str, Any]) -> bytes:
    """What a statement says, as a hash: equal for two that differ only in how they are written."""
    told = {name: value for name, value in statement.items() if name not in _NOT_COMPARED}
    words = json.dumps(_plain(told), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(words.encode()).digest()


def _plain(value: Any, name: str = "", *, free: bool = False) -> Any:
    """A value in the one way to write it; what is in extensions is `free` of xAPI's rules."""
    free = free or name == "extensions"
    if isinstance(value, dict):
        if name == "contextActivities" and not free:
            value = {key: part if isinstance(part, list) else [part] for key, part in value.items()}
        if name == "result" and not free and isinstance(value.get("duration"), str):
            value = {**value, "duration": _FRACTION.sub(_hundredths, value["duration"])}
        return {key: _plain(part, key, free=free) for key, part in value.items()}
    if isinstance(value, list):
        parts = [_plain(part, free=free) for part in value]
        # Members of a group and activities of a context are in no order.
        if not free and (name == "member" or name in CONTEXT_ACTIVITIES):
            parts.sort(key=lambda part: json.dumps(part, sort_keys=True))
        return parts
    if isinstance(value, float) and value.is_integer():
        return int(value)  # 1.0 and 1 are the same number
    if name == "registration" and isinstance(value, str) and not free:
        return value.lower()
    return value


def _hundredths(fraction: re.Match[str]) -> str:
    digits = fraction[1].rstrip("0")
    return f".{digits}S" if digits else "S"


def agent_key(actor: Mapping[str, Any]) -> UUID:
    """Who an Agent or an identified Group is, whatever it is called."""
    name = identifiers(actor)[0]
    value = actor[name]
    if name == "account":
        return digest(name, value["homePage"], value["name"])
    return digest(name, value.lower() if name == "mbox_sha1sum" else value)


def key_of(kind: Key, value: str) -> UUID:
    """The key of statements with this verb, activity or registration."""
    return digest(kind, value)


def key_of_agent(kind: Key, agent: UUID) -> UUID:
    """The key of statements with this Agent or Group."""
    return digest(kind, str(agent))


def keys_of(statement: Mapping[str, Any]) -> set[UUID]:
    """Every key that a statement is found by, of itself."""
    found = {key_of(Key.VERB, statement["verb"]["id"])}
    registration = statement.get("context", {}).get("registration")
    if registration is not None:
        found.add(key_of(Key.REGISTRATION, registration.lower()))
    for actor in (statement["actor"], statement["object"]):
        found |= {key_of_agent(Key.AGENT, agent) for agent in _recognised(actor)}
    thing = statement["object"]
    if _is_activity(thing):
        found.add(key_of(Key.ACTIVITY, thing["id"]))
    found |= {key_of(Key.RELATED_ACTIVITY, a["id"]) for a in activities_of(statement)}
    for actor in actors_of(statement):
        found |= {key_of_agent(Key.RELATED_AGENT, agent) for agent in _recognised(actor)}
    return found


def activities_of(statement: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Every activity that a statement names, those of a statement within it too."""
    for told in _with_inner(statement):
        if _is_activity(told["object"]):
            yield told["object"]
        for group in told.get("context", {}).get("contextActivities", {}).values():
            yield from group if isinstance(group, list) else [group]


def actors_of(statement: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Every Agent and Group that a statement names, those of a statement within it too."""
    if "authority" in statement:
        yield statement["authority"]
    for told in _with_inner(statement):
        yield told["actor"]
        if told["object"].get("objectType") in ("Agent", "Group"):
            yield told["object"]
        context = told.get("context", {})
        yield from (context[name] for name in ("instructor", "team") if name in context)
        yield from (part["agent"] for part in context.get("contextAgents", ()))
        yield from (part["group"] for part in context.get("contextGroups", ()))


def everybody(actors: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """These Agents and Groups, and the members of the Groups."""
    for actor in actors:
        yield actor
        yield from actor.get("member", ())


def _recognised(actor: Mapping[str, Any]) -> Iterator[UUID]:
    """Who is meant, and who is among its members."""
    yield from (agent_key(one) for one in everybody([actor]) if identifiers(one))


def _is_activity(thing: Mapping[str, Any]) -> bool:
    return bool(thing.get("objectType", "Activity") == "Activity")


def _with_inner(statement: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield statement
    if statement["object"].get("objectType") == "SubStatement":
        yield statement["object"]
