"""Headless Chromium over the pipe of its DevTools protocol; the standard library alone."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-default-apps", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--remote-debugging-pipe", "about:blank",
)  # fmt: skip
# The protocol wants the descriptors 3 and 4; a fork with code in between is no longer safe beside threads.
START = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
PATIENCE = 120.0


def find_chromium() -> str | None:
    """Its path, or None."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Chromium:
    """One page; what it says on its console and which addresses it asks for are kept."""

    def __init__(self, program: str, *, options: tuple[str, ...] = ()) -> None:
        self._profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        for descriptor in (theirs_in, theirs_out):  # out of the way of 3 and 4
            os.set_inheritable(descriptor, True)
        words = [program, f"--user-data-dir={self._profile.name}", *options, *OPTIONS]
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", START, str(theirs_in), str(theirs_out), *words],
            pass_fds=(theirs_in, theirs_out), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._count, self._rest, self._answers = 0, b"", {}
        self.console: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", session=None, url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", session=None, targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.call(f"{domain}.enable")
        # Workers ask for files too.
        self.call("Target.setAutoAttach", autoAttach=True, waitForDebuggerOnStart=False, flatten=True)

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)
        self._profile.cleanup()

    # ---- the protocol ------------------------------------------------------------------------------------------------------------

    def call(self, method: str, *, session: str | None = "page", **parameters: Any) -> Any:
        """One command and its result."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = self._session if session == "page" else session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        own, end = self._count, time.monotonic() + PATIENCE
        while own not in self._answers:
            self._read(end)
        answer = self._answers.pop(own)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def _read(self, end: float) -> None:
        ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            raise TimeoutError("Chromium does not answer")
        content = os.read(self._in, 1 << 20)
        if not content:
            raise RuntimeError("Chromium ended")
        *messages, self._rest = (self._rest + content).split(b"\0")
        for text in messages:
            message = json.loads(text)
            if message.get("id") is not None:
                self._answers[message["id"]] = message
            else:
                self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        method, values = message["method"], message["params"]
        if method == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.console.append(str(values["exceptionDetails"].get("exception", values["exceptionDetails"]).get("description")))
        elif method == "Runtime.consoleAPICalled" and values["type"] in ("error", "warning", "assert"):
            self.console.append(" ".join(str(each.get("value", each.get("description"))) for each in values["args"]))
        elif method == "Log.entryAdded" and values["entry"]["level"] in ("error", "warning"):
            self.console.append(f"{values['entry']['text']} {values['entry'].get('url', '')}")
        elif method == "Target.attachedToTarget" and values["targetInfo"]["type"] == "worker":
            for number, domain in enumerate(
                ("Network", "Runtime", "Log")
            ):  # answers are not waited for: this is in the midst of one
                command = {"id": -1000 - number, "method": f"{domain}.enable", "params": {}, "sessionId": values["sessionId"]}
                os.write(self._out, json.dumps(command).encode() + b"\0")

    # ---- what tests do -----------------------------------------------------------------------------------------------------------

    def open(self, url: str) -> None:
        """Load a page."""
        self.call("Page.navigate", url=url)

    def evaluate(self, code: str) -> Any:
        """The value of an expression in the page; promises are waited for."""
        found = self.call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["exception"].get("description", "an exception"))
        return found["result"].get("value")

    def wait(self, code: str, *, seconds: float = PATIENCE) -> Any:
        """The value of an expression once it is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := self.evaluate(code):
                return value
            time.sleep(0.05)
        raise TimeoutError(f"{code} did not become true; the page says {self.evaluate('document.body.innerText')!r}")

    def choose_file(self, selector: str, path: Path) -> None:
        """Put a file into an input."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def press(self, key: str, *, code: int, text: str = "") -> None:
        """A key, down and up."""
        values = {"key": key, "code": key, "windowsVirtualKeyCode": code, "nativeVirtualKeyCode": code, "text": text}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **values)
        self.call("Input.dispatchKeyEvent", type="keyUp", **values)

    def look(self, width: int, height: int, *, dark: bool = False, scale: float = 1, touch: bool = False) -> None:
        """Size and colour scheme."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=touch)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """What is seen, or the whole page, as PNG or JPEG."""
        kind = "png" if path.suffix == ".png" else "jpeg"
        options = {} if kind == "png" else {"quality": 85}
        found = self.call("Page.captureScreenshot", format=kind, captureBeyondViewport=whole, **options)
        path.write_bytes(base64.b64decode(found["data"]))
