"""Where the volume, ComfyUI and the models are, and which mount a path lies on. It only looks; the
checks interpret. Mounts are read from /proc/self/mountinfo (proc(5)) without touching the mount
itself. Known network file systems: Runpod's (MooseFS over FUSE, NFS) and other common ones.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from bootstrap.config import Settings
from bootstrap.core.files import is_system_folder, list_folder, read_regular
from bootstrap.core.findings import Finding, error
from bootstrap.core.terminal import nearest
from bootstrap.core.text import IN_ENDPOINT, printable, shell_quote
from bootstrap.volume.categories import known_folders
from bootstrap.volume.find_comfyui import (
    CUSTOM_NODES,
    MODELS,
    USUAL_ROOTS,
    SearchResult,
    has_main,
    like_comfyui,
    on_this_mount,
    search,
)

# At the volume's root: the workers' own data.
OWN_FOLDER = ".comfyui-worker"
_NETWORK = frozenset(
    "nfs nfs4 cifs smb3 smbfs ceph lustre gpfs beegfs glusterfs 9p virtiofs wekafs".split()
)
# Local FUSE file systems; every other `fuse.*` counts as network.
_LOCAL_FUSE = frozenset("fuse.fuse-overlayfs fuse.lxcfs fuse.gvfsd-fuse fuse.portal".split())
_ESCAPED = re.compile(r"\\([0-7]{3})")
COMFYUI, CLI_ARGS = "ComfyUI", "comfy/cli_args.py"
_MOST_SOURCE = 1 << 20
CODES = {"volume.not_found": "There is no volume where it was expected"}
_ATTACH = (
    "Serverless > the endpoint > Manage > Edit Endpoint > Advanced > Network Volumes, then Save; "
    "it must be in one of the endpoint's datacenters, and only workers started later have it. A "
    "Pod gets a network volume only when it is deployed."
)


@dataclass(frozen=True)
class Mount:
    """A mount: place, file system type and source, read-only or not. `system` is a name for people
    ("MooseFS", "NFS", else the type); `network` is True for a network file system.
    """

    point: str
    kind: str
    source: str
    system: str
    network: bool
    read_only: bool


def mount_of(path: str, mountinfo: Path) -> Mount | None:
    """The mount of `path` (absolute, without links); None if that cannot be read."""
    try:
        lines = mountinfo.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return None
    best: Mount | None = None
    for line in lines:
        mount = _parse(line)
        # The later of two mounts on one point hides the earlier.
        if (
            mount
            and _holds(mount.point, path)
            and len(mount.point) >= len(best.point if best else "")
        ):
            best = mount
    return best


def _holds(point: str, path: str) -> bool:
    return PurePosixPath(path).is_relative_to(point)


def _parse(line: str) -> Mount | None:
    before, dash, after = line.partition(" - ")
    fields, rest = before.split(" "), after.split(" ")
    if not dash or len(fields) < 6 or len(rest) < 3:
        return None
    kind, source = rest[0], _plain(rest[1])
    options = {*fields[5].split(","), *rest[2].split(",")}
    fuse = kind == "fuse" or kind.startswith("fuse.")
    return Mount(
        point=_plain(fields[4]),
        kind=kind,
        source=source,
        system=_name(kind, source),
        network=kind in _NETWORK or (fuse and kind not in _LOCAL_FUSE),
        read_only="ro" in options,
    )


def _plain(text: str) -> str:
    """Spaces and the like are escaped as three octal digits."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), text)


def _name(kind: str, source: str) -> str:
    if source.startswith("mfs#") or kind in ("fuse.mfs", "fuse.mfsmount"):
        return "MooseFS"
    if kind in ("nfs", "nfs4"):
        return "NFS"
    return kind


@dataclass(frozen=True)
class Layout:
    """What was found. `comfyui` has a `main.py`; `model_roots` exist and hold category folders that
    ComfyUI does not read by itself. `data` is ComfyUI's folder on the volume if that is not
    `ComfyUI/` at the root. `rivals` are several equally good ComfyUIs, none of which is used.
    `asked` is COMFYUI_PATH if there is no ComfyUI. `nodes` are custom nodes on the volume for a
    ComfyUI in the image. `view` is a models folder on local disk in place of the volume's, if links
    cannot be made on the volume. `meant` is the volume that was probably meant, if `root` is not
    one.
    """

    root: Path
    root_exists: bool
    comfyui: Path | None
    model_roots: tuple[Path, ...] = ()
    data: Path | None = None
    rivals: tuple[Path, ...] = ()
    asked: Path | None = None
    nodes: Path | None = None
    view: Path | None = None
    meant: Path | None = None

    @property
    def complete(self) -> bool:
        """Is there a volume and a ComfyUI, both in the usual place, so that nothing is to say?"""
        unusual = (self.data, self.asked, self.meant, *self.rivals)
        return self.root_exists and self.comfyui is not None and not any(unusual)

    @property
    def comfyui_on_volume(self) -> bool:
        """Is the ComfyUI that will run on the volume, not in the image?"""
        return self.comfyui is not None and self.comfyui.is_relative_to(self.root)

    @property
    def home(self) -> Path:
        """ComfyUI's folder on the volume, whether it can run or only has data."""
        return self.data or self.root / COMFYUI

    @property
    def models(self) -> Path:
        """The models folder that ComfyUI reads."""
        return self.view or (self.comfyui or self.home) / MODELS

    @property
    def output(self) -> Path:
        """Where results are kept on the volume."""
        return self.home / "output"

    @property
    def custom_nodes(self) -> Path:
        """Where the volume's custom nodes are, or would be."""
        if self.nodes is not None:
            return self.nodes
        own = self.comfyui if self.comfyui is not None and self.comfyui_on_volume else self.home
        return own / CUSTOM_NODES

    @property
    def input(self) -> Path:
        """Where people keep input files on the volume."""
        return self.home / "input"


def no_volume(layout: Layout) -> Finding:
    """The finding that nothing is at the root."""
    root, meant = printable(str(layout.root)), None if layout.meant is None else str(layout.meant)
    guess = f" Did you mean {printable(meant)}?" if meant else ""
    message = f"There is no volume at {root}.{guess}"
    return error("volume.not_found", message, attach_volume(meant), root=root)


def attach_volume(meant: str | None) -> str:
    """How to bring the volume to where it is looked for; `meant` is where it may be instead."""
    if meant is None:
        return (
            f"Attach it: {_ATTACH} If it is mounted elsewhere, name that folder: VOLUME_PATH, or "
            "the checker's argument."
        )
    return f"Set VOLUME_PATH={shell_quote(meant)} {IN_ENDPOINT}. If none is attached yet: {_ATTACH}"


def volume_root(settings: Settings, usual_roots: tuple[Path, ...] = USUAL_ROOTS) -> Path:
    """Where the volume is mounted, or would be."""
    return settings.volume_path or _first_furnished(usual_roots)


def locate(settings: Settings, usual_roots: tuple[Path, ...] = USUAL_ROOTS) -> Layout:
    """Find the volume, then ComfyUI on it or in the image, then the models.

    A ComfyUI at the volume's root is used at once; otherwise the volume is searched, and a single
    one is used.
    """
    root = volume_root(settings, usual_roots)
    place = _place_of_comfyui(root, settings.comfyui_path)
    if has_main(place):
        return _complete(Layout(root, _is_folder(root), place, data=place))
    if settings.comfyui_path is not None:
        return _complete(Layout(root, _is_folder(root), None, asked=place))
    found = search(root)
    if len(found.comfyuis) > 1:
        return _complete(Layout(root, _is_folder(root), None, rivals=found.comfyuis))
    if found.comfyuis:
        (only,) = found.comfyuis
        return _complete(Layout(root, _is_folder(root), only, data=only))
    return _complete(_with_image(root, place, settings.comfyui_dir, found))


def _place_of_comfyui(root: Path, asked: str | None) -> Path:
    """The first place to look: COMFYUI_PATH, else `ComfyUI/` at the root or the root itself."""
    if asked is not None:
        return on_this_mount(root / asked, root)
    usual = on_this_mount(root / COMFYUI, root)
    if has_main(usual):
        return usual
    return root if has_main(root) and _is_folder(root / "comfy") else usual


def _with_image(root: Path, usual: Path, image: Path | None, found: SearchResult) -> Layout:
    """The image's ComfyUI, if there is one, with the volume's models and custom nodes."""
    data = next(iter(found.data), usual)
    own = data / CUSTOM_NODES
    nodes = own if _is_folder(own) else next(iter(found.custom_nodes), None)
    comfyui = _first_comfyui(image)
    return Layout(root, _is_folder(root), comfyui, data=data, nodes=nodes if comfyui else None)


def _complete(layout: Layout) -> Layout:
    """Adds the model roots; `data` only if it is not the usual place."""
    usual = layout.root / COMFYUI
    data = None if layout.data in (None, usual) else layout.data
    meant = None
    if not layout.root_exists:
        meant = _meant_by(layout.root)
    elif not layout.comfyui_on_volume and not layout.rivals:
        meant = volume_around(layout.root)
    layout = replace(layout, data=data, meant=meant)
    return replace(layout, model_roots=_model_roots(layout))


def _meant_by(missing: Path) -> Path | None:
    """A volume that is there goes before a name that is only alike."""
    guess = similar_folder(missing)
    if guess is not None and _is_folder(guess):
        return guess
    return next((usual for usual in USUAL_ROOTS if list_folder(str(usual)).names), guess)


def similar_folder(path: Path) -> Path | None:
    """The folder probably meant by `path`, which does not exist: one beside it, or a usual mount
    point. A usual mount point is not misspelt."""
    if path in USUAL_ROOTS:
        return None
    folder = list_folder(str(path.parent))
    names = set(folder.folders | folder.links)
    names |= {usual.name for usual in USUAL_ROOTS if usual.parent == path.parent}
    guess = nearest(path.name, sorted(names - {path.name}))
    return path.parent / guess if guess and not is_system_folder(path.parent / guess) else None


def volume_around(folder: Path) -> Path | None:
    """The volume that contains `folder`, if it is a ComfyUI, or its models or custom nodes; None if
    it may be a volume itself."""
    place = folder
    if place.parent.name == MODELS and place.name in known_folders():
        place = place.parent
    if place.name in (MODELS, CUSTOM_NODES):
        place = place.parent
    if like_comfyui(place.name) and (place != folder or _in_a_volume(place)):
        place = place.parent
    usual = next((u for u in USUAL_ROOTS if u != folder and folder.is_relative_to(u)), None)
    if place == folder or is_system_folder(place) or str(place) == os.path.expanduser("~"):
        return None
    own = not has_main(folder) and any(_is_folder(folder / name) for name in (COMFYUI, MODELS))
    return None if own or os.path.ismount(folder) else usual or place


def _in_a_volume(comfyui: Path) -> bool:
    """Does this ComfyUI lie on a volume, and not in some folder of a machine's disk?"""
    root = comfyui.parent
    known = (MODELS, CUSTOM_NODES, OWN_FOLDER, "models.json", "nodes.json", "workflows")
    return has_main(comfyui) and (
        os.path.ismount(root)
        or any(comfyui.is_relative_to(usual) for usual in USUAL_ROOTS)
        or any(os.path.lexists(root / name) for name in known)
    )


def folders_known_to(comfyui: Path) -> frozenset[str]:
    """Names of model folders in this ComfyUI's `folder_paths.py`; in 2023 it had `clip` and not
    `text_encoders`. Read as text, since importing it would need ComfyUI's packages. Empty if the
    file cannot be read.
    """
    source = source_of(comfyui, "folder_paths.py")
    return frozenset(re.findall(r"""models_dir,\s*["']([\w.-]+)["']""", source))


def source_of(comfyui: Path, name: str) -> str:
    """The text of a file of its code; empty if it cannot be read."""
    try:
        return read_regular(comfyui / name, _MOST_SOURCE).decode("utf-8", "replace")
    except OSError:
        return ""


def _first_furnished(roots: tuple[Path, ...]) -> Path:
    """The first with ComfyUI or models, else not empty, else existing, else the first."""
    for root in roots:
        if _is_folder(root / COMFYUI) or _is_folder(root / MODELS):
            return root
    for root in roots:
        if list_folder(str(root)).names:
            return root
    return next((root for root in roots if _is_folder(root)), roots[0])


def _first_comfyui(*places: Path | None) -> Path | None:
    return next((p for p in places if p is not None and has_main(p)), None)


def _model_roots(layout: Layout) -> tuple[Path, ...]:
    """Model folders besides the running ComfyUI's own: at the volume's root, beside ComfyUI, and in
    a ComfyUI folder on the volume that does not run."""
    own = None if layout.comfyui is None else _real(layout.comfyui / MODELS)
    homes = [layout.root, layout.home.parent, layout.home, layout.root / COMFYUI]
    if layout.root == layout.home:
        homes = homes[:1]
    found: dict[Path, Path] = {}
    for path in (home / MODELS for home in homes):
        if _is_folder(path) and _real(path) != own:
            found.setdefault(_real(path), path)
    return tuple(found.values())


def _is_folder(path: Path) -> bool:
    """Unlike `Path.is_dir`, does not raise if a mount is broken (ESTALE, ENOTCONN, EACCES)."""
    return os.path.isdir(path)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))
