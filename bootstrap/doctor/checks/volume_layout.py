"""Are ComfyUI and models where they are looked for? If not, how to move them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from posixpath import basename, dirname, join, normpath, relpath

from bootstrap.core.files import contains
from bootstrap.core.findings import Finding, error, info, warning
from bootstrap.core.text import (
    IN_ENDPOINT,
    MOST_AT_ONCE,
    MOST_PATHS,
    about,
    chained,
    on_pod,
    pluralize,
    printable,
    shell_quote,
    summarize_list,
)
from bootstrap.doctor.checks import model_contents
from bootstrap.doctor.facts.inventory import Inventory, ModelFile
from bootstrap.doctor.facts.volume_facts import VolumeFacts
from bootstrap.doctor.facts.volume_places import BASE, Stray
from bootstrap.volume import COMFYUI, CUSTOM_NODES, MODELS

MOST_RIVALS = 20
SOURCE = "https://github.com/comfyanonymous/ComfyUI"
_IMAGE = "eploy the image with a ComfyUI in it (tag latest-comfyui): it uses the volume's models."
WITH_COMFYUI = f"Or d{_IMAGE}"

CODES = {
    "comfyui.not_found": "There is no ComfyUI on the volume or in the image",
    "volume.comfyui_incomplete": "There is a `ComfyUI` folder, but no `main.py` in it",
    "volume.comfyui_elsewhere": "ComfyUI is not at the volume's root; it is used where it is",
    "volume.comfyui_several": "There are several ComfyUIs, none of them at the volume's root",
    "volume.comfyui_path_wrong": "`COMFYUI_PATH` names a folder without a ComfyUI",
    "volume.comfyui_spare": "There is a second ComfyUI, which is not used",
    "volume.nodes_misplaced": "Custom nodes lie where ComfyUI does not look for them",
    "volume.models_missing": "There is no folder for models",
    "volume.models_misplaced": "A folder of models lies outside the models folder",
    "volume.models_unread": "Folders at the volume's root hold models that ComfyUI does not read",
    "volume.models_loose": "Models lie directly in the root of the volume or of ComfyUI",
    "volume.wrong_case": "A folder's name differs from the right one only in upper and lower case",
}


def check_comfyui(facts: VolumeFacts) -> list[Finding]:
    """Which ComfyUI is used, or why none is; nothing if it is in the first place, or the image's is
    meant to run."""
    if facts.asked is not None:
        return [path_wrong(facts.asked, facts.places, facts.root)]
    if facts.rivals:
        return [several(facts.rivals, facts.root)]
    if facts.comfyui_on_volume:
        away = facts.home != join(facts.root, COMFYUI)
        found = [elsewhere(facts.home, facts.root)] if away else []
        return [*found, *_spare(facts)]
    if facts.comfyui is not None or _is_closed(facts):
        return []
    return [_incomplete(facts)] if facts.expected is not None else [_absent(facts)]


def _is_closed(facts: VolumeFacts) -> bool:
    """May this user not look into ComfyUI's folder? `volume.unreadable` says so."""
    return any(access.path == facts.home and not access.readable for access in facts.access)


def check_nodes(facts: VolumeFacts) -> list[Finding]:
    """Custom nodes that no ComfyUI reads; for each folder the link that makes it visible."""
    if not facts.nodes or facts.comfyui is None:
        return []
    home = join(facts.home, CUSTOM_NODES)
    commands = [
        f"mkdir -p {shell_quote(home)}",
        *(_shown_nodes(path, home) for path in facts.nodes),
    ]
    command = chained(commands)
    return [
        warning(
            "volume.nodes_misplaced",
            f"ComfyUI does not read the custom nodes in {summarize_list(facts.nodes)}; it reads "
            f"those in {printable(home)}.",
            on_pod(command, facts.root, "Names that are taken there stay where they are."),
            **about(list(facts.nodes), command),
        )
    ]


def _shown_nodes(path: str, home: str) -> str:
    source, target = shell_quote(path), shell_quote(home)
    return f"find {source} -mindepth 1 -maxdepth 1 -exec mv -n -t {target} {{}} +"


def elsewhere(comfyui: str, root: str) -> Finding:
    """The only ComfyUI on the volume, or the one that was requested."""
    return info(
        "volume.comfyui_elsewhere",
        f"ComfyUI is at {printable(comfyui)}, and is used there.",
        f"Nothing to do. COMFYUI_PATH={shell_quote(relpath(comfyui, root))} keeps it so if another "
        "one is put on the volume.",
        path=comfyui,
    )


def several(rivals: Sequence[str], root: str) -> Finding:
    """None is used, because it is unknown which one is meant."""
    paths = [relpath(path, root) for path in rivals]
    return error(
        "volume.comfyui_several",
        f"There are {len(rivals)} ComfyUIs on the volume at {printable(root)}, none of them "
        f"directly in its root: {summarize_list(paths, MOST_RIVALS)}.",
        f"Set COMFYUI_PATH to the one to run, {IN_ENDPOINT}: COMFYUI_PATH={shell_quote(paths[0])}.",
        paths=list(rivals[:MOST_PATHS]),
    )


def path_wrong(asked: str, others: Sequence[str], root: str) -> Finding:
    """COMFYUI_PATH is set, so no other is used in its place."""
    paths = [relpath(path, root) for path in others]
    there = f" There are ComfyUIs at {summarize_list(paths, MOST_RIVALS)}." if paths else ""
    fix = f"Set COMFYUI_PATH={shell_quote(paths[0])}" if paths else "Correct COMFYUI_PATH"
    return error(
        "volume.comfyui_path_wrong",
        f"COMFYUI_PATH names {printable(asked)}, which has no main.py.{there}",
        f"{fix} {IN_ENDPOINT}, or remove it: then the only ComfyUI on the volume is used.",
        path=asked,
    )


def check_models(facts: VolumeFacts) -> list[Finding]:
    """Folders of models that are not read where they are."""
    models = facts.models
    # A ComfyUI that is installed later has its own models folder.
    absent = facts.comfyui is not None and not models.homes and not models.wrong_case
    found = [_missing(facts)] if absent else []
    found += _moves(
        models.strays,
        "volume.models_misplaced",
        "ComfyUI does not read models in {}; they belong in {}.",
        facts,
    )
    loose = [f for f in models.loose if dirname(f.path) not in models.homes]
    return [*found, *_broken(loose), *_loose([f for f in loose if not is_broken(f)], facts)]


def is_broken(model: Stray) -> bool:
    """Does a finding say to delete this single model, download it again or rename it?"""
    return model_contents.is_faulty(_as_file(model))


def _broken(models: Sequence[Stray]) -> list[Finding]:
    return model_contents.faults(map(_as_file, models))


def _as_file(model: Stray) -> ModelFile:
    """It is named by its full path, as it has no models folder."""
    path = relpath(model.path, "/")
    return ModelFile(Path("/"), path, model.size, 0, None, model.examined, model.inode)


def check_case(facts: VolumeFacts) -> list[Finding]:
    """Folders of models with a wrong case. Their files' findings name them as they are: what those
    say to delete goes first."""
    return list(
        _moves(
            facts.models.wrong_case, "volume.wrong_case", "Case matters: {} should be {}.", facts
        )
    )


def _loose(files: Sequence[Stray], facts: VolumeFacts) -> Iterator[Finding]:
    """Single models at the root of the volume or of ComfyUI; the model inventory covers those in a
    models folder."""
    if not files:
        return
    paths = [f.path for f in files]
    home = _home_of_models(facts)
    known = [f for f in files if f.belongs]
    first = (known or files)[0]
    place = first.belongs or join(home, "checkpoints")
    move = shell_quote("mv", "-n", first.path, join(place, ""))
    command = f"mkdir -p {shell_quote(place)} && {move}"
    known_to_be = (
        f"By its contents {printable(basename(first.path))} belongs in {printable(place)}."
    )
    unknown = "Its contents do not tell its kind: if it is not a checkpoint, name another folder."
    yield warning(
        "volume.models_loose",
        f"{summarize_list(paths)} {'lies' if len(paths) == 1 else 'lie'} where no loader looks.",
        on_pod(command, facts.root, known_to_be if known else unknown),
        **about(paths, command),
    )


def _home_of_models(facts: VolumeFacts) -> str:
    return facts.models.homes[0] if facts.models.homes else join(facts.root, MODELS)


def check_unread(facts: VolumeFacts, inventory: Inventory | None) -> Iterator[Finding]:
    """Models in other folders of the root that neither a link nor a file of model paths shows to
    ComfyUI; nothing if not all that it reads is known."""
    if inventory is None or not inventory.complete:
        return
    read, named = {f.inode for f in inventory.files}, _named_elsewhere(facts, inventory)
    found = [
        model
        for model in facts.models.unread
        if model.inode not in read and not any(contains(path, model.path) for path in named)
    ]
    yield from _broken(found)
    if whole := [model for model in found if not is_broken(model)]:
        yield _unread(whole, facts)


def _named_elsewhere(facts: VolumeFacts, inventory: Inventory) -> list[str]:
    """Where links lead, and the paths of ComfyUI's file; on a machine with the other mount point
    too."""
    links = [
        normpath(join(dirname(link.path), link.relative or link.text))
        for link in (*facts.links, *inventory.links)
    ]
    paths = [
        join(facts.root, relpath(p.path, p.home)) if p.home else p.path
        for p in facts.model_paths
        if p.key != BASE
    ]
    return [*links, *paths]


def _unread(found: Sequence[Stray], facts: VolumeFacts) -> Finding:
    folders = Counter(relpath(model.path, facts.root).split("/")[0] for model in found)
    listed = summarize_list([f"{name} ({count})" for name, count in folders.items()])
    command = chained([_gathered(place, paths) for place, paths in _by_place(found, facts).items()])
    unknown = next((model.path for model in found if not model.belongs), None)
    then = (
        f"The contents of {printable(basename(unknown))} do not tell its kind: if it is not a "
        "checkpoint, name another folder. "
        if unknown
        else ""
    )
    return warning(
        "volume.models_unread",
        f"{pluralize(len(folders), 'folder')} at the volume's root "
        f"{'holds' if len(folders) == 1 else 'hold'} models where no loader looks: {listed}.",
        on_pod(command, facts.root, f"{then}Or name the folder in extra_model_paths.yaml."),
        **about([model.path for model in found], command),
    )


def _by_place(found: Sequence[Stray], facts: VolumeFacts) -> Mapping[str, list[str]]:
    places: dict[str, list[str]] = {}
    for model in found[:MOST_AT_ONCE]:
        place = model.belongs or join(_home_of_models(facts), "checkpoints")
        places.setdefault(place, []).append(model.path)
    return places


def _gathered(place: str, paths: Sequence[str]) -> str:
    target = shell_quote(place)
    return f"mkdir -p {target} && mv -n -t {target} -- {shell_quote(*paths)}"


def _spare(facts: VolumeFacts) -> Iterator[Finding]:
    if not facts.places:
        return
    paths = list(facts.places)
    use = shell_quote(relpath(paths[0], facts.root))
    yield info(
        "volume.comfyui_spare",
        f"{printable(str(facts.comfyui))} is used; {summarize_list(paths)} is another ComfyUI, "
        "whose models and nodes are not seen.",
        f"Nothing to do if that is meant; COMFYUI_PATH={use} uses it instead.",
        **about(paths),
    )


def _incomplete(facts: VolumeFacts) -> Finding:
    """Git restores ComfyUI's own files and leaves models, nodes and results alone."""
    path = facts.home
    if facts.expected is not None and ".git" in facts.expected.folders:
        command = f"git -C {shell_quote(path)} checkout -- main.py"
        then = ""
    else:
        command = (
            f"cd {shell_quote(path)} && git init -q && git fetch -q --depth 1 {SOURCE} master && "
            "git checkout -q -f -B master FETCH_HEAD"
        )
        then = "It replaces ComfyUI's own files and leaves models, nodes and results alone."
    then += f"{' ' if then else ''}{WITH_COMFYUI}"
    return error(
        "volume.comfyui_incomplete",
        f"{printable(path)} has no main.py, so that ComfyUI cannot run, and there is none in "
        "the image.",
        on_pod(command, facts.root, then),
        **about([path], command),
    )


def _absent(facts: VolumeFacts) -> Finding:
    path = join(facts.root, COMFYUI)
    empty = facts.top is not None and not facts.top.names
    has_models = bool(facts.models.homes or facts.models.strays or facts.models.unread)
    what = f"The volume at {printable(facts.root)}"
    if empty:
        what += " is empty: there is no ComfyUI"
    else:
        what += " has models but no ComfyUI" if has_models else " has no ComfyUI"
    command = f"git clone {SOURCE} {shell_quote(path)}"
    clone = on_pod(command, facts.root, "" if has_models else WITH_COMFYUI)
    return error(
        "comfyui.not_found",
        f"{what}.",
        f"D{_IMAGE} Or put ComfyUI on the volume. {clone}" if has_models else clone,
        **about([path], command),
    )


def _missing(facts: VolumeFacts) -> Finding:
    path = join(facts.root, MODELS)
    command = f"mkdir -p {shell_quote(join(path, 'checkpoints'))}"
    return warning(
        "volume.models_missing",
        f"There is no models folder: neither {printable(path)} nor one in {printable(facts.home)}.",
        on_pod(command, facts.root, "Then put models there, one folder for each kind."),
        **about([path], command),
    )


def _moves(
    strays: Sequence[Stray], code: str, sentence: str, facts: VolumeFacts
) -> Iterator[Finding]:
    """One finding per kind; what has a name conflict at its new place stays where it is."""
    if not strays:
        return
    paths, places = [s.path for s in strays], list(dict.fromkeys(s.belongs for s in strays))
    command = "; ".join([_pour(stray) for stray in strays[:MOST_AT_ONCE]])
    yield warning(
        code,
        sentence.format(summarize_list(paths), summarize_list(places)),
        on_pod(command, facts.root, "Files whose name is taken there stay, and rmdir says so."),
        **about(paths, command),
    )


def _pour(stray: Stray) -> str:
    source, target = shell_quote(stray.path), shell_quote(stray.belongs)
    return (
        f"mkdir -p {target} && find {source} -mindepth 1 -maxdepth 1 "
        f"-exec mv -n -t {target} {{}} + && rmdir {source}"
    )
