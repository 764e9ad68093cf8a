"""What fills the volume: holdings of the report's inventory, their picture and their tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bootstrap.core.text import counted
from bootstrap.doctor.html.picture import HUES, Holding, holdings_of, largest_of, picture_html
from bootstrap.doctor.html.text import breakable, mapping, number, plain, safe, size

# Rows that stand open; the rest is folded.
_ROWS = 8
_MOST_NAME, _MOST_PATH = 60, 240
# A file system that tells of more has told of its whole cluster, not of this volume.
_IMPLAUSIBLE = 64 << 40


def inventory_html(models: object, volume: object) -> str:
    """The section, or nothing where the models were not looked at."""
    inventory = mapping(models)
    holdings = holdings_of(inventory)
    if not inventory or not (holdings or inventory.get("files")):
        return ""
    total = sum(h.total for h in holdings)
    facts = (
        counted(int(number(inventory.get("models"))), "model"),
        counted(int(number(inventory.get("files"))), "file"),
        size(total),
    )
    return (
        '<section class="card inventory" aria-labelledby="fills"><div class="top">'
        '<h2 id="fills">What fills the volume</h2>'
        f'<p class="note">{" · ".join(facts)}{_incomplete(inventory)}</p></div>'
        f"{_room(mapping(volume), total)}{picture_html(holdings)}"
        f'<div class="tables">{_categories(holdings, total)}{_largest(holdings)}</div></section>'
    )


def _incomplete(inventory: Mapping[str, Any]) -> str:
    return "" if inventory.get("complete") is not False else " · the look ended before all was seen"


def _room(volume: Mapping[str, Any], models: float) -> str:
    """A bar of models, other data and free room, where the volume's size can be believed."""
    space = mapping(volume.get("space"))
    total, free = number(space.get("total")), number(space.get("free"))
    if not 0 < total <= _IMPLAUSIBLE or free > total:
        return ""
    inside = min(models, total - free)
    other = total - free - inside
    first, second = 100 * inside / total, 100 * other / total
    words = f"models {size(inside)}, other {size(other)}, free {size(free)} of {size(total)}"
    return (
        f'<figure class="room"><svg width="100%" height="12" role="img" aria-label="{words}">'
        '<rect class="free" width="100%" height="12" rx="3"/>'
        f'<rect class="inside" width="{first:.2f}%" height="12" rx="3"/>'
        f'<rect class="other" x="{first:.2f}%" width="{second:.2f}%" height="12"/></svg>'
        f'<figcaption><span class="inside">models {size(inside)}</span>'
        f'<span class="other">other {size(other)}</span>'
        f'<span class="free">free {size(free)} of {size(total)}</span></figcaption></figure>'
    )


def _categories(holdings: Sequence[Holding], total: float) -> str:
    rows = [_category(i, h, total) for i, h in enumerate(holdings) if h.total]
    empty = [safe(h.name, _MOST_NAME) for h in holdings if not h.total]
    head = '<th scope="col">Category</th><th scope="col">Models</th><th scope="col">Size</th>'
    note = ""
    if empty:
        names = ", ".join(f"<bdi>{name}</bdi>" for name in empty[:12])
        more = f" and {len(empty) - 12:,} more" if len(empty) > 12 else ""
        note = f'<p class="note">Empty: {names}{more}</p>'
    return f"<div>{_table('By category', head, rows)}{note}</div>"


def _category(index: int, holding: Holding, total: float) -> str:
    share = 100 * holding.total / total if total else 0.0
    percent = f"{share:.0f}" if share >= 1 else "&lt;1"
    amount = f"{size(holding.total)} <small>{percent} %</small>"
    return (
        f'<tr><th scope="row"><span class="swatch h{min(index, HUES - 1)}"></span>'
        f"<bdi>{safe(holding.name, _MOST_NAME)}</bdi></th>"
        f"<td>{holding.count:,}</td><td>{amount}</td></tr>"
    )


def _largest(holdings: Sequence[Holding]) -> str:
    rows = []
    for file in largest_of(holdings):
        state = f' <span class="state">{safe(file.trouble, 40)}</span>' if file.trouble else ""
        path = breakable(plain(file.path, _MOST_PATH))
        rows.append(
            f'<tr><th scope="row"><bdi>{path}</bdi>{state}</th><td>{size(file.size)}</td></tr>'
        )
    if not rows:
        return ""
    head = '<th scope="col">Model</th><th scope="col">Size</th>'
    return f"<div>{_table('Largest models', head, rows)}</div>"


def _table(caption: str, head: str, rows: Sequence[str]) -> str:
    if not rows:
        return ""
    first, rest = rows[:_ROWS], rows[_ROWS:]
    table = (
        f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(first)}</tbody></table>"
    )
    if rest:
        table += (
            f"<details><summary>{len(rest):,} more</summary><table><thead><tr>{head}</tr></thead>"
            f"<tbody>{''.join(rest)}</tbody></table></details>"
        )
    return table
