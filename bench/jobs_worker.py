"""`python -m bench.jobs_worker HOME REDIS_URL`: Theon's worker with the jobs of the bench."""

import sys
from pathlib import Path

from bench import jobs_kinds
from bench.jobs_services import SLOTS, free_port
from theon.cli_worker import run_worker
from theon.jobs.supervisor import Supervisor
from theon.settings import Settings
from theon.store.engine import Store


def main() -> None:
    settings = Settings(
        home=Path(sys.argv[1]), redis_url=sys.argv[2], postgres_url=None, postgres_app_url=None,
        worker_port=free_port(),
    )  # fmt: skip
    with Store.open(settings) as store:
        supervisor = Supervisor(
            store, settings, jobs_kinds.kinds(), kinds_source=jobs_kinds.SOURCE,
            queues=[jobs_kinds.QUEUE], slots=SLOTS, delivery="celery",
        )  # fmt: skip
        run_worker(supervisor, [jobs_kinds.QUEUE], SLOTS, store, settings)


if __name__ == "__main__":
    main()
