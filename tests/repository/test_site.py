"""The documentation site: built strictly, both languages, with every anchor that is linked to."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bootstrap.core.findings import DOCS, docs_url
from scripts.document import all_codes

ROOT = Path(__file__).parents[2]


class Page(HTMLParser):
    """The ids and the links of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids.add(given.get("id") or "")
        if tag == "a":
            self.links.add(given.get("href") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A broken link or anchor ends the build with an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "true"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.parametrize("language", ["", "ru"])
def test_a_link_to_a_code_leads_to_it(site: Path, language: str) -> None:
    path, _, _ = docs_url("x.y").removeprefix(DOCS).strip("/").partition("#")
    assert set(all_codes()) <= Page(site / language / path / "index.html").ids


@pytest.mark.parametrize("language", ["", "ru"])
def test_the_start_page_is_the_readme_and_its_links_stay_on_the_site(
    site: Path, language: str
) -> None:
    page = Page(site / language / "index.html")
    assert {"deploy/", "settings/", "troubleshooting/"} <= page.links
    assert f"{DOCS}/{language}".rstrip("/") + "/" not in page.links
    assert not [link for link in page.links if link.endswith(".md") and "/blob/main/" not in link]
    elsewhere = [link for link in page.links if "/blob/main/" in link]
    assert {Path(re.sub(r"^.*/blob/main/", "", link)).name for link in elsewhere} == {
        *("CONTRIBUTING.md", "LICENSE", "with_curl.sh", "workflow_api.json")
    }


def test_steps_are_one_list_with_their_commands_in_them(site: Path) -> None:
    html = (site / "index.html").read_text("utf-8")
    (steps,) = re.findall(r"<ol>(.*?)</ol>", html, re.DOTALL)
    assert steps.count("<li>") == 3 and "curl" in steps


def test_nothing_is_fetched_from_elsewhere_but_for_diagrams(site: Path) -> None:
    html = (site / "index.html").read_text("utf-8")
    fetched = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"', html)
    assert {address for address in fetched if not address.startswith(DOCS)} == set()


def test_tooltips_are_in_the_language_of_the_page(site: Path) -> None:
    found = {}
    for language in ("", "ru"):
        html = (site / language / "troubleshooting" / "index.html").read_text("utf-8")
        found[language] = set(re.findall(r'(?:title|aria-label)="(\w+ [\w ]+)"', html))
    assert {"Dark theme", "Link to this section"} <= found[""]
    assert {"Тёмная тема", "Ссылка на этот раздел"} <= found["ru"]
    assert not [text for text in found["ru"] if re.fullmatch("[A-Za-z ]+", text)]
