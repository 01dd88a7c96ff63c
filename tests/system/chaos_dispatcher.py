"""The dispatcher of `theon serve` with the kinds of the chaos run: `python … HOME REDIS`."""

import logging
import signal
import sys
import threading
from pathlib import Path

from tests.system import chaos_kinds
from theon.jobs.deliveries.celery import CeleryDelivery
from theon.jobs.dispatcher import Dispatcher
from theon.settings import Settings
from theon.store.engine import Store


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    home, redis_url = sys.argv[1:]
    settings = Settings(home=Path(home), postgres_url=None, postgres_app_url=None)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    with Store.open(settings) as store:
        delivery = CeleryDelivery(redis_url)
        dispatcher = Dispatcher(store, chaos_kinds.kinds(), delivery)
        dispatcher.start()
        ended.wait()
        dispatcher.stop()
        dispatcher.join(10)
        delivery.close()


if __name__ == "__main__":
    main()
