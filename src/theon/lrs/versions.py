"""The versions of xAPI that are spoken, as the header X-Experience-API-Version names them."""

import re
from enum import Enum

from theon.lrs.errors import StatementError

HEADER = "X-Experience-API-Version"

_ONE = re.compile(r"1\.0(\.(0|[1-9][0-9]*))?")
_TWO = re.compile(r"2\.0(\.(0|[1-9][0-9]*))?")


class Version(Enum):
    """A version; its value is what is answered, the newest patch of it."""

    ONE = "1.0.3"
    TWO = "2.0.0"

    @property
    def of_statements(self) -> str:
        """What a statement that names no version was written for."""
        return "1.0.0" if self is Version.ONE else "2.0.0"


def read_version(header: str | None) -> Version:
    """The version that a request speaks.

    Raises:
        StatementError: it names none, or one that is not spoken here.
    """
    if header is None:
        raise StatementError(
            "the request does not say which version of xAPI it speaks",
            where=HEADER,
            next_step=f"Send {HEADER}: 1.0.3, or 2.0.0.",
        )
    if _ONE.fullmatch(header):
        return Version.ONE
    if _TWO.fullmatch(header):
        return Version.TWO
    raise StatementError(
        f"version {header[:20]!r} is not spoken here",
        where=HEADER,
        next_step="Speak 1.0.x or 2.0.x; GET about names both.",
    )


def is_statement_version(value: str) -> bool:
    """Whether a statement may say that it was written for this version."""
    return bool(_ONE.fullmatch(value) or _TWO.fullmatch(value))
