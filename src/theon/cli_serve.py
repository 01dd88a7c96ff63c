"""`theon serve`: the API, the pages and the background in one process."""

import errno
import socket
import sys

import typer
import uvicorn

from theon.access.requests import Access
from theon.access.welcome import first_link
from theon.api.app import create_app
from theon.api.delivery import add_delivery_api
from theon.api.events import add_events_api
from theon.api.jobs_app import add_jobs_api
from theon.api.live import add_live_api
from theon.api.server import Server
from theon.api.sign_in import add_sign_in
from theon.api.xapi_app import add_xapi
from theon.background import Background
from theon.bootstrap import Theon
from theon.errors import UnavailableError
from theon.lake.lake_ids import LakeIds
from theon.metrics.live import LiveHub
from theon.web.delivery import add_delivery_pages
from theon.web.jobs_pages import add_jobs_pages
from theon.web.pages import add_pages
from theon.web.sign_in import add_sign_in_pages

SWITCH_S = 0.002


def serve_pages(theon: Theon) -> None:
    """Serve on the host and port of the settings until a signal ends it.

    Raises:
        UnavailableError: the port is taken, or the address is not this machine's.
        InputError: settings of bearer tokens or of the background do not fit.
    """
    host, port = theon.settings.host, theon.settings.port
    sock = _listen(host, port)
    access = Access(theon.store, theon.settings)
    app = create_app(theon.store, theon.settings)
    add_sign_in(app, access)
    add_sign_in_pages(app)
    background = Background(theon)
    add_jobs_api(app, theon.store, background.kinds, background.scheduler)
    lake_ids = LakeIds(theon.settings)
    add_delivery_api(app, theon.store, lake_ids=lake_ids)
    events = add_events_api(app, theon.store, theon.settings)
    hub = LiveHub(theon.store)
    add_live_api(app, hub)
    add_jobs_pages(app, theon.store, background.kinds, background.scheduler)
    add_delivery_pages(app, settings=theon.settings, lake_ids=lake_ids)
    writers = add_xapi(app, theon.store, events.throttle, lake_ids)
    add_pages(app, theon.store, hub)
    shown = "127.0.0.1" if host in ("", "0.0.0.0") else host  # noqa: S104 - compared, not bound
    typer.secho(f"Theon is at http://{shown}:{port} (Ctrl-C ends it)", err=True, bold=True)
    link = first_link(theon.store, theon.settings)
    if link is not None:
        typer.secho(
            f"Nobody can sign in yet. The first administrator opens, once: {link}", err=True
        )
    # Who serves a request must not wait the usual 5 ms for each turn while others are committed.
    sys.setswitchinterval(SWITCH_S)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3)
    with sock, background, events, writers:
        Server(config).run(sockets=[sock])


def _listen(host: str, port: int) -> socket.socket:
    # Bound here rather than by uvicorn, whose message for a taken port is a log line.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        taken = error.errno == errno.EADDRINUSE
        raise UnavailableError(
            "the port is taken by another program" if taken else f"cannot listen: {error.strerror}",
            where=f"{host}:{port}",
            next_step=f"Stop that program, or use another port: PORT={port + 1} theon serve"
            if taken
            else "Set THEON_HOST to an address of this machine, such as 127.0.0.1.",
        ) from error
    return sock
