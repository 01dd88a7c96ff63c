"""Statements about statements: they are found by what the ones that they refer to say, too.

What that means does not depend on the order in which statements come: a statement has its own
keys, and those that statements up to `FURTHEST` steps below it have of their own.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

FURTHEST = 10  # or a chain of n statements would take n times n keys


@dataclass(frozen=True)
class Node:
    """A statement, when it was stored, and which one it refers to."""

    id: UUID
    stored: datetime
    refers_to: UUID | None


def inherit_keys(conn: Connection, campus_id: int, new: Sequence[Node]) -> bool:
    """Give keys along every reference that leads to, through or from one of the new statements.

    Returns:
        Whether there is such a reference.

    Args:
        conn: a transaction of the only one who stores statements of the campus now.
        campus_id: whose.
        new: stored in this transaction, with their own keys.
    """
    nodes = {node.id: node for node in new}
    above = _read_above(conn, campus_id, nodes)
    if not above and all(node.refers_to is None for node in new):
        return False
    _read_below(conn, campus_id, nodes, new)
    pairs = {
        (top.stored, source.stored)
        for node in new
        for up, tops in enumerate(_levels(node, above))
        for top in tops
        for source in _chain(node, nodes, FURTHEST - up)
        if top.id != source.id
    }
    conn.execute(
        text(
            "INSERT INTO theon.lrs_keys (campus_id, key, stored, own)"
            " SELECT DISTINCT CAST(:campus AS int), k.key, p.top, false"
            " FROM unnest(CAST(:tops AS timestamptz[]), CAST(:sources AS timestamptz[]))"
            " AS p (top, source) JOIN theon.lrs_keys AS k"
            " ON k.campus_id = :campus AND k.stored = p.source AND k.own ON CONFLICT DO NOTHING"
        ),
        {
            "campus": campus_id,
            "tops": [top for top, _ in pairs],
            "sources": [source for _, source in pairs],
        },
    )
    return True


def voided_by(conn: Connection, campus_id: int, new: Sequence[Node]) -> list[str]:
    """Statements that are voided by one of the new ones, and new ones that are, word for word.

    A statement that voids another one cannot be voided.
    """
    return list(
        conn.execute(
            text(
                "SELECT DISTINCT s.statement FROM theon.lrs_statements AS v"
                " JOIN theon.lrs_statements AS s"
                " ON s.campus_id = v.campus_id AND s.id = v.refers_to"
                " WHERE v.campus_id = :campus AND v.voiding AND NOT s.voiding"
                " AND (v.id = ANY (:new) OR v.refers_to = ANY (:new))"
            ),
            {"campus": campus_id, "new": [node.id for node in new]},
        ).scalars()
    )


def _read_above(
    conn: Connection, campus_id: int, nodes: dict[UUID, Node]
) -> dict[UUID, list[Node]]:
    """Who refers to whom, upwards from `nodes`, which are added to."""
    above: dict[UUID, list[Node]] = {}
    seen = set(nodes)
    wanted = list(nodes)
    for _ in range(FURTHEST):
        rows = conn.execute(
            text(
                "SELECT id, stored, refers_to FROM theon.lrs_statements"
                " WHERE campus_id = :campus AND refers_to = ANY (:wanted)"
            ),
            {"campus": campus_id, "wanted": wanted},
        )
        found = [Node(*row) for row in rows]
        for node in found:
            assert node.refers_to is not None  # noqa: S101 - tells the type
            above.setdefault(node.refers_to, []).append(node)
            nodes.setdefault(node.id, node)
        wanted = [node.id for node in found if node.id not in seen]
        seen.update(wanted)
        if not wanted:
            break
    return above


def _read_below(
    conn: Connection, campus_id: int, nodes: dict[UUID, Node], new: Iterable[Node]
) -> None:
    """Add to `nodes` what the new ones refer to, downwards."""
    at = list(new)
    for _ in range(FURTHEST):
        targets = {node.refers_to for node in at if node.refers_to is not None}
        rows = conn.execute(
            text(
                "SELECT id, stored, refers_to FROM theon.lrs_statements"
                " WHERE campus_id = :campus AND id = ANY (:wanted)"
            ),
            {"campus": campus_id, "wanted": [t for t in targets if t not in nodes]},
        )
        at = [Node(*row) for row in rows]
        if not at:
            break
        nodes.update((node.id, node) for node in at)


def _levels(node: Node, above: Mapping[UUID, list[Node]]) -> list[list[Node]]:
    """The statement itself, those that refer to it, those that refer to these, and so on."""
    levels, seen = [[node]], {node.id}
    while len(levels) <= FURTHEST:
        found = [top for below in levels[-1] for top in above.get(below.id, ())]
        found = [top for top in found if top.id not in seen]
        seen.update(top.id for top in found)
        if not found:
            break
        levels.append(found)
    return levels


def _chain(node: Node, nodes: Mapping[UUID, Node], steps: int) -> list[Node]:
    """The statement itself, the one that it refers to, and so on, as far as they are there."""
    found = [node]
    for _ in range(steps):
        target = nodes.get(found[-1].refers_to) if found[-1].refers_to else None
        if target is None or target in found:
            break
        found.append(target)
    return found
