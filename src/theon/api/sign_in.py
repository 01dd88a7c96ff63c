"""Signing in over HTTP: sessions, who am I, and the keys of services.

Other routes take what they need from here: `require`, `optional_principal`, `signed_in`.
"""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response, WebSocket
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, SecretStr

from theon.access.keys import DAYS, MOST_DAYS, ApiKey, list_keys, make_key, revoke_key
from theon.access.passwords import LONGEST
from theon.access.principals import Principal, Via
from theon.access.requests import (
    Access,
    CarryAccess,
    Refusal,
    access_of,
    check_origin,
    clear_cookies,
    csrf_token,
    in_thread,
    optional_principal,
    require,
    session_token,
    set_cookies,
    signed_in,
    with_refusals,
)
from theon.access.roles import Permission, Role
from theon.access.sessions import sign_in, sign_out
from theon.api.jobs_models import Words
from theon.api.streams import deny

__all__ = ["Refusal", "add_sign_in", "optional_principal", "require", "signed_in"]

router = APIRouter(prefix="/api/v1", tags=["sign-in"])


class Credentials(BaseModel):
    """What a person types."""

    name: Annotated[Words, Field(min_length=1, max_length=254)]
    password: Annotated[SecretStr, Field(min_length=1, max_length=LONGEST)]


class KeyWanted(BaseModel):
    """A key to be made."""

    name: Annotated[Words, Field(min_length=1, max_length=100)]
    campus: Annotated[Words, Field(min_length=1, max_length=63)]
    role: Role = Role.SERVICE
    days: Annotated[int, Field(ge=1, le=MOST_DAYS)] = DAYS


def add_sign_in(app: FastAPI, access: Access) -> None:
    """Put the routes onto `app`, and behind every route of it what `require` works with."""
    app.add_middleware(CarryAccess, access=access)
    app.add_exception_handler(Refusal, _answer)  # type: ignore[arg-type]  # serves both kinds
    app.include_router(router)


async def _answer(conn: Request | WebSocket, refusal: Exception) -> Response | None:
    assert isinstance(refusal, Refusal)  # noqa: S101 - it is registered for nothing else
    if isinstance(conn, WebSocket):
        await deny(conn, refusal)
        return None
    return JSONResponse(
        {"error": refusal.error, "next_step": refusal.next_step},
        refusal.status,
        {"Cache-Control": "no-store", **refusal.headers},
    )


@router.post("/sign-in")
async def post_sign_in(
    credentials: Credentials, request: Request, response: Response
) -> dict[str, Any]:
    """Open a session: the cookie, and the token that changes have to send along."""
    check_origin(request, optional=True)
    access = access_of(request)
    session = await in_thread(
        sign_in,
        access.store,
        credentials.name,
        credentials.password.get_secret_value(),
        address=request.client.host if request.client else "",
        lasts_s=access.session_lasts_s,
        replaces=session_token(request),
    )
    set_cookies(response, request, session)
    response.headers["Cache-Control"] = "no-store"
    return _describe(session.principal) | {
        "csrf_token": csrf_token(session.token),
        "expires_in_s": session.lasts_s,
    }


@router.post("/sign-out", status_code=204)
async def post_sign_out(
    request: Request,
    response: Response,
    principal: Annotated[Principal | None, Depends(optional_principal)],
) -> None:
    """End the session of the cookie; without one there is nothing to end."""
    token = session_token(request)
    if token is not None and principal is not None and principal.via is Via.SESSION:
        await in_thread(sign_out, access_of(request).store, token)
    clear_cookies(response, request)


@router.get("/me")
def get_me(
    request: Request, response: Response, principal: Annotated[Principal, Depends(signed_in)]
) -> dict[str, Any]:
    """Who is asking, and what they may do."""
    response.headers["Cache-Control"] = "no-store"
    shown = _describe(principal)
    token = session_token(request)
    if principal.via is Via.SESSION and token is not None:
        shown["csrf_token"] = csrf_token(token)
    return shown


KeyManager = Annotated[Principal, Depends(require(Permission.KEYS_MANAGE))]


@router.get("/keys")
def get_keys(request: Request, response: Response, principal: KeyManager) -> dict[str, list[Any]]:
    """The keys of the caller's campuses, without their secrets."""
    response.headers["Cache-Control"] = "no-store"
    keys = with_refusals(list_keys, access_of(request).store, by=principal)
    return {"keys": [asdict(key) for key in keys]}


@router.post("/keys", status_code=201)
def post_key(
    wanted: KeyWanted, request: Request, response: Response, principal: KeyManager
) -> dict[str, Any]:
    """Make a key; `key` is shown here and never again."""
    made: tuple[ApiKey, str] = with_refusals(
        make_key,
        access_of(request).store,
        name=wanted.name,
        role=wanted.role,
        campus=wanted.campus,
        days=wanted.days,
        by=principal,
    )
    response.headers["Cache-Control"] = "no-store"
    return asdict(made[0]) | {"key": made[1]}


@router.delete("/keys/{key_id}", status_code=204)
def delete_key(key_id: int, request: Request, principal: KeyManager) -> None:
    """Revoke a key: the next request with it is refused."""
    try:
        with_refusals(revoke_key, access_of(request).store, key_id, by=principal)
    except Refusal as refusal:
        if refusal.status == 400:
            refusal.status = 404
        raise


def _describe(principal: Principal) -> dict[str, Any]:
    return {
        "subject": principal.subject,
        "name": principal.name,
        "role": principal.role,
        "campus": principal.campus,
        "via": principal.via,
        "permissions": sorted(principal.permissions),
    }
