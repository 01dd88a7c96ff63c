"""PostgreSQL URLs: read, shown without passwords, and handed to the driver."""

from typing import Any

import psycopg
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from theon.errors import InputError

DRIVER = "postgresql+psycopg"
CONNECT_LIMIT_S = 10

_EXAMPLE = "Write it as postgresql://user:password@host:5432/database."


def read_url(text: str, variable: str) -> URL:
    """The URL in the setting `variable`.

    Raises:
        InputError: it is no PostgreSQL URL, or names no user or no database. The text is not
            repeated, for it may hold a password.
    """
    try:
        url = make_url(text)
        backend = url.drivername.partition("+")[0]
    except (ArgumentError, ValueError):  # ValueError: a port that is no number
        backend = ""
    if backend not in ("postgresql", "postgres"):
        raise InputError("this is not a PostgreSQL URL", where=variable, next_step=_EXAMPLE)
    if not url.username or not url.database:
        raise InputError("it names no user or no database", where=variable, next_step=_EXAMPLE)
    return url.set(drivername=DRIVER)


def place(url: URL) -> str:
    """The URL for people: without its password and the driver's name."""
    return url.render_as_string(hide_password=True).replace(f"{DRIVER}://", "postgresql://")


def connect(url: URL) -> psycopg.Connection[Any]:
    """A connection of the driver itself, each statement its own transaction."""
    named = url.translate_connect_args(username="user", database="dbname")
    arguments = {"connect_timeout": CONNECT_LIMIT_S, **named, **url.query}
    return psycopg.connect(**arguments, autocommit=True)


def why_no_login(url: URL) -> str | None:
    """Why `url` does not log in, in the server's words; None if it does."""
    try:
        connect(url).close()
    except psycopg.OperationalError as error:
        return str(error).strip()
    return None
