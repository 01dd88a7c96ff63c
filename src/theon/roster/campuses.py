"""Campuses: who they are, where they are in the tree, and which time zone they live in."""

import difflib
import re
import zoneinfo
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from theon.errors import InputError
from theon.store.engine import Store
from theon.store.scope import DISTRICT, Scope

_SLUG = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_SLUG_LENGTH = 63

_SELECT = """
    SELECT c.id, c.slug, c.name, c.timezone, p.slug AS parent
    FROM theon.campuses AS c LEFT JOIN theon.campuses AS p ON p.id = c.parent_id
"""


@dataclass(frozen=True)
class Campus:
    """A campus; `timezone` is an IANA name.

    `parent` is the slug of the campus above, None where there is none or not in scope.
    """

    id: int
    slug: str
    name: str
    timezone: str
    parent: str | None


def add_campus(
    store: Store, slug: str, timezone: str, name: str | None = None, parent: str = DISTRICT
) -> Campus:
    """Add a campus below `parent`; the same campus again changes nothing.

    Args:
        store: where to.
        slug: its short name in commands and files: a-z, 0-9 and `-`.
        timezone: IANA name, such as Europe/London; its days and weeks are counted there.
        name: how people call it; the slug unless given.
        parent: slug of the campus above.

    Raises:
        InputError: slug or time zone do not fit, the parent is unknown, or the campus exists
            with other values.
    """
    _check_slug(slug)
    _check_timezone(timezone)
    wanted = {"name": name, "timezone": timezone, "parent": parent}
    with store.transaction(Scope.district()) as conn:
        above = _get(conn, parent)
        # Not ON CONFLICT: that wants to see the new row, which the statement's own snapshot of
        # the tree does not know yet.
        with suppress(IntegrityError), conn.begin_nested():
            conn.execute(
                text(
                    "INSERT INTO theon.campuses (slug, name, timezone, parent_id)"
                    " VALUES (:slug, :name, :timezone, :parent_id)"
                ),
                {"slug": slug, "name": name or slug, "timezone": timezone, "parent_id": above.id},
            )
        campus = _get(conn, slug)
    differs = [
        f"{key} is {getattr(campus, key)!r}, not {value!r}"
        for key, value in wanted.items()
        if value is not None and getattr(campus, key) != value
    ]
    if differs:
        raise InputError(
            f"campus {slug!r} exists with other values: {'; '.join(differs)}",
            where=f"campus {slug}",
            next_step="Use these values, or add the campus under another slug.",
        )
    return campus


def list_campuses(store: Store, scope: Scope) -> list[Campus]:
    """The campuses in `scope`, the district included if it is, by slug."""
    with store.transaction(scope) as conn:
        rows = conn.execute(text(_SELECT + " ORDER BY c.slug")).all()
    return [Campus(*row) for row in rows]


def get_campus(store: Store, slug: str) -> Campus:
    """The campus with this slug.

    Raises:
        InputError: there is none; names those that are spelt nearly so.
    """
    with store.transaction(Scope.district()) as conn:
        return _get(conn, slug)


def _get(conn: Connection, slug: str) -> Campus:
    row = conn.execute(text(_SELECT + " WHERE c.slug = :slug"), {"slug": slug}).first()
    if row is not None:
        return Campus(*row)
    known = list(conn.execute(text("SELECT slug FROM theon.campuses ORDER BY slug")).scalars())
    raise InputError(
        f"there is no campus {slug!r}{_did_you_mean(slug, known)}",
        where=f"campus {slug}",
        next_step=f"Add it with `theon campus add {slug} --timezone <Area/City>`; "
        "`theon campus list` shows those there are.",
    )


def _check_slug(slug: str) -> None:
    if not _SLUG.fullmatch(slug) or len(slug) > _SLUG_LENGTH:
        offer = re.sub(r"[^a-z0-9]+", "-", slug.lower()).strip("-")[:_SLUG_LENGTH].strip("-")
        raise InputError(
            f"{slug!r} cannot be a campus's slug: it takes a-z, 0-9 and '-' inside, "
            f"{_SLUG_LENGTH} characters at most",
            where="campus slug",
            next_step=f"Try {offer!r}; --name takes the name as people write it."
            if offer
            else "Choose a short name in these letters; --name takes the full one.",
        )


def _check_timezone(timezone: str) -> None:
    known = zoneinfo.available_timezones()
    if timezone not in known:
        raise InputError(
            f"{timezone!r} is no time zone{_did_you_mean(timezone, sorted(known))}",
            where="time zone",
            next_step="Give an IANA name, such as Europe/London or America/New_York.",
        )


def _did_you_mean(word: str, known: list[str]) -> str:
    lower: dict[str, str] = {}
    for name in known:
        lower.setdefault(name.lower(), name)
        # 'london' means Europe/London, and 'Lodnon' nearly does.
        lower.setdefault(name.lower().rpartition("/")[2], name)
    near = difflib.get_close_matches(word.lower(), lower, n=3, cutoff=0.7)
    names = list(dict.fromkeys(lower[match] for match in near))
    return f" (did you mean {' or '.join(names)}?)" if names else ""
