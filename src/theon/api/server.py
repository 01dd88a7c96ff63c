"""The web server: uvicorn, which ends the streams before it waits for requests to end."""

import socket

import uvicorn
from fastapi import FastAPI

from theon.api.jobs_app import end_streams
from theon.api.live import end_live_streams


class Server(uvicorn.Server):
    """Use it in place of `uvicorn.Server` for an application with streams.

    A stream goes on for as long as its client stays, so a server that only waited would cut off
    every one, with an error in the log, when its patience ends.
    """

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Tell those who listen that the service stops, then stop."""
        if isinstance(self.config.app, FastAPI):
            end_streams(self.config.app)
            end_live_streams(self.config.app)
        await super().shutdown(sockets)
