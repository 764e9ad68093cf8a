"""Are the weights files what their names say? Judged by their beginnings."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from bootstrap.core.findings import Finding, info, warning
from bootstrap.core.text import (
    MOST_PATHS,
    pluralize,
    printable,
    shell_quote,
    size_text,
    summarize_list,
)
from bootstrap.doctor.facts.inventory import Inventory, ModelFile
from bootstrap.models.weights_file import WeightsState
from bootstrap.volume.categories import PICKLES, extension_of

CODES = {
    "models.empty_file": "A model file is empty",
    "models.truncated": "A model file is shorter than its header says",
    "models.too_long": "A safetensors file has extra bytes after its end",
    "models.damaged": "A model file does not begin as its format requires",
    "models.mislabelled": "A model file has another format's extension",
    "models.web_page": "A web page was saved under a model's name",
    "models.server_message": "A server's error message was saved under a model's name",
    "models.lfs_pointer": "A Git LFS pointer is where the model should be",
    "models.pickle": "Some models can run code when they are loaded (pickles)",
    "models.duplicate": "The same model is on the volume more than once",
}
_AGAIN = (
    "{delete}. Then download it again with the site's token (CIVITAI_TOKEN or HF_TOKEN), from the "
    "model's own address in place of URL: {download}"
)
_IF_QUIET = "If it is not being downloaded: {delete}. Then download it again."


class _Wording(NamedTuple):
    """The texts for files in one state; the names in braces are those of `_words_for`."""

    code: str
    verb: tuple[str, str]
    message: str
    fix: str


_HAS, _IS = ("has", "have"), ("is", "are")
_MESSAGE = _Wording(
    "models.server_message",
    ("is a server's message, not a model", "are servers' messages, not models"),
    "{files}: {details}.",
    _AGAIN,
)
_FAULTS: Mapping[WeightsState, _Wording] = {
    WeightsState.EMPTY: _Wording(
        "models.empty_file",
        _HAS,
        "{files} zero bytes.",
        "{delete}. Then download it again; if the volume is full, make room first.",
    ),
    WeightsState.TRUNCATED: _Wording(
        "models.truncated", _IS, "{files} cut off: {lengths}.", _IF_QUIET
    ),
    WeightsState.TOO_LONG: _Wording(
        "models.too_long",
        _HAS,
        "{files} bytes after the end: {lengths}. Two downloads wrote to one file, or one was "
        "resumed at the wrong place.",
        "{delete}. Then download it again.",
    ),
    WeightsState.DAMAGED: _Wording("models.damaged", _IS, "{files} damaged: {details}.", _IF_QUIET),
    # An intact file that ComfyUI opens with the wrong reader.
    WeightsState.MISLABELLED: _Wording(
        "models.mislabelled",
        _HAS,
        "{files} the wrong extension and will not load: {formats}.",
        "{renames}. Then choose the new name in the workflow.",
    ),
    WeightsState.PAGE: _Wording(
        "models.web_page",
        ("is a web page, not a model", "are web pages, not models"),
        "{files}: {details}. The site required a login, or the address was that of a page.",
        _AGAIN,
    ),
    WeightsState.JSON: _MESSAGE,
    WeightsState.TEXT: _MESSAGE,
    WeightsState.POINTER: _Wording(
        "models.lfs_pointer",
        ("is a Git LFS pointer", "are Git LFS pointers"),
        "{files}; the model itself{of_size} was never fetched (cloned without "
        "Git LFS, or downloaded from a /raw/ address).",
        "{delete}. Then download it again, from its /resolve/ address instead of /raw/ or /blob/; "
        "in a clone, have Git LFS fetch it: {pull}",
    ),
}


def check_contents(inventory: Inventory) -> list[Finding]:
    """Findings about single files' contents; at most one for each code."""
    return [*faults(inventory.files), *pickles(inventory.models), *duplicates(inventory.same)]


def faults(files: Iterable[ModelFile]) -> list[Finding]:
    """What is not what its name says; at most one finding for each code."""
    by_fault: dict[_Wording, list[ModelFile]] = {}
    for file in files:
        if is_faulty(file):
            by_fault.setdefault(_FAULTS[file.state], []).append(file)
    return [_finding(fault, of_fault) for fault, of_fault in by_fault.items()]


def is_faulty(file: ModelFile) -> bool:
    """Does a finding say to delete it, download it again or rename it?"""
    return file.is_weights and file.state in _FAULTS


def _finding(fault: _Wording, files: Sequence[ModelFile]) -> Finding:
    words = _words_for(files, fault.verb)
    message, fix = fault.message.format_map(words), fault.fix.format_map(words)
    return warning(fault.code, message, fix, paths=paths_of(files))


def _words_for(files: Sequence[ModelFile], verb: tuple[str, str]) -> Mapping[str, str]:
    first = files[0]
    size = first.examined.expected
    return {
        "files": named(files, *verb),
        "delete": delete(files),
        "lengths": "; ".join(f"{_label(f, files)}{_length(f)}" for f in files[:3]),
        "details": "; ".join(
            f"{_label(f, files)}{printable(f.examined.detail)[:120]}" for f in files[:3]
        ),
        "formats": ", ".join(f"{printable(place(f))} is a {f.examined.detail}" for f in files[:3]),
        "renames": command(*(move(f.full_path, _renamed(f)) for f in files[:3])),
        "download": command(_download(first.full_path)),
        "pull": command(shell_quote("git", "-C", os.path.dirname(first.full_path), "lfs", "pull")),
        "of_size": f" of {size_text(size)}" if size else "",
    }


def _download(path: str) -> str:
    token = '-H "Authorization: Bearer $CIVITAI_TOKEN"'
    return f"curl -fL {token} -o {shell_quote(path)} URL"


def pickles(models: Sequence[ModelFile]) -> Iterator[Finding]:
    """No immediate fix: many upscalers exist as .pth only."""
    found = [f for f in models if extension_of(f.name) in PICKLES and f.state is WeightsState.GOOD]
    if not found:
        return
    yield info(
        "models.pickle",
        f"{named(found, 'is a pickle', 'are pickles')}: old torch versions and some nodes run "
        "code in them when they are loaded.",
        "Where the author offers a .safetensors of the same model, use that; keep only "
        "pickles from people you trust.",
        paths=paths_of(found),
    )


def duplicates(groups: Sequence[Sequence[ModelFile]]) -> Iterator[Finding]:
    """Files that look identical; cmp decides before anything is deleted."""
    if not groups:
        return
    wasted = sum(group[0].size * (len(group) - 1) for group in groups)
    first = groups[0]
    kept, extra = first[0].full_path, first[1].full_path
    pairs = [" = ".join(place(f) for f in group[:3]) for group in groups]
    yield info(
        "models.duplicate",
        f"{pluralize(len(groups), 'model lies', 'models lie')} on the volume more than once "
        f"(same size, header and samples) and {'wastes' if len(groups) == 1 else 'waste'} "
        f"{size_text(wasted)}: {summarize_list(pairs, 3)}.",
        f"`{shell_quote('cmp', '--', kept, extra)} && {shell_quote('rm', '--', extra)}` deletes "
        "the second if they are equal; workflows must then use the first name.",
        wasted=wasted,
        groups=[[f.full_path[-300:] for f in group[:5]] for group in groups[:20]],
    )


def _length(file: ModelFile) -> str:
    expected = file.examined.expected
    wanted = f" instead of {expected:,}" if expected else f", {file.examined.detail}"
    return f"{file.size:,} bytes{wanted}"


def _label(file: ModelFile, files: Sequence[ModelFile]) -> str:
    """Which of several files a remark is about."""
    return f"{printable(file.name)}: " if files[1:] else ""


def _renamed(file: ModelFile) -> str:
    stem = file.full_path[: -len(extension_of(file.name))]
    return stem + file.examined.detail


# In a finding's details, for programs.
MOST_PATH = 300
# In a command to type.
MOST_TYPED = 5


def place(file: ModelFile) -> str:
    """The file's path from beside its model folder: `models/loras/x.safetensors`."""
    return f"{file.root.name}/{file.path}"


def named(files: Sequence[ModelFile], one: str, many: str) -> str:
    """`models/vae/x.pt has` or `7 files (a, b, c, d, e and 2 more) have`."""
    if len(files) == 1:
        return f"{summarize_list([place(files[0])])} {one}"
    return f"{pluralize(len(files), 'file')} ({summarize_list([place(f) for f in files])}) {many}"


def command(*commands: str) -> str:
    """The commands of a fix, joined for copying."""
    return f"`{'; '.join(commands)}`"


def move(path: str, to: str) -> str:
    """The command that renames a file, if the new name is free."""
    return shell_quote("mv", "-n", "--", path, to)


def delete(files: Sequence[ModelFile]) -> str:
    """The command that deletes them, or the first few of many."""
    remove = command(shell_quote("rm", "--", *(f.full_path for f in files[:MOST_TYPED])))
    more = len(files) - MOST_TYPED
    return f"{remove} (and the {pluralize(more, 'other')})" if more > 0 else remove


def paths_of(files: Sequence[ModelFile]) -> list[str]:
    """Paths for a finding's details, limited in number and length."""
    return [os.path.join(f.root, f.path)[-MOST_PATH:] for f in files[:MOST_PATHS]]
