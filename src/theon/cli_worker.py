"""`theon worker`: runs the jobs that Celery brings from Redis."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from http.server import ThreadingHTTPServer

    from theon.jobs.deliveries.celery import CeleryConsumer
    from theon.jobs.supervisor import Supervisor
    from theon.settings import Settings
    from theon.store.engine import Store

STALE_S = 10.0  # an answer of the database that is older says nothing


def worker(
    queues: Annotated[
        str | None,
        typer.Option(help="Queues it takes jobs from, separated by commas; else all of them."),
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(min=1, help="Jobs at the same time; else THEON_JOB_SLOTS, or one per core."),
    ] = None,
) -> None:
    """Run jobs that Redis brings, until SIGTERM or Ctrl-C; REDIS_URL says where it is.

    Running jobs may then go on for THEON_DRAIN_S; the rest goes back to the queue. How the
    worker is: http://127.0.0.1:3008/health (WORKER_PORT, THEON_HOST).

    Example: REDIS_URL=redis://127.0.0.1:6379/0 theon worker --queues metrics,reports --slots 4
    """
    import os  # noqa: PLC0415 - only when the command runs, as all below

    from theon.errors import InputError  # noqa: PLC0415
    from theon.settings import load_settings  # noqa: PLC0415

    settings = load_settings()
    if settings.redis_url is None:
        raise InputError(
            "a worker gets its jobs from Redis, and REDIS_URL is not set",
            where="theon worker",
            next_step="Without Redis no worker is needed: `theon serve` runs jobs itself. "
            "With one: REDIS_URL=redis://127.0.0.1:6379/0 theon worker",
        )
    from theon import bootstrap  # noqa: PLC0415

    kinds = bootstrap.job_kinds()
    known = sorted({kind.queue for kind in kinds.values()})
    chosen = known if queues is None else [q.strip() for q in queues.split(",") if q.strip()]
    unknown = [queue for queue in chosen if queue not in known]
    if unknown or not chosen:
        raise InputError(
            f"no job uses the queue {', '.join(unknown)}" if unknown else "no queue is named",
            where="--queues",
            next_step=f"There are: {', '.join(known)}.",
        )
    with bootstrap.open_theon(settings) as theon:
        from theon.background import make_supervisor  # noqa: PLC0415

        count = slots or settings.job_slots or os.cpu_count() or 1
        supervisor = make_supervisor(
            theon.store, settings, kinds, delivery="celery", queues=chosen, slots=count
        )
        run_worker(supervisor, chosen, count, theon.store, settings)


def run_worker(
    supervisor: "Supervisor", queues: list[str], slots: int, store: "Store", settings: "Settings"
) -> None:
    """Run until a signal or until it is asked to drain, then drain.

    `supervisor` is not started, `redis_url` is set.

    Raises:
        UnavailableError: the port of `/health` is taken.
    """
    import logging  # noqa: PLC0415
    import signal  # noqa: PLC0415
    import threading  # noqa: PLC0415

    from theon.background import AFTER_DRAIN_S  # noqa: PLC0415
    from theon.jobs.deliveries.celery import CeleryConsumer, shown  # noqa: PLC0415
    from theon.observability.logs import log_to_stderr  # noqa: PLC0415

    log_to_stderr()
    logging.getLogger("celery").setLevel(logging.ERROR)  # `CeleryConsumer` says it in our words
    redis_url = settings.redis_url or ""
    consumer = CeleryConsumer(redis_url, queues, supervisor)
    health = Health(supervisor, consumer, queues, slots, store)
    server = health_server(health, settings.host, settings.worker_port)
    ended = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: ended.set())
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        threading.Thread(target=server.serve_forever, name="theon-health", daemon=True).start()
        health.start()
        supervisor.start()
        consumer.start()
        typer.secho(
            f"Worker {supervisor.worker_id} takes {', '.join(queues)} from {shown(redis_url)} "
            "(Ctrl-C ends it)",
            err=True,
            bold=True,
        )
        while not ended.wait(1.0):
            if supervisor.asked_to_drain:  # on the page of workers
                break
            if not supervisor_lives(supervisor):
                typer.secho("The supervisor ended by itself; the worker ends too.", err=True)
                raise typer.Exit(1)
        typer.secho(f"Draining: jobs may go on for {settings.drain_s:g} s", err=True)
    finally:
        # New messages first, so that none arrives at a supervisor that takes no more.
        consumer.stop()
        supervisor.drain()
        supervisor.join(settings.drain_s + AFTER_DRAIN_S)
        supervisor.stop()
        health.stop()
        server.shutdown()
        server.server_close()
        for number, handler in before.items():
            signal.signal(number, handler)


def supervisor_lives(supervisor: "Supervisor") -> bool:
    """Whether the supervisor still works; a worker without one must not look alive."""
    return str(supervisor.state) != "stopped"


class Health:
    """What `/health` says; the database is asked in the background, so an answer never hangs."""

    def __init__(
        self,
        supervisor: "Supervisor",
        consumer: "CeleryConsumer",
        queues: list[str],
        slots: int,
        store: "Store",
    ) -> None:
        import threading  # noqa: PLC0415

        self._supervisor = supervisor
        self._consumer = consumer
        self._queues = queues
        self._slots = slots
        self._store = store
        self._database_at = float("-inf")
        self._stopping = threading.Event()

    def start(self) -> None:
        """Begin to ask the database."""
        import threading  # noqa: PLC0415

        threading.Thread(target=self._watch, name="theon-health-db", daemon=True).start()

    def stop(self) -> None:
        """Ask no more."""
        self._stopping.set()

    def read(self) -> tuple[int, dict[str, Any]]:
        """The HTTP status, 200 where the worker can work and 503 else, and the facts."""
        import time  # noqa: PLC0415

        database = time.monotonic() - self._database_at < STALE_S
        broker = self._consumer.broker_reachable
        listening = self._consumer.state == "listening"
        facts = {
            "worker_id": self._supervisor.worker_id,
            "state": str(self._supervisor.state),
            "slots": self._slots,
            "busy": self._supervisor.busy,
            "queues": self._queues,
            "consumer": self._consumer.state,
            "broker_reachable": broker,
            "database_reachable": database,
        }
        return (200 if broker and database and listening else 503), facts

    def _watch(self) -> None:
        import time  # noqa: PLC0415

        from sqlalchemy import text  # noqa: PLC0415
        from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

        from theon.errors import TheonError  # noqa: PLC0415
        from theon.store.scope import Scope  # noqa: PLC0415

        while not self._stopping.is_set():
            try:
                with self._store.transaction(Scope.district()) as conn:
                    conn.execute(text("SELECT 1"))
                self._database_at = time.monotonic()
            except (SQLAlchemyError, TheonError):
                self._database_at = float("-inf")
            self._stopping.wait(2.0)


def health_server(health: Health, host: str, port: int) -> "ThreadingHTTPServer":
    """A small server of `/health`, bound and not yet serving.

    Raises:
        UnavailableError: the port is taken, or the address is not this machine's.
    """
    import json  # noqa: PLC0415
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer  # noqa: PLC0415

    from theon.errors import UnavailableError  # noqa: PLC0415

    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            if self.path.partition("?")[0] == "/health":
                status, facts = health.read()
            else:
                status, facts = 404, {"error": "there is only /health here"}
            body = json.dumps(facts).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    try:
        return ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        raise UnavailableError(
            f"cannot listen: {error.strerror}",
            where=f"{host}:{port}",
            next_step=f"Use another port for /health: WORKER_PORT={port + 1} theon worker",
        ) from error
