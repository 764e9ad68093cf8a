"""Are the weights files what their names say? Judged from what their beginnings showed."""

from __future__ import annotations

import os
from collections.abc import Sequence

from bootstrap.core.findings import Finding, info, warning
from bootstrap.core.text import counted, named, shown, size_text, typed
from bootstrap.doctor.facts.inventory import Inventory, ModelFile
from bootstrap.models.weights_file import State
from bootstrap.volume.categories import PICKLES, extension_of

CODES = {
    "models.empty_file": "A model file has zero bytes",
    "models.truncated": "A model file is shorter than its header says",
    "models.too_long": "A safetensors file has bytes after its end",
    "models.damaged": "A model file does not begin as its format does",
    "models.mislabelled": "A model file has another format's extension",
    "models.web_page": "A web page was saved under a model's name",
    "models.server_message": "A server's error message was saved under a model's name",
    "models.lfs_pointer": "A Git LFS pointer lies where the model should be",
    "models.pickle": "Models that run code when they are loaded (pickles)",
    "models.duplicate": "The same model lies on the volume more than once",
}
_AGAIN = (
    "download it again with a token, for instance: "
    '`curl -fL -H "Authorization: Bearer $CIVITAI_TOKEN" -o FILE URL` (HF_TOKEN for Hugging Face)'
)


def check_contents(inventory: Inventory) -> list[Finding]:
    """Findings about single files' contents; at most one for each code."""
    by_state: dict[State, list[ModelFile]] = {}
    for file in inventory.files:
        if file.is_weights:
            by_state.setdefault(file.state, []).append(file)
    findings = [
        check([*by_state.get(state, ())]) for state, check in _CHECKS.items() if by_state.get(state)
    ]
    messages = by_state.get(State.JSON, []) + by_state.get(State.TEXT, [])
    if messages:
        findings.append(server_message(messages))
    findings += pickles(inventory.models)
    findings += duplicates(inventory.same)
    return findings


def empty_file(files: Sequence[ModelFile]) -> Finding:
    """Zero bytes: a download that ended at once, or a full volume."""
    return warning(
        "models.empty_file",
        f"{about(files, 'has', 'have')} zero bytes.",
        f"{delete(files)}, then download it again (a full volume leaves such files too: df -h).",
        paths=paths_of(files),
    )


def truncated(files: Sequence[ModelFile]) -> Finding:
    """The end is missing; loading fails after seconds or minutes of reading."""
    return warning(
        "models.truncated",
        f"{about(files, 'is', 'are')} cut off: {_lengths(files)}.",
        f"If nothing is downloading there now: {delete(files)}, then download it again.",
        paths=paths_of(files),
    )


def too_long(files: Sequence[ModelFile]) -> Finding:
    """Bytes after the tensors; safetensors refuses such a file."""
    return warning(
        "models.too_long",
        f"{about(files, 'has', 'have')} bytes after the end: {_lengths(files)}. Two downloads "
        "wrote into one file, or one was resumed at the wrong place.",
        f"{delete(files)}, then download it again.",
        paths=paths_of(files),
    )


def damaged(files: Sequence[ModelFile]) -> Finding:
    """No format we know begins like that."""
    return warning(
        "models.damaged",
        f"{about(files, 'is', 'are')} damaged: {_details(files)}.",
        f"If nothing is downloading there now: {delete(files)}, then download it again.",
        paths=paths_of(files),
    )


def mislabelled(files: Sequence[ModelFile]) -> Finding:
    """A good file that ComfyUI opens with the wrong reader."""
    renames = [typed("mv", "-n", "--", f.full_path, _renamed(f)) for f in files[:3]]
    formats = ", ".join(f"{shown(place(f))} is a {f.examined.detail}" for f in files[:3])
    return warning(
        "models.mislabelled",
        f"{about(files, 'has', 'have')} the wrong extension and will not load: {formats}.",
        f"{'; '.join(renames)} (and choose the new name in the workflow).",
        paths=paths_of(files),
    )


def web_page(files: Sequence[ModelFile]) -> Finding:
    """A log-in page instead of the file."""
    return warning(
        "models.web_page",
        f"{about(files, 'is', 'are')} a web page, not a model: {_details(files)}. "
        "The site wanted a login, or the address was that of a page.",
        f"{delete(files)}, then {_AGAIN}.",
        paths=paths_of(files),
    )


def server_message(files: Sequence[ModelFile]) -> Finding:
    """JSON or plain text: what an API answers instead of the file."""
    return warning(
        "models.server_message",
        f"{about(files, 'is', 'are')} a server's message, not a model: {_details(files)}.",
        f"{delete(files)}, then {_AGAIN}.",
        paths=paths_of(files),
    )


def lfs_pointer(files: Sequence[ModelFile]) -> Finding:
    """A repository was cloned without Git LFS."""
    first = files[0]
    size = f" of {size_text(first.examined.expected)}" if first.examined.expected else ""
    pull = typed("git", "-C", os.path.dirname(first.full_path), "lfs", "pull")
    return warning(
        "models.lfs_pointer",
        f"{about(files, 'is', 'are')} a Git LFS pointer of some bytes; the model itself{size} was "
        "never fetched (cloned without Git LFS, or downloaded from a /raw/ address).",
        f"{pull} (apt-get install git-lfs first), or {delete(files)}, then download from the "
        "/resolve/ address instead of /raw/ or /blob/.",
        paths=paths_of(files),
    )


def pickles(models: Sequence[ModelFile]) -> list[Finding]:
    """Nothing to mend at once: many upscalers exist as .pth only."""
    found = [f for f in models if extension_of(f.name) in PICKLES and f.state is State.GOOD]
    if not found:
        return []
    return [
        info(
            "models.pickle",
            f"{about(found, 'is a pickle', 'are pickles')}: old torch versions and some nodes run "
            "code in them when they are loaded.",
            "Where the author offers a .safetensors of the same model, use that; keep only "
            "pickles from people you trust.",
            paths=paths_of(found),
        )
    ]


def duplicates(groups: Sequence[Sequence[ModelFile]]) -> list[Finding]:
    """Files that look the same; cmp decides before anything is deleted."""
    if not groups:
        return []
    wasted = sum(group[0].size * (len(group) - 1) for group in groups)
    first = groups[0]
    kept, extra = first[0].full_path, first[1].full_path
    pairs = [" = ".join(place(f) for f in group[:3]) for group in groups]
    return [
        info(
            "models.duplicate",
            f"{counted(len(groups), 'model lies', 'models lie')} on the volume more than once "
            f"(same size, header and samples) and {'wastes' if len(groups) == 1 else 'waste'} "
            f"{size_text(wasted)}: {named(pairs, 3)}.",
            f"{typed('cmp', '--', kept, extra)} && {typed('rm', '--', extra)} deletes the second "
            "if they are equal; workflows must then use the first name.",
            wasted=wasted,
            groups=[[f.full_path[-300:] for f in group[:5]] for group in groups[:20]],
        )
    ]


def _lengths(files: Sequence[ModelFile]) -> str:
    parts = []
    for file in files[:3]:
        expected = file.examined.expected
        wanted = f"{expected:,} bytes expected" if expected else file.examined.detail
        parts.append(f"{shown(file.name)} has {file.size:,} bytes, {wanted}")
    return "; ".join(parts)


def _details(files: Sequence[ModelFile]) -> str:
    return "; ".join(f"{shown(f.name)}: {shown(f.examined.detail)[:120]}" for f in files[:3])


def _renamed(file: ModelFile) -> str:
    stem = file.full_path[: -len(extension_of(file.name))]
    return stem + file.examined.detail


_CHECKS = {
    State.EMPTY: empty_file,
    State.TRUNCATED: truncated,
    State.TOO_LONG: too_long,
    State.DAMAGED: damaged,
    State.MISLABELLED: mislabelled,
    State.PAGE: web_page,
    State.POINTER: lfs_pointer,
}


# In a finding's details, where programs read them.
MOST_PATHS = 50
MOST_PATH = 300
# In a command that one is to type.
MOST_TYPED = 5


def place(file: ModelFile) -> str:
    """The file as seen from beside its model folder: `models/loras/x.safetensors`."""
    return f"{file.root.name}/{file.path}"


def about(files: Sequence[ModelFile], one: str, many: str) -> str:
    """`models/vae/x.pt has` or `7 files (a, b, c, d, e and 2 more) have`."""
    if len(files) == 1:
        return f"{named([place(files[0])])} {one}"
    return f"{counted(len(files), 'file')} ({named([place(f) for f in files])}) {many}"


def delete(files: Sequence[ModelFile]) -> str:
    """The command that deletes them, the first few where there are many."""
    command = typed("rm", "--", *(f.full_path for f in files[:MOST_TYPED]))
    more = len(files) - MOST_TYPED
    return f"`{command}` (and the {counted(more, 'other')})" if more > 0 else f"`{command}`"


def paths_of(files: Sequence[ModelFile]) -> list[str]:
    """Paths for a finding's details, bounded in number and length."""
    return [os.path.join(f.root, f.path)[-MOST_PATH:] for f in files[:MOST_PATHS]]
