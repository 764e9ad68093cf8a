"""Are the models where ComfyUI looks, with names that it lists?"""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

from bootstrap.core.findings import Finding, info, warning
from bootstrap.core.text import (
    MB,
    MOST_PATHS,
    chained,
    pluralize,
    printable,
    shell_quote,
    size_text,
    summarize_list,
)
from bootstrap.doctor.checks.model_contents import (
    MOST_PATH,
    command,
    delete,
    is_faulty,
    move,
    named,
    paths_of,
)
from bootstrap.doctor.facts.inventory import Holding, Inventory, ModelFile, holdings_of
from bootstrap.volume.categories import (
    CATEGORIES,
    GGUF,
    OTHER_NAMES,
    READ_BY_NODES,
    Category,
    category_of,
    extension_of,
    known_folders,
)

CODES = {
    "models.name_unusable": "A model's name has characters that do not survive in workflows",
    "models.name_spaces": "A name begins or ends with white space",
    "models.name_not_nfc": "A name's accents are separate code points, not in the usual form (NFC)",
    "models.name_too_long": "A name leaves no room for a download's temporary suffix",
    "models.names_differ_by_case": "Two names differ only in upper and lower case",
    "models.empty_category": "Some model folders have no model in them",
    "models.folder_misnamed": "ComfyUI does not read a folder because its name is slightly wrong",
    "models.folder_unknown": "Some folders are read by custom nodes only, if at all",
    "models.outside_category": "Models lie directly in `models/`, where no loader looks",
    "models.ignored_extension": "ComfyUI does not list files with this extension in this folder",
    "models.archive": "A model is in an archive, which ComfyUI does not list",
    "models.partial_download": "Downloads are in progress or were interrupted",
}
# A download is `NAME.part` until it is complete; file systems allow 255 bytes.
LONGEST_NAME = 255 - 6
# A backslash is a folder separator for ComfyUI on Windows, where many workflows come from.
_UNUSABLE = re.compile("[\x00-\x1f\x7f\\\\\udc80-\udcff]")
PARTIAL = frozenset(
    {".part", ".aria2", ".crdownload", ".tmp", ".temp", ".incomplete", ".download", ".partial"}
    | {".!qb", ".opdownload", ".filepart"}
)
ARCHIVES = frozenset({".zip", ".rar", ".7z", ".tar", ".gz", ".tgz", ".xz", ".zst", ".bz2"})
# A smaller unlisted file is a note, a preview or a configuration.
LEAST_MODEL = 10 * MB
_MOST_MOVES = 5  # folders in one command
_HIDDEN_ENDING = re.compile(
    r"(?P<real>\.(safetensors|sft|ckpt|pth?|gguf))(\.(?P<number>\d+)|\.txt|\.html?)$", re.IGNORECASE
)
# Large files that nodes and people keep beside models intentionally.
_BESIDE_MODELS = frozenset(
    {".onnx", ".engine", ".json", ".txt", ".md", ".yaml", ".csv", ".png", ".jpg", ".jpeg", ".webp"}
    | {".gif", ".mp4", ".webm", ".pdf", ".model", ".msgpack", ".h5", ".py"}
)
_NEAR = 0.85


class _BadName(NamedTuple):
    """A kind of bad name: which are, in words, too; `better` is the one to give instead."""

    code: str
    report: Callable[..., Finding]
    is_bad: Callable[[str], object]
    which: str
    better: Callable[[str], str]


def _shortened(name: str) -> str:
    stem, extension = os.path.splitext(name)
    room = LONGEST_NAME - len(os.fsencode(extension))
    return os.fsencode(stem)[:room].decode("utf-8", "ignore") + extension


_BAD_NAMES = (
    _BadName(
        "models.name_unusable",
        warning,
        _UNUSABLE.search,
        "with control characters, backslashes or bytes that are not UTF-8, which workflows cannot "
        "name reliably",
        lambda name: _UNUSABLE.sub("_", name),
    ),
    _BadName(
        "models.name_spaces",
        warning,
        lambda name: name.strip() != name,
        "that begin or end with white space, which gets lost where names are typed or copied",
        str.strip,
    ),
    # Usually from macOS, which stores é as e and an accent.
    _BadName(
        "models.name_not_nfc",
        info,
        lambda name: not unicodedata.is_normalized("NFC", name),
        "whose accents are separate code points (as macOS writes them): a workflow with the usual "
        "spelling does not find them",
        lambda name: unicodedata.normalize("NFC", name),
    ),
    # Readable, but a download with that name would fail.
    _BadName(
        "models.name_too_long",
        info,
        lambda name: len(os.fsencode(name)) > LONGEST_NAME,
        f"of more than {LONGEST_NAME} bytes, too long for a download to write beside it",
        _shortened,
    ),
)


def check_names(inventory: Inventory) -> list[Finding]:
    """Findings about names of models and their folders."""
    paths = _paths(inventory)
    found = [(kind, [p for p in paths if kind.is_bad(_base(p))]) for kind in _BAD_NAMES]
    return [*(_renaming(kind, bad) for kind, bad in found if bad), *differ_by_case(paths)]


def differ_by_case(paths: Sequence[str]) -> Iterator[Finding]:
    """Different files here, one file on Windows and macOS."""
    groups: dict[str, list[str]] = {}
    for path in paths:
        groups.setdefault(unicodedata.normalize("NFC", path).casefold(), []).append(path)
    twins = [group for group in groups.values() if len(group) > 1]
    if not twins:
        return
    pairs = [" and ".join(group[:3]) for group in twins]
    yield info(
        "models.names_differ_by_case",
        f"{pluralize(len(twins), 'name exists', 'names exist')} in several spellings that differ "
        f"in case or accents only: {summarize_list(pairs, 3)}. A workflow made on Windows or macOS "
        "may mean the other one.",
        f"Rename one: {command(move(twins[0][1], _second(twins[0][1])))}. Or delete it.",
        paths=[path[-MOST_PATH:] for group in twins[:20] for path in group[:3]],
    )


def _second(path: str) -> str:
    stem, extension = os.path.splitext(path)
    return f"{stem}-2{extension}"


def _paths(inventory: Inventory) -> list[str]:
    """Folders and models; notes and previews beside them are harmless."""
    folders = (os.path.join(root, path) for root, path in inventory.folders)
    return [*folders, *(f.full_path for f in inventory.files if f.is_weights)]


def _renaming(kind: _BadName, paths: Sequence[str]) -> Finding:
    better = [os.path.join(os.path.dirname(p), kind.better(_base(p))) for p in paths[:3]]
    return kind.report(
        kind.code,
        f"{pluralize(len(paths), 'name')} {kind.which}: "
        f"{summarize_list([_base(p) for p in paths])}.",
        f"{command(*map(move, paths, better))}. Then choose the new name in workflows.",
        paths=[path[-MOST_PATH:] for path in paths[:MOST_PATHS]],
    )


def _base(path: str) -> str:
    return os.path.basename(path)


def check_places(
    inventory: Inventory,
    loose: Mapping[str, str] = MappingProxyType({}),
    reported: Collection[str] = (),
) -> list[Finding]:
    """Findings about folders, and about files that no loader lists; `loose` has the proper folder
    of single models by their contents, `reported` are folders that another check reports."""
    movable = without_faulty(inventory)
    unlisted = [f for f in inventory.files if not f.is_model and f.inode is not None]
    outside = [f for f in movable.files if not f.folder and f.is_weights]
    found = (
        (partial(outside_category, loose=loose), outside),
        (ignored_extensions, [f for f in unlisted if _is_ignored(f)]),
        (packed, [f for f in unlisted if _is_archive(f)]),
        (partial_downloads, [f for f in unlisted if _is_partial(f)]),
    )
    return [
        *empty_categories(holdings_of(inventory)),
        *unknown_folders(holdings_of(movable), reported),
        *(finding(files) for finding, files in found if files),
    ]


def without_faulty(inventory: Inventory) -> Inventory:
    """Without files that another finding deletes or renames: its command names where they are."""
    files = (f for f in inventory.files if f.inode is not None and not is_faulty(f))
    return replace(inventory, files=tuple(files))


def empty_categories(holdings: Sequence[Holding]) -> list[Finding]:
    """Known folders with nothing for a loader; common, but often the answer to a question."""
    empty = [h.name for h in holdings if h.known and not h.count and h.name != "configs"]
    text = f"No model in {summarize_list(empty, 30)}."
    return [info("models.empty_category", text, categories=empty[:60])] if empty else []


def unknown_folders(holdings: Sequence[Holding], reported: Collection[str]) -> list[Finding]:
    """Misspelt names are a warning, all others information."""
    misnamed = [(h, c) for h, c in misnamed_in(holdings) if not {*h.folders} <= {*reported}]
    others = [h for h in holdings if _is_unknown(h) and not _meant(h.name)]
    others = [h for h in others if h.name.lower() not in READ_BY_NODES]
    findings = [_misnamed(misnamed)] if misnamed else []
    if others:
        listed = [f"{h.name} ({pluralize(h.count, 'model')}, {size_text(h.size)})" for h in others]
        findings.append(
            info(
                "models.folder_unknown",
                f"ComfyUI itself does not read {summarize_list(listed, 10)}; custom nodes may.",
                _if_unread(others[0]),
                folders=[path for h in others[:20] for path in h.folders[:2]],
            )
        )
    return findings


def _if_unread(holding: Holding) -> str:
    """How to move a folder's models to where loaders look; its name may tell their kind."""
    plain = _plain(holding.name)
    parts = sorted(known_folders(), key=len, reverse=True)
    folder = next((name for name in parts if name.removesuffix("s") in plain), "checkpoints")
    name = printable(holding.name)
    return (
        f"If no custom node reads {name}: `{_moved(holding.folders[0], folder)}`. Name another "
        f"folder if they are not {folder}."
    )


def misnamed_in(holdings: Sequence[Holding]) -> list[tuple[Holding, Category]]:
    """Folders with models and a misspelt name of ComfyUI's, and the name that was meant."""
    return [(h, meant) for h in holdings if _is_unknown(h) and (meant := _meant(h.name))]


def _is_unknown(holding: Holding) -> bool:
    return bool(not holding.known and holding.name and holding.count)


def outside_category(
    files: Sequence[ModelFile], loose: Mapping[str, str] = MappingProxyType({})
) -> Finding:
    """The right folder depends on the model's kind, known from its contents or its author."""
    first = files[0]
    known = loose.get(first.full_path, "")
    folder = os.path.join(known or os.path.join(first.root, "checkpoints"), "")
    moved = f"`{shell_quote('mkdir', '-p', folder)} && {move(first.full_path, folder)}`"
    fix = (
        f"By its contents {printable(first.name)} belongs there: {moved}"
        if known
        else f"{moved}. Its contents do not tell its kind: if it is not a checkpoint, name another "
        "folder."
    )
    return warning(
        "models.outside_category",
        f"{named(files, 'lies', 'lie')} straight under {first.root.name}/, where no loader looks.",
        fix,
        paths=paths_of(files),
    )


def ignored_extensions(files: Sequence[ModelFile]) -> Finding:
    """`.safetensors.1` from wget, `.safetensors.txt` from a browser, or not a model."""
    first = files[0]
    moves = command(*(move(f.full_path, _better_path(f)) for f in files[:3]))
    accepted = ", ".join(sorted(first.category.extensions)) if first.category else ".safetensors"
    return warning(
        "models.ignored_extension",
        f"{named(files, 'is', 'are')} not listed by ComfyUI because of the name's ending "
        f"(it takes {accepted}).",
        f"If it is a model: {moves}. If not, move it out of the model folders.",
        paths=paths_of(files),
    )


def packed(files: Sequence[ModelFile]) -> Finding:
    """ComfyUI does not unpack archives."""
    first = files[0]
    folder = os.path.dirname(first.full_path)
    zipped = extension_of(first.name) == ".zip"
    unpack = (
        shell_quote("python3", "-m", "zipfile", "-e", first.full_path, folder)
        if zipped
        else shell_quote("tar", "-xf", first.full_path, "-C", folder)
    )
    return warning(
        "models.archive",
        f"{named(files, 'is an archive', 'are archives')}; ComfyUI lists only what is unpacked.",
        f"`{unpack} && {shell_quote('rm', '--', first.full_path)}`",
        paths=paths_of(files),
    )


def partial_downloads(files: Sequence[ModelFile]) -> Finding:
    """Information only: another worker may be downloading right now."""
    size = sum(f.size for f in files)
    return info(
        "models.partial_download",
        f"{named(files, 'is a download', 'are downloads')} under way or broken off "
        f"({size_text(size)}).",
        f"If nothing is downloading on any worker or Pod: {delete(files)}",
        paths=paths_of(files),
        size=size,
    )


def _misnamed(found: Sequence[tuple[Holding, Category]]) -> Finding:
    pairs = [f"{h.name} (it reads {meant.folders[0]})" for h, meant in found]
    moves = [_moved(source, meant.folders[0]) for h, meant in found for source in h.folders]
    return warning(
        "models.folder_misnamed",
        f"ComfyUI does not read {summarize_list(pairs)}: "
        f"{pluralize(sum(h.count for h, _ in found), 'model')} "
        f"({size_text(sum(h.size for h, _ in found))}) will not be listed.",
        f"`{chained(moves[:_MOST_MOVES])}`",
        folders=[path for h, _ in found for path in h.folders][:50],
    )


def _moved(source: str, name: str) -> str:
    """The command that moves the contents of the folder `source` to `name` beside it."""
    target = os.path.join(os.path.dirname(source), name)
    files, into = shell_quote(os.path.join(source, "")) + "*", shell_quote(os.path.join(target, ""))
    made, gone = shell_quote("mkdir", "-p", target), shell_quote("rmdir", "--", source)
    return f"{made} && mv -n -- {files} {into} && {gone}"


def _meant(folder: str) -> Category | None:
    """The category that a misspelt folder name means."""
    plain = _plain(folder)
    name = OTHER_NAMES.get(plain) or OTHER_NAMES.get(folder.lower())
    if name:
        return CATEGORIES[name]
    near = difflib.get_close_matches(plain, known_folders(), 1, _NEAR)
    return category_of(near[0]) if near else None


def _plain(folder: str) -> str:
    return folder.strip().lower().replace(" ", "_").replace("-", "_")


def _is_partial(file: ModelFile) -> bool:
    return extension_of(file.name) in PARTIAL


def _is_archive(file: ModelFile) -> bool:
    return file.category is not None and extension_of(file.name) in ARCHIVES


def _is_ignored(file: ModelFile) -> bool:
    """In one of ComfyUI's folders, and a model by its name or its size."""
    if file.category is None or _is_partial(file) or _is_archive(file):
        return False
    if extension_of(file.name) in _BESIDE_MODELS:
        return False
    looks_like_one = file.is_weights or _HIDDEN_ENDING.search(file.name)
    return bool(looks_like_one) or file.size >= LEAST_MODEL


def _better_path(file: ModelFile) -> str:
    """Where ComfyUI would list it: another folder, or the name without the extra suffix."""
    if file.is_weights:
        folder = "diffusion_models" if extension_of(file.name) == GGUF else "checkpoints"
        return os.path.join(file.root, folder, file.name)
    found = _HIDDEN_ENDING.search(file.name)
    if not found:
        return file.full_path + ".safetensors"
    number = found["number"]
    stem = file.full_path[: found.start() - len(file.name)]
    return f"{stem}{'-' + number if number else ''}{found['real']}"
