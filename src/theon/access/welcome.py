"""The first administrator: a one-time link, for whoever started the first server."""

import ipaddress
import secrets

from sqlalchemy import text

from theon.access.accounts import Account, check_account, insert_account
from theon.access.errors import SignInError
from theon.access.passwords import hash_password
from theon.access.roles import Role
from theon.access.sessions import digest
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import DISTRICT, Scope

VALID_S = 24 * 3600

_LOCK = 2_046_511_890  # one first administrator, also of two who press the button at once


def first_link(store: Store, settings: Settings) -> str | None:
    """The address of the page that makes the first administrator; None if it is not to be had.

    There is one while there is no account at all, and only if the server listens on loopback:
    nobody from outside may come first.
    """
    if not is_loopback(settings.host):
        return None
    token = secrets.token_urlsafe(32)
    with store.transaction(Scope.district()) as conn:
        if conn.execute(text("SELECT EXISTS (SELECT FROM theon.accounts)")).scalar_one():
            return None
        conn.execute(text("DELETE FROM theon.welcome_links WHERE expires_at < clock_timestamp()"))
        conn.execute(
            text(
                "INSERT INTO theon.welcome_links (token_hash, campus_id, expires_at)"
                " SELECT :hash, id, clock_timestamp() + make_interval(secs => :valid)"
                " FROM theon.campuses WHERE slug = :district"
            ),
            {"hash": digest(token), "valid": VALID_S, "district": DISTRICT},
        )
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{settings.port}/welcome?token={token}"


def link_holds(store: Store, token: str) -> bool:
    """Whether the link can still be used; looking does not spend it."""
    with store.transaction(Scope.district()) as conn:
        found = conn.execute(
            text(
                "SELECT EXISTS (SELECT FROM theon.welcome_links WHERE token_hash = :hash"
                " AND expires_at > clock_timestamp())"
                " AND NOT EXISTS (SELECT FROM theon.accounts)"
            ),
            {"hash": digest(token)},
        )
        return bool(found.scalar_one())


def welcome(store: Store, token: str, name: str, password: str) -> Account:
    """Make the first system administrator; the link, and every other, is spent.

    Raises:
        SignInError: the link is unknown, spent or older than a day.
        InputError: name or password do not fit; the link still holds.
    """
    if not link_holds(store, token):  # before the expensive hash
        raise _spent()
    name = check_account(name, password, Role.SYSTEM_ADMINISTRATOR, DISTRICT)
    password_hash = hash_password(password)
    with store.transaction(Scope.district()) as conn:
        conn.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        taken = conn.execute(
            text(
                "DELETE FROM theon.welcome_links WHERE token_hash = :hash"
                " AND expires_at > clock_timestamp()"
                " AND NOT EXISTS (SELECT FROM theon.accounts)"
            ),
            {"hash": digest(token)},
        )
        if not taken.rowcount:
            raise _spent()
        conn.execute(text("DELETE FROM theon.welcome_links"))
        return insert_account(conn, name, password_hash, Role.SYSTEM_ADMINISTRATOR, DISTRICT)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _spent() -> SignInError:
    return SignInError(
        "this link was used already, or is older than a day",
        where="welcome",
        next_step="While there is no account, a restart of `theon serve` prints a new link.",
    )
