"""Local accounts: who they are and where they belong; passwords go in and never come out."""

import re
import unicodedata
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from theon.access.passwords import check_password, hash_password
from theon.access.principals import Principal, check_grant, scope_of
from theon.access.roles import Permission, Role, check_place
from theon.access.sign_in_failures import forget_failures
from theon.errors import InputError
from theon.store.engine import Store

_NAME = re.compile(r"[\w.@+-]{1,254}")

_SELECT = """
    SELECT a.id, a.name, a.role, c.slug, a.created_at, a.signed_in_at, a.disabled_at
    FROM theon.accounts AS a JOIN theon.campuses AS c ON c.id = a.campus_id
"""


@dataclass(frozen=True)
class Account:
    """An account as it may be shown: without anything that lets somebody in."""

    id: int
    name: str
    role: Role
    campus: str
    created_at: datetime
    signed_in_at: datetime | None
    disabled_at: datetime | None


def canonical(name: str) -> str:
    """A name as it is stored: case and the form of its letters make no other person."""
    return unicodedata.normalize("NFKC", name).strip().casefold()


def add_account(
    store: Store,
    *,
    name: str,
    password: str,
    role: Role,
    campus: str,
    by: Principal | None = None,
) -> Account:
    """Add an account.

    Args:
        store: where to.
        name: what its owner types to sign in; a mail address will do.
        password: of 12 characters or more.
        role: what its owner may do.
        campus: slug of the campus that it belongs to.
        by: who asks; None for the command line.

    Raises:
        InputError: name, password, role or campus do not fit, or the name is taken.
        ForbiddenError: `by` may not give this role.
    """
    check_grant(by, role, Permission.ACCOUNTS_MANAGE)
    name = check_account(name, password, role, campus)
    password_hash = hash_password(password)
    with store.transaction(scope_of(by)) as conn:
        return insert_account(conn, name, password_hash, role, campus)


def check_account(name: str, password: str, role: Role, campus: str) -> str:
    """The name as it will be stored, if all of it fits.

    Raises:
        InputError: says what does not.
    """
    check_place(role, campus)
    name = canonical(name)
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{name!r} cannot be an account's name",
            where="account name",
            next_step="Use letters, digits and . @ _ + - without spaces; a mail address will do.",
        )
    check_password(password, name)
    return name


def insert_account(
    conn: Connection, name: str, password_hash: str, role: Role, campus: str
) -> Account:
    """Insert an account whose parts were checked, in the caller's transaction.

    Raises:
        InputError: the name is taken, or there is no such campus in scope.
    """
    try:
        with conn.begin_nested():
            added = conn.execute(
                text(
                    "INSERT INTO theon.accounts (campus_id, name, role, password_hash)"
                    " SELECT id, :name, :role, :hash FROM theon.campuses WHERE slug = :campus"
                ),
                {"name": name, "role": role.value, "hash": password_hash, "campus": campus},
            )
    except IntegrityError as error:
        raise InputError(
            f"the name {name!r} is taken",
            where="account name",
            next_step="Choose another; names are unique in the whole district.",
        ) from error
    if not added.rowcount:
        raise InputError(
            f"there is no campus {campus!r} here",
            where="campus",
            next_step="`theon campus list` shows those there are.",
        )
    return _get(conn, name)


def set_password(store: Store, name: str, password: str, *, by: Principal | None = None) -> None:
    """Give an account another password: all its sessions end, its failures are forgotten.

    Raises:
        InputError: there is no such account in scope, or the password does not fit.
        ForbiddenError: `by` may not change accounts, or not those of this role.
    """
    name = canonical(name)
    check_password(password, name)
    password_hash = hash_password(password)
    with store.transaction(scope_of(by)) as conn:
        account = _get(conn, name)
        check_grant(by, account.role, Permission.ACCOUNTS_MANAGE)
        conn.execute(
            text(
                "UPDATE theon.accounts SET password_hash = :hash,"
                " password_changed_at = clock_timestamp() WHERE id = :id"
            ),
            {"hash": password_hash, "id": account.id},
        )
        _end_sessions(conn, account.id)
    forget_failures(store, name)


def set_disabled(
    store: Store, name: str, *, disabled: bool, by: Principal | None = None
) -> Account:
    """Shut an account, which ends its sessions, or open it again.

    Raises:
        InputError: there is no such account in scope.
        ForbiddenError: `by` may not change accounts, or not those of this role.
    """
    with store.transaction(scope_of(by)) as conn:
        account = _get(conn, canonical(name))
        check_grant(by, account.role, Permission.ACCOUNTS_MANAGE)
        conn.execute(
            text(
                "UPDATE theon.accounts SET disabled_at ="
                " CASE WHEN :disabled THEN coalesce(disabled_at, clock_timestamp()) END"
                " WHERE id = :id"
            ),
            {"disabled": disabled, "id": account.id},
        )
        if disabled:
            _end_sessions(conn, account.id)
        return _get(conn, account.name)


def list_accounts(store: Store, *, by: Principal | None = None) -> list[Account]:
    """The accounts in scope, by name.

    Raises:
        ForbiddenError: `by` may not manage accounts.
    """
    if by is not None:
        by.check(Permission.ACCOUNTS_MANAGE)
    with store.transaction(scope_of(by)) as conn:
        return [_account(row) for row in conn.execute(text(_SELECT + " ORDER BY a.name"))]


def _get(conn: Connection, name: str) -> Account:
    row = conn.execute(text(_SELECT + " WHERE a.name = :name"), {"name": name}).first()
    if row is None:
        raise InputError(
            f"there is no account {name!r} here",
            where="account",
            next_step="`theon account list` shows those there are.",
        )
    return _account(row)


def _account(row: object) -> Account:
    id_, name, role, *others = tuple(row)  # type: ignore[arg-type,var-annotated]
    return Account(id_, name, Role(role), *others)


def _end_sessions(conn: Connection, account_id: int) -> None:
    conn.execute(text("DELETE FROM theon.sessions WHERE account_id = :id"), {"id": account_id})
