"""What on the volume names a place that is not here: venvs, extra_model_paths.yaml; leftovers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from posixpath import basename, dirname, join, relpath

from bootstrap.core.findings import Finding, info, warning
from bootstrap.core.temp_names import Leftover
from bootstrap.core.text import GB, SERVERLESS, about, chained, named, on_pod, quoted, shown, words
from bootstrap.environment import Venv
from bootstrap.facts.model_paths import BASE, FILE, ModelPath
from bootstrap.facts.volume_facts import VolumeFacts

CODES = {
    "volume.venv_broken": "A virtual environment's Python is not on this machine.",
    "volume.venv_moved": "A virtual environment was made under another path.",
    "volume.paths_other_mount": "extra_model_paths.yaml names the other mount point.",
    "volume.paths_absolute": "extra_model_paths.yaml names a mount point that Serverless lacks.",
    "volume.paths_missing": "extra_model_paths.yaml names folders that do not exist.",
    "volume.leftovers": "Files of ours are left from workers that were killed.",
    "volume.put_aside": "Something was put aside when a link was removed, and never put back.",
}


def check_paths(facts: VolumeFacts) -> list[Finding]:
    """Findings about venvs and about ComfyUI's own file of model paths."""
    found = [f for venv in facts.venvs for f in _venv(venv, facts)]
    return found + _other_mount(facts) + _absolute(facts) + _missing(facts)


def check_leftovers(facts: VolumeFacts) -> list[Finding]:
    """What of ours may go, and what somebody should look at."""
    stale = [leftover for leftover in facts.leftovers if leftover.stale]
    kept = [x for x in stale if x.kind == "unlinking" and not x.removable]
    return _sweepable([x for x in stale if x.removable], facts) + _put_aside(kept, facts)


def _venv(venv: Venv, facts: VolumeFacts) -> list[Finding]:
    if not venv.python_exists:
        return [_venv_broken(venv, facts)]
    if venv.made_at is None or venv.made_at == venv.path:
        return []
    program = quoted(join(venv.path, "bin", "python"))
    return [
        info(
            "volume.venv_moved",
            f"The virtual environment {shown(venv.path)} was made at {shown(venv.made_at)}: its "
            "Python works here, its pip and other scripts only there.",
            f"Where you need pip: `{program} -m pip`.",
            **about([venv.path]),
        )
    ]


def _venv_broken(venv: Venv, facts: VolumeFacts) -> Finding:
    leads = f" ({shown(venv.python_text)})" if venv.python_text else ""
    message = (
        f"The Python of the virtual environment {shown(venv.path)} is not on this machine{leads}, "
        "so ComfyUI cannot run with the packages in it."
    )
    program = f"python{venv.version}" if venv.version else "python3"
    path = quoted(venv.path)
    links = " ".join(quoted(join(venv.path, "bin", n)) for n in ("python", "python3", program))
    command = f"rm -f {links} && {program} -m venv --upgrade --without-pip {path}"
    return warning(
        "volume.venv_broken",
        message,
        on_pod(
            command,
            facts.root,
            f"It must be the same Python version ({venv.version or 'see lib/ in it'}) as in the "
            "image; else make the environment anew with the image's Python, or set COMFYUI_PYTHON.",
        ),
        **about([venv.path], command),
    )


def _other_mount(facts: VolumeFacts) -> list[Finding]:
    wrong = [p for p in facts.model_paths if p.home and not p.exists and p.there]
    if not wrong:
        return []
    file, command = _file(facts), _respelt(wrong, facts)
    return [
        warning(
            "volume.paths_other_mount",
            f"{shown(file)} names {named([p.text for p in wrong])}, but the volume is mounted "
            f"at {shown(facts.root)}: models in there are not seen.",
            on_pod(command, facts.root, "Relative paths work under every mount point."),
            **about([p.path for p in wrong], command),
        )
    ]


def _absolute(facts: VolumeFacts) -> list[Finding]:
    """What names Serverless's own mount point is fit for jobs."""
    wrong = [p for p in facts.model_paths if p.home and p.exists and p.there]
    if not wrong or not facts.comfyui_on_volume:
        return []
    report = info if facts.root == SERVERLESS else warning
    file, command = _file(facts), _respelt(wrong, facts)
    return [
        report(
            "volume.paths_absolute",
            f"{shown(file)} names {named([p.text for p in wrong])}, which is not there where "
            "the volume has another mount point.",
            on_pod(command, facts.root, "Relative paths work under every mount point."),
            **about([p.path for p in wrong], command),
        )
    ]


def _respelt(paths: Sequence[ModelPath], facts: VolumeFacts) -> str:
    """A sed command that makes the lines relative to the file, as ComfyUI reads them."""
    root = facts.root
    if facts.comfyui_on_volume:
        root = relpath(facts.real, facts.comfyui_real)
    scripts = [f"{p.number}s#{_pattern(str(p.home))}#{_replacement(root)}#" for p in paths]
    return f"sed -i.bak {' '.join(f'-e {quoted(s)}' for s in scripts)} {quoted(_file(facts))}"


def _missing(facts: VolumeFacts) -> list[Finding]:
    """A base that is not there leaves all of its section unread; a category that nobody has
    filled yet is nothing to worry about."""
    moved = {p.section for p in facts.model_paths if p.key == BASE and p.there and not p.exists}
    gone = [
        p
        for p in facts.model_paths
        if not p.exists and not p.there and not (p.below_base and p.section in moved)
    ]
    if not gone:
        return []
    file = _file(facts)
    grave = any(p.key == BASE or not p.below_base for p in gone)
    command = f"sed -i.bak {quoted(';'.join(f'{p.number}d' for p in gone))} {quoted(file)}"
    report = warning if grave else info
    return [
        report(
            "volume.paths_missing",
            f"{shown(file)} names folders that do not exist: {named([p.path for p in gone])}.",
            on_pod(command, facts.root, "It takes their lines out; the old file stays as .bak."),
            **about([p.path for p in gone], command),
        )
    ]


def _file(facts: VolumeFacts) -> str:
    return join(str(facts.comfyui), FILE)


def _pattern(text: str) -> str:
    return re.sub(r"([][.*^$\\#])", r"\\\1", text)


def _replacement(text: str) -> str:
    return re.sub(r"([&\\#])", r"\\\1", text)


def _sweepable(stale: list[Leftover], facts: VolumeFacts) -> list[Finding]:
    if not stale:
        return []
    size = sum(x.size for x in stale)
    paths = [x.path for x in stale]
    command = f"rm -f {words(paths)}"
    report = warning if size > GB else info
    return [
        report(
            "volume.leftovers",
            f"Workers that were killed left {len(paths)} files ({size / GB:.2f} GB): "
            f"{named(paths)}.",
            on_pod(command, facts.root, "Or check again with --fix."),
            **about(paths, command),
        )
    ]


def _put_aside(kept: list[Leftover], facts: VolumeFacts) -> list[Finding]:
    if not kept:
        return []
    paths = [x.path for x in kept]
    names = {path: f"put-aside-{basename(path)[1:9]}" for path in paths}
    command = chained([f"mv -nT {quoted(p)} {quoted(join(dirname(p), names[p]))}" for p in paths])
    return [
        warning(
            "volume.put_aside",
            f"{named(paths)} stood where a worker was about to remove a link of its own, and "
            "was put aside under a hidden name.",
            on_pod(command, facts.root, "Then look what it is, and give it its name again."),
            **about(paths, command),
        )
    ]
