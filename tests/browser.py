"""A headless Chromium over the WebDriver protocol, which is JSON over HTTP: no package drives it."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromedriver")
MISSING = "needs chromium and chromedriver (`apt-get install -y chromium chromium-driver`)"


def installed() -> bool:
    return all(map(shutil.which, PROGRAMS))


class Browser:
    def __init__(self, address: str) -> None:
        self.address = address
        options = {"args": ["--headless=new", "--no-sandbox", "--disable-gpu"], "binary": shutil.which("chromium")}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self.session = self._call("POST", "", {"capabilities": {"alwaysMatch": wanted}}, of="")["sessionId"]

    def _call(self, method: str, path: str, body: Any = None, *, of: str | None = None) -> Any:
        where = f"/{self.session}" if of is None else of
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.address}/session{where}{path}", data, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, page: Path, *, width: int, dark: bool) -> None:
        """Show a file as a screen of this width and colour scheme does."""
        self.devtools("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", features=[scheme])
        self._call("POST", "/url", {"url": page.resolve().as_uri()})

    def devtools(self, command: str, **parameters: Any) -> Any:
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def run(self, script: str) -> Any:
        return self._call("POST", "/execute/sync", {"script": script, "args": []})

    def log(self) -> list[str]:
        """What the console said since it was last asked, errors and warnings among it."""
        return [entry["message"] for entry in self._call("POST", "/se/log", {"type": "browser"})]

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("GET", "/screenshot")))

    def close(self) -> None:
        self._call("DELETE", "")


@contextmanager
def chromium() -> Iterator[Browser]:
    driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        assert driver.stdout
        port = next(
            found[1] for line in driver.stdout if (found := re.search(r"started successfully on port (\d+)", line))
        )
        browser = Browser(f"http://127.0.0.1:{port}")
        try:
            yield browser
        finally:
            browser.close()
    finally:
        driver.terminate()
        driver.wait()
