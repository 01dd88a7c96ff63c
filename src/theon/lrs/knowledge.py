"""What the store knows of activities and of people from the statements about them."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Connection, text

from theon.lrs.identity import agent_key, digest
from theon.lrs.statements import identifiers


def read_definitions(
    conn: Connection, campus_id: int, activities: Iterable[str]
) -> dict[str, dict[str, Any]]:
    """The definitions of these activities, by their ids, as far as there are any."""
    rows = conn.execute(
        text(
            "SELECT id, definition FROM theon.lrs_activities"
            " WHERE campus_id = :campus AND id_hash = ANY (:hashes)"
        ),
        {"campus": campus_id, "hashes": [digest(name) for name in set(activities)]},
    )
    return {row.id: json.loads(row.definition) for row in rows}


def read_activity(conn: Connection, campus_id: int, activity: str) -> dict[str, Any]:
    """An activity with what is known of it; there is one for every id."""
    found = read_definitions(conn, campus_id, [activity])
    shown: dict[str, Any] = {"objectType": "Activity", "id": activity}
    if activity in found:
        shown["definition"] = found[activity]
    return shown


def read_person(conn: Connection, campus_id: int, agent: Mapping[str, Any]) -> dict[str, Any]:
    """An agent as a Person: the identifier that was asked for, and the names it goes by."""
    identifier = identifiers(agent)[0]
    names = conn.execute(
        text(
            "SELECT name FROM theon.lrs_names WHERE campus_id = :campus AND agent = :agent"
            " ORDER BY name"
        ),
        {"campus": campus_id, "agent": agent_key(agent)},
    )
    found = list(names.scalars())
    if "name" in agent and agent["name"] not in found:
        found.append(agent["name"])
    shown: dict[str, Any] = {"objectType": "Person", identifier: [agent[identifier]]}
    if found:
        shown["name"] = found
    return shown
