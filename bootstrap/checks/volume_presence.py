"""Is there a volume at all, and does it answer?"""

from __future__ import annotations

from bootstrap.core.findings import Finding, error, host_error, info, warning
from bootstrap.core.text import about, on_pod, quoted, shown
from bootstrap.facts.volume_facts import State, VolumeFacts

CODES = {
    "volume.silent": "The volume does not answer: its mount hangs.",
    "volume.not_found": "There is no volume where one was looked for.",
    "volume.not_mounted": "The volume's folder is empty and no mount: no volume is attached.",
    "volume.not_a_folder": "What is at the volume's path is no folder.",
    "volume.io_error": "The volume's mount is broken: the system reports an error.",
}
#: How a network volume comes to an endpoint or a Pod.
ATTACH = (
    "Attach it: Serverless > the endpoint > Manage > Edit Endpoint > Advanced > Network Volumes, "
    "then Save; it must be in one of the endpoint's datacenters, and workers started later have "
    "it. A Pod gets a network volume only when it is deployed. If it is mounted elsewhere, set "
    "VOLUME_PATH to that folder."
)


def check_presence(facts: VolumeFacts) -> list[Finding]:
    """Why nothing else can be said about the volume; empty when it is there."""
    root = shown(facts.root)
    if facts.silent_after is not None:
        return [_silent(facts, root)]
    if facts.state is State.MISSING:
        return [_absent(facts, "volume.not_found", f"There is no volume at {root}.")]
    if facts.state is State.FILE:
        return [_not_a_folder(root)]
    if facts.state is not State.FOLDER:
        return [_bad(facts, root)]
    if not facts.mounted and not _furnished(facts):
        message = f"No volume is attached: {root} is a folder on this machine's own disk"
        return [
            _absent(facts, "volume.not_mounted", f"{message}, with neither ComfyUI nor models.")
        ]
    return []


def _furnished(facts: VolumeFacts) -> bool:
    """A worker whose volume vanished may have made `ComfyUI/output` on its own disk since."""
    return bool(
        facts.models.homes or facts.models.strays or facts.places or facts.comfyui_on_volume
    )


def _silent(facts: VolumeFacts, root: str) -> Finding:
    system = f" ({facts.mount.system})" if facts.mount and facts.mount.network else ""
    return error(
        "volume.silent",
        f"The volume at {root}{system} did not answer within {facts.silent_after:g} s.",
        "Its storage or its mount hangs. End this worker (Serverless > the endpoint > Workers > "
        "Terminate) or restart the Pod; if the next one has the same, look at "
        "Runpod's status page and ask its support with the volume's id.",
        root=root,
        seconds=facts.silent_after,
    )


def _absent(facts: VolumeFacts, code: str, message: str) -> Finding:
    """An image may bring its own ComfyUI and need no volume; who sets VOLUME_PATH wants one."""
    if facts.comfyui is None:
        return error(code, message, ATTACH, root=shown(facts.root))
    message += f" ComfyUI is the image's, at {shown(facts.comfyui)}."
    report = warning if facts.configured else info
    return report(code, message, ATTACH, root=shown(facts.root))


def _not_a_folder(root: str) -> Finding:
    return error(
        "volume.not_a_folder",
        f"{root} is a file, not a folder.",
        "Set VOLUME_PATH to the folder where the volume is mounted, or remove VOLUME_PATH.",
        root=root,
    )


def _bad(facts: VolumeFacts, root: str) -> Finding:
    trouble = facts.trouble
    name, text = (trouble.name, trouble.text) if trouble else ("unknown", "no reason given")
    if name in ("EACCES", "EPERM"):
        command = f"chmod a+rx {quoted(facts.root)}"
        return error(
            "volume.unreadable",
            f"User {facts.user} may not read {root}: {text}.",
            on_pod(command, facts.root),
            **about([facts.root], command),
        )
    return io_error(root, "read", name, text)


def io_error(root: str, what: str, name: str, text: str) -> Finding:
    """A fresh worker has a fresh mount, so this is the machine's fault as far as can be seen."""
    return host_error(
        "volume.io_error",
        f"The volume at {root} cannot be {what}: {text} ({name}).",
        "Its mount is broken. A serverless worker is replaced; restart a Pod. If it stays, ask "
        "Runpod's support with the volume's id.",
        root=root,
        errno=name,
    )
