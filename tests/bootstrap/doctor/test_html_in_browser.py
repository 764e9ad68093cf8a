"""The page in a real browser, headless: it fits a phone, logs no error, asks for nothing.

Skipped where no Chromium or Chrome is installed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bootstrap.doctor.html.document import page
from tests.support.sample_reports import broken, healthy, hostile

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason=f"no browser is installed: none of {', '.join(NAMES)} is on PATH"
)
REPORTS = {"healthy": healthy, "broken": broken, "hostile": hostile}
QUIET = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-default-apps --hide-scrollbars "
    "--disable-dev-shm-usage --enable-logging=stderr"
).split()
# Headless Chromium makes no window narrower than 500 pixels where it has a frame, so the phone
# is a frame of exactly that width; its own size is what media queries inside it see.
FRAME = '<iframe id="f" src="{name}" width="{width}" height="844" style="border:0"></iframe>'
MEASURE = """<script>onload = () => {
  const page = document.getElementById("f").contentDocument;
  for (const fold of page.querySelectorAll("details")) fold.open = true;
  const wide = page.documentElement.clientWidth;
  // Inside a drawing the view box is the measure, and outside of it nothing is painted.
  const out = [...page.body.querySelectorAll("*:not(svg *)")].filter(
    (e) => e.getBoundingClientRect().right > wide + 0.5);
  const labels = [...page.querySelectorAll(".treemap text")].filter((t) => {
    const svg = t.ownerSVGElement.getBoundingClientRect(), box = t.getBoundingClientRect();
    const tile = t.parentNode.querySelector("rect").getBoundingClientRect();
    return svg.width && (box.right > tile.right + 1 || box.left < tile.left - 1
      || box.bottom > tile.bottom + 1);
  });
  const fonts = [...page.querySelectorAll(".treemap text")].map(
    (t) => 12 * (t.getScreenCTM()?.a ?? 1)).filter((s) => s > 0);
  Object.assign(document.body.dataset, {
    client: wide, scroll: page.documentElement.scrollWidth,
    out: out.slice(0, 3).map((e) => e.tagName + "." + e.className).join(" "),
    labels: labels.slice(0, 3).map((e) => e.textContent).join("|"),
    font: fonts.length ? Math.min(...fonts).toFixed(1) : 12,
    buttons: page.querySelectorAll("pre.command + button").length,
    commands: page.querySelectorAll("pre.command").length,
    maps: [...page.querySelectorAll(".treemap svg")].filter((s) => s.clientWidth).length,
    fetched: page.defaultView.performance.getEntriesByType("resource").length,
    title: page.title,
  });
};</script>"""


def browse(address: str, profile: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """One visit with a new profile; what the page logs is on stderr."""
    assert BROWSER is not None
    return subprocess.run(
        [BROWSER, *QUIET, f"--user-data-dir={profile}", *flags, address],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )


def complaints(stderr: str) -> list[str]:
    """Lines of a page's console, policy violations and uncaught errors among them."""
    return [line for line in stderr.splitlines() if "CONSOLE" in line]


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The folder on loopback: its address, and the paths that were asked for."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def visit(
    html: str, folder: Path, width: int, *flags: str
) -> tuple[dict[str, str], list[str], list[str]]:
    """What the measuring frame found, the console's lines, the paths asked for."""
    (folder / "page.html").write_text(html, "utf-8")
    frame = FRAME.format(name="page.html", width=width)
    # The frame has an icon, as the page has, so that no browser asks for one of its own accord.
    head = '<!DOCTYPE html><link rel="icon" href="data:,">'
    (folder / "frame.html").write_text(f"{head}<body>{frame}{MEASURE}", "utf-8")
    with served(folder) as (address, asked):
        size = f"--window-size={width + 40},900"
        seen = browse(f"{address}/frame.html", folder / "profile", "--dump-dom", size, *flags)
    body = re.search(r"<body([^>]*)>", seen.stdout)
    assert body, seen.stderr
    return dict(re.findall(r'data-(\w+)="([^"]*)"', body[1])), complaints(seen.stderr), asked


@pytest.mark.parametrize("width", [320, 390, 1200])
@pytest.mark.parametrize("name", REPORTS)
def test_the_page_fits_its_window_and_keeps_to_itself(
    name: str, width: int, tmp_path: Path
) -> None:
    found, console, asked = visit(page(REPORTS[name]()), tmp_path, width)
    assert found["client"] == str(width)
    assert (found["scroll"], found["out"]) == (str(width), "")
    assert (found["labels"], found["maps"]) == ("", "1")
    assert float(found["font"]) >= (11 if width > 320 else 9)
    assert console == []
    assert found["fetched"] == "0"
    assert asked == ["/frame.html", "/page.html"]
    assert found["title"] == "ComfyUI volume report"
    assert found["buttons"] == found["commands"]


def test_the_measuring_frame_notices_what_it_is_there_for(tmp_path: Path) -> None:
    wide = '<div style="width:2000px">x</div><img src="/there-is-none.png"><script>no()</script>'
    found, console, asked = visit(f"<!DOCTYPE html><body>{wide}", tmp_path, 390)
    assert int(found["scroll"]) > 390
    assert "DIV" in found["out"]
    assert any("no is not defined" in line for line in console)
    assert "/there-is-none.png" in asked


def test_the_policy_stops_what_escaping_might_miss(tmp_path: Path) -> None:
    """Were a name ever put on the page as it is, the browser would still run and fetch nothing."""
    trap = "<script>document.title='owned'</script><img src='/trap.png' onerror=alert(1)>"
    html = page(healthy()).replace("<main>", f"<main>{trap}")
    found, console, asked = visit(html, tmp_path, 390)
    assert found["title"] == "ComfyUI volume report"
    assert asked == ["/frame.html", "/page.html"]
    assert len(console) >= 2  # it says what it refused


def test_without_scripts_there_is_everything_but_buttons(tmp_path: Path) -> None:
    html = re.sub(r"<script>.*?</script>", "", page(broken()), flags=re.DOTALL)
    found, console, _ = visit(html, tmp_path, 390)
    assert (found["scroll"], console) == ("390", [])
    assert (found["buttons"], int(found["commands"]) > 2) == ("0", True)


def test_a_file_can_be_opened_and_looked_at(tmp_path: Path) -> None:
    shot, file = tmp_path / "shot.png", tmp_path / "page.html"
    file.write_text(page(broken()), "utf-8")
    seen = browse(
        file.as_uri(), tmp_path / "profile", f"--screenshot={shot}", "--window-size=390,844"
    )
    assert complaints(seen.stderr) == []
    assert shot.read_bytes().startswith(b"\x89PNG")
    assert shot.stat().st_size > 20_000  # an empty page is 3 KB
