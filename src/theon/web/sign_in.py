"""The pages to sign in and out by, and to make the first administrator: plain forms.

Other pages take `require_page`: it leads whoever is not signed in here and back again.
"""

import secrets
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from urllib.parse import quote

import nicegui
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from starlette.requests import HTTPConnection

from theon.access.passwords import LONGEST, SHORTEST
from theon.access.principals import Principal
from theon.access.requests import (
    CSRF_FIELD,
    Refusal,
    access_of,
    check_origin,
    clear_cookies,
    csrf_token,
    in_thread,
    optional_principal,
    read_form,
    session_token,
    set_cookies,
)
from theon.access.roles import Permission
from theon.access.sessions import NewSession, sign_in, sign_out
from theon.access.welcome import link_holds, welcome

router = APIRouter(include_in_schema=False)

_templates = Environment(
    loader=PackageLoader("theon.web"),
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


class PageRefusal(Exception):  # noqa: N818 - an answer, not a fault
    """A page that is not shown: its visitor signs in first, or reads why not."""

    def __init__(self, refusal: Refusal, back_to: str | None = None) -> None:
        self.refusal = refusal
        self.back_to = back_to
        super().__init__(refusal.error)


def add_sign_in_pages(app: FastAPI) -> None:
    """Put the pages onto `app`, which has `theon.api.sign_in.add_sign_in` already."""
    app.include_router(router)
    # NiceGUI's pages are an app of their own, below ours.
    for each in (app, nicegui.app):
        each.add_exception_handler(PageRefusal, _answer)


def require_page(permission: Permission | str) -> Callable[[HTTPConnection], Awaitable[Principal]]:
    """As `require`, for pages: leads to the sign-in page instead of answering 401.

    Raises:
        ValueError: there is no such permission.
    """
    needed = Permission(permission)

    async def permitted(conn: HTTPConnection) -> Principal:
        try:
            principal = await optional_principal(conn)
        except Refusal as refusal:
            raise PageRefusal(refusal) from refusal
        if principal is None:
            path = conn.url.path + (f"?{conn.url.query}" if conn.url.query else "")
            raise PageRefusal(Refusal(401, "nobody is signed in", ""), back_to=path)
        if not principal.may(needed):
            what = f"A {principal.role.replace('_', ' ')} may not see this page."
            raise PageRefusal(Refusal(403, what, "Ask an administrator of your campus."))
        return principal

    return permitted


async def _answer(_: Request, error: Exception) -> Response:
    assert isinstance(error, PageRefusal)  # noqa: S101 - it is registered for nothing else
    if error.back_to is not None:
        return RedirectResponse(f"/sign-in?next={quote(error.back_to)}", 303)
    return _failure(error.refusal)


@router.get("/sign-in")
async def sign_in_page(request: Request, next: str = "/") -> Response:
    """The form; whoever is signed in already goes on."""
    if await _session(request) is not None:
        return RedirectResponse(_local(next), 303)
    return _sign_in_form(next)


@router.post("/sign-in")
async def take_sign_in(request: Request) -> Response:
    """Open a session, or show the form again and say why not."""
    try:
        check_origin(request)
        form = await read_form(request)
    except Refusal as refusal:
        return _failure(refusal)
    name, back_to = form.get("name", "")[:254], form.get("next", "/")
    access = access_of(request)
    try:
        session = await in_thread(
            sign_in,
            access.store,
            name,
            form.get("password", ""),
            address=request.client.host if request.client else "",
            lasts_s=access.session_lasts_s,
            replaces=session_token(request),
        )
    except Refusal as refusal:
        return _sign_in_form(back_to, name=name, refusal=refusal)
    return _enter(request, session, _local(back_to))


@router.get("/sign-out")
async def sign_out_page(request: Request) -> Response:
    """A button: following a link must not change anything."""
    token = session_token(request)
    principal = await _session(request)
    if token is None or principal is None:
        return RedirectResponse("/sign-in", 303)
    return _page(
        title="Sign out",
        words=f"You are signed in as {principal.name}.",
        action="/sign-out",
        hidden={CSRF_FIELD: csrf_token(token)},
        button="Sign out",
    )


@router.post("/sign-out")
async def take_sign_out(request: Request) -> Response:
    """End the session."""
    token = session_token(request)
    try:
        if token is not None and await optional_principal(request) is not None:
            await in_thread(sign_out, access_of(request).store, token)
    except Refusal as refusal:
        return _failure(refusal)
    response = RedirectResponse("/sign-in", 303)
    clear_cookies(response, request)
    return response


@router.get("/welcome")
async def welcome_page(request: Request, token: str = "") -> Response:
    """The form that makes the first administrator, while the link holds."""
    try:
        if await in_thread(link_holds, access_of(request).store, token):
            return _welcome_form(token)
    except Refusal as refusal:
        return _failure(refusal)
    return _failure(
        Refusal(
            401,
            "This link was used already, or is older than a day.",
            "While there is no account, a restart of theon serve prints a new link.",
        )
    )


@router.post("/welcome")
async def take_welcome(request: Request) -> Response:
    """Make the first administrator and sign them in."""
    try:
        check_origin(request)
        form = await read_form(request)
    except Refusal as refusal:
        return _failure(refusal)
    token, name, password = (form.get(key, "") for key in ("token", "name", "password"))
    access = access_of(request)
    try:
        if password != form.get("again", ""):
            raise Refusal(400, "The two passwords differ.", "Type the same one twice.")
        await in_thread(welcome, access.store, token, name, password)
        session = await in_thread(
            sign_in,
            access.store,
            name,
            password,
            address=request.client.host if request.client else "",
            lasts_s=access.session_lasts_s,
            replaces=session_token(request),
        )
    except Refusal as refusal:
        if refusal.status == HTTPStatus.BAD_REQUEST:
            return _welcome_form(token, name=name[:254], refusal=refusal)
        return _failure(refusal)
    return _enter(request, session, "/")


async def _session(request: Request) -> Principal | None:
    try:
        return await optional_principal(request)
    except Refusal:
        return None


def _enter(request: Request, session: NewSession, to: str) -> Response:
    response = RedirectResponse(to, 303, {"Cache-Control": "no-store"})
    set_cookies(response, request, session)
    return response


def _local(path: str) -> str:
    """A path of this site, or the overview: nobody is sent elsewhere after signing in."""
    if not path.startswith("/") or path[1:2] in ("/", "\\") or not path.isprintable():
        return "/"
    return path


def _sign_in_form(back_to: str, name: str = "", refusal: Refusal | None = None) -> Response:
    to = _local(back_to)
    return _page(
        title="Sign in",
        action="/sign-in",
        hidden={} if to == "/" else {"next": to},
        asks=True,
        name=name,
        button="Sign in",
        refusal=refusal,
    )


def _welcome_form(token: str, name: str = "", refusal: Refusal | None = None) -> Response:
    return _page(
        title="Welcome",
        words="Choose the name and password of the first system administrator.",
        action="/welcome",
        hidden={"token": token},
        asks=True,
        chooses=True,
        name=name,
        button="Create and sign in",
        refusal=refusal,
    )


def _failure(refusal: Refusal) -> Response:
    return _page(title="This cannot be shown", refusal=refusal)


def _page(
    *,
    title: str,
    words: str = "",
    action: str = "",
    hidden: dict[str, str] | None = None,
    asks: bool = False,
    chooses: bool = False,
    name: str = "",
    button: str = "",
    refusal: Refusal | None = None,
) -> Response:
    nonce = secrets.token_urlsafe(16)
    text = _templates.get_template("sign_in.html").render(
        title=title,
        words=words,
        action=action,
        hidden=hidden or {},
        asks=asks,
        chooses=chooses,
        name=name,
        button=button,
        fault=_sentence(refusal.error) if refusal else "",
        next_step=refusal.next_step if refusal else "",
        nonce=nonce,
        shortest=SHORTEST,
        longest=LONGEST,
    )
    return HTMLResponse(
        text,
        refusal.status if refusal else 200,
        _headers(nonce) | (refusal.headers if refusal else {}),
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _headers(nonce: str) -> dict[str, str]:
    return {
        "Cache-Control": "no-store",
        "Content-Security-Policy": f"default-src 'none'; style-src 'nonce-{nonce}'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
        # The address may hold the link's token. `no-referrer` would also hide the origin of forms.
        "Referrer-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
    }
