"""What all pages about jobs share: who sees what, the frame of a page, words for numbers.

A page reads in the scope of who asks and in a thread; it is HTML that works without scripts, and
a little script of ours makes it live. Everything comes from our own host, under a nonce.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import quote, unquote, urlencode

import psycopg
from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData

from theon.access.principals import Principal
from theon.access.requests import (
    CSRF_FIELD,
    Refusal,
    csrf_token,
    read_form,
    refusal,
    session_token,
)
from theon.access.roles import Permission
from theon.errors import ConflictError, MissingError, TheonError
from theon.jobs.kinds import Kinds
from theon.jobs.schedules import Scheduler
from theon.store.engine import Store
from theon.web.pages import ICON
from theon.web.sign_in import PageRefusal

READ_LIMIT_S = 5
CHANGE_LIMIT_S = 20
LIVE_HEADER = "x-live"
SAID_COOKIE = "theon_said"
SAID_S = 60
LONGEST_SAID = 700

T = TypeVar("T")


@dataclass(frozen=True)
class JobsSite:
    """What the pages work with; kept at `app.state.jobs_site`."""

    store: Store
    kinds: Kinds
    scheduler: Scheduler


class Entry(NamedTuple):
    """An entry of the navigation; None as permission is everybody."""

    key: str
    name: str
    path: str
    permission: Permission | None


NAVIGATION = (
    Entry("jobs", "Jobs", "/jobs", Permission.JOBS_READ),
    Entry("queues", "Queues and workers", "/queues", Permission.JOBS_READ),
    Entry("schedules", "Schedules", "/schedules", Permission.JOBS_READ),
    Entry("dead-letters", "Dead letters", "/dead-letters", Permission.JOBS_READ),
    Entry("health", "Health", "/health-of-jobs", Permission.JOBS_READ),
    Entry("delivery", "Delivery", "/delivery", Permission.DELIVERY_READ),
    Entry("overview", "Overview", "/", None),
)


def site_of(request: Request) -> JobsSite:
    """The site that `add_jobs_pages` put there."""
    site = request.app.state.jobs_site
    assert isinstance(site, JobsSite)  # noqa: S101 - tells the type
    return site


def actor_of(principal: Principal) -> str:
    """Who did it, for the audit."""
    return f"{principal.name} ({principal.subject})"


# -- reading and changing ------------------------------------------------------------------


async def read(request: Request, principal: Principal, do: Callable[[Connection], T]) -> T:
    """What `do` reads, in one transaction in the scope of the principal.

    Raises:
        PageRefusal: it cannot be read; says why.
    """
    return await _in_transaction(request, principal, do, READ_LIMIT_S)


async def change(request: Request, principal: Principal, do: Callable[[Connection], T]) -> T:
    """What `do` changes, all or nothing, in one transaction in the scope of the principal.

    Raises:
        PageRefusal: it cannot be changed, and was not; says why.
    """
    return await _in_transaction(request, principal, do, CHANGE_LIMIT_S)


async def _in_transaction(
    request: Request, principal: Principal, do: Callable[[Connection], T], limit_s: int
) -> T:
    store = site_of(request).store

    def work() -> T:
        limits = {"statement_timeout": f"{limit_s}s"}
        with store.transaction(principal.scope, limits) as conn:
            return do(conn)

    return await in_thread(work)


async def in_thread(do: Callable[[], T]) -> T:
    """What `do` returns, from a thread; for what makes transactions of its own.

    Raises:
        PageRefusal: `do` raised an error for a person, or the database gave up.
    """

    def work() -> T:
        try:
            return do()
        except TheonError as error:
            raise PageRefusal(_page_refusal(error)) from error
        except DBAPIError as error:
            raise PageRefusal(_database_refusal(error)) from error

    return await run_in_threadpool(work)


def _page_refusal(error: TheonError) -> Refusal:
    found = refusal(error)
    if isinstance(error, MissingError):
        found.status = 404
    elif isinstance(error, ConflictError):
        found.status = 409
    return found


def _database_refusal(error: DBAPIError) -> Refusal:
    """The answer where the database gave up; every other error is a fault of ours."""
    if isinstance(error.orig, psycopg.errors.QueryCanceled):
        return Refusal(
            503,
            "the database took too long for this",
            "Ask for less (a state, a campus, fewer days), or try again in a minute.",
        )
    if isinstance(error.orig, psycopg.errors.DeadlockDetected | psycopg.errors.LockNotAvailable):
        return Refusal(
            409, "somebody changes the same jobs at this moment", "Nothing was changed. Try again."
        )
    raise error


async def form_of(request: Request) -> FormData:
    """The fields of the form that was posted, with those that occur more than once.

    Raises:
        PageRefusal: 413; it is too large.
    """
    try:
        if not await read_form(request):
            return FormData()
    except Refusal as found:
        raise PageRefusal(found) from found
    return await request.form()


# -- answers -------------------------------------------------------------------------------


def page(
    request: Request,
    principal: Principal,
    template: str,
    *,
    title: str,
    here: str,
    status: int = 200,
    live_url: str | None = None,
    **values: object,
) -> HTMLResponse:
    """A page in the frame of all pages about jobs.

    Args:
        request: what is answered.
        principal: who reads it.
        template: name of a file in `templates/` that extends `jobs_base.html`.
        title: heading of the page and the window.
        here: key of the entry of the navigation that the page belongs to.
        status: of the answer.
        live_url: where what is live is read anew; from its own address unless given, and from
            nowhere if it answers a form.
        values: what the template needs beside what all get: `principal`, `may(permission)`,
            `csrf` and `proof` (the hidden field, and that as an element), `nonce`.
    """
    nonce = secrets.token_urlsafe(16)
    token = session_token(request)
    csrf = csrf_token(token) if token else ""
    proof = Markup('<input type="hidden" name="{}" value="{}">').format(CSRF_FIELD, csrf)
    # What a page asks for to be up to date is taken apart, and not what somebody reads.
    live = LIVE_HEADER in request.headers
    said = "" if live else unquote(request.cookies.get(SAID_COOKIE, ""))
    html = _templates.get_template(template).render(
        principal=principal,
        may=principal.may,
        csrf=csrf,
        proof=proof,
        nonce=nonce,
        live=live,
        live_url=_own_url(request) if live_url is None else live_url,
        title=title,
        here=here,
        said=said[:LONGEST_SAID],
        entries=[e for e in NAVIGATION if e.permission is None or principal.may(e.permission)],
        now=datetime.now(UTC),
        **values,
    )
    answer = HTMLResponse(html, status, _headers(nonce))
    if said:
        answer.delete_cookie(SAID_COOKIE, path="/")
    return answer


def _own_url(request: Request) -> str:
    if request.method != "GET":
        return ""
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")


def done(request: Request, to: str, message: str) -> Response:
    """Go on to a page of this site after a change; it shows the message once."""
    answer = RedirectResponse(to, 303, {"Cache-Control": "no-store"})
    answer.set_cookie(
        SAID_COOKIE,
        quote(message[:LONGEST_SAID], safe=""),
        max_age=SAID_S,
        path="/",
        httponly=True,
        samesite="lax",
        secure=request.url.scheme == "https",
    )
    return answer


def sentence(words: str) -> str:
    """Words of an error as a sentence."""
    return words[:1].upper() + words[1:] + ("" if words.endswith((".", "?", "!")) else ".")


def url(path: str, **query: object) -> str:
    """A path with what of the query is not empty."""
    given = {name: value for name, value in query.items() if value not in (None, "", ())}
    return path + ("?" + urlencode(given, doseq=True) if given else "")


def _headers(nonce: str) -> dict[str, str]:
    return {
        "Cache-Control": "no-store",
        "Content-Security-Policy": f"default-src 'none'; script-src 'nonce-{nonce}'; "
        f"style-src 'nonce-{nonce}'; connect-src 'self'; img-src 'self' data:; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
        "Referrer-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
    }


# -- words for numbers ---------------------------------------------------------------------

NOTHING = "\N{EN DASH}"
_SPANS = ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s"))


def duration(seconds: float | None) -> str:
    """`40 ms`, `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min` or `4 d 2 h`."""
    if seconds is None:
        return NOTHING
    if seconds < 0.0995:
        return f"{max(0.0, seconds) * 1_000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size_s, unit, part_s, part_unit in _SPANS:
        if whole >= size_s:
            part = whole % size_s // part_s
            return f"{whole // size_s:,} {unit}" + (f" {part} {part_unit}" if part else "")
    return f"{whole} s"


def moment(at: datetime | None) -> str:
    """`26 Nov 2026, 08:15:09 UTC`."""
    if at is None:
        return NOTHING
    at = at.astimezone(UTC)
    return f"{at.day} {at:%b %Y, %H:%M:%S} UTC"


def ago(at: datetime | None, now: datetime | None = None) -> str | Markup:
    """How long ago, or in how long, as an element that tells the moment itself."""
    if at is None:
        return NOTHING
    passed_s = ((now or datetime.now(UTC)) - at).total_seconds()
    words = "now"
    for size_s, unit in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")):
        if abs(passed_s) >= size_s:
            words = f"{int(abs(passed_s) // size_s)} {unit}"
            words = f"{words} ago" if passed_s > 0 else f"in {words}"
            break
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        at.isoformat(), moment(at), words
    )


def count(number: float | None) -> str:
    """`12,345`."""
    return NOTHING if number is None else f"{number:,.0f}"


def megabytes(number: float | None) -> str:
    """`812 MB` or `1.4 GB`."""
    if number is None:
        return NOTHING
    return f"{number:,.0f} MB" if number < 1_000 else f"{number / 1_000:,.1f} GB"


_templates = Environment(
    loader=PackageLoader("theon.web"),
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
for _filter in (ago, moment, duration, count, megabytes, sentence):
    _templates.filters[_filter.__name__] = _filter
_beside = Path(__file__)
_templates.globals |= {
    "url": url,
    # Files of ours, not values: they go into the page as they are.
    "style": Markup(_beside.with_name("jobs_style.css").read_text("utf-8")),  # noqa: S704
    "script": Markup(_beside.with_name("jobs_script.js").read_text("utf-8")),  # noqa: S704
    "icon": "data:image/svg+xml," + quote(ICON),
}
