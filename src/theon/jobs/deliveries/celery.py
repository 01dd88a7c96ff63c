"""Celery on Redis as a delivery: it carries (job id, token) to a worker and decides nothing.

The ledger counts attempts, retries and leases, so a message may be lost or come twice. For that
reason Celery acknowledges early, stores no results, and none of its own retries, delays, chords
or priorities are used. Celery's own reconnecting is off as well: a lost connection ends the
consumer, and `CeleryConsumer` builds a new one.
"""

import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from celery import Celery
from celery.exceptions import WorkerShutdown
from kombu.exceptions import KombuError
from kombu.messaging import Producer
from redis import Redis
from redis.exceptions import RedisError

from theon.errors import UnavailableError
from theon.jobs.delivery import TakesMessages
from theon.jobs.ledger import Message

TASK = "theon.run"
ECHO = "theon.echo"
CONNECT_S = 1.0
ANSWER_S = 3.0  # an answer that takes longer counts as none: the connection is half open
ECHO_EVERY_S = 2.0
DEAF_S = 8.0  # Redis answers and a message of our own has not come back for so long
ECHO_KEPT_S = 60  # Redis forgets the echo queue of a worker that is gone
FULL_S = 1.0  # for so long a worker that has no room takes no message
TOLD_EVERY_S = 30.0
STOP_S = 10.0

_log = logging.getLogger(__name__)
_BROKEN = (RedisError, KombuError, OSError)
_Task = tuple[str, tuple[Any, ...], str]  # name, arguments, id


def make_app(redis_url: str) -> Celery:
    """A Celery that delivers and nothing else, with short timeouts everywhere."""
    app = Celery("theon", broker=redis_url, set_as_current=False)
    app.conf.update(
        task_acks_late=False,
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        broker_connection_timeout=CONNECT_S,
        broker_connection_retry=False,
        broker_connection_retry_on_startup=False,
        broker_transport_options={
            "socket_connect_timeout": CONNECT_S,
            "socket_timeout": ANSWER_S,
            "socket_keepalive": True,
            "health_check_interval": 5,
            # Without a bound kombu would try to connect for ever, in the middle of a publish.
            "max_retries": 1,
            "interval_start": 0,
            "interval_step": 0.1,
            "interval_max": 0.1,
        },
    )
    return app


def shown(redis_url: str) -> str:
    """The address of Redis without its password, for messages."""
    scheme, _, rest = redis_url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def redis_client(redis_url: str) -> Redis:
    """A plain client that notices within seconds that Redis is away."""
    return Redis.from_url(
        redis_url,
        socket_connect_timeout=CONNECT_S,
        socket_timeout=ANSWER_S,
        socket_keepalive=True,
    )


class CeleryDelivery:
    """Publishes messages to Redis over one connection; see `theon.jobs.delivery.Delivery`."""

    name = "celery"

    def __init__(self, redis_url: str) -> None:
        self._url = redis_url
        self._app = make_app(redis_url)
        self._lock = threading.Lock()
        self._connection: Any = None

    def send(self, messages: Sequence[Message], queue: str, *, together: int = 1) -> None:
        """Publish `messages` to the Celery queue named `queue`, up to `together` as one task.

        Raises:
            UnavailableError: Redis does not answer. Those that were not published come back
                when their dispatch lease ends.
        """
        pieces = (messages[n : n + together] for n in range(0, len(messages), together))
        tasks = [
            (TASK, ([[m.job_id, m.token] for m in piece],), f"{piece[0].job_id}.{piece[0].token}")
            for piece in pieces
        ]
        self._send(tasks, queue)

    def say(self, queue: str) -> None:
        """Publish an echo, by which a worker proves that it hears.

        Raises:
            UnavailableError: Redis does not answer.
        """
        self._send([(ECHO, (), uuid.uuid4().hex)], queue)

    def _send(self, tasks: Sequence[_Task], queue: str) -> None:
        waiting = deque(tasks)
        with self._lock:
            try:
                self._publish(waiting, queue)
            except _BROKEN:
                # Redis may have been restarted since the last time: once more, newly connected.
                self._disconnect()
                try:
                    self._publish(waiting, queue)
                except _BROKEN as error:
                    self._disconnect()
                    raise UnavailableError(
                        f"Redis does not answer ({error}); {len(waiting)} of {len(tasks)} "
                        "messages were not sent",
                        where=shown(self._url),
                        next_step="The jobs are handed out again in a few seconds. "
                        "Check that Redis runs and that REDIS_URL is right.",
                    ) from error

    def close(self) -> None:
        """Close the connection; may be called again."""
        with self._lock:
            self._disconnect()

    def _publish(self, waiting: deque[_Task], queue: str) -> None:
        if not waiting:
            return
        if self._connection is None:
            self._connection = self._app.connection_for_write()
        producer = _producer(self._connection)
        while waiting:
            name, arguments, task_id = waiting[0]
            self._app.send_task(
                name,
                args=arguments,
                task_id=task_id,
                queue=queue,
                producer=producer,
                retry=False,
                ignore_result=True,
            )
            waiting.popleft()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except _BROKEN as error:
                _log.debug("closing a broken connection to Redis: %s", error)


def _producer(connection: Any) -> Any:
    make: Any = Producer  # kombu has no annotations
    return make(connection.default_channel)


@dataclass
class _Ear:
    """One Celery worker in a thread of its own, and when it last heard a message."""

    controller: Any
    thread: threading.Thread
    heard: float

    def end(self) -> None:
        """Ask it to end; it looks every two seconds."""

        def leave() -> None:
            raise WorkerShutdown(0)

        consumer = getattr(self.controller, "consumer", None)
        if consumer is not None:
            consumer.call_soon(leave)


class CeleryConsumer:
    """Hears the queues of a worker and hands each message to its supervisor.

    A worker can be alive and deaf: its connection looks sound, and nothing comes through it. So
    each sends itself a message through Redis every two seconds. When Redis answers and that
    message does not come back, or messages wait and none is taken, the consumer is replaced.

    Attributes:
        state: `connecting`, `listening` or `stopped`.
        broker_reachable: whether Redis answered the last time.
        rebuilt: how many consumers were replaced.
    """

    def __init__(self, redis_url: str, queues: Sequence[str], supervisor: TakesMessages) -> None:
        self.state = "connecting"
        self.broker_reachable = False
        self.rebuilt = 0
        self._url = redis_url
        self._queues = list(queues)
        self._supervisor = supervisor
        self._echo_queue = f"theon.echo.{supervisor.worker_id}.{uuid.uuid4().hex[:8]}"
        # With kombu's notes about the queue, which would stay for ever.
        self._echo_keys = [
            f"{prefix}{self._echo_queue}"
            for prefix in ("", "_kombu.binding.", "_kombu.binding_permanent.")
        ]
        self._client = redis_client(redis_url)
        self._sender = CeleryDelivery(redis_url)
        self._stopping = threading.Event()
        self._ear: _Ear | None = None
        self._echo_at = 0.0
        self._told_at = 0.0
        self._away_since = 0.0
        self._thread = threading.Thread(target=self._run, name="theon-consumer", daemon=True)

    def start(self) -> None:
        """Begin to listen; waits for Redis in the background where it is away."""
        self._thread.start()

    def stop(self) -> None:
        """Take no more messages and close the connections; may be called again."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(STOP_S)
        self.state = "stopped"

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._look()
            except Exception:
                # The watch over deafness must never end for a reason nobody thought of.
                _log.exception("the watch over the consumer failed; it goes on")
            self._stopping.wait(0.5)
        if self._ear is not None:
            self._ear.end()
            self._ear.thread.join(STOP_S)
        try:
            self._client.delete(*self._echo_keys)
        except _BROKEN as error:
            _log.debug("Redis is away, so the echo queue stays until it ends: %s", error)
        self._client.close()
        self._sender.close()

    def _look(self) -> None:
        now = time.monotonic()
        waiting = self._waiting(now)
        if waiting is None:
            return
        ear = self._ear
        if ear is not None and not ear.thread.is_alive():
            _log.warning("the connection to Redis was lost; listening anew")
            self._replace()
        elif ear is None:
            self._ear = self._listen()
        elif now - max(ear.heard, self._away_since) > DEAF_S:
            _log.warning(
                "Redis answers, yet nothing was heard for %.0f s (%d messages wait): "
                "the consumer is deaf and is replaced",
                DEAF_S,
                waiting,
            )
            self._replace()
        self._say(now)

    def _waiting(self, now: float) -> int | None:
        """Messages in our queues; None if Redis is away."""
        try:
            pipe = self._client.pipeline(transaction=False)
            for queue in self._queues:
                pipe.llen(queue)
            found = sum(int(length) for length in pipe.execute())
        except RedisError as error:
            self.broker_reachable = False
            self.state = "connecting"
            self._away_since = now  # silence while Redis is away is no deafness
            if now - self._told_at > TOLD_EVERY_S:
                self._told_at = now
                _log.warning(
                    "Redis at %s does not answer (%s); waiting for it", shown(self._url), error
                )
            return None
        if not self.broker_reachable:
            _log.info("Redis at %s answers", shown(self._url))
        self.broker_reachable = True
        self._told_at = 0.0
        return found

    def _say(self, now: float) -> None:
        if now - self._echo_at < ECHO_EVERY_S:
            return
        self._echo_at = now
        try:
            self._sender.say(self._echo_queue)
            pipe = self._client.pipeline(transaction=False)
            for key in self._echo_keys:
                pipe.expire(key, ECHO_KEPT_S)
            pipe.execute()
        except (UnavailableError, RedisError) as error:
            _log.debug("Redis went away: %s", error)

    def _replace(self) -> None:
        if self._ear is not None:
            # Not joined: a thread that hangs must not hold up the new one. What it may still
            # take goes to the same supervisor, and a token is spent only once.
            self._ear.end()
        self.rebuilt += 1
        self._ear = self._listen()

    def _listen(self) -> _Ear:
        app = make_app(self._url)
        now = time.monotonic()
        ear = _Ear(None, threading.Thread(), now)

        def heard() -> None:
            ear.heard = time.monotonic()
            self.state = "listening"

        _add_tasks(app, self._supervisor, heard)
        controller = app.WorkController(
            app=app,
            hostname=f"theon@{self._supervisor.worker_id}",
            queues=[*self._queues, self._echo_queue],
            pool="solo",
            concurrency=1,
            use_eventloop=False,
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
        )

        def run() -> None:
            app.set_current()  # Celery looks a task up in the current app of the thread
            try:
                controller.start()
            except SystemExit:
                _log.debug("the consumer was asked to end while it was ending")

        ear.controller = controller
        ear.thread = threading.Thread(target=run, name="theon-celery", daemon=True)
        ear.thread.start()
        return ear


def _add_tasks(app: Celery, supervisor: TakesMessages, heard: Callable[[], None]) -> None:
    """The two tasks of a worker: a message of a job, and its own echo."""

    def run(pairs: list[list[int]]) -> None:
        heard()
        supervisor.submit([Message(job_id, token) for job_id, token in pairs])
        # What this worker cannot begin soon stays in Redis, for others. Not for long: it has to
        # hear its own echo.
        supervisor.wait_for_room(FULL_S)
        heard()

    # Shared tasks would go to every Celery of the process, and the first of a name would win.
    app.task(name=TASK, ignore_result=True, shared=False)(run)
    app.task(name=ECHO, ignore_result=True, shared=False)(heard)
