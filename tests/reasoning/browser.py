"""A headless browser, driven through its debugging pipe: keys, sizes, themes, pictures."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import time

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
"""What the browser is called on different systems."""


def browser_path():
    """The browser's program, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab. Commands are those of the Chrome DevTools protocol."""

    def __init__(self, send, receive):
        self._send, self._receive, self._number, self._session = send, receive, 0, None
        self.events = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)

    def call(self, method, **parameters):
        """Sends one command and returns its result; events meanwhile are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._send.write(json.dumps(message).encode() + b"\0")
        self._send.flush()
        while (answer := self._read()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _read(self):
        content = bytearray()
        while (byte := self._receive.read(1)) != b"\0":
            assert byte, "the browser has closed its pipe"
            content += byte
        return json.loads(content)

    def open(self, address):
        """Loads a page and waits until its script has drawn it."""
        self.call("Page.navigate", url="about:blank")
        self.events.clear()
        self.call("Page.navigate", url=address)
        for _ in range(400):
            if self.run("document.documentElement?.dataset.ready === 'true'"):
                return
            time.sleep(0.02)
        raise AssertionError(f"'{address}' was not drawn within 8 s: {self.events}")

    def run(self, script):
        """The value of a JavaScript expression; promises are waited for."""
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def text(self, selector):
        """The text of the first element that fits."""
        return self.run(f"document.querySelector({json.dumps(selector)}).textContent")

    def count(self, selector):
        """How many elements fit."""
        return self.run(f"document.querySelectorAll({json.dumps(selector)}).length")

    def press(self, key, *, text=""):
        """Presses a key and lets it go."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, text=text * (kind == "keyDown"))

    def choose(self, name, value):
        """Chooses an option, or writes a text, as a person would."""
        kind = "input" if name == "search" else "change"
        self.run(
            f"(() => {{ const node = document.getElementById({json.dumps(name)});"
            f"node.value = {json.dumps(value)};"
            f"node.dispatchEvent(new Event('{kind}', {{ bubbles: true }})); }})()"
        )

    def look(self, width, height, *, theme="light"):
        """Sets size and theme."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        feature = {"name": "prefers-color-scheme", "value": theme}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def picture(self):
        """What is seen now, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])


@contextlib.contextmanager
def open_browser(folder):
    """A page of a browser of its own; skips the test where there is no browser.

    Args:
      folder: for its profile; empty.
    """
    if (program := browser_path()) is None:
        pytest.skip(f"no browser here: none of {', '.join(NAMES)} is on the PATH")
    (read_commands, send), (receive, write_answers) = os.pipe(), os.pipe()
    # The protocol's pipes are file descriptors 3 and 4, whatever they are here.
    command = (
        f'exec "$0" --headless=new --no-sandbox --disable-gpu --no-first-run '
        f'--remote-debugging-pipe --user-data-dir="$1" '
        f"3<&{read_commands} 4>&{write_answers} >/dev/null 2>&1"
    )
    process = subprocess.Popen(
        ["bash", "-c", command, program, str(folder)], pass_fds=(read_commands, write_answers)
    )
    os.close(read_commands)
    os.close(write_answers)
    with os.fdopen(send, "wb") as sending, os.fdopen(receive, "rb") as receiving:
        try:
            yield Page(sending, receiving)
        finally:
            process.terminate()
            process.wait(timeout=20)
