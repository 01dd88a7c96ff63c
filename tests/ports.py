"""Ports of this machine that are kept for a server of a test, also while it does not run."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held_port() -> Iterator[int]:
    """A free port that nobody else is given; servers that allow an address to be used again,
    as all of ours do, may listen at it, as often as they like."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])
