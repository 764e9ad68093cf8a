"""Colours, style sheet and the few lines of script of the page.

Both are named by their hashes in the page's policy, so that nothing else in it, whatever a
report may hold, is ever run, applied or fetched.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping

from bootstrap.page.style import RULES

# Text on its ground has a contrast of 4.5 or more (WCAG 2.2, 1.4.3); a test holds it.
LIGHT: Mapping[str, str] = {
    "ground": "#f4f5f7",
    "card": "#ffffff",
    "ink": "#171a21",
    "muted": "#59616e",
    "line": "#dde1e7",
    "error": "#b3241c",
    "error-soft": "#fdeeec",
    "warning": "#855000",
    "warning-soft": "#fdf3dc",
    "info": "#2a5aa8",
    "info-soft": "#ebf1fb",
    "ok": "#1a6b3a",
    "ok-soft": "#e8f5ec",
    "block": "#f2f4f7",
    "h0": "#bcd4f7",
    "h1": "#b5e3da",
    "h2": "#f6dfa0",
    "h3": "#dccbf5",
    "h4": "#f7c9ae",
    "h5": "#c8e3b4",
    "h6": "#f5c3cd",
    "h7": "#d7dbe2",
}
DARK: Mapping[str, str] = {
    "ground": "#0f1216",
    "card": "#181c22",
    "ink": "#e6e9ee",
    "muted": "#9da7b5",
    "line": "#2b323c",
    "error": "#ff9b92",
    "error-soft": "#3a1b1a",
    "warning": "#f2c063",
    "warning-soft": "#352913",
    "info": "#9dc1fb",
    "info-soft": "#18263d",
    "ok": "#7ed29a",
    "ok-soft": "#15301f",
    "block": "#10141a",
    "h0": "#264a7d",
    "h1": "#1c5850",
    "h2": "#5f4a10",
    "h3": "#4c3875",
    "h4": "#6a3d1a",
    "h5": "#35561f",
    "h6": "#6b2f3e",
    "h7": "#3b434f",
}


def _variables(colours: Mapping[str, str]) -> str:
    return "".join(f"--{name}:{colour};" for name, colour in colours.items())


# A printer gets the light colours, also from a screen that is dark.
STYLE = (
    f":root{{{_variables(LIGHT)}color-scheme:light dark}}\n"
    f"@media screen and (prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}\n{RULES}"
)

# Buttons exist only where they work; without them the text can still be selected.
SCRIPT = """
(() => {
  if (!navigator.clipboard) return;
  for (const block of document.querySelectorAll("pre.command")) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(block.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(block);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
    const frame = document.createElement("div");
    frame.className = "copyable";
    block.replaceWith(frame);
    frame.append(block, button);
  }
})();
"""


def policy() -> str:
    """The Content-Security-Policy: this style sheet, this script, nothing else."""
    return (
        f"default-src 'none'; img-src data:; style-src '{_hash(STYLE)}'; "
        f"script-src '{_hash(SCRIPT)}'; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
