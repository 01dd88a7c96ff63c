"""Headless Chromium over its debugging protocol: open a page at a size, ask it questions."""

import base64
import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

READY_S = 120
CHARTS_FILL_THEIR_PLACE = """[...document.querySelectorAll('.nicegui-echart')].every(
    place => place.querySelector('svg')?.getAttribute('width') == place.clientWidth)"""


def chromium() -> str | None:
    """The browser's program, if there is one."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


class Browser:
    """One Chromium process with a profile of its own."""

    def __init__(self, profile: Path) -> None:
        program = chromium()
        assert program is not None
        self._process = subprocess.Popen(
            [
                program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
                "--no-first-run", "--disable-background-networking", "--disable-component-update",
                "--disable-sync", "--disable-dev-shm-usage", "--remote-debugging-port=0",
                f"--user-data-dir={profile}", "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        port_file = profile / "DevToolsActivePort"
        wait_for(lambda: port_file.exists() and len(port_file.read_text().splitlines()) == 2)
        port, path = port_file.read_text().splitlines()
        self._open = ExitStack()
        address = f"ws://127.0.0.1:{port}{path}"
        # No pings: a page that is live says much while nobody listens, and no pong comes through.
        self._socket = self._open.enter_context(
            connect(address, max_size=None, proxy=None, ping_interval=None, open_timeout=READY_S)
        )
        self._next = 0
        self._targets: list[str] = []

    def close(self) -> None:
        self._open.close()
        os.killpg(self._process.pid, signal.SIGTERM)
        self._process.wait(READY_S)

    def close_pages(self) -> None:
        """Close what was opened, so that no page goes on to ask a server that is gone."""
        while self._targets:
            self.call("Target.closeTarget", {"targetId": self._targets.pop()})

    def open(self, url: str, *, width: int, height: int = 1600, dark: bool = False) -> "Page":
        """Load `url` in a window of this size and wait until its charts are drawn."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        self._targets.append(target)
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})
        page = Page(self, session["sessionId"])
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        page.call("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", {"features": [scheme]})
        page.call("Page.navigate", {"url": url})
        wait_for(lambda: page.ask("document.querySelector('.theon h1') !== null"))
        wait_for(lambda: page.ask("window.socket ? window.socket.connected : true"))
        wait_for(lambda: page.ask(CHARTS_FILL_THEIR_PLACE))
        time.sleep(0.5)
        return page

    def call(
        self, method: str, params: dict[str, Any] | None = None, *, page: "Page | None" = None
    ) -> Any:
        self._next += 1
        message = {"id": self._next, "method": method, "params": params or {}}
        if page is not None:
            message["sessionId"] = page.session
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv(READY_S))
            if answer.get("id") == self._next:
                assert "error" not in answer, answer
                return answer["result"]
            if page is not None:
                page.hear(answer)


class Page:
    """One tab. `complaints` are console errors, exceptions and failed requests; `hosts` are
    the servers it asked for anything."""

    def __init__(self, browser: Browser, session: str) -> None:
        self.session = session
        self.complaints: list[str] = []
        self.hosts: set[str] = set()
        self._browser = browser

    def hear(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(params["exceptionDetails"])[:600])
            case "Runtime.consoleAPICalled" if params["type"] == "error":
                self.complaints.append(json.dumps(params["args"])[:600])
            case "Log.entryAdded" if params["entry"]["level"] == "error":
                self.complaints.append(json.dumps(params["entry"])[:600])
            case "Network.requestWillBeSent":
                url = params["request"]["url"]
                if url.startswith(("http", "ws")):
                    self.hosts.add(url.split("/")[2])

    def call(self, method: str, params: dict[str, Any] | None = None) -> Any:
        return self._browser.call(method, params, page=self)

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        given = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        return self.call("Runtime.evaluate", given)["result"].get("value")

    def sideways_px(self) -> int:
        """How far the page reaches beyond its window, in pixels."""
        root = "document.documentElement"
        return int(self.ask(f"{root}.scrollWidth - {root}.clientWidth"))

    def picture(self, path: Path) -> None:
        """Save the whole page as PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        given = {"format": "png", "clip": clip, "captureBeyondViewport": True}
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", given)["data"]))


def wait_for(holds: Any, limit_s: float = READY_S) -> None:
    end = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.05)
