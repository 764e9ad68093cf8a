"""What ComfyUI's start needs: its code, its command line, its GPU allocator.

Flags differ between versions, and an unknown one ends ComfyUI with argparse's code 2, so only those
that it defines are used.

With dynamic VRAM (on by default since 0.16, for NVIDIA and torch 2.8 or newer) ComfyUI manages the
GPU's memory through hooks that work best with cudaMallocAsync, its own choice; torch's allocator
with max_split_size_mb:256 would leave larger blocks whole and unused. Without dynamic VRAM that
setting prevents fragmentation, and needs --disable-cuda-malloc to take effect. Source:
comfy/cli_args.py, main.py and cuda_malloc.py up to 0.33, comfy-aimdo's allocator.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from bootstrap.comfyui.copy_code import (
    CannotStage,
    CopyPlan,
    Staged,
    copy_again,
    copy_user_folder,
    link_output,
    stage,
)
from bootstrap.comfyui.workdir import WorkDir
from bootstrap.config import Settings
from bootstrap.core.findings import Finding, info, warning
from bootstrap.core.text import pluralize, size_text, summarize_list
from bootstrap.volume import Layout
from bootstrap.volume.args_file import describe_local_models, flag_names, group_flags
from bootstrap.volume.locate import CLI_ARGS, source_of

CODES = {
    "comfyui.flag_unknown": "This version of ComfyUI does not know a flag",
    "comfyui.not_staged": "ComfyUI's code was not copied to local disk and runs from the volume",
    "comfyui.user_not_copied": "Users' settings and workflows were not copied from the volume",
    "nodes.installs_queued": "ComfyUI-Manager has queued installs, which a worker does not run",
    "comfyui.heavy_nodes": "Large files of custom nodes are linked instead of copied to local disk",
}

_IN_ALL_VERSIONS = {"--listen", "--port", "--output-directory", "--extra-model-paths-config"}
# Python 3.14 colours its help when FORCE_COLOR is set.
_COLOUR = re.compile(r"\x1b\[[\d;]*m")

# On by default in 0.38: each worker would scan all models on the volume at its start and at each
# request for nodes, and keep them in a database.
_NO_ASSETS = "--disable-assets"


@dataclass(frozen=True)
class Folders:
    """Where ComfyUI writes, and the file that lists further model folders, if any."""

    input: Path
    output: Path
    user: Path
    temp_parent: Path
    front_end: Path
    database: str
    model_paths: Path | None = None


def flags_of(comfyui: Path, wanted: Iterable[str]) -> frozenset[str]:
    """The flags that its `comfy/cli_args.py` defines, in the form that all versions from 0.0.1 to
    0.38 have: by calls with a literal name, outside of conditions, loops and functions. Empty if
    it cannot be read, has another form, or lacks one of `wanted`, the user's arguments: then only
    `--help` knows."""
    text = source_of(comfyui, CLI_ARGS)
    try:
        named = [_flags_added(statement) for statement in ast.parse(text).body]
    except (SyntaxError, ValueError):  # of a newer Python; not text
        return frozenset()
    found = frozenset(flag for flags in named for flag in flags)
    needed = {*_IN_ALL_VERSIONS, *flag_names(wanted)}
    whole = sum(map(bool, named)) == text.count("add_argument(") and found >= needed
    return found if whole else frozenset()


def _flags_added(statement: ast.stmt) -> list[str]:
    match statement:
        case ast.Expr(ast.Call(ast.Attribute(attr="add_argument"), names)):
            literals = [str(name.value) for name in names if isinstance(name, ast.Constant)]
            return [name for name in literals if name.startswith("--")]
    return []


def flags_in(help_text: str) -> frozenset[str]:
    """The long flags that a `--help` text lists."""
    plain = _COLOUR.sub("", help_text)
    return frozenset(re.findall(r"(?<![\w-])--[a-zA-Z][\w-]*", plain))


def arguments(
    known: frozenset[str], folders: Folders, port: int, extra: Iterable[str]
) -> tuple[list[str], list[Finding]]:
    """The arguments after `main.py`: our flags, as far as known, then the user's."""
    ours: list[list[str]] = [
        ["--listen", "127.0.0.1"],
        ["--port", str(port)],
        ["--disable-auto-launch"],
        ["--input-directory", str(folders.input)],
        ["--output-directory", str(folders.output)],
        ["--temp-directory", str(folders.temp_parent)],
        ["--user-directory", str(folders.user)],
        ["--database-url", folders.database],
        ["--front-end-root", str(folders.front_end)],
    ]
    if folders.model_paths is not None:
        ours.append(["--extra-model-paths-config", str(folders.model_paths)])
    kept = [part for group in ours if group[0] in known for part in group]
    users, findings = _known_groups(extra, known)
    if _NO_ASSETS in known and "--enable-assets" not in users:
        kept.append(_NO_ASSETS)
    return kept + users, findings


def _known_groups(extra: Iterable[str], known: frozenset[str]) -> tuple[list[str], list[Finding]]:
    """The user's flags with their values, without those this version does not know."""
    groups = group_flags(tuple(extra))
    kept: list[str] = []
    findings: list[Finding] = []
    for group in groups:
        flag = group[0].split("=", 1)[0]
        if flag in known:
            kept.extend(group)
        else:
            findings.append(_unknown_flag(flag))
    return kept, findings


def _unknown_flag(flag: str) -> Finding:
    return warning(
        "comfyui.flag_unknown",
        f"This ComfyUI does not know the flag {flag}; it was skipped.",
        f"Remove {flag} from COMFYUI_ARGS (or comfyui_args.txt on the volume), or update the "
        "ComfyUI on the volume.",
        flag=flag,
    )


CONF_NAMES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
RECOMMENDED = "max_split_size_mb:256"
_FLAG = "--disable-cuda-malloc"
_CHOSEN = frozenset(("--cuda-malloc", _FLAG))
_WITHOUT_DYNAMIC = frozenset(
    ("--disable-dynamic-vram", "--highvram", "--gpu-only", "--novram", "--cpu")
)
_LEAST_TORCH = (2, 8)
_DEVICE = "--cuda-device"
_DECIDE_DEVICE = frozenset({"--cpu", _DEVICE})
_MOST_INSTANCES = 16


@dataclass(frozen=True)
class Allocator:
    """`args` and `env` are added to ComfyUI's start. `dynamic`: ComfyUI manages GPU memory itself.
    `by_user`: a variable or flag has decided, so nothing is added."""

    dynamic: bool
    by_user: bool = False
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)


def choose_allocator(
    known: frozenset[str], args: Sequence[str], torch: str | None, env: Mapping[str, str]
) -> Allocator:
    """The allocator for a ComfyUI that knows the flags `known`, is started with `args` and has that
    version of torch."""
    flags = flag_names(args)
    dynamic = uses_dynamic_vram(known, flags, torch)
    if flags & _CHOSEN or any(env.get(name, "").strip() for name in CONF_NAMES):
        return Allocator(dynamic, by_user=True)
    if dynamic or "--cpu" in flags or _FLAG not in known:
        return Allocator(dynamic)
    return Allocator(dynamic, args=(_FLAG,), env={CONF_NAMES[0]: RECOMMENDED})


def uses_dynamic_vram(known: frozenset[str], flags: Set[str], torch: str | None) -> bool:
    """On an NVIDIA GPU. An unknown torch counts as new, as beside a new ComfyUI."""
    if "--enable-dynamic-vram" in flags & known:
        return True
    if "--disable-dynamic-vram" not in known or flags & _WITHOUT_DYNAMIC:
        return False
    numbers = tuple(int(n) for n in re.findall(r"\d+", torch or "")[:2])
    return len(numbers) < 2 or numbers >= _LEAST_TORCH


def count_instances(settings: Settings, env: Mapping[str, str], args: Sequence[str]) -> int:
    """How many ComfyUIs to start: COMFYUI_INSTANCES, else one for each GPU."""
    if settings.comfyui_instances is not None:
        return settings.comfyui_instances
    if flag_names(args) & _DECIDE_DEVICE:
        return 1
    count = env.get("RUNPOD_GPU_COUNT", "").strip()
    return max(1, min(int(count), _MOST_INSTANCES)) if count.isdecimal() else 1


def device_flag(
    number: int, count: int, flags: frozenset[str], args: Sequence[str]
) -> tuple[str, ...]:
    """The flag that gives each of several ComfyUIs its own GPU."""
    if count == 1 or _DEVICE not in flags or flag_names(args) & _DECIDE_DEVICE:
        return ()
    return (_DEVICE, str(number))


USER = "user"


def stage_code(
    settings: Settings, layout: Layout, work: WorkDir
) -> tuple[list[Staged], list[Finding]]:
    """Copy ComfyUI's code to local disk, and then custom nodes that are elsewhere; nothing if it
    runs in place, with the reason if that was not requested."""
    assert layout.comfyui is not None
    if not (settings.stage_comfyui and (layout.comfyui_on_volume or layout.nodes is not None)):
        return [], []
    source = Path(os.path.realpath(layout.comfyui))
    plan = CopyPlan(
        source,
        work.stage,
        int(settings.stage_pack_mb * 1e6),
        settings.stage_timeout,
        models=layout.models,
        is_volume=source == Path(os.path.realpath(layout.root)),
        nodes=None if layout.nodes is None else Path(os.path.realpath(layout.nodes)),
    )
    try:
        staged = stage(plan)
        link_output(staged[0].place, work.output)
    except (CannotStage, OSError) as problem:
        return [], [_not_staged(problem, settings)]
    return staged, [_heavy(copy, settings) for copy in staged if copy.linked]


def stage_again(staged: Sequence[Staged], work: WorkDir, other: WorkDir) -> list[Staged]:
    """Copy the code again for another ComfyUI of this worker: many nodes write into it, and must
    not mix up their files. Raises OSError."""
    copies = copy_again(staged, work.stage, other.stage)
    link_output(copies[0].place, other.output)
    return copies


def check_queued(copies: Sequence[Staged]) -> list[Finding]:
    """Report ComfyUI-Manager's queue, which a worker does not run."""
    queued = [path for copy in copies for path in copy.queued]
    if not queued:
        return []
    return [
        info(
            "nodes.installs_queued",
            f"ComfyUI-Manager has queued what to do at the next start ({summarize_list(queued)}). "
            "A worker "
            "does not do it: many start at once, and each would change the shared volume.",
            "Start ComfyUI once on a Pod with this volume, which does it.",
            paths=queued,
        )
    ]


def copy_user(
    settings: Settings, layout: Layout, work: WorkDir
) -> tuple[Staged | None, list[Finding]]:
    """Copy workflows and nodes' settings into this worker's own user folder."""
    user = Path(os.path.realpath(layout.home)) / USER
    if not (layout.comfyui_on_volume or os.path.isdir(user)):
        return None, []
    try:
        return copy_user_folder(user, work.user, settings.stage_timeout), []
    except CannotStage as problem:
        finding = warning(
            "comfyui.user_not_copied",
            f"{user} was not copied: {problem}.",
            "Nodes run with default settings; make that folder readable, or smaller.",
        )
        return None, [finding]


def folders_of(work: WorkDir, comfyui: Path, nodes: Path | None = None) -> Folders:
    """ComfyUI's folders, with further model folders and the custom nodes at `nodes`."""
    return Folders(
        input=work.input,
        output=work.output,
        user=work.user,
        temp_parent=work.temp_parent,
        front_end=work.front_end,
        database=work.database,
        model_paths=describe_local_models(comfyui, work.models, work.model_paths, nodes),
    )


def _not_staged(problem: CannotStage | OSError, settings: Settings) -> Finding:
    why = getattr(problem, "strerror", None) or problem
    return warning(
        "comfyui.not_staged",
        f"ComfyUI was not copied to local disk: {why}. It runs from the volume, which makes "
        "its start slow.",
        "Give the endpoint a larger container disk (Edit Endpoint → Container Disk), move what is "
        f"large out of ComfyUI's folder, or raise STAGE_TIMEOUT ({settings.stage_timeout:g} s); "
        "STAGE_COMFYUI=false runs it from the volume without a try.",
    )


def _heavy(staged: Staged, settings: Settings) -> Finding:
    return info(
        "comfyui.heavy_nodes",
        f"{pluralize(len(staged.linked), 'large file')} in ComfyUI's folder "
        f"({summarize_list(staged.linked, 3)}) stay on the volume; {size_text(staged.bytes)} of "
        "code were copied.",
        f"Nothing to do; STAGE_PACK_MB ({settings.stage_pack_mb:g}) is the most that is copied of "
        "one custom node.",
        files=list(staged.linked[:50]),
    )
