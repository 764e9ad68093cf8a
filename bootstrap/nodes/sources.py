"""Asks servers about packs: the commit of a branch or tag, the archive of a version or commit.

A repository is fetched as the source archive of one commit, in the same way as a model: git does
not run, and so no hook, filter, submodule or credential helper, and every address and redirect is
checked. Commits are looked up by git's "smart" HTTP protocol (gitprotocol-http(5)), which every git
host answers without a login.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote, urlsplit

from bootstrap.core.text import size_text
from bootstrap.environment.node_packs import COMMIT
from bootstrap.models.download.remote import DownloadOptions, Locate, Remote, StallDetector
from bootstrap.models.download.verify import Wanted
from bootstrap.models.sources import WebFile
from bootstrap.models.sources.https import Https
from bootstrap.net import DownloadError, WrongBytes
from bootstrap.net.addresses import shown
from bootstrap.net.http import Channel, explain
from bootstrap.nodes.manifest import GitPin, PackSpec, RegistryPin
from bootstrap.nodes.node_map import MOST_MAP, NodeMap, read_map

CODES = {
    "nodes.bad_answer": "A server's response about a pack cannot be used",
    "nodes.no_ref": "The repository has no such branch or tag",
    "nodes.no_pack": "The Comfy Registry has no such pack or version",
    "nodes.withdrawn": "The Comfy Registry has withdrawn this version of a pack",
    "nodes.too_large": "A pack exceeds the size limit",
}
REGISTRY = "https://api.comfy.org"
#: ComfyUI-Manager's own channel.
MAP_URL = "https://raw.githubusercontent.com/ltdrdata/ComfyUI-Manager/main/extension-node-map.json"
#: Largest archive of a pack, in bytes.
MOST_ARCHIVE = 2_000_000_000
_MOST_REFS = 32_000_000
_MOST_ANSWER = 4_000_000
_AT_ONCE = 256 * 1024
# The path of a commit's archive below the repository's address: GitHub, Gitea, Forgejo; GitLab;
# Bitbucket. A known host's own form is tried first.
_ARCHIVES = ("archive/{commit}.zip", "-/archive/{commit}/{name}-{commit}.zip", "get/{commit}.zip")
_FIRST = {"gitlab.com": 1, "bitbucket.org": 2}
# registry-backend, NodeVersionStatus. Pending ones are still being scanned.
_STATUSES = "statuses=NodeVersionStatusActive&statuses=NodeVersionStatusPending"
_WITHDRAWN = ("NodeVersionStatusBanned", "NodeVersionStatusFlagged", "NodeVersionStatusDeleted")


def fetch_small(
    url: str,
    options: DownloadOptions,
    most: int,
    source: Https | None = None,
) -> bytes:
    """The content of `url`, at most `most` bytes; transient failures are retried. `source` knows
    the host's credential. Raises DownloadError."""

    def content(channel: Channel) -> bytes:
        reply = channel.get(url, source.credential if source is not None else None)
        if reply.status != 200:
            raise explain(reply)
        stall, data = StallDetector(reply.host, options.stall, options.slowest), bytearray()
        while block := reply.read_some(_AT_ONCE):
            data += block
            stall.count(len(block))
            if len(data) > most:
                raise too_large(shown(url), most)
        if reply.length is not None and len(data) != reply.length:
            raise _bad_answer(url, "it ended early")
        return bytes(data)

    return options.ask(content)


def too_large(what: str, most: int) -> DownloadError:
    """More bytes, received or announced, than any pack has."""
    return DownloadError(
        "nodes.too_large",
        f"{what} has more than {size_text(most)}.",
        "Put such a pack onto the volume by hand, on a Pod.",
    )


@dataclass(frozen=True)
class PackSources:
    """Where packs come from. `https` has the endpoint's token for its host; `registry` is the
    address of the Comfy Registry's API."""

    options: DownloadOptions
    https: Https
    registry: str

    def host_of(self, spec: PackSpec) -> str:
        """The host that will be asked, for plans."""
        url = spec.pin.url if isinstance(spec.pin, GitPin) else self.registry
        return urlsplit(url).hostname or ""

    def locate(self, spec: PackSpec) -> Locate:
        """A call that returns where the pack's archive is now."""
        wanted = Wanted(f"{spec.name}.zip", None, None)

        def locate(channel: Channel) -> Remote:
            if isinstance(spec.pin, RegistryPin):
                remote = self._in_registry(spec.pin, wanted, channel)
            else:
                remote = self._at_commit(spec.pin, wanted, channel)
            if remote.size is not None and remote.size > MOST_ARCHIVE:
                raise too_large(f"the archive of {spec.name}", MOST_ARCHIVE)
            return remote

        return locate

    def fetch_map(self, url: str) -> NodeMap:
        """Fetch today's map of nodes. Raises DownloadError."""
        content = fetch_small(url, self.options, MOST_MAP)
        return read_map(content, datetime.now(timezone.utc).date().isoformat(), url)

    def check(self, spec: PackSpec) -> int | None:
        """Check that it is available; its archive's size in bytes, if known. The registry counts a
        request for an archive as an installation, so only the version is requested. Raises
        DownloadError."""
        if isinstance(spec.pin, RegistryPin):
            self.version(spec.pin.id, spec.pin.version)
            return None
        channel = self.options.channel()
        try:
            return self.locate(spec)(channel).size
        finally:
            channel.close()

    def newest(self, pack: str) -> RegistryPin:
        """The newest version of a pack in the registry. Raises DownloadError."""
        data = self._ask_one(f"nodes/{quote(pack, safe='')}", pack)
        version = _version_of(data.get("latest_version"))
        if version is None:
            raise _no_pack(f"the Comfy Registry has no version of {pack}")
        return RegistryPin(pack, version)

    def version(self, pack: str, version: str) -> RegistryPin:
        """This version of a pack, if the registry has it and has not withdrawn it. Raises
        DownloadError."""
        where = f"nodes/{quote(pack, safe='')}/versions?{_STATUSES}"
        listed = self._ask_registry(where, pack)
        if not any(_version_of(each) == version for each in listed):
            raise _no_pack(f"the Comfy Registry has no {pack}@{version}, or has withdrawn it")
        return RegistryPin(pack, version)

    def pin(self, url: str, ref: str | None) -> GitPin:
        """The commit of a branch, a tag or (None) the repository's default branch. A full commit is
        returned as it is. Raises DownloadError."""
        if ref is not None and COMMIT.fullmatch(ref):
            return GitPin(url, ref)
        address = f"{url}/info/refs?service=git-upload-pack"
        refs = dict(_refs_in(fetch_small(address, self.options, _MOST_REFS, self.https), url))
        wanted = ref or "HEAD"
        names = (f"refs/tags/{ref}^{{}}", f"refs/tags/{ref}", f"refs/heads/{ref}", wanted)
        commit = next((refs[name] for name in names if name in refs), None)
        if commit is None:
            raise DownloadError(
                "nodes.no_ref",
                f"{url} has no branch or tag {wanted[:80]!r}.",
                "Correct its name, or give all 40 digits of a commit.",
            )
        return GitPin(url, commit, ref)

    def _ask_one(self, path: str, what: str) -> Mapping[str, Any]:
        found = self._ask_registry(path, what)
        if len(found) != 1:
            raise _bad_answer(f"{self.registry}/{path}", "it is not one JSON object")
        return found[0]

    def _ask_registry(self, path: str, what: str) -> list[Mapping[str, Any]]:
        """The objects in the response."""
        url = f"{self.registry}/{path}"
        try:
            return _objects(fetch_small(url, self.options, _MOST_ANSWER), url)
        except DownloadError as problem:
            if problem.status == 404:
                raise _no_pack(f"the Comfy Registry has no {what}") from None
            raise

    def _in_registry(self, pin: RegistryPin, wanted: Wanted, channel: Channel) -> Remote:
        path = f"nodes/{quote(pin.id, safe='')}/install?version={quote(pin.version, safe='')}"
        # The caller that fetches the archive retries; both doing so would take minutes.
        once = replace(self, options=replace(self.options, attempts=0))
        data = once._ask_one(path, str(pin))
        _check_status(data, str(pin))
        url = data.get("downloadUrl")
        same = str(data.get("node_id") or pin.id).casefold() == pin.id.casefold()
        same = same and data.get("version", pin.version) == pin.version
        if not same or not isinstance(url, str) or not url:
            raise _bad_answer(self.registry, f"it names no archive of {pin}")
        return self.https.locate(WebFile(url), None, wanted, channel)

    def _at_commit(self, pin: GitPin, wanted: Wanted, channel: Channel) -> Remote:
        """The first form of address that works on this host."""
        first = _FIRST.get(urlsplit(pin.url).hostname or "", 0)
        forms = [_ARCHIVES[first], *(form for form in _ARCHIVES if form != _ARCHIVES[first])]
        name = pin.url.rpartition("/")[2]
        problem: DownloadError | None = None
        for form in forms:
            url = f"{pin.url}/{form.format(commit=pin.commit, name=name)}"
            try:
                return self.https.locate(WebFile(url), None, wanted, channel)
            except DownloadError as failed:
                if failed.status != 404 and not isinstance(failed, WrongBytes):
                    raise
                problem = problem or failed
        assert problem is not None
        raise DownloadError(
            "nodes.no_ref",
            f"{pin.url} has no archive of the commit {pin.commit}.",
            "Check the address and the commit; a private repository needs DOWNLOAD_TOKEN.",
            status=problem.status,
        )


def _refs_in(data: bytes, url: str) -> Iterator[tuple[str, str]]:
    """(name, commit) of all that a repository advertises (gitprotocol-http(5), pkt-lines)."""
    position, seen = 0, False
    while position < len(data):
        try:
            length = int(data[position : position + 4], 16)
        except ValueError:
            raise _bad_answer(url, "it is not how git lists branches") from None
        line = data[position + 4 : position + length]
        position += max(length, 4)
        commit, _, name = line.partition(b"\0")[0].strip().decode("utf-8", "replace").partition(" ")
        if COMMIT.fullmatch(commit):
            seen = True
            yield name, commit
    if not seen:
        raise _bad_answer(url, "it lists no branch; is this a repository?")


def _check_status(data: Mapping[str, Any], what: str) -> None:
    if data.get("status") in _WITHDRAWN:
        why = str(data.get("status")).removeprefix("NodeVersionStatus").lower()
        raise DownloadError(
            "nodes.withdrawn",
            f"the Comfy Registry has withdrawn {what} ({why}).",
            f"Choose another version: `comfyui-worker nodes add {what.partition('@')[0]}`.",
        )


def _version_of(data: Any) -> str | None:
    version = data.get("version") if isinstance(data, Mapping) else None
    return version if isinstance(version, str) else None


def _objects(data: bytes, url: str) -> list[Mapping[str, Any]]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    found = value if isinstance(value, list) else [value]
    if not all(isinstance(each, Mapping) for each in found):
        raise _bad_answer(url, "it is not a JSON object")
    return found


def _no_pack(why: str) -> DownloadError:
    return DownloadError(
        "nodes.no_pack",
        f"{why}.",
        "Check the id and the version at registry.comfy.org, or give the git address.",
        status=404,
    )


def _bad_answer(url: str, why: str) -> DownloadError:
    return DownloadError(
        "nodes.bad_answer",
        f"the answer of {shown(url)} cannot be used: {why}.",
        "Check the address, and try again.",
    )
