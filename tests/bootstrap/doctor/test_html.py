"""The page: well-formed, escaped, bounded, legible; its picture in proportion."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bootstrap.core.findings import DOCS, ok, warning
from bootstrap.doctor.html.document import page
from bootstrap.doctor.html.findings import Kind, pieces, section_of
from bootstrap.doctor.html.picture import Rect, fitted, squarify, width_of
from bootstrap.doctor.html.style import DARK, LIGHT
from bootstrap.doctor.html.text import is_unseen, number, plain
from tests.support.sample_reports import FAILED_TIMELINE, broken, category, healthy, hostile, report

MOST_BYTES = 300_000
VOID = {"meta", "link", "br", "wbr", "img"}
ELEMENTS = set(
    "html head meta link title style body main header section article div p span h1 h2 h3 ul ol li "
    "a figure figcaption table caption thead tbody tr th td details summary code pre bdi small "
    "time svg g rect text line script wbr".split()
)
ATTRIBUTES_WITH_ADDRESS = {"src", "href", "xlink:href", "action", "data", "poster", "srcset"}


class Reader(HTMLParser):
    """Follows the tags; remembers text by element, attributes, and what was not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[tuple[tuple[str, ...], str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append((tuple(self.open), data))


def read(html: str) -> Reader:
    """The page, read to its end with every element closed."""
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


def text_of(html: str) -> str:
    """What a reader sees: without style sheet, script and the picture's hidden titles."""
    hidden = {"style", "script"}
    return "".join(data for path, data in read(html).text if not hidden & set(path))


REPORTS = {"healthy": healthy(), "broken": broken(), "hostile": hostile(), "empty": {}}


@pytest.mark.parametrize("name", REPORTS)
def test_the_page_is_well_formed_and_of_known_elements(name: str) -> None:
    html = page(REPORTS[name])
    reader = read(html)
    assert set(reader.tags) <= ELEMENTS
    assert reader.tags.count("script") == reader.tags.count("style") == 1
    ids = [value for key, value in reader.attributes if key == "id"]
    assert len(ids) == len(set(ids))
    named = {value for key, value in reader.attributes if key == "aria-labelledby"}
    assert named <= set(ids)


@pytest.mark.parametrize("name", REPORTS)
def test_the_page_asks_for_nothing_and_runs_nothing_inline(name: str) -> None:
    reader = read(page(REPORTS[name]))
    addresses = {value for key, value in reader.attributes if key in ATTRIBUTES_WITH_ADDRESS}
    led_to = {address for address in addresses if str(address).startswith(f"{DOCS}/")}
    assert addresses - led_to == {"data:,"}, "only a link that is clicked leads anywhere"
    assert not [key for key, _ in reader.attributes if key.startswith("on") or key == "style"]
    style = "".join(data for path, data in reader.text if "style" in path)
    assert "url(" not in style
    assert "@import" not in style
    policy = dict(reader.attributes)["content"] or ""
    assert "unsafe" not in "".join(v or "" for k, v in reader.attributes if k == "content"), policy


def test_hostile_text_is_shown_as_text_and_never_as_it_is() -> None:
    html = page(hostile())
    shown = text_of(html)
    assert "<script>document.title='owned'</script>" in shown
    assert "</style></svg></title><b>bold</b>" in shown.replace("\n", "")
    assert html.count("<script>") == html.count("</script>") == 1
    unseen = {c for c in html if is_unseen(c)} - {"\n"}
    assert unseen == set()
    html.encode("utf-8")  # no lone surrogates


@given(st.text(max_size=300))
@settings(max_examples=150, deadline=None)
def test_any_text_anywhere_keeps_the_page_well_formed(text: str) -> None:
    said = {"code": text, "severity": "warning", "message": text, "fix": text}
    made = {
        "status": "warning",
        "findings": [said],
        "timeline": [{"name": text, "start": 0, "seconds": 1, "outcome": text}],
        "facts": {
            "models": {"files": 1, "categories": [category(text, 2, 2, (text, 1, text))]},
            "machine": {"python": text, "gpu": {"devices": [{"name": text}]}},
        },
    }
    reader = read(page(made, text))
    assert set(reader.tags) <= ELEMENTS
    assert reader.tags.count("script") == 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
KEYS = "findings facts timeline status at seconds volume models machine".split()


@given(st.dictionaries(st.sampled_from(KEYS), json_values | st.lists(json_values, max_size=3)))
@settings(max_examples=150, deadline=None)
def test_parts_of_any_type_raise_nothing(made: dict[str, Any]) -> None:
    read(page(made))
    read(page({"facts": made}))
    machine = dict.fromkeys(("gpu", "memory", "cpu", "shm", "torch"), made)
    read(page({"facts": {"machine": machine, "volume": {"space": made}}}))


def test_the_page_stays_small_with_20000_files_and_findings() -> None:
    long = "ä<&\"'模" * 60
    categories = [
        category(f"{long}{i}", 400, 9, *((f"{long}{i}-{j}", 1, "truncated") for j in range(20)))
        for i in range(1000)
    ]
    findings = [
        warning("models.x", long * 20, f"rm -- '{long}' " * 9, paths=[long] * 50)
        for _ in range(20_000)
    ]
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
    assert re.search(r"[\d,]+ more findings not shown here", text_of(html))
    assert "4,960 more stages not shown" in text_of(html)


def test_the_worst_stay_when_there_is_not_room_for_all() -> None:
    noise = [ok("volume.fine", "x" * 1000) for _ in range(2000)]
    html = page(report([*noise, warning("env.last", "The one that matters.", "Mend it.")]))
    assert "The one that matters." in html
    assert "Jobs run, with 1 warning" in text_of(html)


def test_the_headline_says_the_status_in_words() -> None:
    assert "3 errors keep jobs from running" in text_of(page(broken()))
    assert "All is well" in text_of(page(healthy()))
    assert "1 error keeps jobs" in text_of(page({"findings": [{"severity": "error"}]}))
    assert "Jobs cannot run" in text_of(page({"status": "error"}))
    assert "Nothing was found" in text_of(page({}))


def test_findings_stand_in_their_sections_worst_first() -> None:
    html = page(broken())
    headings = re.findall(r"<h2[^>]*>([^<]*)</h2>", html)
    assert headings == [
        *("Volume", "Models", "ComfyUI", "Machine", "Environment", "Other"),
        *("What fills the volume", "Boot", "This machine"),
    ]
    made = report([ok("gpu.a", "A."), warning("gpu.b", "B.", "f"), warning("disk.c", "C.", "f")])
    text = text_of(page(made))
    assert text.index("B.") < text.index("C.") < text.index("A.")


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
    assert section_of({"code": code}) == section


def test_good_news_are_folded() -> None:
    made = report([ok("gpu.good", "It answers."), ok("gpu.also", "Twice.")])
    folded = re.search(r"<details>(.*?)</details>", page(made), re.DOTALL)
    assert folded
    assert "2 checks are fine" in folded[1]
    assert "It answers." in folded[1]


def test_what_is_missing_does_not_show() -> None:
    facts = {"volume": None, "models": None, "comfyui": None, "machine": None}
    html = page({"status": "ok", "findings": [], "facts": facts, "timeline": None})
    assert re.findall(r"<h2", html) == []
    assert "<svg" not in html
    for key in ("models", "machine"):
        whole = healthy()
        del whole["facts"][key]
        read(page(whole))
    without = healthy()
    del without["timeline"]
    assert ">Boot<" not in page(without)
    assert ">Boot<" in page(healthy())


def test_a_report_that_was_written_and_read_again_looks_the_same() -> None:
    assert page(json.loads(json.dumps(broken()))) == page(broken())


def test_a_failed_stage_has_a_mark_and_its_outcome_besides_the_colour() -> None:
    text = text_of(page({"timeline": FAILED_TIMELINE}))
    assert "✗ ComfyUI ready TimeoutError" in text
    assert "✓ find volume" in text
    assert "10 s" in text


def commands(fix: str) -> list[str]:
    """What would get a button to copy it."""
    return [piece.text for piece in pieces(fix) if piece.kind is Kind.COMMAND]


@pytest.mark.parametrize(
    ("fix", "expected"),
    [
        ("chmod a+rx /runpod-volume", ["chmod a+rx /runpod-volume"]),
        ("On a Pod: `rm -- 'a b'`. Then look.", ["rm -- 'a b'"]),
        ("rm -- /x/a /x/b and download again.", ["rm -- /x/a /x/b"]),
        ("If so: rm -- /x/a (and the 3 others) and wait.", ["rm -- /x/a"]),
        ("cmp -- /a /b && rm -- /b deletes the second.", ["cmp -- /a /b && rm -- /b"]),
        (
            "mv -n -- /a /b; mv -n -- /c '/d e' (and choose).",
            ["mv -n -- /a /b; mv -n -- /c '/d e'"],
        ),
        ("`/v/bin/python -m pip install -U x`", ["/v/bin/python -m pip install -U x"]),
        ("rm -- /x/a after making a copy.", ["rm -- /x/a"]),
        ("mkdir -p models", []),
        ("pip install insightface", ["pip install insightface"]),
        ("Set COMFYUI_ARGS to `--cpu`.", []),
        ("Find a larger machine.", []),
        ("find a larger machine", []),
        ("rm -- /x/half.", []),  # the full stop may be the name's
        ("rm -- '/x/never closed", []),
        ("On a Pod: `rm -- 'a`; b'`.", []),  # half of it is another command
        ("`rm -- a\u202eb`", []),
        ("rm -- a\x1bb", []),
        ("", []),
    ],
)
def test_only_whole_commands_are_offered_for_copying(fix: str, expected: list[str]) -> None:
    assert commands(fix) == expected


@given(st.text(alphabet="rm -`'\";.&|/ab\\\n(,", max_size=40))
@settings(deadline=None)
def test_the_pieces_of_a_fix_are_all_of_it(fix: str) -> None:
    def bare(text: str) -> str:
        return re.sub(r"[\s`]", "", text)

    assert bare("".join(piece.text for piece in pieces(fix))) == bare(fix)


def test_a_command_too_long_to_show_is_not_offered() -> None:
    made = report([warning("models.x", "m", "rm -- " + "/x/y " * 2000)])
    assert "<pre" not in page(made)
    assert "--json has the whole" in text_of(page(made))


sizes = st.lists(st.floats(min_value=1, max_value=1e13), min_size=1, max_size=40)
sides = st.floats(min_value=20, max_value=2000)


@given(sizes, sides, sides)
@settings(max_examples=200, deadline=None)
def test_areas_are_in_proportion_inside_and_apart(
    given_sizes: list[float], width: float, height: float
) -> None:
    given_sizes.sort(reverse=True)
    room = Rect(3, 7, width, height)
    tiles = squarify(given_sizes, room)
    total = sum(given_sizes)
    slack = 1e-6 * room.area
    for size, tile in zip(given_sizes, tiles, strict=True):
        assert math.isclose(tile.area, room.area * size / total, rel_tol=1e-6, abs_tol=slack)
        assert tile.x >= room.x - 1e-6
        assert tile.y >= room.y - 1e-6
        assert tile.x + tile.width <= room.x + room.width + 1e-6
        assert tile.y + tile.height <= room.y + room.height + 1e-6
    for one, other in combinations(tiles, 2):
        assert overlap(one, other) <= slack


def overlap(one: Rect, other: Rect) -> float:
    """The area that both cover."""
    width = min(one.x + one.width, other.x + other.width) - max(one.x, other.x)
    height = min(one.y + one.height, other.y + other.height) - max(one.y, other.y)
    return max(width, 0) * max(height, 0)


def test_tiles_are_nearly_square_where_sizes_allow() -> None:
    # The example of the paper: 6 6 4 3 2 2 1 on 6 by 4.
    tiles = squarify([6, 6, 4, 3, 2, 2, 1], Rect(0, 0, 6, 4))
    assert (tiles[0].width, tiles[0].height) == pytest.approx((3, 2))
    assert max(max(t.width / t.height, t.height / t.width) for t in tiles) < 3


def test_no_room_or_no_sizes_draw_nothing() -> None:
    assert squarify([], Rect(0, 0, 9, 9)) == []
    assert [t.area for t in squarify([1, 2], Rect(0, 0, 0, 9))] == [0, 0]


@given(st.text(max_size=80), st.floats(min_value=0, max_value=500))
def test_a_label_never_wants_more_than_its_tile_has(text: str, width: float) -> None:
    label = fitted(text, width)
    assert not label or width_of(label) <= width


@given(st.text(max_size=50), st.integers(min_value=1, max_value=40))
def test_plain_text_is_bounded_and_all_of_it_can_be_seen(text: str, most: int) -> None:
    assert len(plain(text, most)) <= most
    assert not any(is_unseen(c) for c in plain(text, most))


@pytest.mark.parametrize("value", [None, True, "7", float("nan"), float("inf"), -3, [], {}])
def test_what_is_no_number_counts_as_none(value: Any) -> None:
    assert number(value) == 0


def test_a_number_too_large_for_any_volume_is_bounded() -> None:
    assert number(10**400) == number(1e300) == 2.0**60


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


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
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
