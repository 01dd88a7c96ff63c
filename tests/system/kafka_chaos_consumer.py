"""A consumer of Kafka that kills itself: `python -m … STEP TIMES`; settings by the environment."""

import os
import signal
import sys

from theon.intake.kafka_consumer import KafkaConsumer
from theon.intake.kafka_reader import MessageReader
from theon.settings import load_settings
from theon.store.engine import Store


def main() -> None:
    step, times = sys.argv[1], int(sys.argv[2])
    seen = 0

    def checkpoint(done: str) -> None:
        nonlocal seen
        seen += done == step
        if seen == times:
            os.kill(os.getpid(), signal.SIGKILL)

    settings = load_settings()
    with Store.open(settings) as store:
        KafkaConsumer(store, settings, MessageReader(store, settings), checkpoint=checkpoint).run()


if __name__ == "__main__":
    main()
