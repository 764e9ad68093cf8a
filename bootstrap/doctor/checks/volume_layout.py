"""ComfyUI and models where they are looked for, or how to bring them there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from posixpath import basename, dirname, join, relpath

from bootstrap.core.findings import Finding, error, info, warning
from bootstrap.core.text import about, chained, named, on_pod, quoted, shown
from bootstrap.doctor.facts.volume_facts import VolumeFacts
from bootstrap.doctor.facts.volume_places import How, Place, Stray
from bootstrap.volume import COMFYUI, MODELS

SOURCE = "https://github.com/comfyanonymous/ComfyUI"

CODES = {
    "comfyui.not_found": "There is no ComfyUI on the volume or in the image.",
    "volume.comfyui_incomplete": "There is a folder ComfyUI, but no main.py in it.",
    "volume.comfyui_nested": "ComfyUI is one folder too deep: ComfyUI/ComfyUI.",
    "volume.comfyui_renamed": "ComfyUI's folder has another name, such as comfyui.",
    "volume.comfyui_elsewhere": "ComfyUI is in another folder of the volume.",
    "volume.comfyui_in_root": "The volume's root itself is ComfyUI's folder.",
    "volume.comfyui_spare": "There is a second ComfyUI, which is not used.",
    "volume.models_missing": "There is no models folder.",
    "volume.models_misplaced": "A folder of models lies outside of the models folder.",
    "volume.wrong_case": "A folder's name differs in upper and lower case from what is read.",
}
Report = Callable[..., Finding]


def check_comfyui(facts: VolumeFacts) -> list[Finding]:
    """Where ComfyUI is; nothing when it is where it belongs, or the image's is meant to run."""
    if facts.comfyui_on_volume and facts.comfyui is not None:
        return _spare(facts)
    if facts.places:
        return [_misplaced(facts, facts.places[0])]
    if facts.comfyui is not None:
        return []
    if facts.expected is not None and facts.expected.exists:
        return [_incomplete(facts)]
    return [_absent(facts)]


def check_models(facts: VolumeFacts) -> list[Finding]:
    """Folders of models that nobody reads where they are."""
    models = facts.models
    # A ComfyUI that is yet to be brought here brings its models folder.
    absent = facts.comfyui is not None and not models.homes and not models.wrong_case
    found = [_missing(facts)] if absent else []
    found += _moves(
        models.strays,
        "volume.models_misplaced",
        "ComfyUI does not read models in {}; they belong in {}.",
        facts,
    )
    found += _moves(
        models.wrong_case,
        "volume.wrong_case",
        "Upper and lower case count: {} should be {}.",
        facts,
    )
    return found


def _misplaced(facts: VolumeFacts, place: Place) -> Finding:
    if place.how is How.IN_ROOT:
        return _in_root(facts)
    report: Report = error if facts.comfyui is None else warning
    expected = join(facts.root, COMFYUI)
    where = f"ComfyUI is at {shown(place.path)}; it is looked for at {shown(expected)}."
    then = ""
    if place.how is How.NESTED:
        code, command = "volume.comfyui_nested", _lift(facts, place.path, expected)
    else:
        clear, then = _clear(facts, expected)
        if place.how is How.RENAMED:
            code, move = "volume.comfyui_renamed", _move(place.path, expected)
        else:
            code = "volume.comfyui_elsewhere"
            move = f"ln -sfn {quoted(relpath(place.path, facts.root))} {quoted(expected)}"
            report = error if facts.comfyui is None else info
        command = chained([*clear, move])
    return report(
        code,
        where,
        on_pod(command, facts.root, then),
        **about([p.path for p in facts.places], command),
    )


def _lift(facts: VolumeFacts, inner: str, expected: str) -> str:
    """The outer folder stays, under another name, if there is more in it than ComfyUI."""
    outer, new = _free(facts, f"{COMFYUI}-outer"), _free(facts, f"{COMFYUI}-new")
    commands = [_move(inner, new), _move(expected, outer), _move(new, expected)]
    commands += _rescue_models(facts, outer)
    return chained([*commands, f"rmdir --ignore-fail-on-non-empty {quoted(outer)}"])


def _clear(facts: VolumeFacts, expected: str) -> tuple[list[str], str]:
    """Commands that put aside what stands where ComfyUI belongs, and a word about it."""
    if facts.top is None or COMFYUI not in facts.top.names:
        return [], ""
    aside = _free(facts, f"{COMFYUI}-before")
    commands = [_move(expected, aside), *_rescue_models(facts, aside)]
    return commands, f"What was at {shown(expected)} is then in {shown(basename(aside))}."


def _rescue_models(facts: VolumeFacts, aside: str) -> list[str]:
    """Models of a folder that is put aside become the volume's own, if it has none yet."""
    expected, top = facts.expected, facts.top
    if expected is None or MODELS not in expected.names or (top and MODELS in top.names):
        return []
    return [_move(join(aside, MODELS), join(facts.root, MODELS))]


def _free(facts: VolumeFacts, name: str) -> str:
    """A path in the root that nothing has."""
    taken = facts.top.names if facts.top else frozenset()
    number = 2
    free = name
    while free in taken:
        free, number = f"{name}-{number}", number + 1
    return join(facts.root, free)


def _move(source: str, target: str) -> str:
    """`-T`: never into a folder that is at `target` already."""
    return f"mv -T {quoted(source)} {quoted(target)}"


def _in_root(facts: VolumeFacts) -> Finding:
    root = shown(facts.root)
    report = error if facts.comfyui is None else warning
    message = f"{root} is ComfyUI's own folder; ComfyUI is looked for in a folder {COMFYUI} in it."
    if basename(facts.root) == COMFYUI:
        parent = shown(dirname(facts.root))
        return report("volume.comfyui_in_root", message, f"Set VOLUME_PATH to {parent}.")
    target = join(facts.root, COMFYUI)
    # huggingface-cache is Runpod's, a mount of its own.
    keep = f"! -name {COMFYUI} ! -name huggingface-cache ! -name lost+found"
    command = (
        f"mkdir -p {quoted(target)} && find {quoted(facts.root)} -mindepth 1 -maxdepth 1 {keep} "
        f"-exec mv -n -t {quoted(target)} {{}} +"
    )
    return report(
        "volume.comfyui_in_root", message, on_pod(command, facts.root), **about([root], command)
    )


def _spare(facts: VolumeFacts) -> list[Finding]:
    if not facts.places:
        return []
    paths = [place.path for place in facts.places]
    return [
        info(
            "volume.comfyui_spare",
            f"{shown(str(facts.comfyui))} is used; {named(paths)} is another ComfyUI, whose "
            "models and nodes are not seen.",
            "Nothing to do if that is meant.",
            **about(paths),
        )
    ]


def _incomplete(facts: VolumeFacts) -> Finding:
    """Git brings ComfyUI's own files back and leaves models, nodes and results alone."""
    path = join(facts.root, COMFYUI)
    if facts.expected is not None and ".git" in facts.expected.folders:
        command = f"git -C {quoted(path)} checkout -- main.py"
        then = ""
    else:
        command = (
            f"cd {quoted(path)} && git init -q && git fetch -q --depth 1 {SOURCE} master && "
            "git checkout -q -f -B master FETCH_HEAD"
        )
        then = "It replaces ComfyUI's own files and leaves models, nodes and results alone."
    return error(
        "volume.comfyui_incomplete",
        f"{shown(path)} has no main.py, so it is no ComfyUI that can run, and there is none in "
        "the image.",
        on_pod(command, facts.root, then),
        **about([path], command),
    )


def _absent(facts: VolumeFacts) -> Finding:
    path = join(facts.root, COMFYUI)
    empty = facts.top is not None and not facts.top.names
    what = f"The volume at {shown(facts.root)} is empty" if empty else "There is no ComfyUI"
    command = f"git clone {SOURCE} {quoted(path)}"
    return error(
        "comfyui.not_found",
        f"{what}: ComfyUI is looked for at {shown(path)}, and there is none in the image.",
        on_pod(command, facts.root, "Or set COMFYUI_DIR to one in the image."),
        **about([path], command),
    )


def _missing(facts: VolumeFacts) -> Finding:
    path = join(facts.root, MODELS)
    command = f"mkdir -p {quoted(join(path, 'checkpoints'))}"
    return warning(
        "volume.models_missing",
        f"There is no models folder: neither {shown(path)} nor one in {COMFYUI}.",
        on_pod(command, facts.root, "Then put models there, one folder for each kind."),
        **about([path], command),
    )


def _moves(strays: Sequence[Stray], code: str, sentence: str, facts: VolumeFacts) -> list[Finding]:
    """One finding for all of a kind; what has the same name at its new place stays where it is."""
    if not strays:
        return []
    paths, places = [s.path for s in strays], list(dict.fromkeys(s.belongs for s in strays))
    command = chained([_pour(stray) for stray in strays])
    return [
        warning(
            code,
            sentence.format(named(paths), named(places)),
            on_pod(command, facts.root, "Names that are taken there stay, and rmdir says so."),
            **about(paths, command),
        )
    ]


def _pour(stray: Stray) -> str:
    source, target = quoted(stray.path), quoted(stray.belongs)
    return (
        f"mkdir -p {target} && find {source} -mindepth 1 -maxdepth 1 "
        f"-exec mv -n -t {target} {{}} + && rmdir {source}"
    )
