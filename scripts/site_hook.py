"""mkdocs hook: makes README the start page, and links that leave docs/ lead to the repository.

Pages are written so that they read well on GitHub too; here their links become those of a site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

_LINK = re.compile(r"(\]\(|(?:src|href)=\")(?!https?:|mailto:|#)([^)#\s\"]+)")
_README = {"index.md": "README.md", "index.ru.md": "README.ru.md"}
_LANGUAGES = {"README.md": "", "README.ru.md": "ru/"}
_PERMALINK = {"en": "Link to this section", "ru": "Ссылка на этот раздел"}


def on_page_markdown(markdown: str, /, page: Any, config: Any, files: Any) -> str:
    """A page's text with links that work on the site."""
    config["mdx_configs"]["toc"]["permalink_title"] = _PERMALINK[config["theme"]["language"]]
    root = Path(config["config_file_path"]).parent
    source = posixpath.relpath(page.file.abs_src_path, root)
    if readme := _README.get(Path(source).name):
        markdown, source = (root / readme).read_text("utf-8"), readme
        # This page is where the README's link to the documentation leads.
        site = re.escape(config["site_url"])
        markdown = re.sub(rf"\*\*\[[^\[\]\n]*\]\({site}[^()\n]*\)\*\* · ", "", markdown, count=1)
    blob = f"{config['repo_url'].rstrip('/')}/blob/main/"

    def on_site(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[2]))
        if target in _LANGUAGES:
            return f"{found[1]}{config['site_url']}{_LANGUAGES[target]}"
        inside = target.removeprefix("docs/")
        return found[1] + (inside if inside != target else blob + target)

    return _LINK.sub(on_site, indented(markdown))


def indented(markdown: str) -> str:
    """Indent the contents of a numbered item by four spaces: three, as on GitHub, would end the
    list here."""
    lines, fence = [], False
    for line in markdown.split("\n"):
        if fence or re.match(r" {3}\S", line):
            lines.append(f" {line}" if line.strip() else line)
        else:
            if re.match(r"\d+\. ", line) and lines and lines[-1].startswith("    "):
                lines.append("")
            lines.append(line)
        fence ^= line.startswith("   ```")
    return "\n".join(lines)
