"""A headless Chromium driven through its debugging pipe (the DevTools protocol), without any other package.

``python -m tests.chromium page.html picture.png [width height light|dark]`` takes a picture of the top of a page.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars"
)
START = """\
import fcntl, os, sys
high = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
os.dup2(high[0], 3)  # the browser reads its commands from descriptor 3
os.dup2(high[1], 4)  # and writes its answers to 4
os.execv(sys.argv[3], sys.argv[3:])
"""
NAMES = ("chromium", "chromium-browser", "google-chrome")


def find() -> str | None:
    """The program, or None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Chromium:
    """One page. ``events`` holds everything that the browser reported: requests, console, exceptions."""

    def __init__(self, program: str) -> None:
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        commands, self.write = os.pipe()
        self.read, answers = os.pipe()
        start = [sys.executable, "-I", "-c", START, str(commands), str(answers), program, *FLAGS.split()]
        self.process = subprocess.Popen(
            [*start, f"--user-data-dir={self.folder.name}", "--remote-debugging-pipe", "about:blank"],
            pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self.buffer, self.sent, self.width = b"", 0, 0
        self.session: str | None = None
        self.events: list[dict[str, Any]] = []
        try:
            self._attach()
        except BaseException:
            self.close()
            raise

    def _attach(self) -> None:
        (page,) = [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        self.session = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Chromium":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the browser."""
        try:
            self.session = None
            self.call("Browser.close")
            self.process.wait(20)
        except (OSError, EOFError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        os.close(self.write)
        os.close(self.read)
        self.folder.cleanup()

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            received = os.read(self.read, 1 << 16)
            if not received:
                raise EOFError("the browser has ended")
            self.buffer += received
        message, _, self.buffer = self.buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer of a method of the protocol; what arrives before it is kept in ``events``."""
        self.sent += 1
        message = {"id": self.sent, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            found = self._message()
            if found.get("id") != self.sent:
                self.events.append(found)
                continue
            if "error" in found:
                raise RuntimeError(f"{method}: {found['error']['message']}")
            result: dict[str, Any] = found["result"]
            return result

    def show(self, page: Path, *, width: int, height: int = 900, scheme: str = "light", media: str = "screen") -> None:
        """Opens a file and waits until it is loaded."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        self.width = width
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._message())

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["text"])
        return found["result"].get("value")

    def picture(self, *, whole: bool = False) -> bytes:
        """A PNG of the window, or of the whole page."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(found["data"])

    def problems(self) -> list[str]:
        """Requests for anything but the page and what it carries inside, and everything written to the console."""
        found = []
        for event in self.events:
            method, values = event["method"], event.get("params", {})
            if method == "Network.requestWillBeSent":
                url = values["request"]["url"]
                if values.get("type") != "Document" and not url.startswith("data:"):
                    found.append(f"request: {url}")
            elif method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
                found.append(f"{method}: {json.dumps(values)}")
        return found


def main(page: str, picture: str, width: str = "1280", height: str = "900", scheme: str = "light") -> None:
    """Takes a picture; a height of 0 takes the whole page."""
    program = find()
    if program is None:
        raise SystemExit("there is no Chromium on this machine")
    with Chromium(program) as browser:
        browser.show(Path(page), width=int(width), height=int(height) or 900, scheme=scheme)
        if not int(height):
            tall = int(browser.evaluate("document.scrollingElement.scrollHeight"))
            browser.show(Path(page), width=int(width), height=tall, scheme=scheme)
        Path(picture).write_bytes(browser.picture())
        print("problems:", browser.problems())


if __name__ == "__main__":
    main(*sys.argv[1:])
