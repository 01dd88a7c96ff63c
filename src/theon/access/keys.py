"""API keys of services: shown once, stored as a hash beside a prefix that people can read."""

import secrets
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

from theon.access.errors import ForbiddenError
from theon.access.principals import Principal, Via, check_grant, scope_of
from theon.access.roles import Permission, Role, check_place
from theon.access.sessions import digest
from theon.errors import InputError
from theon.store.engine import Store
from theon.store.scope import Scope

START = "theon_"
PREFIX_LENGTH = 8
DAYS = 365
MOST_DAYS = 5 * 365
USED_EVERY_S = 60  # a request in between writes nothing

_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"

_SELECT = """
    SELECT k.id, k.name, k.prefix, k.role, c.slug, k.made_by, k.created_at, k.expires_at,
        k.revoked_at, k.used_at
    FROM theon.api_keys AS k JOIN theon.campuses AS c ON c.id = k.campus_id
"""


@dataclass(frozen=True)
class ApiKey:
    """A key as it may be shown; `prefix` is how its text begins."""

    id: int
    name: str
    prefix: str
    role: Role
    campus: str
    made_by: str
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None
    used_at: datetime | None


def make_key(
    store: Store,
    *,
    name: str,
    role: Role,
    campus: str,
    days: int = DAYS,
    by: Principal | None = None,
) -> tuple[ApiKey, str]:
    """Make a key; the second value is its text, which nobody will see again.

    Args:
        store: where to.
        name: what it is for.
        role: what it may do.
        campus: slug; whose rows it sees.
        days: how long it holds.
        by: who asks; None for the command line.

    Raises:
        InputError: name, role, campus or days do not fit.
        ForbiddenError: `by` may not make keys, or not of this role, or is a key.
    """
    if by is not None and by.via is Via.KEY:
        # It would live on in what it made, after it was revoked.
        raise ForbiddenError("a key cannot make keys", next_step="Sign in with an account.")
    check_grant(by, role, Permission.KEYS_MANAGE)
    check_place(role, campus)
    _check(name, days)
    prefix = START + "".join(secrets.choice(_ALPHABET) for _ in range(PREFIX_LENGTH))
    key = f"{prefix}_{secrets.token_urlsafe(32)}"
    with store.transaction(scope_of(by)) as conn:
        added = conn.execute(
            text(
                "INSERT INTO theon.api_keys"
                " (campus_id, name, prefix, key_hash, role, made_by, expires_at)"
                " SELECT id, :name, :prefix, :hash, :role, :made_by,"
                " clock_timestamp() + make_interval(days => :days)"
                " FROM theon.campuses WHERE slug = :campus"
            ),
            {
                "name": name.strip(),
                "prefix": prefix,
                "hash": digest(key),
                "role": role.value,
                "made_by": by.subject if by else "command line",
                "days": days,
                "campus": campus,
            },
        )
        if not added.rowcount:
            raise InputError(
                f"there is no campus {campus!r} here",
                where="campus",
                next_step="`theon campus list` shows those there are.",
            )
        found = conn.execute(text(_SELECT + " WHERE k.prefix = :prefix"), {"prefix": prefix})
        return _key(found.one()), key


def list_keys(store: Store, *, by: Principal | None = None) -> list[ApiKey]:
    """The keys in scope, the newest first; those that are revoked or expired too.

    Raises:
        ForbiddenError: `by` may not manage keys.
    """
    if by is not None:
        by.check(Permission.KEYS_MANAGE)
    with store.transaction(scope_of(by)) as conn:
        return [_key(row) for row in conn.execute(text(_SELECT + " ORDER BY k.id DESC"))]


def revoke_key(store: Store, key_id: int, *, by: Principal | None = None) -> None:
    """End a key at once; a key that is revoked stays so.

    Raises:
        InputError: there is no such key in scope.
        ForbiddenError: `by` may not manage keys.
    """
    if by is not None:
        by.check(Permission.KEYS_MANAGE)
    with store.transaction(scope_of(by)) as conn:
        done = conn.execute(
            text(
                "UPDATE theon.api_keys SET revoked_at = coalesce(revoked_at, clock_timestamp())"
                " WHERE id = :id"
            ),
            {"id": key_id},
        )
        if not done.rowcount:
            raise InputError(
                f"there is no key {key_id} here",
                where="key",
                next_step="`theon key list` shows those there are.",
            )


def read_key(store: Store, key: str) -> Principal | None:
    """Whose key this is, or None: unknown, revoked, expired."""
    # As for a session: its campus is what is asked for, so the district is searched.
    with store.transaction(Scope.district()) as conn:
        row = conn.execute(
            text(
                "SELECT k.id, k.name, k.prefix, k.role, c.slug, (k.used_at IS NULL OR k.used_at"
                " < clock_timestamp() - make_interval(secs => :every)) AS used_long_ago"
                " FROM theon.api_keys AS k JOIN theon.campuses AS c ON c.id = k.campus_id"
                " WHERE k.key_hash = :hash AND k.revoked_at IS NULL"
                " AND k.expires_at > clock_timestamp()"
            ),
            {"hash": digest(key), "every": USED_EVERY_S},
        ).first()
        if row is None:
            return None
        if row.used_long_ago:
            _mark_used(conn, row.id)
    return Principal(f"key:{row.prefix}", row.name, Role(row.role), row.slug, Via.KEY)


def _mark_used(conn: Connection, key_id: int) -> None:
    conn.execute(
        text("UPDATE theon.api_keys SET used_at = clock_timestamp() WHERE id = :id"),
        {"id": key_id},
    )


def _check(name: str, days: int) -> None:
    if not 1 <= len(name.strip()) <= 100:
        raise InputError(
            "a key's name has 1 to 100 characters",
            where="key name",
            next_step="Say what the key is for, such as 'Moodle of Lincoln High'.",
        )
    if not 1 <= days <= MOST_DAYS:
        raise InputError(
            f"a key cannot hold for {days} days",
            where="key",
            next_step=f"Give 1 to {MOST_DAYS} days.",
        )


def _key(row: object) -> ApiKey:
    id_, name, prefix, role, *others = tuple(row)  # type: ignore[arg-type,var-annotated]
    return ApiKey(id_, name, prefix, Role(role), *others)
