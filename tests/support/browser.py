"""Headless Chromium driven over its own debugging pipe: what a page logs, requests and shows, without a package."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-dev-shm-usage"
)

#: Text that overflows its drawing, and drawings without a size or a description.
CUT_TEXT = """[...document.querySelectorAll("figure svg")].flatMap((svg) => {
  const box = svg.getBoundingClientRect();
  return [...svg.querySelectorAll("text")].filter((text) => {
    const own = text.getBoundingClientRect();
    return own.left < box.left - 2 || own.right > box.right + 2 || own.top < box.top - 2 || own.bottom > box.bottom + 2;
  }).map((text) => svg.parentNode.id + ": " + text.textContent);
})"""
BARE_DRAWINGS = """[...document.querySelectorAll("figure svg")].filter((svg) => {
  const box = svg.getBoundingClientRect();
  return box.width < 100 || box.height < 60 || svg.getAttribute("role") !== "img" || svg.ariaLabel.length < 30;
}).map((svg) => svg.parentNode.id)"""
#: Text with low contrast: WCAG requires 4.5.
LOW_CONTRAST = """(() => {
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => {
    const part = rgb[i] / 255;
    return sum + weight * (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  }, 0);
  const page = light(parts(getComputedStyle(document.body).backgroundColor));
  const found = new Set();
  for (const each of document.querySelectorAll("p, td, th, h1, h2, h3, a, figcaption, svg text")) {
    const style = getComputedStyle(each);
    const own = light(parts(each instanceof SVGElement ? style.fill : style.color));
    const contrast = (Math.max(own, page) + 0.05) / (Math.min(own, page) + 0.05);
    if (contrast < 4.5) found.add(each.tagName + " " + contrast.toFixed(2) + " " + each.textContent.slice(0, 30));
  }
  return [...found];
})()"""
#: What has the focus: its place among all that can have it, whether an outline shows it in the window, and its kind.
FOCUSED = """(() => {
  const all = [...document.querySelectorAll("a[href], button, input, summary, [tabindex='0']")];
  const own = document.activeElement, style = getComputedStyle(own), box = own.getBoundingClientRect();
  const outlined = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
  const inside = box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth;
  const place = all.filter((each) => each.checkVisibility()).indexOf(own);
  return [place, outlined && inside, `${own.localName} ${own.className}`.trim()];
})()"""
FOCUSABLE = """[...document.querySelectorAll("a[href], button, input, summary, [tabindex='0']")]
  .filter((each) => each.checkVisibility()).length"""
#: Keys by their name: code, and the text that they write.
KEYS = {"Tab": (9, ""), "Enter": (13, "\r"), " ": (32, " ")}


class Browser:
    """One page; `events` holds all that the browser reported of it."""

    def __init__(self, write, read):
        self.write, self.read = write, read
        self.number, self.events, self.session = 0, [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.write.write(json.dumps(message).encode() + b"\0")
        self.write.flush()
        while True:
            reply = self.message()
            if reply.get("id") == self.number:
                if "error" in reply:
                    raise RuntimeError(f"{method}: {reply['error']}")
                return reply["result"]
            self.events.append(reply)

    def message(self):
        data = bytearray()
        while (byte := self.read.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("the browser ended")
            data += byte
        return json.loads(data)

    def open(self, path, width, dark=False):
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Page.navigate", url=f"file://{path}")
        end = time.monotonic() + 60
        while self.evaluate("document.readyState") != "complete" and time.monotonic() < end:
            time.sleep(0.05)

    def evaluate(self, expression):
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def press(self, key, shift=False):
        code, text = KEYS[key]
        told = {"key": key, "code": key.replace(" ", "Space"), "windowsVirtualKeyCode": code, "modifiers": 8 * shift}
        self.call("Input.dispatchKeyEvent", type="keyDown", **told, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **told)

    def tab_through(self):
        """Press Tab from the page's beginning to its end; returns what `FOCUSED` says of each stop."""
        found = []
        for _ in range(self.evaluate(FOCUSABLE)):
            self.press("Tab")
            found.append(self.evaluate(FOCUSED))
        return found

    def complaints(self):
        """Console messages, log entries and exceptions."""
        names = {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"}
        return [event["params"] for event in self.events if event.get("method") in names]

    def requests(self):
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event.get("method") == "Network.requestWillBeSent"
        ]


@contextmanager
def browser(folder):
    """A browser with a profile in `folder`, ended at the end."""
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    # The browser's ends become its 3 and 4, so they must not be 3 or 4 already.
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (to_read, from_write)]
    start = f"import os, sys; os.dup2({ends[0]}, 3); os.dup2({ends[1]}, 4); os.execv(sys.argv[1], sys.argv[1:])"
    options = [*FLAGS.split(), "--remote-debugging-pipe", f"--user-data-dir={folder}"]
    process = subprocess.Popen(
        [sys.executable, "-c", start, CHROMIUM, *options], pass_fds=ends, stderr=subprocess.DEVNULL
    )
    for end in (to_read, from_write, *ends):
        os.close(end)
    with os.fdopen(to_write, "wb") as write, os.fdopen(from_read, "rb") as read:
        try:
            yield Browser(write, read)
        finally:
            process.terminate()
            process.wait(timeout=30)
