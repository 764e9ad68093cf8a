"""Where the volume, ComfyUI and the models are, and which mount a path lies on. Looks only.

What it means is for the checks. Mounts are read from /proc/self/mountinfo, proc(5): nothing on the
mount itself is asked. Kinds of network file system: what Runpod uses (MooseFS over FUSE, NFS) and
what others do.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bootstrap.config import Settings

# At the root of a volume: what workers keep there for themselves.
OWN_FOLDER = ".comfyui-worker"
_NETWORK = frozenset(
    "nfs nfs4 cifs smb3 smbfs ceph lustre gpfs beegfs glusterfs 9p virtiofs wekafs".split()
)
# FUSE file systems that are local; every other `fuse.*` is taken for a network's.
_LOCAL_FUSE = frozenset("fuse.fuse-overlayfs fuse.lxcfs fuse.gvfsd-fuse fuse.portal".split())
_ESCAPED = re.compile(r"\\([0-7]{3})")
# Serverless mounts the volume at the first, a Pod at the second: the same bytes.
USUAL_ROOTS = (Path("/runpod-volume"), Path("/workspace"))
COMFYUI = "ComfyUI"
MODELS = "models"


@dataclass(frozen=True)
class Mount:
    """A mount: where, of which file system type and source, read-only or not.

    `system` is a name for people ("MooseFS", "NFS", else the type); `network` that it is one.
    """

    point: str
    kind: str
    source: str
    system: str
    network: bool
    read_only: bool


def mount_of(path: str, mountinfo: Path) -> Mount | None:
    """The mount that `path` (absolute, free of links) lies on; None when that cannot be read."""
    try:
        lines = mountinfo.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return None
    best: Mount | None = None
    for line in lines:
        mount = _parse(line)
        # Of two mounts on one point the later hides the earlier.
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
    """Spaces and the like stand as three octal digits."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), text)


def _name(kind: str, source: str) -> str:
    if source.startswith("mfs#") or kind in ("fuse.mfs", "fuse.mfsmount"):
        return "MooseFS"
    if kind in ("nfs", "nfs4"):
        return "NFS"
    return kind


@dataclass(frozen=True)
class Layout:
    """What was found. `comfyui` has a `main.py`; `model_roots` exist and hold category folders
    that ComfyUI does not read by itself."""

    root: Path
    root_exists: bool
    comfyui: Path | None
    model_roots: tuple[Path, ...] = ()

    @property
    def comfyui_on_volume(self) -> bool:
        """Is the ComfyUI that will run the one on the volume, not one in the image?"""
        return self.comfyui is not None and self.comfyui.is_relative_to(self.root)

    @property
    def output(self) -> Path:
        """Where results are kept on the volume."""
        return self.root / COMFYUI / "output"

    @property
    def input(self) -> Path:
        """Where people keep input files on the volume."""
        return self.root / COMFYUI / "input"


def locate(settings: Settings, usual_roots: tuple[Path, ...] = USUAL_ROOTS) -> Layout:
    """Find the volume, then ComfyUI on it or in the image, then the models."""
    root = settings.volume_path or _first_furnished(usual_roots)
    comfyui = _first_comfyui(root / COMFYUI, settings.comfyui_dir)
    return Layout(
        root=root,
        root_exists=_is_folder(root),
        comfyui=comfyui,
        model_roots=_model_roots(root, comfyui),
    )


def folders_known_to(comfyui: Path) -> frozenset[str]:
    """Names of model folders that this ComfyUI reads, as its `folder_paths.py` spells them.

    Versions differ: one of 2023 knows `clip` and not `text_encoders`. Read as text, since
    importing it would need ComfyUI's own packages. Empty when the file cannot be read.
    """
    try:
        source = (comfyui / "folder_paths.py").read_text("utf-8", "replace")
    except OSError:
        return frozenset()
    return frozenset(re.findall(r"""models_dir,\s*["']([\w.-]+)["']""", source))


def _first_furnished(roots: tuple[Path, ...]) -> Path:
    """The first root with ComfyUI or models, else the first that exists, else the first."""
    for root in roots:
        if _is_folder(root / COMFYUI) or _is_folder(root / MODELS):
            return root
    return next((root for root in roots if _is_folder(root)), roots[0])


def _first_comfyui(*places: Path | None) -> Path | None:
    return next((p for p in places if p is not None and os.path.isfile(p / "main.py")), None)


def _model_roots(root: Path, comfyui: Path | None) -> tuple[Path, ...]:
    """Model folders beside the running ComfyUI's own: at the volume's root, and, when the
    running ComfyUI is the image's, in a `ComfyUI/` on the volume that cannot run."""
    own = None if comfyui is None else _real(comfyui / MODELS)
    found: dict[Path, Path] = {}
    for path in (root / MODELS, root / COMFYUI / MODELS):
        if _is_folder(path) and _real(path) != own:
            found.setdefault(_real(path), path)
    return tuple(found.values())


def _is_folder(path: Path) -> bool:
    """Unlike `Path.is_dir`, no exception when a mount has gone bad (ESTALE, ENOTCONN, EACCES)."""
    return os.path.isdir(path)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))
