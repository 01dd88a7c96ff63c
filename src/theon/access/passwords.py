"""Passwords: argon2id, and the same work whether or not there is anything to compare with."""

import secrets
import threading
import unicodedata
from functools import cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from theon.errors import InputError

SHORTEST = 12
LONGEST = 1024

# The library's own choice follows RFC 9106; an account's hash follows at its next sign-in.
HASHER = PasswordHasher()

# Each hash takes 64 MiB; so many at once, and the others wait their turn.
_TURNS = threading.BoundedSemaphore(4)


def check_password(password: str, name: str) -> None:
    """Refuse a password that is too easy to guess, or too long to be one.

    Raises:
        InputError: says what is wrong, never the password.
    """
    fault = None
    if len(password) < SHORTEST:
        fault = f"it has fewer than {SHORTEST} characters"
    elif len(password) > LONGEST:
        fault = f"it has more than {LONGEST} characters"
    elif len(set(password)) < 5 or (len(name) > 3 and name in _normal(password).casefold()):
        fault = "it is too easy to guess"
    if fault is not None:
        raise InputError(
            f"this password cannot be used: {fault}",
            where="password",
            next_step=f"Choose {SHORTEST} characters or more, such as four words that do not "
            "belong together, without the account's name.",
        )


def hash_password(password: str) -> str:
    """The argon2id hash, with its salt and parameters inside."""
    with _TURNS:
        return HASHER.hash(_normal(password))


def verify_password(known: str | None, password: str) -> bool:
    """Whether the password fits the hash; None, an unknown name, takes as long and never fits."""
    if len(password) > LONGEST:
        return False
    decoy = _decoy()  # made for whoever comes first, or the first unknown name takes longer
    against = decoy if known is None else known
    with _TURNS:
        try:
            HASHER.verify(against, _normal(password))
        except (VerificationError, InvalidHashError):
            return False
    return known is not None


def needs_rehash(known: str) -> bool:
    """Whether the hash was made with other parameters than today's."""
    return HASHER.check_needs_rehash(known)


@cache
def _decoy() -> str:
    with _TURNS:
        return HASHER.hash(secrets.token_urlsafe(32))


def _normal(password: str) -> str:
    # The same letters typed on another keyboard are the same password.
    return unicodedata.normalize("NFKC", password)
