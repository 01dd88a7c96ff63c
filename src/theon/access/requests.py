"""From a request to a principal: bearer tokens, API keys, and cookies with their defences.

Pages and API both use this. A request with an `Authorization` header is judged by it alone;
any other by its session cookie. A cookie is sent by the browser whoever wrote the page, so
what changes something must also come from one of our own pages: `Origin` says so, and so does
a token that only our pages can read.
"""

import base64
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from theon.access.errors import ForbiddenError, LockedError, SignInError
from theon.access.keys import START, read_key
from theon.access.principals import Principal
from theon.access.roles import Permission
from theon.access.sessions import NewSession, read_session
from theon.access.tokens import open_tokens
from theon.errors import TheonError, UnavailableError
from theon.settings import Settings
from theon.store.engine import Store

CSRF_COOKIE = "theon_csrf"
CSRF_HEADER = "x-csrf-token"
CSRF_FIELD = "csrf_token"
LARGEST_FORM_BYTES = 64 * 1024

_SAFE = {"GET", "HEAD", "OPTIONS"}
_FORM = "application/x-www-form-urlencoded"
_KEY = "theon.access"
_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}

T = TypeVar("T")


class Refusal(Exception):  # noqa: N818 - an answer, not a fault
    """The answer to a request that is not let through."""

    def __init__(
        self, status: int, error: str, next_step: str, headers: Mapping[str, str] | None = None
    ) -> None:
        self.status = status
        self.error = error
        self.next_step = next_step
        self.headers = dict(headers or {})
        super().__init__(error)


class Access:
    """What knows who is asking; one per process."""

    def __init__(self, store: Store, settings: Settings) -> None:
        """Take up the settings.

        Raises:
            InputError: the settings of bearer tokens do not fit.
        """
        self.store = store
        self.session_lasts_s = settings.session_hours * 3600
        self._tokens = open_tokens(settings)

    async def identify(self, conn: HTTPConnection, *, is_use: bool = True) -> Principal | None:
        """Who is asking; None if they show nothing, or a session that has ended.

        `is_use` is False when a stream that goes on is looked at again: a page that stands open
        does not keep its session awake.

        Raises:
            Refusal: they show something that does not hold, or a request that rides on a
                cookie does not come from our pages.
        """
        given = conn.headers.get("authorization")
        if given is not None:
            return await in_thread(self.read_bearer, given)
        token = session_token(conn)
        if token is None:
            return None
        principal = await in_thread(read_session, self.store, token, is_use=is_use)
        if principal is not None:
            await check_request(conn, token)
        return principal

    def read_bearer(self, header: str) -> Principal:
        """Whose API key or token an Authorization header shows.

        Raises:
            SignInError: it shows neither, or one that does not hold.
        """
        scheme, _, bearer = header.partition(" ")
        bearer = bearer.strip()
        if scheme.lower() != "bearer" or not bearer:
            raise SignInError(
                "the Authorization header is not of the form 'Bearer …'",
                next_step="Send an API key or a token as: Authorization: Bearer …",
            )
        if bearer.startswith(START):
            principal = read_key(self.store, bearer)
            if principal is None:
                raise SignInError(
                    "this API key is unknown, revoked or expired",
                    next_step="Have an administrator make a new key.",
                )
            return principal
        if self._tokens is None:
            raise SignInError(
                "bearer tokens are not set up here",
                next_step="Use an API key, or set JWT_SECRET or JWT_JWKS_URL.",
            )
        return self._tokens.read(bearer)


class CarryAccess:
    """Middleware that hands `Access` to every app below, mounted ones too."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Put it into the scope, which goes down the whole way."""
        scope[_KEY] = self._access
        await self._app(scope, receive, send)


def access_of(conn: HTTPConnection) -> Access:
    """The `Access` that `CarryAccess` put there."""
    access = conn.scope[_KEY]
    assert isinstance(access, Access)  # noqa: S101 - tells the type
    return access


async def optional_principal(conn: HTTPConnection) -> Principal | None:
    """Dependency: who is asking, None if nobody says.

    Raises:
        Refusal: what they show does not hold (401), or the request is not ours (403).
    """
    return await access_of(conn).identify(conn)


async def signed_in(conn: HTTPConnection) -> Principal:
    """Dependency: who is asking, whatever they may do.

    Raises:
        Refusal: nobody is signed in (401), or as `optional_principal`.
    """
    principal = await optional_principal(conn)
    if principal is None:
        raise Refusal(
            401,
            "nobody is signed in",
            "Sign in at /sign-in, or send an API key or a token as: Authorization: Bearer …",
            {"WWW-Authenticate": "Bearer"},
        )
    return principal


def require(permission: Permission | str) -> Callable[[HTTPConnection], Awaitable[Principal]]:
    """A dependency that gives the principal of a request, if they may do this.

    It serves HTTP and WebSocket routes: `principal: Annotated[Principal,
    Depends(require("jobs.read"))]`. Read and write in `principal.scope`.

    Raises:
        ValueError: there is no such permission.
    """
    needed = Permission(permission)

    async def permitted(conn: HTTPConnection) -> Principal:
        principal = await signed_in(conn)
        with_refusals(principal.check, needed)
        return principal

    return permitted


async def in_thread(do: Callable[..., T], *args: object, **named: object) -> T:
    """What `do` returns, from a thread; its errors as refusals."""
    return await run_in_threadpool(lambda: with_refusals(do, *args, **named))


def with_refusals(do: Callable[..., T], *args: object, **named: object) -> T:
    """What `do` returns.

    Raises:
        Refusal: it raised an error for a person; the status says which kind.
    """
    try:
        return do(*args, **named)
    except TheonError as error:
        raise refusal(error) from error


def refusal(error: TheonError) -> Refusal:
    """An error for a person as an answer."""
    headers = {}
    if isinstance(error, LockedError):
        status, headers = 429, {"Retry-After": str(error.retry_after_s)}
    elif isinstance(error, SignInError):
        status, headers = 401, {"WWW-Authenticate": "Bearer"}
    elif isinstance(error, ForbiddenError):
        status = 403
    else:
        status = 503 if isinstance(error, UnavailableError) else 400
    return Refusal(status, error.what, error.next_step, headers)


# -- cookies ------------------------------------------------------------------------------


def session_token(conn: HTTPConnection) -> str | None:
    """What the session cookie holds."""
    return conn.cookies.get(_cookie_name(conn)) or None


def set_cookies(response: Response, conn: HTTPConnection, session: NewSession) -> None:
    """Give the browser a session, and what its pages prove themselves by."""
    _set(response, conn, _cookie_name(conn), session.token, session.lasts_s, hidden=True)
    _set(response, conn, CSRF_COOKIE, csrf_token(session.token), session.lasts_s, hidden=False)


def clear_cookies(response: Response, conn: HTTPConnection) -> None:
    """Take both back."""
    _set(response, conn, _cookie_name(conn), "", 0, hidden=True)
    _set(response, conn, CSRF_COOKIE, "", 0, hidden=False)


def _set(
    response: Response, conn: HTTPConnection, name: str, value: str, age_s: int, *, hidden: bool
) -> None:
    response.set_cookie(
        name, value, max_age=age_s, path="/", httponly=hidden, samesite="lax", secure=_secure(conn)
    )


def _cookie_name(conn: HTTPConnection) -> str:
    # With this prefix no neighbour of our host name can plant a cookie.
    return "__Host-theon_session" if _secure(conn) else "theon_session"


def _secure(conn: HTTPConnection) -> bool:
    return conn.url.scheme in ("https", "wss")


# -- requests that ride on a cookie -------------------------------------------------------


def csrf_token(session: str) -> str:
    """What our pages send along: it belongs to this session, and gives it away to nobody."""
    mac = hmac.new(session.encode(), b"theon csrf", hashlib.sha256).digest()
    return base64.urlsafe_b64encode(mac).rstrip(b"=").decode()


async def check_request(conn: HTTPConnection, session: str) -> None:
    """Let pass what changes nothing, or comes from our own pages.

    A WebSocket is checked by its origin alone: a browser cannot send a header with it.

    Raises:
        Refusal: 403; it may come from anywhere.
    """
    is_socket = conn.scope["type"] == "websocket"
    if not is_socket and conn.scope["method"] in _SAFE:
        return
    check_origin(conn)
    if is_socket:
        return
    given = conn.headers.get(CSRF_HEADER)
    if given is None and isinstance(conn, Request):
        given = (await read_form(conn)).get(CSRF_FIELD)
    expected = csrf_token(session)
    if given is None or not hmac.compare_digest(given.encode(), expected.encode()):
        raise Refusal(
            403,
            "the request does not prove that it comes from a page of this site",
            f"Send the value of the cookie {CSRF_COOKIE} as the header X-CSRF-Token; or reload "
            "the page and try again.",
        )


def check_origin(conn: HTTPConnection, *, optional: bool = False) -> None:
    """Let pass what a page of this site sent.

    Args:
        conn: the request.
        optional: whether a request that does not say, so not a browser's, passes too.

    Raises:
        Refusal: 403; another site's page sent it.
    """
    origin = conn.headers.get("origin") or conn.headers.get("referer")
    if origin is None and optional:
        return
    host = conn.headers.get("host", "")
    # The scheme is not compared: a proxy may speak https to the browser and http to us.
    place = _place(origin or "")
    if origin is None or place[0] is None or place != _place(f"//{host}", origin):
        raise Refusal(
            403,
            "the request comes from another site",
            "Use the pages of this site; a proxy in front of it has to hand on the Host header.",
        )


def _place(url: str, like: str = "") -> tuple[str | None, int | None]:
    try:
        parts = urlsplit(url)
        scheme = parts.scheme or urlsplit(like).scheme
        return parts.hostname, parts.port or _PORTS.get(scheme)
    except ValueError:
        return None, None


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a small form as a browser posts it; none of anything else.

    Raises:
        Refusal: 413; it is too large, or does not say how large it is.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
        return {}
    length = request.headers.get("content-length", "")
    if not length.isdecimal() or int(length) > LARGEST_FORM_BYTES:
        raise Refusal(413, "the form is too large", "Send less at once.")
    form = await request.form()
    return {name: value for name, value in form.items() if isinstance(value, str)}
