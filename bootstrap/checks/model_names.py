"""Names under the model folders that ComfyUI or other systems stumble over."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Sequence

from bootstrap.checks.model_text import MOST_PATH, MOST_PATHS
from bootstrap.core.findings import Finding, info, warning
from bootstrap.core.text import counted, named, typed
from bootstrap.facts.inventory import Inventory

CODES = {
    "models.name_unusable": "A model's name has characters that workflows cannot carry",
    "models.name_spaces": "A name begins or ends with white space",
    "models.name_not_nfc": "A name looks like another one but is written with other code points",
    "models.name_too_long": "A name leaves no room for a download's temporary suffix",
    "models.names_differ_by_case": "Two names differ in upper and lower case only",
}
# A download is `NAME.part` until it is whole; file systems take 255 bytes.
LONGEST_NAME = 255 - 6
# A backslash is a folder separator to ComfyUI on Windows, where many workflows come from.
_UNUSABLE = re.compile("[\x00-\x1f\x7f\\\\\udc80-\udcff]")


def check_names(inventory: Inventory) -> list[Finding]:
    """Findings about names of models and their folders."""
    names = _paths(inventory)
    return [
        *unusable(names),
        *outer_spaces(names),
        *not_nfc(names),
        *too_long(names),
        *differ_by_case(names),
    ]


def unusable(paths: Sequence[str]) -> list[Finding]:
    """Control characters, backslashes, bytes that are no UTF-8."""
    found = [path for path in paths if _UNUSABLE.search(os.path.basename(path))]
    return _renaming(
        warning,
        "models.name_unusable",
        found,
        "with control characters, backslashes or bytes that are no UTF-8, which workflows cannot "
        "name reliably",
        lambda name: _UNUSABLE.sub("_", name),
    )


def outer_spaces(paths: Sequence[str]) -> list[Finding]:
    """White space at the beginning or end of a name."""
    found = [path for path in paths if _base(path).strip() != _base(path)]
    return _renaming(
        warning,
        "models.name_spaces",
        found,
        "that begin or end with white space, which gets lost where names are typed or copied",
        str.strip,
    )


def not_nfc(paths: Sequence[str]) -> list[Finding]:
    """Mostly from macOS, which stores é as e and an accent."""
    found = [p for p in paths if not unicodedata.is_normalized("NFC", os.path.basename(p))]
    return _renaming(
        info,
        "models.name_not_nfc",
        found,
        "whose accents are separate code points (as macOS writes them): a workflow with the usual "
        "spelling does not find them",
        lambda name: unicodedata.normalize("NFC", name),
    )


def too_long(paths: Sequence[str]) -> list[Finding]:
    """Fine to read, but a download under that name would fail."""
    found = [p for p in paths if len(os.fsencode(os.path.basename(p))) > LONGEST_NAME]
    return _renaming(
        info,
        "models.name_too_long",
        found,
        f"of more than {LONGEST_NAME} bytes, too long for a download to write beside it",
        _shortened,
    )


def differ_by_case(paths: Sequence[str]) -> list[Finding]:
    """Different files here, one file on Windows and macOS."""
    groups: dict[str, list[str]] = {}
    for path in paths:
        groups.setdefault(unicodedata.normalize("NFC", path).casefold(), []).append(path)
    twins = [group for group in groups.values() if len(group) > 1]
    if not twins:
        return []
    pairs = [" and ".join(group[:3]) for group in twins]
    return [
        info(
            "models.names_differ_by_case",
            f"{counted(len(twins), 'name exists', 'names exist')} in several spellings that differ "
            f"in case or accents only: {named(pairs, 3)}. A workflow made on Windows or macOS may "
            "mean the other one.",
            f"Rename one: {typed('mv', '-n', '--', twins[0][1], twins[0][1] + '-2')} "
            "(with the extension at the end), or delete it.",
            paths=[path[-MOST_PATH:] for group in twins[:20] for path in group[:3]],
        )
    ]


def _paths(inventory: Inventory) -> list[str]:
    """Folders and models; notes and previews beside them trouble nobody."""
    folders = (os.path.join(root, path) for root, path in inventory.folders)
    return [*folders, *(f.full_path for f in inventory.files if f.is_weights)]


def _renaming(
    finding: Callable[..., Finding],
    code: str,
    paths: Sequence[str],
    which: str,
    better: Callable[[str], str],
) -> list[Finding]:
    if not paths:
        return []
    commands = [
        typed("mv", "-n", "--", path, os.path.join(os.path.dirname(path), better(_base(path))))
        for path in paths[:3]
    ]
    return [
        finding(
            code,
            f"{counted(len(paths), 'name', 'names')} {which}: {named([_base(p) for p in paths])}.",
            f"{'; '.join(commands)} (and choose the new name in workflows).",
            paths=[path[-MOST_PATH:] for path in paths[:MOST_PATHS]],
        )
    ]


def _base(path: str) -> str:
    return os.path.basename(path)


def _shortened(name: str) -> str:
    stem, extension = os.path.splitext(name)
    room = LONGEST_NAME - len(os.fsencode(extension))
    return os.fsencode(stem)[:room].decode("utf-8", "ignore") + extension
