"""What a git checkout says of itself, read from its files; git itself may not be installed."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from bootstrap.core.redact import LOGIN

_MOST_TEXT = 1 << 20
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_ORIGIN = re.compile(r'^\[remote "origin"\]\n(?:\s+.*\n)*?\s+url\s*=\s*(\S+)', re.MULTILINE)


@dataclass(frozen=True)
class Git:
    """A checkout: `branch` is None at a detached commit, `tag` a tag on the very commit that is
    checked out, `origin` the address it came from, without login."""

    branch: str | None = None
    commit: str | None = None
    tag: str | None = None
    origin: str | None = None


def look_at_git(folder: str) -> Git | None:
    """The checkout in `folder`, None when it is none or of no use. Four small reads."""
    home = os.path.join(folder, ".git")
    pointer = _text(home)  # a submodule's .git is a file
    if pointer is not None and pointer.startswith("gitdir:"):
        home = os.path.join(folder, pointer[len("gitdir:") :].strip())
    head = (_text(os.path.join(home, "HEAD")) or "").strip()
    if not head:
        return None
    packed = _text(os.path.join(home, "packed-refs")) or ""
    branch = head[len("ref: refs/heads/") :] if head.startswith("ref: refs/heads/") else None
    commit = _commit_of(home, f"refs/heads/{branch}", packed) if branch else head
    if commit is not None and not _COMMIT.fullmatch(commit):
        commit = None
    config = _text(os.path.join(home, "config")) or ""
    origin = _ORIGIN.search(config)
    return Git(
        branch=branch,
        commit=commit,
        tag=_tag(commit, packed) if commit else None,
        origin=LOGIN.sub("", origin[1]) if origin else None,
    )


def _commit_of(home: str, reference: str, packed: str) -> str | None:
    loose = _text(os.path.join(home, reference))
    if loose:
        return loose.strip()
    match = re.search(rf"^([0-9a-f]+) {re.escape(reference)}$", packed, re.MULTILINE)
    return match[1] if match else None


def _tag(commit: str, packed: str) -> str | None:
    """An annotated tag's own line is followed by `^` and the commit it stands for."""
    direct = re.search(rf"^{commit} refs/tags/(\S+)$", packed, re.MULTILINE)
    peeled = re.search(rf"^[0-9a-f]+ refs/tags/(\S+)\n\^{commit}$", packed, re.MULTILINE)
    match = direct or peeled
    return match[1] if match else None


def _text(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(_MOST_TEXT)
    except OSError:
        return None
