"""A headless Chromium, driven over a pipe by the DevTools protocol: no driver and no library beside it.

    with Browser() as browser:
        browser.open("http://127.0.0.1:8000/")
        browser.until("document.title !== ''")

https://chromedevtools.github.io/devtools-protocol/: JSON messages, each ended by a zero byte.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--remote-debugging-pipe", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-features=Translate,MediaRouter,OptimizationHints", "--disable-extensions", "--mute-audio"),
)


class Browser:
    """One page. requested: the URLs it asked for. said: what it wrote on the console, and violations of its policy.

    That a request failed, or was answered by an error, is not kept: it is the server's to be tested.
    """

    def __init__(self, seconds: float = 30.0) -> None:
        self.requested: list[str] = []
        self.said: list[str] = []
        self._seconds = seconds
        self._buffer = b""
        self._number = 0
        self._stack = contextlib.ExitStack()
        folder = self._stack.enter_context(TemporaryDirectory(prefix="virtex-chromium-", ignore_cleanup_errors=True))
        self._start(folder)
        page = next(t for t in self._call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = {"targetId": page["targetId"], "flatten": True}
        self._session = self._call("Target.attachToTarget", **attached)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.resize(1280, 900)
        self.prefer("light")

    def _start(self, folder: str) -> None:
        assert CHROMIUM
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        shell = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "bash", CHROMIUM, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._stack.callback(self._end)

    def _end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # the group is this browser's alone
        self._process.wait(10)
        os.close(self._out)
        os.close(self._in)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    # ---- the protocol

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A method of the page's."""
        return self._call(method, self._session, **parameters)

    def _call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {
            "id": self._number,
            "method": method,
            "params": parameters,
            **({"sessionId": session} if session else {}),
        }
        os.write(self._out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + self._seconds
        while True:
            answer = self._read(deadline)
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _read(self, deadline: float) -> dict[str, Any]:
        """The next message; what it tells about the page is kept."""
        while b"\0" not in self._buffer:
            left = max(0.0, deadline - time.monotonic())
            assert select.select([self._in], [], [], left)[0], f"Chromium did not answer within {self._seconds} s"
            piece = os.read(self._in, 1 << 16)
            assert piece, "Chromium ended"
            self._buffer += piece
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        told = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.requested.append(told["request"]["url"])
        elif message.get("method") == "Log.entryAdded" and told["entry"]["source"] != "network":
            self.said.append(told["entry"]["text"])
        elif message.get("method") == "Runtime.consoleAPICalled":
            self.said.append(str([each.get("value") for each in told["args"]]))
        elif message.get("method") == "Runtime.exceptionThrown":
            self.said.append(told["exceptionDetails"]["exception"].get("description", "an exception"))
        return message

    # ---- the page

    def open(self, url: str) -> None:
        """Go there; what was said and requested before is forgotten."""
        self.requested.clear()
        self.said.clear()
        self.call("Page.navigate", url=url)

    def resize(self, width: int, height: int) -> None:
        """To the size of a window, or, below 600 wide, of a phone."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1}
        self.call("Emulation.setDeviceMetricsOverride", mobile=width < 600, **size)

    def cut_off(self, offline: bool) -> None:
        """Whether the network is down."""
        speed = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        self.call("Network.emulateNetworkConditions", offline=offline, **speed)

    def prefer(self, scheme: str) -> None:
        """Which scheme of colours the page is to have: "light" or "dark"."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def value(self, script: str) -> Any:
        """What an expression gives, awaited if it is a promise."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def text(self, selector: str) -> str:
        return str(self.value(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def until(self, script: str) -> None:
        """Wait until an expression holds."""
        deadline = time.monotonic() + self._seconds
        while not self.value(script):
            assert time.monotonic() < deadline, f"waited {self._seconds} s for {script}; the page:\n{self.text('body')}"
            time.sleep(0.05)

    def press(self, key: str, text: str = "", shift: bool = False) -> None:
        """One key, down and up."""
        codes = {"Tab": 9, "Enter": 13}
        parameters = {
            "key": key,
            "code": key,
            "windowsVirtualKeyCode": codes.get(key, 0),
            "modifiers": 8 if shift else 0,
        }
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **parameters)
        self.call("Input.dispatchKeyEvent", type="keyUp", **parameters)

    def type(self, text: str) -> None:
        """What a user types into what has the focus."""
        self.call("Input.insertText", text=text)

    def picture(self, path: Path) -> None:
        """A picture of the whole page."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))
