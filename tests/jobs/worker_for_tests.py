"""A whole worker in a process of its own, to be killed: `python worker_for_tests.py HOME SLOTS`.

It reads messages, `job token` a line, and says `up` once it listens.
"""

import sys
from pathlib import Path

from tests.jobs import kinds_for_tests

from theon.jobs import inbox
from theon.jobs.ledger import Message
from theon.jobs.supervisor import Supervisor
from theon.settings import Settings
from theon.store.engine import Store


def main() -> None:
    inbox.DISPATCH_LEASE_S = 600.0  # as in the shop: nobody sends the messages again
    settings = Settings(home=Path(sys.argv[1]), postgres_url=None, postgres_app_url=None)
    with Store.open(settings) as store:
        worker = Supervisor(
            store,
            settings,
            kinds_for_tests.kinds(),
            kinds_source=kinds_for_tests.SOURCE,
            queues=["try"],
            slots=int(sys.argv[2]),
            delivery="local",
            worker_id="to be killed",
        )
        worker.start()
        sys.stdout.write("up\n")
        sys.stdout.flush()
        for line in sys.stdin:
            job_id, token = line.split()
            worker.submit([Message(int(job_id), int(token))])
        worker.stop()
        worker.join(30)


if __name__ == "__main__":
    main()
