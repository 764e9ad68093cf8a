"""The written page: its data is escaped, limited and ordered, and its policy holds.

For its look in a browser see test_page_in_browser.py.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bootstrap.core.findings import ok, warning
from bootstrap.doctor.page import page
from tests.support.sample_reports import broken, category, healthy, hostile, report

MOST_BYTES = 300_000
VOID = {"meta", "link"}
TAGS = set("html head meta link title style body main noscript pre script".split())


class Reader(HTMLParser):
    """Follows the tags; remembers text by element, attributes, and what was not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append((self.open[-1] if self.open else "", data))


def read(html: str) -> Reader:
    """The page, read to its end with every element closed."""
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    assert set(reader.tags) == TAGS
    return reader


def data_of(html: str) -> dict[str, Any]:
    """What the page's script gets. JSON.parse knows neither NaN nor Infinity."""
    block = next(data for tag, data in read(html).text if tag == "script")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    found: dict[str, Any] = json.loads(block, parse_constant=refuse)
    return found


REPORTS = {"healthy": healthy(), "broken": broken(), "hostile": hostile(), "empty": {}}


@pytest.mark.parametrize("name", REPORTS)
def test_the_page_is_well_formed_and_runs_only_what_its_policy_names(name: str) -> None:
    html = page(REPORTS[name])
    reader = read(html)
    assert reader.tags.count("script") == 2  # of which one is data
    assert not [key for key, _ in reader.attributes if key.startswith("on") or key == "style"]
    assert {value for key, value in reader.attributes if key in ("src", "href")} == {"data:,"}
    style = next(data for tag, data in reader.text if tag == "style")
    script = [data for tag, data in reader.text if tag == "script"][-1]
    assert "url(" not in style + script
    assert "@import" not in style
    policy = next(value or "" for key, value in reader.attributes if "default-src" in str(value))
    for text in (style, script):
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy
    assert "unsafe" not in policy


def test_hostile_text_is_always_escaped() -> None:
    html = page(hostile(), "</title><script>no()</script>")
    assert html.count("<script>") == html.count("</script>") - 1 == 1
    assert not [c for c in html if not (c.isprintable() or c == "\n")]
    html.encode("utf-8")  # no lone surrogates
    assert "<script>document.title='owned'</script>" in json.dumps(data_of(html))


@given(st.text(max_size=300))
@settings(max_examples=100, deadline=None)
def test_any_text_anywhere_comes_through_whole(text: str) -> None:
    said = {"code": text[:50], "severity": "warning", "message": text, "fix": text}
    stage = {"name": text, "start": 0, "seconds": 1, "outcome": text}
    models = {"files": 1, "categories": [category(text, 2, 2, (text, 1, text))]}
    made = {"findings": [said], "timeline": [stage], "facts": {"models": models}}
    shown = data_of(page(made, text))
    assert {key: shown["findings"][0][key] for key in said} == said
    assert shown["models"] == models
    assert shown["timeline"][0]["name"] == text[:80]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
KEYS = "findings facts timeline boot status at seconds volume models machine".split()


@given(st.dictionaries(st.sampled_from(KEYS), json_values | st.lists(json_values, max_size=3)))
@settings(max_examples=150, deadline=None)
def test_parts_of_any_type_raise_nothing(made: dict[str, Any]) -> None:
    data_of(page(made))
    data_of(page({"facts": made, "findings": [made]}))


def test_the_page_stays_small_with_20000_files_and_findings() -> None:
    long = "ä<&\"'模" * 60
    categories = [
        category(f"{long}{i}", 400, 9, *((f"{long}{i}-{j}", 1, "truncated") for j in range(20)))
        for i in range(1000)
    ]
    findings = [warning("models.x", long * 20, f"rm -- '{long}' " * 9, paths=[long] * 50)] * 20_000
    stages = [{"name": long, "start": i, "seconds": 1, "outcome": long} for i in range(5000)]
    gpus = [{"name": long, "throttle": [long] * 50}] * 100
    made = report(
        findings,
        volume={"root": long * 100},
        models={"files": 20_000, "models": 20_000, "categories": categories},
        machine={"gpu": {"devices": gpus}, "problems": [long] * 999, "python": long * 99},
    )
    html = page({**made, "timeline": stages, "at": long * 99}, long * 99)
    assert len(html.encode()) < MOST_BYTES
    shown = data_of(html)
    assert shown["counts"] == {"warning": 20_000}
    assert shown["findings_left_out"] + len(shown["findings"]) == 20_000
    assert (len(shown["timeline"]), shown["stages_left_out"]) == (40, 4960)
    assert shown["models"]["categories"][0]["name"].startswith("ä<")


@pytest.mark.parametrize("of", ["<" * 10**6, {"<" * 10**6: 1}, [[["<" * 99] * 99] * 99] * 9])
def test_nor_does_one_part_make_it_large(of: Any) -> None:
    made = {"facts": {"models": of, "machine": {"python": of}}, "timeline": [of], "at": of}
    assert len(page({**made, "findings": [{"message": of, "details": of}]}).encode()) < MOST_BYTES


def test_the_worst_stay_when_there_is_not_room_for_all() -> None:
    noise = [ok("volume.fine", "x" * 1000) for _ in range(2000)]
    html = page(report([*noise, warning("env.last", "The one that matters.", "Fix it.")]))
    shown = data_of(html)
    assert shown["findings"][0]["message"] == "The one that matters."
    assert shown["status"] == "warning"
    assert shown["counts"] == {"warning": 1, "ok": 2000}


def test_without_scripts_the_findings_are_there_as_text() -> None:
    text = "".join(data for tag, data in read(page(broken())).text if tag == "pre")
    assert "error volume.models_misplaced: Models lie straight under the volume" in text
    assert "fix: On a Pod with this volume" in text


@pytest.mark.parametrize(
    ("code", "section"),
    [
        ("links.loop", "Volume"),
        ("manifest.syntax", "Models"),
        ("nodes.failed", "ComfyUI"),
        ("memory.low", "Machine"),
        ("allocator.x", "Environment"),
        ("unheard.of", "Other"),
        (None, "Other"),
    ],
)
def test_the_family_decides_the_section(code: str | None, section: str) -> None:
    assert data_of(page({"findings": [{"code": code}]}))["findings"][0]["section"] == section


def test_a_report_that_was_written_and_read_again_looks_the_same() -> None:
    assert page(json.loads(json.dumps(broken()))) == page(broken())


def test_the_boot_of_a_diagnostics_reply_has_its_timeline() -> None:
    stage = {"name": "find volume", "start": 0, "seconds": 1, "outcome": "ok"}
    assert data_of(page({"boot": {"timeline": [stage]}}))["timeline"] == [stage]


# --- colours


def colours_of(html: str) -> list[dict[str, str]]:
    """The style sheet's colours by name: light, then dark."""
    blocks = re.findall(r":root\{([^}]*)\}", html)
    return [dict(re.findall(r"--([\w-]+):(#\w{6})", block)) for block in blocks]


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def mixed(front: str, back: str, share: float) -> str:
    """`front` over `back`, `share` opaque."""
    pairs = ((int(front[i : i + 2], 16), int(back[i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(f * share + b * (1 - share)):02x}" for f, b in pairs)


def contrast(one: str, other: str) -> float:
    """From 1 to 21, WCAG 2.2."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("colours", colours_of(page({})), ids=["light", "dark"])
def test_text_can_be_read_on_its_ground(colours: dict[str, str]) -> None:
    kinds = ("error", "warning", "info", "ok")
    pairs = [(kind, f"{kind}-soft") for kind in kinds] + [(kind, "card") for kind in kinds]
    pairs += [("ink", ground) for ground in ("ground", "card", "block", "error-soft")]
    pairs += [("muted", ground) for ground in ("ground", "card")]
    pairs += [("ink", f"h{i}") for i in range(8)]
    weak = {(a, b): contrast(colours[a], colours[b]) for a, b in pairs}
    assert {pair: value for pair, value in weak.items() if value < 4.5} == {}
    for i in range(8):  # a tile is the card's colour, 42 to 70 % opaque, over the hue
        for share in (0.42, 0.7):
            tile = mixed(colours["card"], colours[f"h{i}"], share)
            assert contrast(colours["ink"], tile) >= 4.5
