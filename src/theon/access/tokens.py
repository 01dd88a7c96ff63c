"""Bearer tokens (JWT) of whoever the operator trusts: one secret, or the public keys at a URL."""

import json
import threading
import time
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from typing import Any, Protocol
from urllib.parse import urlsplit

import jwt
from jwt import PyJWK

from theon.access.errors import SignInError
from theon.access.principals import Principal, Via
from theon.access.roles import Role
from theon.access.welcome import is_loopback
from theon.errors import InputError, UnavailableError
from theon.settings import Settings
from theon.store.scope import DISTRICT

SECRET_BYTES = 32
LEEWAY_S = 10
FRESH_S = 300  # keys that old are fetched again
KEPT_S = 3600  # and are used for so long if that fails
RETRY_S = 10  # an unknown key id, which anybody can send, fetches no more often
FETCH_LIMIT_S = 5
LARGEST_BYTES = 1 << 20
LONGEST_CLAIM = 255

Claims = dict[str, Any]


class Signer(Protocol):
    """Whose signature counts."""

    def key(self, header: Claims, /) -> tuple[Any, str]:
        """The key that a token with this header must be signed by, and its one algorithm.

        The algorithm comes from the key, never from the token; a token that says another is
        then refused.

        Raises:
            SignInError: the header names no key of ours.
            UnavailableError: the keys cannot be fetched.
        """


class SharedSecret:
    """HS256 under a secret that the issuer has as well."""

    def __init__(self, secret: str) -> None:
        """Check the secret.

        Raises:
            InputError: it is short enough to be guessed.
        """
        if len(secret.encode()) < SECRET_BYTES:
            raise InputError(
                f"the secret has fewer than {SECRET_BYTES} bytes",
                where="JWT_SECRET",
                next_step="Take a random one: openssl rand -base64 48",
            )
        self._secret = secret

    def key(self, _: Claims) -> tuple[Any, str]:
        """The secret, for HS256 and nothing else."""
        return self._secret, "HS256"


class PublicKeys:
    """RS256 and ES256 under keys that the issuer publishes as a JWKS, and may exchange."""

    def __init__(
        self,
        url: str,
        *,
        fetch: "Callable[[str], bytes] | None" = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Fetch nothing yet.

        Args:
            url: of the JWKS.
            fetch: gets what is at the URL.
            clock: seconds that only grow.

        Raises:
            InputError: the URL is not safe to take keys from.
        """
        parts = urlsplit(url)
        if parts.scheme != "https" and not (
            parts.scheme == "http" and is_loopback(parts.hostname or "")
        ):
            raise InputError(
                f"keys from {parts.scheme or 'this'}://… could be anybody's",
                where="JWT_JWKS_URL",
                next_step="Use https, or http on this machine.",
            )
        self._url = url
        self._fetch = fetch or _fetch
        self._clock = clock
        self._keys: dict[str | None, PyJWK] = {}
        self._fetched_at = self._tried_at = float("-inf")
        self._lock = threading.Lock()

    def key(self, header: Claims) -> tuple[Any, str]:
        """The key with the id of the header, and what that key is for."""
        kid = header.get("kid")
        known = self._find(kid)
        if known is None or self._clock() - self._fetched_at > FRESH_S:
            self._refresh()
            known = self._find(kid)
        if known is None:
            raise _refused("it names a key that its issuer does not publish")
        return known, known.algorithm_name

    def _find(self, kid: object) -> PyJWK | None:
        if kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(kid) if isinstance(kid, str) else None

    def _refresh(self) -> None:
        with self._lock:
            if self._clock() - self._tried_at >= RETRY_S:  # else another thread was here
                self._tried_at = self._clock()
                try:
                    self._keys = read_keys(self._fetch(self._url))
                    self._fetched_at = self._clock()
                except (OSError, HTTPException, ValueError) as error:
                    if self._clock() - self._fetched_at > KEPT_S:
                        self._keys = {}
                        raise self._gone(str(error)) from error
            elif not self._keys:
                raise self._gone("it could not be read a moment ago")

    def _gone(self, reason: str) -> UnavailableError:
        return UnavailableError(
            f"the keys of the tokens' issuer cannot be read: {reason}",
            where="JWT_JWKS_URL",
            next_step="Try again in a minute; check that this machine reaches the address.",
        )


class Tokens:
    """Says who a bearer token is."""

    def __init__(self, signer: Signer, *, audience: str, issuer: str) -> None:
        """Use `open_tokens`."""
        self._signer = signer
        self._audience = audience
        self._issuer = issuer

    def read(self, token: str) -> Principal:
        """Whose token this is.

        Beside `exp`, `iss`, `aud` and `sub` it says `role`, and `campus` by its slug; `name` if
        it likes.

        Raises:
            SignInError: it does not hold; says why.
            UnavailableError: the keys to check it by cannot be fetched.
        """
        try:
            key, algorithm = self._signer.key(jwt.get_unverified_header(token))
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_S,
                options={
                    "require": ["exp", "iss", "aud", "sub"],
                    "enforce_minimum_key_length": True,
                },
            )
        except jwt.PyJWTError as error:
            raise _refused(str(error)) from error
        return _principal(claims, self._issuer)


def open_tokens(settings: Settings) -> Tokens | None:
    """What checks bearer tokens, as set up; None if nothing is.

    Raises:
        InputError: a setting is missing, too weak, or at odds with another.
    """
    secret, url = settings.jwt_secret, settings.jwt_jwks_url
    if secret is None and url is None:
        return None
    if secret is not None and url is not None:
        raise InputError(
            "two ways to check bearer tokens are set, and one has to be the right one",
            where="JWT_SECRET and JWT_JWKS_URL",
            next_step="Unset one of them.",
        )
    for variable, value in (
        ("JWT_AUDIENCE", settings.jwt_audience),
        ("JWT_ISSUER", settings.jwt_issuer),
    ):
        if not value:
            raise InputError(
                "without it, tokens made for other services would open this one",
                where=variable,
                next_step="Set it to what your issuer writes into the tokens for Theon.",
            )
    # Not `if secret`: an empty one is to be refused too.
    signer = PublicKeys(str(url)) if secret is None else SharedSecret(secret.get_secret_value())
    return Tokens(signer, audience=str(settings.jwt_audience), issuer=str(settings.jwt_issuer))


def read_keys(document: bytes) -> dict[str | None, PyJWK]:
    """The keys of a JWKS that may sign tokens, by id; others in it are passed over.

    Raises:
        ValueError: it is no JWKS, or has no such key.
    """
    said = json.loads(document)
    entries = said.get("keys") if isinstance(said, dict) else None
    if not isinstance(entries, list):
        raise ValueError("there is no list of keys")
    found: dict[str | None, PyJWK] = {}
    for entry in entries:
        try:
            key = PyJWK(entry)
        except (jwt.PyJWTError, AttributeError, TypeError):
            continue
        # A symmetric key in public could be used by all who read it.
        kind = (key.key_type, key.algorithm_name)
        if kind in {("RSA", "RS256"), ("EC", "ES256")} and key.public_key_use in (None, "sig"):
            found[key.key_id] = key
    if not found:
        raise ValueError("there is no RS256 or ES256 key")
    return found


def _principal(claims: Claims, issuer: str) -> Principal:
    role = _text(claims, "role")
    campus = _text(claims, "campus")
    subject = _text(claims, "sub")
    name = _text(claims, "name") if "name" in claims else subject
    try:
        return Principal(f"token:{issuer}#{subject}", name, Role(role), campus, Via.TOKEN)
    except (ValueError, InputError) as error:
        raise _refused(f"its role {role!r} does not fit its campus {campus!r}") from error


def _text(claims: Claims, name: str) -> str:
    # Never a default: who says nothing of a campus does not mean all of them.
    value = claims.get(name)
    if name == "campus" and value is None and claims.get("role") == Role.SYSTEM_ADMINISTRATOR:
        return DISTRICT
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_CLAIM or not value.isprintable():
        raise _refused(f"its claim {name!r} is missing or cannot be used")
    return value


class _NoDetour(urllib.request.HTTPRedirectHandler):
    """Keys come from the address that was set, not from where that sends us."""

    def redirect_request(self, *_: object, **__: object) -> None:
        """Follow no redirect."""


def _fetch(url: str) -> bytes:
    opener = urllib.request.build_opener(_NoDetour)
    with opener.open(url, timeout=FETCH_LIMIT_S) as answer:  # https or loopback, see `PublicKeys`
        document: bytes = answer.read(LARGEST_BYTES + 1)
    if len(document) > LARGEST_BYTES:
        raise ValueError("it is larger than 1 MB")
    return document


def _refused(reason: str) -> SignInError:
    return SignInError(
        f"the bearer token does not hold: {reason}",
        where="Authorization",
        next_step="Get a new token from your issuer.",
    )
