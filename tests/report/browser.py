"""A page in a headless Chromium, on a phone's width: what a script says that is added at its end."""

import json
import re
import shutil
import subprocess
from html import unescape

import pytest

WIDTH = 360
FRAME = f"""<iframe src="probed.html" width="{WIDTH}" height="3000"></iframe><pre></pre>
<script>addEventListener("message", (event) => {{ document.querySelector("pre").textContent = event.data; }});</script>"""
OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
OPTIONS += ["--disable-component-update", "--disable-sync", "--virtual-time-budget=5000", "--dump-dom"]

needs_browser = pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on the PATH")


def answer(html, probe, folder):
    """The JSON value of the expression or the function body ``probe``, which ends by ``return``; awaits are allowed."""
    script = f"<script>(async () => {{ {probe} }})().catch((error) => String(error.stack))"
    script += '.then((value) => parent.postMessage(JSON.stringify(value), "*"))</script>'
    (folder / "probed.html").write_text(html.replace("</body>", f"{script}</body>"), encoding="utf-8")
    (folder / "frame.html").write_text(FRAME)
    command = ["chromium", *OPTIONS, f"--user-data-dir={folder / 'profile'}", (folder / "frame.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    return json.loads(unescape(re.search(r"<pre>(.*?)</pre>", dom, re.DOTALL)[1]))
