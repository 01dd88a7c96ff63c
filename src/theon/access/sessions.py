"""Sessions of people: a random token in their cookie, its SHA-256 in the database."""

import hashlib
import secrets
from dataclasses import dataclass

from sqlalchemy import Connection, text

from theon.access.accounts import canonical
from theon.access.errors import SignInError
from theon.access.passwords import hash_password, needs_rehash, verify_password
from theon.access.principals import Principal, Via
from theon.access.roles import Role
from theon.access.sign_in_failures import begin_attempt, succeed
from theon.jobs.texts import find_fault
from theon.store.engine import Store
from theon.store.scope import Scope

IDLE_S = 2 * 3600
SEEN_EVERY_S = 60  # a request in between writes nothing


@dataclass(frozen=True)
class NewSession:
    """A session just opened; `token` is nowhere else."""

    token: str
    principal: Principal
    lasts_s: int


def sign_in(
    store: Store,
    name: str,
    password: str,
    *,
    address: str,
    lasts_s: int,
    replaces: str | None = None,
) -> NewSession:
    """Open a session for whoever knows name and password.

    Args:
        store: where accounts are.
        name: as typed.
        password: as typed.
        address: of the client, to count failures by.
        lasts_s: after so many seconds the session ends, used or not.
        replaces: the token that the client came with. That session ends: a token from before
            signing in, which somebody else may have planted, is never the token afterwards.

    Raises:
        SignInError: they do not fit, or the account is shut; it does not say which.
        LockedError: too many attempts have failed.
    """
    if find_fault([name, password], "it") is not None:  # no account can have them
        raise _refused()
    name = canonical(name)
    attempt = begin_attempt(store, name, address)
    # Nobody's campus is known before they are, so whoever looks up a name, a session or a key
    # looks in the whole district, by a unique key, and gets one row or none.
    with store.transaction(Scope.district()) as conn:
        known = conn.execute(
            text(
                "SELECT id, password_hash FROM theon.accounts"
                " WHERE name = :name AND disabled_at IS NULL"
            ),
            {"name": name},
        ).first()
    if not verify_password(known.password_hash if known else None, password) or known is None:
        raise _refused()
    better = hash_password(password) if needs_rehash(known.password_hash) else known.password_hash
    with store.transaction(Scope.district()) as conn:
        # Only if nobody shut the account or changed its password in the meantime.
        updated = conn.execute(
            text(
                "UPDATE theon.accounts SET password_hash = :better,"
                " signed_in_at = clock_timestamp()"
                " WHERE id = :id AND password_hash = :known AND disabled_at IS NULL"
            ),
            {"better": better, "id": known.id, "known": known.password_hash},
        )
        if not updated.rowcount:
            raise _refused()
        if replaces is not None:
            _delete(conn, replaces)
        succeed(conn, attempt)
        return open_session(conn, known.id, lasts_s)


def open_session(conn: Connection, account_id: int, lasts_s: int) -> NewSession:
    """Open a session of an account, in the caller's transaction over the district."""
    token = secrets.token_urlsafe(32)
    conn.execute(
        text(
            "DELETE FROM theon.sessions WHERE account_id = :id AND (expires_at < clock_timestamp()"
            " OR seen_at < clock_timestamp() - make_interval(secs => :idle))"
        ),
        {"id": account_id, "idle": IDLE_S},
    )
    conn.execute(
        text(
            "INSERT INTO theon.sessions (token_hash, campus_id, account_id, expires_at)"
            " SELECT :hash, campus_id, id, clock_timestamp() + make_interval(secs => :lasts)"
            " FROM theon.accounts WHERE id = :id"
        ),
        {"hash": digest(token), "id": account_id, "lasts": lasts_s},
    )
    row = conn.execute(
        text(
            "SELECT a.name, a.role, c.slug FROM theon.accounts AS a"
            " JOIN theon.campuses AS c ON c.id = a.campus_id WHERE a.id = :id"
        ),
        {"id": account_id},
    ).one()
    return NewSession(token, _principal(account_id, *row), lasts_s)


def read_session(store: Store, token: str, *, is_use: bool = True) -> Principal | None:
    """Whose session this is, or None: unknown, signed out, too old, not used for too long.

    `is_use` is False where nobody asks for anything: it does not keep the session awake.
    """
    with store.transaction(Scope.district()) as conn:  # the campus is what is asked for
        row = conn.execute(
            text(
                "SELECT s.account_id, a.name, a.role, c.slug,"
                " s.seen_at < clock_timestamp() - make_interval(secs => :every) AS seen_long_ago"
                " FROM theon.sessions AS s JOIN theon.accounts AS a ON a.id = s.account_id"
                " JOIN theon.campuses AS c ON c.id = a.campus_id"
                " WHERE s.token_hash = :hash AND s.expires_at > clock_timestamp()"
                " AND s.seen_at > clock_timestamp() - make_interval(secs => :idle)"
                " AND a.disabled_at IS NULL"
            ),
            {"hash": digest(token), "idle": IDLE_S, "every": SEEN_EVERY_S},
        ).first()
        if row is None:
            return None
        if row.seen_long_ago and is_use:
            conn.execute(
                text(
                    "UPDATE theon.sessions SET seen_at = clock_timestamp() WHERE token_hash = :hash"
                ),
                {"hash": digest(token)},
            )
    return _principal(row.account_id, row.name, row.role, row.slug)


def sign_out(store: Store, token: str) -> None:
    """End a session; one that is not there is ended already."""
    with store.transaction(Scope.district()) as conn:  # see `sign_in`
        _delete(conn, token)


def digest(secret: str) -> bytes:
    """What is stored of a random secret; 256 random bits need no salt and no slow hash."""
    return hashlib.sha256(secret.encode()).digest()


def _delete(conn: Connection, token: str) -> None:
    conn.execute(
        text("DELETE FROM theon.sessions WHERE token_hash = :hash"), {"hash": digest(token)}
    )


def _principal(account_id: int, name: str, role: str, campus: str) -> Principal:
    return Principal(f"account:{account_id}", name, Role(role), campus, Via.SESSION)


def _refused() -> SignInError:
    return SignInError(
        "name and password do not fit",
        where="sign-in",
        next_step="Check both; an administrator can set a new password.",
    )
