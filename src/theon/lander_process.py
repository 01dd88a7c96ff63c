"""The lander of a service, in a process of its own.

Landing and refresh are work of the interpreter as much as of the engine; in the process that
answers requests they would take turns with every one of them.
"""

import logging
import multiprocessing
import signal
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from theon.bootstrap import open_theon
from theon.loops import Loop
from theon.observability.logs import log_to_stderr
from theon.pipeline import Lander
from theon.settings import Settings

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess

LOOK_S = 0.5
# To end by itself after its round; after that it is killed, which loses nothing but the round.
END_S = 3.0
# One that lived so long had no fault that starting would show again.
HEALTHY_S = 60.0
LONGEST_BACKOFF_S = 30.0

_context = multiprocessing.get_context("forkserver")
_log = logging.getLogger(__name__)


class LanderProcess(Loop):
    """Keeps one process that runs a `Lander`; one that died is replaced."""

    def __init__(self, settings: Settings) -> None:
        """Say what it opens; nothing runs before `start`."""
        super().__init__("lander-process")
        self._settings = settings
        self.pid: int | None = None

    def run(self) -> None:
        """Until `stop`: start the process and watch it."""
        faults = 0
        while not self._stopping.is_set():
            began_s = time.monotonic()
            ours, theirs = _context.Pipe(duplex=False)
            process = _context.Process(
                target=_serve, args=(ours, self._settings), name="theon-lander", daemon=True
            )
            try:
                process.start()
                self.pid = process.pid
                ours.close()
                while process.is_alive() and not self._stopping.wait(LOOK_S):
                    pass
            except (OSError, EOFError) as error:  # the second, where the server of forks died
                _log.warning("no process can be started to land events: %s", error)
            finally:
                ours.close()
                theirs.close()  # which tells it to end
            if self._stopping.is_set():
                _end(process)
                return
            faults = 0 if time.monotonic() - began_s > HEALTHY_S else faults + 1
            _log.warning(
                "the process that lands events ended (%s); another one is started. Nothing that "
                "was accepted is lost",
                process.exitcode,
            )
            self._stopping.wait(min(LONGEST_BACKOFF_S, 0.5 * 2 ** min(faults, 8)))


def _end(process: "ForkServerProcess") -> None:
    if process.pid is None:
        return
    process.join(END_S)
    if process.is_alive():
        process.kill()
        process.join(END_S)


def _serve(conn: Connection, settings: Settings) -> None:
    """The process: a lander, until the other end of the pipe is closed or gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the service, which ends this
    log_to_stderr()
    with open_theon(settings) as theon:
        lander = Lander(theon.store, theon.lake, theon.settings)

        def end_with_service() -> None:
            with suppress(EOFError, OSError):
                conn.recv_bytes()
            lander.stop()

        threading.Thread(target=end_with_service, name="service-watch", daemon=True).start()
        lander.run()
