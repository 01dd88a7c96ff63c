"""Where the log goes."""

import logging


def log_to_stderr() -> None:
    """Write the process's log as lines on standard error, from INFO up."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    # Opening the store checks its version, which is not news in every process.
    logging.getLogger("alembic").setLevel(logging.WARNING)
