"""A server with a Comfy Registry and git repositories, which serve packs as the real ones do."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bootstrap.models.download.progress import FileMeter
from bootstrap.models.download.remote import DownloadOptions
from bootstrap.models.sources.https import Https
from bootstrap.nodes.manifest import GitPin, PackSpec, RegistryPin
from bootstrap.nodes.node_map import NodeMap, keep_map
from bootstrap.nodes.pull import PullContext
from bootstrap.nodes.sources import PackSources
from tests.support.provisioning import options as local_options
from tests.support.vicious_server import ViciousServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "fedcba9876543210fedcba9876543210fedcba98"
FILES = {"__init__.py": "NODE_CLASS_MAPPINGS = {}\n", "src/nodes.py": "A = 1\n"}


def zipped(files: Mapping[str, str | bytes], top: str = "", comment: str = "") -> bytes:
    """An archive of files, below the folder `top`."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in files.items():
            made.writestr(f"{top}/{name}" if top else name, content)
        made.comment = comment.encode()
    return target.getvalue()


def refs(found: Mapping[str, str]) -> bytes:
    """What a repository advertises, as git's smart HTTP protocol writes it."""
    lines = [f"{commit} {name}" for name, commit in found.items()]
    lines[0] += "\0multi_ack symref=HEAD:refs/heads/main"
    packets = [f"{len(line) + 5:04x}{line}\n" for line in lines]
    return ("001e# service=git-upload-pack\n0000" + "".join(packets) + "0000").encode()


class PackServer(ViciousServer):
    """Use as a context manager."""

    def pack(self, name: str, version: str, content: bytes | None = None, **vices: Any) -> str:
        """Publish a version in the registry; its path."""
        path = f"/cdn/{name}/{version}.zip"
        self.serve(path, zipped(FILES) if content is None else content, **vices)
        about = {"id": "x", "node_id": name, "version": version, "downloadUrl": self.url + path}
        self.answer(f"/nodes/{name}/install?version={version}", about)
        self.answer(f"/nodes/{name}/versions", [{"version": "0.0.1"}, {"version": version}])
        self.answer(f"/nodes/{name}", {"id": name, "latest_version": {"version": version}})
        return path

    def repository(
        self, name: str, files: Mapping[str, str | bytes] | None = None, **vices: Any
    ) -> str:
        """Publish COMMIT of a repository, on the branch main and as the tag v1; its address."""
        folder = f"{name.rpartition('/')[2]}-{COMMIT}"
        content = zipped(FILES if files is None else files, folder, COMMIT)
        self.serve(f"/{name}/archive/{COMMIT}.zip", content, **{"ranges": False, **vices})
        self.serve(
            f"/{name}/info/refs",
            refs(
                {
                    "HEAD": COMMIT,
                    "refs/heads/main": COMMIT,
                    "refs/heads/dev": OTHER,
                    "refs/tags/v1": OTHER,
                    "refs/tags/v1^{}": COMMIT,
                }
            ),
            content_type="application/x-git-upload-pack-advertisement",
        )
        return f"{self.url}/{name}"

    def answer(self, path: str, data: Any) -> None:
        """JSON at `path`."""
        self.serve(path, json.dumps(data).encode(), content_type="application/json")

    def __enter__(self) -> PackServer:
        super().__enter__()
        return self

    def asked(self, part: str) -> int:
        """How many requests had `part` in their path."""
        return sum(part in path for path, _ in self.seen)

    def sources(self, options: DownloadOptions | None = None) -> PackSources:
        """Sources that fetch from here."""
        return PackSources(options or local_options(), Https(), self.url)

    def place(
        self, volume: Path, options: DownloadOptions | None = None, **more: Any
    ) -> PullContext:
        """A volume that is filled from here, with short timeouts."""
        return PullContext(
            volume / "ComfyUI/custom_nodes",
            volume / ".comfyui-worker/nodes",
            volume,
            self.sources(options),
            **{"make_meter": FileMeter, "beat": 0.05, "stale": 0.5, "look_every": 0.02, **more},
        )


def from_registry(name: str = "some-pack", version: str = "1.2.3", **more: Any) -> PackSpec:
    """A pack at a version in the registry."""
    return PackSpec(name, RegistryPin(name, version, **more))


def from_git(url: str, commit: str = COMMIT) -> PackSpec:
    """A pack at a commit."""
    return PackSpec(url.rpartition("/")[2], GitPin(url, commit))


def refresh_map(server: PackServer, volume: Path, path: str = "/map.json") -> NodeMap:
    """Fetch and keep the map of nodes, as `nodes map --refresh` does."""
    made = server.sources().fetch_map(server.url + path)
    keep_map(made, volume)
    return made
