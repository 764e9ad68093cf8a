"""What is needed of buildah: a base, the image, its layers and a container's files."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.image.packages import DebianSource, Lent

BASE = "localhost/image-test-base"
IMAGE = "localhost/image-test"
WITH_COMFYUI = "localhost/image-test-comfyui"
NEEDED = ("buildah", "debootstrap", "unshare", "nsenter", "chroot", "nice")
_STEP = re.compile(r"^(?:\[\d+/\d+\] )?STEP (\d+/\d+: .*)$")


@dataclass(frozen=True)
class Step:
    """One step and the seconds it took."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Layer:
    """One layer as an uncompressed tar archive; its name is the digest of its content."""

    tar: Path
    size: int


class Buildah:
    """buildah, with everything it keeps in one folder; no daemon, no registry."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.steps: list[Step] = []
        (folder / "tmp").mkdir(parents=True, exist_ok=True)
        self._driver = "overlay"
        if self._call("info").returncode != 0:
            self._driver = "vfs"  # where overlay cannot be mounted: slower, with a copy per layer

    def make_base(self, source: DebianSource) -> None:
        """Make a minimal Debian the base image, unless an earlier run did."""
        if self._call("inspect", "--type=image", BASE).returncode == 0:
            return
        with self.timed(f"debootstrap {source.suite}"):
            container = self("from", "scratch").strip()
            root = self("mount", container).strip()
            options = ("--variant=minbase", "--include=ca-certificates")
            _loudly(["nice", "debootstrap", *options, source.suite, root, source.mirror])
        with self.timed("commit the base"):
            self("umount", container)
            self("commit", "--rm", container, BASE)

    def build(
        self, context: Path, lent: Lent, arguments: dict[str, str], image: str = IMAGE
    ) -> None:
        """Build the Dockerfile in `context` as `image`, layer by layer like Docker and in Docker's
        format: OCI's has no HEALTHCHECK."""
        given = [f"--build-arg={name}={value}" for name, value in arguments.items()]
        how = ("--isolation=chroot", "--layers", "--format=docker", f"--tag={image}")
        command = [*self._command("build", *how), *given, *lent.volumes(), str(context)]
        name, since = "prepare", time.monotonic()
        for line in _lines(["nice", *command], self._env()):
            if found := _STEP.match(line):
                self._note(name, since)
                name, since = found[1], time.monotonic()
        self._note(name, since)

    def image_config(self, image: str = IMAGE) -> dict[str, Any]:
        """The image's configuration as Docker reads it: Env, Entrypoint, Cmd, Healthcheck …"""
        config: dict[str, Any] = self._inspected(image)["Docker"]["config"]
        return config

    def metadata(self, image: str = IMAGE) -> str:
        """All of the image's metadata, its history included."""
        return json.dumps(self._inspected(image))

    def layers(self, image: str = IMAGE) -> list[Layer]:
        """The image's layers as they would be pushed."""
        place = self.pushed / image.rpartition("/")[2]
        if not place.exists():
            self.pushed.mkdir(exist_ok=True)
            with self.timed(f"write the layers of {image}"):
                self("push", "--disable-compression", image, f"dir:{place}")
        manifest = json.loads((place / "manifest.json").read_text(encoding="utf-8"))
        names = [layer["digest"].partition(":")[2] for layer in manifest["layers"]]
        return [Layer(place / name, (place / name).stat().st_size) for name in names]

    @property
    def pushed(self) -> Path:
        """Where layers are written; emptied before the image is built."""
        return self.folder / "pushed"

    @contextmanager
    def container(self, image: str = IMAGE) -> Iterator[tuple[str, Path]]:
        """A new container of the image: its name and its files, which may be changed."""
        name = self("from", "--pull-never", image).strip()
        try:
            yield name, Path(self("mount", name).strip())
        finally:
            self("umount", name)
            self("rm", name)

    def run_command(
        self, container: str, options: Sequence[str], command: Sequence[str]
    ) -> list[str]:
        """The command line of `buildah run`, for the caller to start."""
        return self._command("run", "--isolation=chroot", *options, container, "--", *command)

    def __call__(self, *words: str) -> str:
        done = self._call(*words)
        assert done.returncode == 0, f"buildah {' '.join(words)}: {done.stderr}"
        return done.stdout

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Record how long the block took."""
        since = time.monotonic()
        yield
        self._note(name, since)

    def remove(self) -> None:
        """Remove everything this kept, mounts first."""
        self._call("umount", "--all")
        self._call("rm", "--all")
        self._call("rmi", "--all", "--force")
        shutil.rmtree(self.folder)

    def _note(self, name: str, since: float) -> None:
        self.steps.append(Step(name, time.monotonic() - since))

    def _inspected(self, image: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self("inspect", "--type=image", image))
        return found

    def _call(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = self._command(*words)
        return subprocess.run(
            command,
            env=self._env(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def _command(self, *words: str) -> list[str]:
        store = ("--root", str(self.folder / "store"), "--runroot", str(self.folder / "run"))
        return ["buildah", *store, "--storage-driver", self._driver, *words]

    def _env(self) -> dict[str, str]:
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return {"PATH": path, "HOME": str(self.folder), "TMPDIR": str(self.folder / "tmp")}


def missing_tools() -> list[str]:
    """The tools that have to be installed first."""
    return [tool for tool in NEEDED if shutil.which(tool) is None]


def _loudly(command: Sequence[str]) -> None:
    for _ in _lines(command, None):
        pass


def _lines(command: Sequence[str], env: dict[str, str] | None) -> Iterator[str]:
    """The output, shown as it comes; AssertionError if the command fails."""
    with subprocess.Popen(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", file=sys.stderr, flush=True)
            yield line.rstrip("\n")
    assert process.returncode == 0, f"{command[:3]} … exited with {process.returncode}"
