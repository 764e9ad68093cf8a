"""Where in a safetensors file each tensor begins: what its reader touches before all else.

Opening such a file makes a view of every tensor (`get_tensor` of huggingface/safetensors), and
with each the page at its beginning is looked at: in a checkpoint of Stable Diffusion 1.5 some 400
page faults one after another, each a round trip on a network volume, more than a second before a
weight is used. The same pages by several readers at once take a twentieth of that.
"""

from __future__ import annotations

import json
import mmap
import os

from bootstrap.facts.weights import MOST_PARSED

_PAGE = mmap.PAGESIZE


def tensor_starts(descriptor: int, size: int) -> list[int]:
    """Offsets in bytes, in order, of the pages in which the tensors of an open file of `size`
    bytes begin; none of a file that is no safetensors. Raises OSError."""
    length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    if not 2 <= length <= min(MOST_PARSED, size - 8):
        return []
    try:
        header = json.loads(os.pread(descriptor, length, 8))
        firsts = [t["data_offsets"][0] for name, t in header.items() if name != "__metadata__"]
        places = {(8 + length + int(first)) // _PAGE * _PAGE for first in firsts}
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError):
        return []
    return sorted(place for place in places if 0 <= place < size)
