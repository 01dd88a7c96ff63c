"""`python -m bench.jobs_celery REDIS_URL`: Celery's own worker, prefork."""

import sys

from bench.jobs_kinds import bare_celery
from bench.jobs_services import SLOTS

if __name__ == "__main__":
    bare_celery(sys.argv[1]).worker_main(
        ["worker", "--pool", "prefork", "--concurrency", str(SLOTS), "--loglevel", "ERROR",
         "--without-gossip", "--without-mingle"]
    )  # fmt: skip
