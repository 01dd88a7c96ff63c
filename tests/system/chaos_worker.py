"""`theon worker` with the kinds of the chaos run: `python … HOME REDIS PORT SLOTS`."""

import sys
from pathlib import Path

from tests.system import chaos_kinds
from theon.cli_worker import run_worker
from theon.jobs.supervisor import Supervisor
from theon.settings import Settings
from theon.store.engine import Store


def main() -> None:
    home, redis_url, port, slots = sys.argv[1:]
    settings = Settings(
        home=Path(home), postgres_url=None, postgres_app_url=None, redis_url=redis_url,
        worker_port=int(port), drain_s=5.0,
    )  # fmt: skip
    with Store.open(settings) as store:
        supervisor = Supervisor(
            store,
            settings,
            chaos_kinds.kinds(),
            kinds_source=chaos_kinds.SOURCE,
            queues=[chaos_kinds.QUEUE],
            slots=int(slots),
            delivery="celery",
            drain_s=settings.drain_s,
        )
        run_worker(supervisor, [chaos_kinds.QUEUE], int(slots), store, settings)


if __name__ == "__main__":
    main()
