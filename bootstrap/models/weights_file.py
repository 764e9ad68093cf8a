"""Is a weights file what its name says? Its first bytes and its header show that cheaply.

The rule for safetensors (format documentation of huggingface/safetensors, README "Format"): `n` =
first 8 bytes, little-endian, 0 < n <= 100 MB; then `n` bytes of JSON; then the tensors, so that 8 +
n + the largest `data_offsets` end is the file's size. This finds truncation and web pages, but not
a tail of zeros.

Also the best order for reading it ahead. Opening it makes a view of every tensor (`get_tensor` of
huggingface/safetensors), which touches the page at its beginning: in a Stable Diffusion 1.5
checkpoint about 400 page faults in a row, each a round trip on a network volume, more than a second
before a weight is used. Parallel readers take a twentieth of that. Then the weights: of a
checkpoint ComfyUI loads the diffusion model first (`load_state_dict_guess_config` in comfy/sd.py),
although it is last in most files.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from bootstrap.core.concurrency import ByteSemaphore
from bootstrap.core.files import open_regular
from bootstrap.volume.categories import GGUF, extension_of

SAFETENSORS = frozenset({".safetensors", ".sft"})
MOST_HEADER = 100_000_000
# Headers of known models are below 5 MB. A parsed header takes about four times its text.
MOST_PARSED = 16 << 20
# Fits most LoRAs' headers; one request of a network file system.
_FIRST_READ = 64 << 10
_EXCERPT = 160
_SAMPLES = 16
_SAMPLE_BYTES = 4096
# A server's error messages are shorter; longer text may be a real file.
_MOST_TEXT = 64 << 10
_ZIP, _ZIP_END = b"PK\x03\x04", b"PK\x05\x06"
_ZIP_TAIL = 1024
_POINTER = b"version https://git-lfs.github.com/spec/"
_PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<error")


class WeightsState(str, Enum):
    """The result of examining a weights file."""

    GOOD = "good"
    UNREAD = "unread"
    EMPTY = "empty"
    TRUNCATED = "truncated"
    TOO_LONG = "too_long"
    DAMAGED = "damaged"
    MISLABELLED = "mislabelled"
    PAGE = "page"
    JSON = "json"
    TEXT = "text"
    POINTER = "pointer"
    UNREADABLE = "unreadable"
    BROKEN_LINK = "broken_link"
    LOOPING_LINK = "looping_link"


@dataclass(frozen=True)
class Examined:
    """What a file is. `detail` says more; `expected` is its proper size in bytes, if known;
    `dtypes` are (name, bytes) of a safetensors' tensors, most bytes first; `fingerprint` is a hash
    of size and beginning: equal for equal files, but also for some models of one kind. `kind` is
    the models folder for a safetensors file, by its tensor names; empty if unclear.
    """

    state: WeightsState
    detail: str = ""
    expected: int | None = None
    dtypes: tuple[tuple[str, int], ...] = ()
    fingerprint: bytes = b""
    kind: str = ""


def examine(
    path: str,
    size: int,
    allowance: ByteSemaphore,
    extension: str | None = None,
) -> Examined:
    """Examine the beginning of the weights file at `path`, of `size` bytes; raises nothing.
    `extension` is the final one, for a file without its name yet.
    """
    if size == 0:
        return Examined(WeightsState.EMPTY)
    ending = extension_of(path) if extension is None else extension
    try:
        with open_regular(path) as file:
            _advise_random(file.fileno())
            return _examine_open(file.fileno(), ending, size, allowance)
    except OSError as problem:
        return Examined(WeightsState.UNREADABLE, problem.strerror or str(problem))


def sample_hash(path: str, size: int) -> bytes:
    """Hash of 16 pieces spread over the file, to distinguish files with the same beginning.

    Raises OSError.
    """
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with open_regular(path) as file:
        _advise_random(file.fileno())
        last = max(size - _SAMPLE_BYTES, 0)
        for number in range(_SAMPLES):
            offset = last * number // (_SAMPLES - 1)
            digest.update(os.pread(file.fileno(), _SAMPLE_BYTES, offset))
    return digest.digest()


def _advise_random(file: int) -> None:
    """Keep the kernel from reading ahead what is not needed."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)


def _examine_open(file: int, extension: str, size: int, allowance: ByteSemaphore) -> Examined:
    head = os.pread(file, min(size, _FIRST_READ), 0)
    if extension in SAFETENSORS and _begins_like_safetensors(head, size):
        return _examine_safetensors(file, head, size, allowance)
    answer = _server_answer(head, size)
    if answer is not None:
        return answer
    if not head.strip(b"\0"):
        return Examined(
            WeightsState.DAMAGED, "it begins with zeros, like a download that never filled"
        )
    if extension in SAFETENSORS:
        return _examine_safetensors(file, head, size, allowance)
    return _examine_other(file, head, extension, size)


def _server_answer(head: bytes, size: int) -> Examined | None:
    """What servers send instead of weights: a page, an error as JSON or text, an LFS pointer."""
    start = head[:_EXCERPT].lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(_POINTER):
        named = re.search(rb"^size (\d{1,18})$", head[:1024], re.MULTILINE)
        return Examined(WeightsState.POINTER, expected=int(named[1]) if named else None)
    if start.lower().startswith(_PAGES):
        return Examined(WeightsState.PAGE, _excerpt(start))
    if size > _MOST_TEXT or not _is_text(head):
        return None
    return Examined(
        WeightsState.JSON if start[:1] in (b"{", b"[") else WeightsState.TEXT, _excerpt(start)
    )


def _excerpt(start: bytes) -> str:
    return " ".join(start.decode("utf-8", "replace").split())


def _is_text(data: bytes) -> bool:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return all(character >= " " or character in "\t\r\n\f" for character in text)


def _examine_safetensors(file: int, head: bytes, size: int, allowance: ByteSemaphore) -> Examined:
    length = int.from_bytes(head[:8], "little")
    other = _other_format(head)
    if other is not None:
        return Examined(WeightsState.MISLABELLED, other)
    if not 0 < length <= MOST_HEADER or head[8:9] not in (b"{", b""):
        return Examined(WeightsState.DAMAGED, "it does not begin like safetensors")
    if 8 + length > size:
        return Examined(WeightsState.TRUNCATED, "it ends within its header", 8 + length)
    if length > MOST_PARSED:
        return Examined(WeightsState.UNREAD, f"its header has {length} bytes")
    if 8 + length <= len(head):
        return _judge_header(head[8 : 8 + length], size)
    with allowance.hold(length):
        return _judge_header(_read_exactly(file, head, 8 + length)[8:], size)


def _read_exactly(file: int, head: bytes, size: int) -> bytes:
    """The first `size` bytes, beginning with `head`. Raises OSError if there are fewer."""
    parts, have = [head[:size]], min(len(head), size)
    while have < size:
        part = os.pread(file, size - have, have)
        if not part:
            raise OSError(None, "the file became shorter while it was read")
        parts.append(part)
        have += len(part)
    return b"".join(parts)


def _judge_header(header: bytes, size: int) -> Examined:
    dtypes: Counter[str] = Counter()
    end = 0
    names: list[str] = []

    def shrink(pairs: list[tuple[str, Any]]) -> None:
        """Keep only what is needed of each tensor, as soon as it is parsed."""
        nonlocal end, names
        names = [name for name, _ in pairs]  # the last call is for the whole header
        tensor = dict(pairs)
        offsets = tensor.get("data_offsets")
        if isinstance(offsets, list):
            first, last = offsets
            if type(first) is not int or type(last) is not int or not 0 <= first <= last < 2**63:
                raise ValueError("offsets")
            dtypes[str(tensor.get("dtype"))[:16]] += last - first
            end = max(end, last)

    try:
        if not header.startswith(b"{"):
            raise ValueError("no object")
        json.loads(header, object_pairs_hook=shrink)
    except (ValueError, TypeError, RecursionError):
        return Examined(WeightsState.DAMAGED, "its header cannot be read")
    expected = 8 + len(header) + end
    kind = _kind_by(names)
    if size != expected:
        state = WeightsState.TRUNCATED if size < expected else WeightsState.TOO_LONG
        return Examined(state, "", expected, kind=kind)
    common = tuple(dtypes.most_common(8))
    return Examined(WeightsState.GOOD, "", expected, common, _fingerprint(header, size), kind)


def _examine_other(file: int, head: bytes, extension: str, size: int) -> Examined:
    if extension == GGUF and not head.startswith(b"GGUF"):
        return Examined(WeightsState.DAMAGED, "it does not begin like GGUF")
    if extension != GGUF and head.startswith(b"GGUF"):
        return Examined(WeightsState.MISLABELLED, GGUF)
    if _begins_like_safetensors(head, size):
        return Examined(WeightsState.MISLABELLED, ".safetensors")
    if head.startswith(_ZIP) and _ZIP_END not in os.pread(
        file, _ZIP_TAIL, max(0, size - _ZIP_TAIL)
    ):
        return Examined(WeightsState.TRUNCATED, "the end of its zip archive is missing")
    return Examined(WeightsState.GOOD, fingerprint=_fingerprint(head, size))


def _other_format(head: bytes) -> str | None:
    """The matching extension, if the file begins like a pickle (torch) or GGUF."""
    if head.startswith((_ZIP, b"\x80\x02")):
        return ".pt"
    return GGUF if head.startswith(b"GGUF") else None


def _begins_like_safetensors(head: bytes, size: int) -> bool:
    length = int.from_bytes(head[:8], "little")
    return 2 < length <= min(MOST_HEADER, size - 8) and head[8:10] == b'{"'


def _fingerprint(beginning: bytes, size: int) -> bytes:
    return hashlib.blake2b(str(size).encode() + beginning, digest_size=16).digest()


_PAGE = mmap.PAGESIZE
# The usual prefix in checkpoints (`unet_prefix_from_state_dict`, comfy/model_detection.py).
_DIFFUSION_MODEL = "model.diffusion_model."


class LoadOrder(NamedTuple):
    """`starts`: offsets in bytes, in order, of the pages in which tensors begin. `first`: the
    offset of the part that is loaded first."""

    starts: list[int]
    first: int


def load_order(descriptor: int, size: int) -> LoadOrder:
    """The order for an open file of `size` bytes; without starts, from the beginning, if it is not
    safetensors. Raises OSError."""
    length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    if not 2 <= length <= min(MOST_PARSED, size - 8):
        return LoadOrder([], 0)
    try:
        begins = _begins(json.loads(os.pread(descriptor, length, 8)), 8 + length, size)
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError):
        return LoadOrder([], 0)
    starts = sorted({at // _PAGE * _PAGE for at in begins.values()})
    model = (at for name, at in begins.items() if name.startswith(_DIFFUSION_MODEL))
    return LoadOrder(starts, min(model, default=0))


def _begins(header: Any, data: int, size: int) -> dict[str, int]:
    """The offset of each tensor; `data` is the start of the data section."""
    places = {
        name: data + int(tensor["data_offsets"][0])
        for name, tensor in header.items()
        if name != "__metadata__"
    }
    return {name: at for name, at in places.items() if 0 <= at < size}


# Parts of tensor names that only models of one kind have, the more specific kinds first. Sources:
# ComfyUI's comfy/sd.py, comfy/lora.py, comfy/controlnet.py, comfy/model_detection.py.
_KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("loras", (".lora_down.", ".lora_up.", ".lora_A.", ".lora_B.", ".hada_w1_a", ".lokr_w1")),
    ("controlnet", ("control_model.", "controlnet_cond_embedding.", "controlnet_blocks.")),
    ("embeddings", ("emb_params",)),
)
_MODEL = (_DIFFUSION_MODEL, "double_blocks.", "joint_blocks.", "transformer_blocks.")
_WITH_MODEL = ("first_stage_model.", "cond_stage_model.", "conditioner.", "text_encoders.", "vae.")
_ENCODERS = ("text_model.encoder.", "encoder.block.0.layer.", "model.embed_tokens.")
_VAE = ("decoder.conv_in.", "decoder.conv1.")


def _kind_by(names: list[str]) -> str:
    text = "\n" + "\n".join(names)
    for kind, parts in _KINDS:
        if any(part in text for part in parts):
            return kind

    def has(prefixes: tuple[str, ...]) -> bool:
        return any(f"\n{prefix}" in text for prefix in prefixes)

    if has(_MODEL):
        return "checkpoints" if has(_WITH_MODEL) else "diffusion_models"
    if has(_VAE):
        return "vae"
    return "text_encoders" if has(_ENCODERS) else ""
