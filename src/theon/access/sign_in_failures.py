"""Failed attempts to sign in, counted per name and per address in PostgreSQL.

An attempt is written down as failed before the password is looked at and struck out if it
fits. So a hundred guesses at the same moment are as many as a hundred in a row.
"""

import hashlib
import ipaddress
from dataclasses import dataclass

from sqlalchemy import Connection, text

from theon.access.errors import LockedError
from theon.store.engine import Store
from theon.store.scope import Scope

WINDOW_S = 900
MOST_PER_NAME = 10
MOST_PER_ADDRESS = 100  # a whole school may come from one address
KEPT_S = 24 * 3600

_LOCK = 1_144_201_745  # keeps these advisory locks apart from others


@dataclass(frozen=True)
class Attempt:
    """An attempt that counts as failed until `succeed`."""

    name: str
    address_row: int


def begin_attempt(store: Store, name: str, address: str) -> Attempt:
    """Write down an attempt, if there is one left.

    A name that nobody has is counted as any other, or its lock-out would tell.

    Raises:
        LockedError: the name or the address has used up its attempts.
    """
    # A name need not be anybody's, so a failure belongs to no campus but the district.
    with store.transaction(Scope.district()) as conn:
        name_subject, address_subject = _name(name), _address(address)
        # Always the name first: two attempts cannot wait for each other.
        for subject, most in ((name_subject, MOST_PER_NAME), (address_subject, MOST_PER_ADDRESS)):
            _check(conn, subject, most)
        _drop_old(conn)
        _add(conn, name_subject)
        return Attempt(name, _add(conn, address_subject))


def succeed(conn: Connection, attempt: Attempt) -> None:
    """Strike out the attempt, and all failures of its name; `conn` is the district's."""
    conn.execute(
        text("DELETE FROM theon.sign_in_failures WHERE subject = :name OR id = :id"),
        {"name": _name(attempt.name), "id": attempt.address_row},
    )


def forget_failures(store: Store, name: str) -> None:
    """Strike out all failures of a name, as after a new password."""
    with store.transaction(Scope.district()) as conn:
        conn.execute(
            text("DELETE FROM theon.sign_in_failures WHERE subject = :name"), {"name": _name(name)}
        )


def _check(conn: Connection, subject: str, most: int) -> None:
    conn.execute(
        text("SELECT pg_advisory_xact_lock(hashtextextended(:subject, :lock))"),
        {"subject": subject, "lock": _LOCK},
    )
    # The one that has to leave the window before another attempt is allowed.
    wait_s = conn.execute(
        text(
            "SELECT ceil(extract(epoch FROM at - clock_timestamp()) + :window)"
            " FROM theon.sign_in_failures WHERE subject = :subject"
            " AND at > clock_timestamp() - make_interval(secs => :window)"
            " ORDER BY at DESC OFFSET :most - 1 LIMIT 1"
        ),
        {"subject": subject, "window": WINDOW_S, "most": most},
    ).scalar()
    if wait_s is not None:
        raise LockedError(max(1, int(wait_s)))


def _add(conn: Connection, subject: str) -> int:
    added = conn.execute(
        text(
            "INSERT INTO theon.sign_in_failures (campus_id, subject)"
            " SELECT id, :subject FROM theon.campuses WHERE parent_id IS NULL RETURNING id"
        ),
        {"subject": subject},
    )
    return int(added.scalar_one())


def _drop_old(conn: Connection) -> None:
    conn.execute(
        text(
            "DELETE FROM theon.sign_in_failures WHERE id IN ("
            " SELECT id FROM theon.sign_in_failures"
            " WHERE at < clock_timestamp() - make_interval(secs => :kept)"
            " ORDER BY id LIMIT 1000 FOR UPDATE SKIP LOCKED)"
        ),
        {"kept": KEPT_S},
    )


def _name(name: str) -> str:
    return "name:" + hashlib.sha256(name.encode()).hexdigest()


def _address(address: str) -> str:
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return f"address:{address[:100]}"
    if ip.version == 6 and ip.ipv4_mapped is None:
        # Whoever has one address of IPv6 has the whole network it is in.
        return f"address:{ipaddress.ip_network((ip, 64), strict=False)}"
    return f"address:{getattr(ip, 'ipv4_mapped', None) or ip}"
