"""Runs attempts in child processes, ends those that break a limit, and answers for them.

One thread hands attempts to children and watches them; it waits for neither the database
(`theon.jobs.clerk` does) nor a child (`theon.jobs.resources`). A child is ended when its attempt
takes too long or too much memory, is cancelled, or has lost its lease, and also one second before
a lease ends that could not be renewed: whoever has the job then must be alone with it.
"""

import logging
import math
import os
import random
import selectors
import socket
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import psutil

from theon.jobs.child import attempt_frame
from theon.jobs.clerk import Clerk, Run, Runs, code_is_gone, died
from theon.jobs.inbox import Inbox
from theon.jobs.kinds import Backoff, Kinds
from theon.jobs.ledger import Message, Outcome
from theon.jobs.pulse import Pulse
from theon.jobs.quarantine import Quarantine
from theon.jobs.resources import BrokenPipeOfChildError, Child, preload
from theon.settings import Settings
from theon.store.engine import Store

ATTEMPTS_PER_CHILD = 5000
KILL_AFTER_S = 1.0  # from SIGTERM to SIGKILL
LOOK_EVERY_S = 0.2
MEASURE_EVERY_S = 0.5
LEASE_MARGIN_S = 1.0
BOOT_LIMIT_S = 120.0  # importing the code of all kinds on a busy machine takes its time
LONGEST_REST_S = 5.0
# While attempts are this short, some are begun before a child is free, so that none waits for
# the ledger; one that then still gets no child goes back.
SHORT_S = 0.02
AHEAD_S = 0.1
AHEAD_PER_SLOT = 128
AHEAD_WAIT_S = 2.0
LAST_WORDS_S = 10.0
SWITCH_S = 0.001

_log = logging.getLogger(__name__)


class Supervisor:
    """The part of a worker that executes.

    Attributes:
        worker_id: names this worker in the ledger.
        state: `running`, `draining` or `stopped`.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        kinds: Kinds,
        *,
        kinds_source: str,
        queues: Sequence[str],
        slots: int,
        delivery: str,
        worker_id: str | None = None,
        drain_s: float = 30,
    ) -> None:
        """Nothing runs before `start`.

        Args:
            store: the open store of this process.
            settings: with which children open their own.
            kinds: what this installation has code for.
            kinds_source: `module:function` that gives the same kinds in a child.
            queues: that this worker says it takes jobs from.
            slots: attempts at the same time.
            delivery: name of the delivery that brings messages.
            worker_id: another name than one made of host and process.
            drain_s: seconds that running jobs may go on after `drain`.
        """
        unique = uuid.uuid4().hex[:6]
        self.worker_id = worker_id or f"{socket.gethostname()}-{os.getpid()}-{unique}"
        self.state = "running"
        self._settings = settings
        self._kinds = kinds
        self._kinds_source = kinds_source
        self._queues = list(queues)
        self._slots = slots
        self._delivery = delivery
        self._drain_s = drain_s
        self._inbox = Inbox()
        self._runs = Runs()
        self._clerk = Clerk(store, self._runs, self.worker_id, self._wake)
        self._quarantine = Quarantine(self._clerk, self._runs)
        self._pulse = Pulse(
            store, self._runs, self.worker_id, self._clerk.held, self._describe, self._wake,
            self.drain,
        )  # fmt: skip
        self._ready: deque[Run] = deque()
        self._children: dict[Child, Run | None] = {}
        self._idle: list[Child] = []
        self._selector = selectors.DefaultSelector()
        self._waker, self._woken = socket.socketpair()
        self._asked_to_drain = threading.Event()
        self._asked_to_stop = threading.Event()
        self._drain_until_s: float | None = None
        self._short_s = 1.0  # how long attempts took lately
        self._looked_s = self._measured_s = self._rest_until_s = 0.0
        self._boot_failures = 0
        self._me = psutil.Process()
        self._thread = threading.Thread(target=self._run, name="theon-supervisor", daemon=True)

    @property
    def busy(self) -> int:
        """How many attempts run in a child."""
        return sum(run is not None for run in list(self._children.values()))

    @property
    def asked_to_drain(self) -> bool:
        """Whether somebody called `drain`, or asked for it in the ledger."""
        return self._asked_to_drain.is_set()

    def submit(self, messages: Sequence[Message]) -> None:
        """Take messages; returns at once. What does not begin before its lease ends is dropped."""
        self._inbox.put(messages)
        self._wake()

    def wait_for_room(self, limit_s: float) -> bool:
        """Wait until messages that come would begin soon; False if they would not in that time."""
        return self._inbox.wait_for_room(limit_s)

    def start(self) -> None:
        """Run in a thread of its own."""
        preload(self._kinds_source)
        # Its threads hand work to each other thousands of times a second.
        sys.setswitchinterval(SWITCH_S)
        for end in (self._waker, self._woken):
            end.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        self._clerk.open()
        self._pulse.open()
        self._thread.start()

    def drain(self) -> None:
        """Begin nothing more; what still runs after `drain_s` goes back with its checkpoint."""
        self._asked_to_drain.set()
        self._wake()

    def stop(self) -> None:
        """End what runs and give it back now."""
        self._asked_to_stop.set()
        self._wake()

    def join(self, timeout_s: float | None = None) -> None:
        """Wait until it has ended."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _wake(self) -> None:
        with suppress(OSError):  # full, so it wakes anyway; or closed at the end
            self._waker.send(b"\0")

    def _run(self) -> None:
        try:
            while self._round():
                pass
        except Exception:
            _log.exception("the supervisor failed; its attempts are ended and go back")
        finally:
            self._end()

    def _round(self) -> bool:
        """One turn of the loop; False when all is done."""
        self._listen()
        now_s = time.monotonic()
        self._take_started(now_s)
        if now_s - self._looked_s >= LOOK_EVERY_S:
            self._looked_s = now_s
            self._look(now_s)
        self._hand_out(now_s)
        if self._asked_to_drain.is_set() or self._asked_to_stop.is_set():
            return self._drain(now_s)
        self._hire(now_s)
        self._ask_for_more(now_s)
        return True

    # -- what children say ----------------------------------------------------------------

    def _listen(self) -> None:
        for key, events in self._selector.select(LOOK_EVERY_S):
            if key.data is None:
                with suppress(BlockingIOError):
                    self._woken.recv(4096)
                continue
            child: Child = key.data
            if child not in self._children:  # forgotten a moment ago
                continue
            if events & selectors.EVENT_WRITE and child.flush():
                self._selector.modify(child.pipe, selectors.EVENT_READ, child)
            if key.fd == child.gone:
                self._bury(child)
            elif events & selectors.EVENT_READ:
                self._hear(child)

    def _hear(self, child: Child) -> None:
        try:
            words = child.read()
        except BrokenPipeOfChildError:
            # Most likely it died, which `gone` tells in a moment; else `_look` ends it.
            self._selector.unregister(child.pipe)
            child.mute_since_s = time.monotonic()
            return
        for word, *rest in words:
            if word == "ready":
                child.ready = True
                child.base_mb = child.memory_mb()
                self._boot_failures = 0
                self._idle.append(child)
            else:
                run = self._children[child]
                if run is None or run.attempt.token != rest[0]:
                    continue
                if word == "progress":
                    run.progress = tuple(rest[1])
                elif word == "ended":
                    self._ended(child, run, rest[1])

    def _ended(self, child: Child, run: Run, told: dict[str, Any]) -> None:
        """The attempt has returned or raised."""
        if run.verdict is not None:
            return  # its process is being ended, and why is decided
        now_s = time.monotonic()
        took_s = now_s - (run.began_s or now_s)
        self._short_s += 0.2 * (took_s - self._short_s)
        self._children[child] = None
        child.lease(0)
        if child.attempts >= ATTEMPTS_PER_CHILD or (took_s > SHORT_S and child.is_fat()):
            child.end()
        else:
            child.ready = True
            self._idle.append(child)
        if told["outcome"] == "failed" and told["transient"]:
            told["wait_s"] = self._wait_s(run, run.attempt.attempt)
        told["peak_memory_mb"] = max(told["peak_memory_mb"] or 0.0, run.peak_mb) or None
        self._clerk.end(Outcome(run.attempt.job_id, run.attempt.token, **told), run)

    def _bury(self, child: Child) -> None:
        """The process is gone: by our decision, by itself, or by somebody's hand."""
        run = self._children[child]
        if run is not None:
            for word, *rest in child.rest():  # it may have answered with its last breath
                if word == "ended" and rest[0] == run.attempt.token:
                    self._ended(child, run, rest[1])
            run = self._children[child]
        del self._children[child]
        if child in self._idle:
            self._idle.remove(child)
        for file in (child.pipe, child.gone):
            with suppress(KeyError, ValueError):
                self._selector.unregister(file)
        how = child.farewell() if child.ending_since_s is None else "its process was ended"
        if not child.attempts and child.ending_since_s is None:
            self._could_not_begin(how)
        if run is not None:
            wait_s = self._wait_s(run, run.attempt.lost + 1)
            self._clerk.end(run.verdict or died(run, how, wait_s), run)
        child.forget()

    def _wait_s(self, run: Run, failures: int) -> float:
        name = run.attempt.kind
        backoff = self._kinds[name].backoff if name in self._kinds else Backoff()
        return backoff.wait_s(failures, random.random())  # noqa: S311 - keeps no secret

    # -- limits ---------------------------------------------------------------------------

    def _look(self, now_s: float) -> None:
        measure = now_s - self._measured_s >= MEASURE_EVERY_S
        if measure:
            self._measured_s = now_s
        for child, run in list(self._children.items()):
            if child.is_gone():
                self._bury(child)
            elif child.ending_since_s is not None:
                if now_s - child.ending_since_s >= KILL_AFTER_S:
                    child.kill()
            elif child.mute_since_s is not None:
                if now_s - child.mute_since_s >= KILL_AFTER_S:
                    child.kill()
            elif run is not None:
                if measure:
                    run.peak_mb = max(run.peak_mb, child.memory_mb())
                child.lease(run.lease_until_s)
                self._judge(child, run, now_s)
            elif child.ready:
                if measure and child.is_fat():
                    self._idle.remove(child)
                    child.end()
            elif now_s - child.started_s > BOOT_LIMIT_S:
                child.kill()

    def _judge(self, child: Child, run: Run, now_s: float) -> None:
        """End the attempt if it broke a limit."""
        attempt = run.attempt
        limit_mb = attempt.memory_mb
        if run.lost:
            self._condemn(child, run, "released", "another attempt owns the job")
        elif run.cancel:
            self._condemn(child, run, "cancelled", run.cancel, kind="CancelledError")
        elif now_s >= run.lease_until_s - LEASE_MARGIN_S:
            reason = "given back: its worker could not reach the database in time"
            self._condemn(child, run, "released", reason)
            child.kill()  # there is no time for anything gentle
        elif run.peak_mb > limit_mb:
            reason = f"used {run.peak_mb:,.0f} MB, its limit is {limit_mb:,} MB"
            self._condemn(child, run, "failed", reason, kind="MemoryLimit")
        elif now_s - (run.began_s or now_s) > attempt.timeout_s:
            reason = f"took longer than its {attempt.timeout_s:,g} s"
            self._condemn(child, run, "failed", reason, kind="TimeLimit")

    def _condemn(
        self, child: Child, run: Run, outcome: str, reason: str, *, kind: str | None = None
    ) -> None:
        """End the process; the ledger hears why once it is gone, so that no two run at once."""
        run.verdict = Outcome(
            run.attempt.job_id,
            run.attempt.token,
            outcome,
            reason,
            wait_s=self._wait_s(run, run.attempt.attempt),
            error=reason if kind else None,
            error_kind=kind,
            peak_memory_mb=run.peak_mb or None,
        )
        _log.info("job %d: %s", run.attempt.job_id, reason)
        child.end(cancelled=outcome == "cancelled")

    # -- work -----------------------------------------------------------------------------

    def _take_started(self, now_s: float) -> None:
        while self._clerk.started:
            run = self._clerk.started.popleft()
            if run.attempt.kind in self._kinds:
                self._ready.append(run)
            else:
                self._clerk.end(code_is_gone(run.attempt), run)
        while self._ready and now_s - self._ready[0].taken_s > AHEAD_WAIT_S:
            self._give_back(self._ready.popleft(), "given back: no slot came free in time")

    def _give_back(self, run: Run, reason: str) -> None:
        message = run.message
        self._clerk.end(Outcome(message.job_id, message.token, "released", reason), run)

    def _hand_out(self, now_s: float) -> None:
        while self._ready and self._idle:
            # The last one that was busy: its memory and its connections are warm.
            child = self._idle.pop()
            if child.ending_since_s or child.mute_since_s or child.is_gone():
                continue
            run = self._ready.popleft()
            run.began_s = now_s
            self._children[child] = run
            child.give(attempt_frame(run.attempt), run.lease_until_s)
            if not child.flush():
                events = selectors.EVENT_READ | selectors.EVENT_WRITE
                self._selector.modify(child.pipe, events, child)

    def _ask_for_more(self, now_s: float) -> None:
        self._inbox.drop_overdue(now_s)
        if self._quarantine.attend(now_s):
            self._send_on(now_s, "given back: its worker runs another job alone")
            self._inbox.say_room(False)
            return
        ahead = 0
        if self._short_s < SHORT_S:
            most = AHEAD_PER_SLOT * self._slots
            ahead = min(most, math.ceil(self._slots * AHEAD_S / max(self._short_s, 1e-4)))
        room = len(self._idle) + ahead - len(self._ready) - self._clerk.beginning
        if room > 0 and self._inbox:
            messages = self._inbox.take(room)
            room -= len(messages)
            self._clerk.begin(messages)
        if self.busy >= self._slots:
            self._send_on(now_s, "given back: no slot came free in time")
        # A slot at work finds its next job here, if jobs are short.
        self._inbox.say_room(room > 0 or len(self._inbox) < ahead)

    def _send_on(self, now_s: float, reason: str) -> None:
        """Give back what cannot begin soon: it is not kept from workers that have room."""
        late = self._inbox.take_late(now_s)
        if late:
            self._clerk.give_back(late, reason)

    # -- children -------------------------------------------------------------------------

    def _hire(self, now_s: float) -> None:
        """Start a child where one is missing; one a turn, for the others are to be heard."""
        staff = sum(child.ending_since_s is None for child in self._children)
        if staff >= self._slots or now_s < self._rest_until_s:
            return
        try:
            child = Child(self._kinds_source, self._settings)
        except (OSError, EOFError, RuntimeError) as error:
            self._could_not_begin(str(error))
            return
        self._children[child] = None
        self._selector.register(child.pipe, selectors.EVENT_READ, child)
        self._selector.register(child.gone, selectors.EVENT_READ, child)
        self._wake()  # another may be missing

    def _could_not_begin(self, why: str) -> None:
        self._boot_failures += 1
        rest_s = min(LONGEST_REST_S, 0.1 * 2 ** min(self._boot_failures, 10))
        self._rest_until_s = time.monotonic() + rest_s
        _log.warning("a process for jobs could not begin (%s); next in %.1f s", why, rest_s)

    # -- the end --------------------------------------------------------------------------

    def _drain(self, now_s: float) -> bool:
        if self._drain_until_s is None:
            self._drain_until_s = now_s + self._drain_s
            self.state = "draining"
        if self._asked_to_stop.is_set():
            self._drain_until_s = min(self._drain_until_s, now_s)
        waiting = self._inbox.take(len(self._inbox))
        waiting += self._quarantine.leave()
        if waiting:
            self._clerk.give_back(waiting, "given back: the worker drains")
        while self._ready:
            self._give_back(self._ready.popleft(), "given back: the worker drains")
        for child, run in list(self._children.items()):
            if child.ending_since_s is not None:
                continue
            if run is None:
                child.end()
            elif now_s >= self._drain_until_s:
                self._condemn(child, run, "released", "given back: the worker drains")
        # The ledger may be away and tell nothing of what was to begin.
        return bool(self._children) or (
            self._clerk.beginning > 0 and now_s < self._drain_until_s + KILL_AFTER_S
        )

    def _end(self) -> None:
        """Leave no process behind, write the last outcomes, say that this worker is gone."""
        for child in list(self._children):
            child.kill()
        until_s = time.monotonic() + 5.0
        while self._children and time.monotonic() < until_s:
            for child in [c for c in self._children if c.is_gone()]:
                self._bury(child)
            time.sleep(0.01)
        self._ready.extend(self._clerk.started)
        for run in self._ready:
            self._give_back(run, "given back: the worker ends")
        self._clerk.close(LAST_WORDS_S)
        self.state = "stopped"
        self._pulse.close(LAST_WORDS_S)
        self._selector.close()
        for end in (self._waker, self._woken):
            end.close()

    def _describe(self) -> dict[str, Any]:
        """The worker's row."""
        staff = list(self._children.items())
        memory_mb, cpu_percent = 0.0, 0.0
        with suppress(psutil.Error):
            memory_mb = self._me.memory_info().rss / (1 << 20)
            cpu_percent = self._me.cpu_percent()
        running = [run.attempt.job_id for _, run in staff if run is not None]
        return {
            "id": self.worker_id,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "delivery": self._delivery,
            "queues": self._queues,
            "state": self.state,
            "slots": self._slots,
            "busy": len(running),
            "cpu_percent": cpu_percent + sum(child.cpu_percent() for child, _ in staff),
            "memory_mb": memory_mb + sum(child.memory_mb() for child, _ in staff),
            "memory_free_mb": psutil.virtual_memory().available / (1 << 20),
            "running": running,
        }
