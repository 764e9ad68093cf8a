"""Jobs as users send them: several files, several savers, videos, texts, nodes that save late.

Every job's files carry its number in their names and contents, so that a reply can be compared with
exactly what its job must produce.
"""

from __future__ import annotations

import base64
import io
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from PIL import Image

Node = dict[str, Any]
Workflow = dict[str, Node]
SEED = 20261128


@dataclass(frozen=True)
class MixedJob:
    """`files`: the prefixes of the names it must produce, one for each file; `texts`: how many
    texts; `colour`: its pictures'."""

    number: int
    workflow: Workflow
    files: tuple[str, ...]
    texts: int = 0

    @property
    def colour(self) -> tuple[int, int, int]:
        value = self.number % 0xFFFFFF
        return (value >> 16 & 255, value >> 8 & 255, value & 255)


def mixed_job(number: int) -> MixedJob:
    """The job of that number; the same each time."""
    return random.Random(SEED + number).choice(_KINDS)(number)


def _images(number: int, count: int, side: int = 64) -> Workflow:
    inputs = {"width": side, "height": side, "batch_size": count, "color": number % 0xFFFFFF}
    return {"1": {"class_type": "EmptyImage", "inputs": inputs}}


def _saver(prefix: str, source: str = "1") -> Node:
    inputs = {"images": [source, 0], "filename_prefix": prefix}
    return {"class_type": "SaveImage", "inputs": inputs}


def _batch(count: int, side: int = 64) -> Callable[[int], MixedJob]:
    def made(number: int) -> MixedJob:
        nodes = _images(number, count, side) | {"2": _saver(f"j{number}-batch")}
        return MixedJob(number, nodes, (f"j{number}-batch_",) * count)

    return made


def _savers(count: int) -> Callable[[int], MixedJob]:
    def made(number: int) -> MixedJob:
        names = [f"j{number}-saver{n}" for n in range(count)]
        nodes = _images(number, 1) | {
            str(n + 2): _saver(f"sub{n}/{x}") for n, x in enumerate(names)
        }
        return MixedJob(number, nodes, tuple(f"{name}_" for name in names))

    return made


def _video(number: int) -> MixedJob:
    nodes = _images(number, 4)
    nodes["2"] = {"class_type": "CreateVideo", "inputs": {"images": ["1", 0], "fps": 8.0}}
    inputs = {"video": ["2", 0], "filename_prefix": f"j{number}-film", "format": "mp4"}
    nodes["3"] = {"class_type": "SaveVideo", "inputs": {**inputs, "codec": "h264"}}
    nodes["4"] = _saver(f"j{number}-still")
    return MixedJob(number, nodes, (f"j{number}-film_", *(f"j{number}-still_",) * 4))


def _animation(number: int) -> MixedJob:
    inputs = {"images": ["1", 0], "filename_prefix": f"j{number}-anim", "fps": 6.0}
    inputs |= {"lossless": True, "quality": 80, "method": "fastest"}
    nodes = _images(number, 3) | {"2": {"class_type": "SaveAnimatedWEBP", "inputs": inputs}}
    return MixedJob(number, nodes, (f"j{number}-anim_",))


def _text(number: int) -> MixedJob:
    nodes = _images(number, 2) | {"2": _saver(f"j{number}-beside")}
    nodes["3"] = {"class_type": "PreviewAny", "inputs": {"source": ["4", 0]}}
    nodes["4"] = {"class_type": "PrimitiveString", "inputs": {"value": f"text of {number}"}}
    return MixedJob(number, nodes, (f"j{number}-beside_",) * 2, texts=1)


def _oddly(how: str) -> Callable[[int], MixedJob]:
    """Another node is still running when the file appears, or changes."""

    def made(number: int) -> MixedJob:
        nodes = _images(number, 2)
        name = f"j{number}-{how}"
        inputs = {"name": f"{name}.txt", "content": f"content of {number}", "how": how}
        nodes["2"] = {"class_type": "TestSaveOddly", "inputs": inputs}
        slow = {"image": ["1", 0], "seconds": 0.5}
        nodes["3"] = {"class_type": "TestSleep", "inputs": slow}
        nodes["4"] = _saver(f"j{number}-after", "3")
        return MixedJob(number, nodes, (name, *(f"j{number}-after_",) * 2))

    return made


_KINDS: tuple[Callable[[int], MixedJob], ...] = (
    *(_batch(count) for count in (1, 2, 4, 8)),
    _batch(4, side=256),
    _savers(2),
    _savers(4),
    _video,
    _animation,
    _text,
    _oddly("late"),
    _oddly("change"),
)


def faults_of(job: MixedJob, output: Mapping[str, Any], volume: Path) -> list[str]:
    """What is wrong with the reply to a job; empty if it has exactly the job's files."""
    if output.get("status") != "completed":
        return [f"job {job.number}: {output.get('error_code')}: {output.get('error')}"]
    found = [entry for entry in output["results"] if "text" not in entry]
    texts = [entry for entry in output["results"] if "text" in entry]
    names = Counter(name for entry in found for name in set(job.files) if _is(entry, name))
    faults = []
    if names != Counter(job.files) or len(found) != len(job.files):
        faults.append(f"job {job.number}: {[entry['filename'] for entry in found]}")
    if len({entry["filename"] for entry in found}) != len(found):
        faults.append(f"job {job.number}: two results with one name")
    if [entry["text"] for entry in texts] != [f"text of {job.number}"] * job.texts:
        faults.append(f"job {job.number}: texts {texts}")
    faults += [fault for entry in found if (fault := _content_fault(job, entry, volume))]
    if output.get("also_kept") or output.get("warnings"):
        faults.append(f"job {job.number}: {output.get('also_kept')} {output.get('warnings')}")
    return faults


def _is(entry: Mapping[str, Any], beginning: str) -> bool:
    return str(entry["filename"]).startswith(beginning)


def _content_fault(job: MixedJob, entry: Mapping[str, Any], volume: Path) -> str | None:
    content = content_of(entry, volume)
    name = entry["filename"]
    if name.endswith(".png"):
        with Image.open(io.BytesIO(content)) as picture:
            if picture.convert("RGB").getpixel((0, 0)) != job.colour:
                return f"job {job.number}: {name} is another job's"
    if name.endswith(".txt") and content != f"content of {job.number}".encode():
        return f"job {job.number}: {name} holds {content[:60]!r}"
    if "path" in entry and (volume / entry["path"]).read_bytes() != content:
        return f"job {job.number}: {name} differs on the volume"
    return None


def content_of(entry: Mapping[str, Any], volume: Path) -> bytes:
    """The bytes of a result, wherever they were delivered."""
    if "url" in entry:
        with urlopen(entry["url"], timeout=30) as answer:
            found: bytes = answer.read()
            return found
    text = entry.get("image") or entry.get("data")
    return (volume / entry["path"]).read_bytes() if text is None else base64.b64decode(text)
