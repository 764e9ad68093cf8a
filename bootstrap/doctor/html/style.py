"""Colours, style sheet and the few lines of script of the page.

Both are named by their hashes in the page's policy, so that nothing else in it, whatever a
report may hold, is ever run, applied or fetched.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping

RULES = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--ground);color:var(--ink);
 font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1024px;margin:0 auto;padding:16px 12px 48px;display:grid;gap:14px;
 grid-template-columns:minmax(0,1fr)}
h1,h2,h3,p,ul,ol,figure,pre{margin:0;padding:0}
code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;
 font-size:.86em}
p,li,th,td,code,pre,summary,h1,figcaption{overflow-wrap:anywhere}
.note,small{color:var(--muted);font-size:14px}
header{padding:20px 6px 10px}
.title{color:var(--muted);font-size:14px;font-weight:600;letter-spacing:.01em}
h1{display:flex;gap:12px;align-items:center;font-size:clamp(24px,5.4vw,36px);line-height:1.15;
 font-weight:700;letter-spacing:-.02em;margin:8px 0 14px;text-wrap:balance}
.mark{flex:none;display:inline-grid;place-items:center;width:22px;height:22px;border-radius:50%;
 font:700 13px/1 system-ui,sans-serif;border:1px solid currentColor}
h1 .mark{width:1.25em;height:1.25em;font-size:.92em}
.mark.error,.counts .error,.tally .error{color:var(--error);background:var(--error-soft)}
.mark.warning,.counts .warning,.tally .warning{color:var(--warning);background:var(--warning-soft)}
.mark.info,.counts .info{color:var(--info);background:var(--info-soft)}
.mark.ok,.counts .ok{color:var(--ok);background:var(--ok-soft)}
.mark.warning,.mark.error{border-radius:6px}
.counts,.tally{display:flex;flex-wrap:wrap;gap:6px;margin-bottom:10px}
.counts>span,.tally>span{padding:2px 10px;border-radius:99px;font-size:14px;font-weight:600}
.sign{font-weight:700}
.tally{margin:0}
.card:has(>details:first-child){padding-top:8px;padding-bottom:8px}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:16px}
.top{display:flex;flex-wrap:wrap;gap:2px 12px;align-items:baseline;justify-content:space-between;
 margin-bottom:6px}
h2{font-size:18px;line-height:1.3;letter-spacing:-.01em}
h3{margin-bottom:2px;font-size:13px;color:var(--muted);font-weight:600}
.finding{display:flex;gap:12px;padding:14px 0;border-top:1px solid var(--line)}
.top+.finding{border-top:0;padding-top:6px}
.finding:last-child{padding-bottom:2px}
.said{min-width:0;flex:1}
.finding>.mark{margin-top:1px}
.finding .message{max-width:72ch}
.finding.error .message,.finding.warning .message{font-weight:500}
.finding .message code,.fix p code{background:var(--block);padding:1px 4px;border-radius:4px}
.code a{color:inherit}
.code{color:var(--muted);font-size:13px;margin-top:6px}
.host{white-space:nowrap;color:var(--error);font-weight:600;margin-left:8px}
.fix{margin-top:10px}
.fix p{max-width:72ch;white-space:pre-line}
.copyable{position:relative;margin:6px 0}
.copyable .command{margin:0;padding-bottom:50px}
.command{white-space:pre-wrap;background:var(--block);border:1px solid var(--line);
 border-radius:8px;padding:10px 12px;margin:6px 0;line-height:1.55;direction:ltr;
 unicode-bidi:isolate;min-height:44px}
.copyable button{position:absolute;bottom:5px;right:5px;min-width:72px;min-height:34px;
 font:600 13px/1 system-ui,sans-serif;color:var(--ink);background:var(--card);
 border:1px solid var(--line);border-radius:6px;cursor:pointer}
.copyable button:hover{border-color:var(--muted)}
:focus-visible{outline:2px solid var(--info);outline-offset:2px}
details{margin-top:8px}
.findings>details{border-top:1px solid var(--line);padding-top:8px}
.findings>details:first-child{border-top:0;padding-top:0;margin:0}
summary h2{display:inline-block;color:var(--ink);min-width:132px;margin-left:6px}
summary{cursor:pointer;color:var(--muted);font-size:14px;padding:8px 0;min-height:24px}
summary .mark{margin:0 8px 0 6px;vertical-align:middle}
.paths ul{padding-left:18px;font-size:14px;color:var(--muted)}
table{width:100%;border-collapse:collapse;font-size:14px;font-variant-numeric:tabular-nums}
caption{text-align:left;font-weight:600;padding:4px 0}
th,td{text-align:left;vertical-align:baseline;padding:6px 0 6px 12px;
 border-bottom:1px solid var(--line);font-weight:400}
th:first-child,td:first-child{padding-left:0}
tbody tr:last-child>*{border-bottom:0}
thead th{color:var(--muted);font-size:13px}
.tables td,.tables thead th:not(:first-child){text-align:right;white-space:nowrap}
.tables small{display:inline-block;min-width:3.2em}
.tables{display:grid;gap:16px;grid-template-columns:minmax(0,1fr);margin-top:16px}
.state{color:var(--error);font-weight:600}
.state::before{content:"✗ "}
.swatch{display:inline-block;width:12px;height:12px;border-radius:3px;margin-right:8px;
 vertical-align:-1px;border:1px solid var(--muted)}
.machine th{color:var(--muted);width:34%;padding-right:8px}
.room{margin:6px 0 14px}
.room svg,.treemap svg{display:block;width:100%}
.room .free{fill:var(--line)}.room svg{overflow:hidden;border-radius:3px}
.room .inside{fill:var(--info)}.room .other{fill:var(--muted)}
.room figcaption{display:flex;flex-wrap:wrap;gap:2px 16px;font-size:14px;margin-top:6px}
.room figcaption span::before{content:"";display:inline-block;width:10px;height:10px;
 border-radius:3px;margin-right:6px}
.room figcaption .inside::before{background:var(--info)}
.room figcaption .other::before{background:var(--muted)}
.room figcaption .free::before{background:var(--line);outline:1px solid var(--muted)}
.treemap svg{height:auto;border-radius:8px}
.treemap .wide{display:none!important}
.treemap text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,Arial,sans-serif;
 fill:var(--ink);pointer-events:none}
.treemap .name{font-weight:700}
.treemap .amount{text-anchor:end}
.treemap .ground{fill:var(--hue)}
.treemap .tile{fill:var(--card);fill-opacity:.42}
.treemap g:hover>.tile{fill-opacity:.7}
.treemap .bad{fill:var(--error-soft);stroke:var(--error);stroke-width:1.5;stroke-dasharray:4 3}
.h0{--hue:var(--h0)}.h1{--hue:var(--h1)}.h2{--hue:var(--h2)}.h3{--hue:var(--h3)}
.h4{--hue:var(--h4)}.h5{--hue:var(--h5)}.h6{--hue:var(--h6)}.h7{--hue:var(--h7)}
.swatch{background:var(--hue)}
.boot ol{list-style:none}
.boot li{display:grid;grid-template-columns:minmax(0,1fr) auto;gap:2px 12px;padding:5px 0;
 font-size:14px;align-items:center}
.boot .bar{grid-column:1/-1;display:block;overflow:visible}
.boot .took{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
.boot .mark{width:18px;height:18px;font-size:11px;margin-right:4px}
.boot .failed{color:var(--error);font-weight:600}
.boot rect.ok{fill:var(--ok)}.boot rect.error{fill:var(--error)}
.boot line{stroke:var(--line)}
.axis{display:block;overflow:visible}
.axis text{font-size:12px;fill:var(--muted)}
@media (min-width:720px){
 main{padding:32px 24px 64px;gap:18px}
 .card{padding:20px 24px}
 .card:has(>details:first-child){padding-top:10px;padding-bottom:10px}
 .treemap .wide{display:block!important}.treemap .narrow{display:none!important}
 .copyable .command{padding:10px 92px 10px 12px}
 .copyable button{top:5px;bottom:auto}
 .tables{grid-template-columns:minmax(0,1fr) minmax(0,1.2fr);gap:32px}
 .boot li{grid-template-columns:190px minmax(0,1fr) 76px}
 .boot .bar{grid-column:2;grid-row:1}
 .boot .axis{width:calc(100% - 290px);margin-left:202px}
 .machine th{width:170px}
}
@media print{
 body{background:none;font-size:12px}
 main{display:block;max-width:none;padding:0}
 .card{border:0;border-top:1px solid var(--line);border-radius:0;padding:12px 0}
 .finding,figure,tr,.boot li{break-inside:avoid}
 .top{break-after:avoid}
 .copyable button{display:none}
 details::details-content{content-visibility:visible;height:auto}
 .treemap,.swatch,.room,.mark,.boot svg{print-color-adjust:exact;-webkit-print-color-adjust:exact}
}
"""
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
