"""The page in a real headless browser: it fits a phone, logs no error, makes no requests.

Skipped where no Chromium or Chrome is installed.
"""

from __future__ import annotations

import html as html_module
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

from bootstrap.core.findings import docs_url, ok, warning
from bootstrap.doctor.page import page
from tests.support.sample_reports import FAILED_TIMELINE, broken, category, healthy, hostile, report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason=f"no browser is installed: none of {', '.join(NAMES)} is on PATH"
)
REPORTS = {"healthy": healthy, "broken": broken, "hostile": hostile}
# Values of every wrong type, where a report has objects, lists, texts and numbers.
ODD: tuple[Any, ...] = (None, True, 7, -1, 1e300, "text", [], {}, [None, 3, "x", [1]], {"a": {}})
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
    buttons: page.querySelectorAll("main pre.command + button").length,
    commands: page.querySelectorAll("main pre.command").length,
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


def drawn(html: str, folder: Path, *flags: str) -> str:
    """What a browser has made of the page, without a complaint."""
    (folder / "page.html").write_text(html, "utf-8")
    address = (folder / "page.html").as_uri()
    seen = browse(address, folder / "profile", "--dump-dom", "--window-size=1200,900", *flags)
    assert complaints(seen.stderr) == []
    return seen.stdout


def text_of(dom: str) -> str:
    """What a reader sees of it, and the titles of the pictures."""
    dom = re.sub(r"<(script|style|noscript|head)\b.*?</\1>", "", dom, flags=re.DOTALL)
    return html_module.unescape(re.sub(r"<[^>]*>", "", dom))


def commands(dom: str) -> list[str]:
    """What has a button to copy it."""
    found = re.findall(r'<pre class="command"[^>]*><code>(.*?)</code></pre>', dom, re.DOTALL)
    return [text_of(command) for command in found]


def test_what_is_found_stands_worst_first_with_a_true_headline(tmp_path: Path) -> None:
    dom = drawn(page(broken()), tmp_path)
    assert re.findall(r"<h2[^>]*>([^<]*)</h2>", dom) == [
        *("Volume", "ComfyUI", "Machine", "Models", "Environment", "Other"),
        *("What fills the volume", "Boot", "This machine"),
    ]
    text = text_of(dom)
    assert "3 errors keep jobs from running" in text
    assert "✗ ComfyUI ready TimeoutError" in text
    assert "this machine’s fault" in text
    assert "✗ truncated" in text
    assert f'href="{docs_url("gpu.not_answering")}"' in dom


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (healthy(), "All is well"),
        ({"findings": [{"severity": "error"}]}, "1 error keeps jobs from running"),
        ({"status": "error"}, "Jobs cannot run"),
        (report([warning("a.b", "m", "f"), ok("a.c", "m")]), "Jobs run, with 1 warning"),
        ({}, "Nothing was found"),
    ],
)
def test_the_headline_says_the_status_in_words(made: Any, said: str, tmp_path: Path) -> None:
    assert said in text_of(drawn(page(made), tmp_path))


@pytest.mark.parametrize(
    ("at", "said"),
    [
        ("2026-03-02T09:41:07+00:00", "2 Mar 2026, 09:41 UTC"),
        ("2026-03-02T01:41:07+02:00", "1 Mar 2026, 23:41 UTC"),
        ("7 days ago", "7 days ago"),
        ("2026-33-02T09:41", "2026-33-02T09:41"),
    ],
)
def test_the_time_is_readable_and_has_its_zone(at: str, said: str, tmp_path: Path) -> None:
    dom = drawn(page({**healthy(), "at": at}), tmp_path)
    assert re.findall(r"<time>([^<]*)</time>", dom) == [said]


def test_good_news_are_folded(tmp_path: Path) -> None:
    dom = drawn(page(report([ok("gpu.good", "It answers."), ok("gpu.also", "Too.")])), tmp_path)
    folded = re.search(r"<details>(.*?)</details>", dom, re.DOTALL)
    assert folded
    assert "2 checks are fine" in folded[1]
    assert "It answers." in folded[1]


FIXES = {
    "chmod a+rx /runpod-volume": [],  # commands stand between backticks
    "On a Pod: `rm -- 'a b'`. Then look.": ["rm -- 'a b'"],
    "`rm -- /x/a` (and the 3 others) and wait.": ["rm -- /x/a"],
    "`cmp -- /a /b && rm -- /b` deletes the second.": ["cmp -- /a /b && rm -- /b"],
    "`/v/bin/python -m pip install -U x`": ["/v/bin/python -m pip install -U x"],
    "`nvidia-smi` lists it; `df -h` too.": ["nvidia-smi", "df -h"],
    "Set COMFYUI_ARGS to `--cpu`.": [],
    "On a Pod: `rm -- 'a`; b'`.": [],  # half of it is another command
    "`rm -- a\u202eb`": [],
    "`rm -- '/x/never closed`": [],
    "`rm -- " + "/x/y " * 2000 + "`": [],  # too long to show
}


def test_only_whole_commands_are_offered_for_copying(tmp_path: Path) -> None:
    dom = drawn(page(report([warning("models.x", "m", fix) for fix in FIXES])), tmp_path)
    assert commands(dom) == [command for expected in FIXES.values() for command in expected]
    shown = re.sub(r"[\s`]", "", text_of(dom))
    prose = [fix for fix, copied in FIXES.items() if not copied and fix.isprintable()]
    assert [f for f in prose if len(f) < 100 and re.sub(r"[\s`]", "", f) not in shown] == []
    assert "--json has the whole of it" in text_of(dom)


def test_each_file_is_listed_once_and_areas_are_in_proportion(tmp_path: Path) -> None:
    one = category("unet", 1, 30, ("a.safetensors", 30, "good"))
    same = {**category("diffusion_models", 1, 10), "largest": one["largest"]}
    models = {"files": 2, "models": 2, "categories": [one, same]}
    dom = drawn(page(report([], models=models)), tmp_path)
    assert len(re.findall(r"<th[^>]*><bdi>unet/<wbr>a.<wbr>safetensors</bdi>", dom)) == 1
    areas = re.findall(
        r'data-size="(\d+)"><title>[^<]*</title><rect [^>]*'
        r'width="([\d.]+)" height="([\d.]+)"',
        dom,
    )
    (large, *of_large), (small, *of_small) = [[float(n) for n in area] for area in areas]
    ratio = of_large[0] * of_large[1] / (of_small[0] * of_small[1])
    assert ratio == pytest.approx(large / small, rel=0.05)


def odd_parts() -> dict[str, Any]:
    """A report whose lists hold each odd thing, and whose parts are odd in every place."""
    parts = "gpu memory cpu shm torch problems open_files python".split()
    said = [
        dict.fromkeys("code severity message fix details host_fault".split(), odd) for odd in ODD
    ]
    paths = [{"details": {"paths": odd, "count": odd}} for odd in ODD]
    folders = [dict.fromkeys("name largest size count other_size".split(), odd) for odd in ODD]
    stages = [dict.fromkeys("name start seconds outcome bytes note".split(), odd) for odd in ODD]
    return {
        "findings": [*said, *paths, *ODD],
        "timeline": [*stages, *ODD],
        "facts": {
            "models": {"categories": [*folders, *ODD, {"largest": list(ODD)}], "files": 1},
            "machine": {"gpu": {"devices": [*ODD]}, **{p: {"free": ODD} for p in parts[1:]}},
            "volume": {"root": ODD, "space": {"total": ODD, "free": "x"}},
        },
    }


def test_what_is_missing_or_of_another_type_does_not_show(tmp_path: Path) -> None:
    keys = "timeline at seconds status findings".split()
    facts = "models machine volume".split()
    whole = [
        {**dict.fromkeys(keys, odd), "facts": dict.fromkeys(facts, odd)}
        for odd in (*ODD[:5], *ODD[7:])
    ]
    for number, made in enumerate([odd_parts(), {}, *whole]):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert "<header>" in drawn(page(made), folder), made


def test_a_failed_stage_has_a_mark_and_its_outcome_besides_the_colour(tmp_path: Path) -> None:
    text = text_of(drawn(page({"timeline": FAILED_TIMELINE}), tmp_path))
    assert "✗ ComfyUI ready TimeoutError" in text
    assert "✓ find volume" in text
    assert "10 s" in text


def test_hostile_text_is_shown_as_text(tmp_path: Path) -> None:
    dom = drawn(page(hostile()), tmp_path)
    assert "<script>document.title='owned'</script>" in text_of(dom)
    assert dom.count("<script") == 2
    assert "<b>bold" not in dom
    assert "\\u202e" in text_of(dom)


def test_a_file_can_be_opened_and_looked_at(tmp_path: Path) -> None:
    shot, file = tmp_path / "shot.png", tmp_path / "page.html"
    file.write_text(page(broken()), "utf-8")
    seen = browse(
        file.as_uri(), tmp_path / "profile", f"--screenshot={shot}", "--window-size=390,844"
    )
    assert complaints(seen.stderr) == []
    assert shot.read_bytes().startswith(b"\x89PNG")
    assert shot.stat().st_size > 20_000  # an empty page is 3 KB
