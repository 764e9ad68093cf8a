"""ComfyUI's socket frames become small, infrequent pictures, whatever they contain."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import struct
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bootstrap.config import Settings
from handler.common.blocking import Pool
from handler.common.errors import JobError
from handler.outputs import pictures as module
from handler.outputs.pictures import Previews, small_jpeg
from handler.request.fields import ProgressOptions, read_progress
from handler.request.parse import WorkflowRequest, parse_request
from tests.end_to_end.test_worker import plain
from tests.support.waiting import run_at_once

T = TypeVar("T")


def picture(side: int = 64, form: str = "JPEG", mode: str = "RGB") -> bytes:
    made = io.BytesIO()
    Image.effect_noise((side, side), 120).convert(mode).save(made, form)
    return made.getvalue()


def frame(content: bytes, kind: int = 1, second: int = 1) -> bytes:
    return struct.pack(">II", kind, second) + content


def opened(jpeg: bytes | None) -> Image.Image:
    assert jpeg is not None
    return Image.open(io.BytesIO(jpeg))


@pytest.mark.parametrize(
    ("form", "mode"),
    [("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGBA"), ("PNG", "P"), ("WEBP", "RGB")],
)
def test_a_frame_becomes_a_small_jpeg(form: str, mode: str) -> None:
    small = opened(small_jpeg(frame(picture(1500, form, mode)), 256))
    assert small.format == "JPEG" and max(small.size) <= 256


def test_it_is_never_larger_than_it_may_be() -> None:
    for side in (32, 256, 512):
        jpeg = small_jpeg(frame(picture(2000)), side)
        assert jpeg is not None and len(jpeg) <= module._MOST_BYTES
    assert max(opened(small_jpeg(frame(picture(16)), 256)).size) == 16, "none is blown up"


def test_a_frame_with_metadata_is_understood() -> None:
    about = json.dumps({"node_id": "3"}).encode()
    content = frame(about + picture(), kind=4, second=len(about))
    assert opened(small_jpeg(content, 256)).size == (64, 64)


def huge_png() -> bytes:
    """12 KB that would be 243 MB of pixels."""
    made = io.BytesIO()
    Image.new("1", (9_000, 9_000)).save(made, "PNG")
    return made.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\0\1",
        frame(b""),
        frame(b"not a picture"),
        frame(picture()[:200]),
        frame(picture(), kind=3),
        frame(picture(), kind=4, second=2**32 - 1),
        frame(huge_png()),
    ],
)
def test_what_is_not_a_picture_is_left_out(content: bytes) -> None:
    assert small_jpeg(content, 256) is None


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_whatever_the_socket_sends_nothing_breaks(content: bytes) -> None:
    small_jpeg(content, 64)
    small_jpeg(frame(content), 64)


class NoThreads(Pool):
    """Runs each call at once, in the loop."""

    async def run(self, work: Callable[[], T], seconds: float, _: object = None) -> T:
        return work()


def test_of_many_frames_the_newest_counts_and_one_in_two_seconds() -> None:
    heard: list[str] = []

    async def job() -> None:
        options = ProgressOptions(previews=True)
        previews = Previews(options, heard.append, NoThreads("local", 1, 1))
        for number in range(18):
            previews.on_frame(frame(picture(8 + number)))
            await asyncio.sleep(0.35)
        previews.on_frame(b"\0" * 20_000_000)
        previews.end()

    run_at_once(job(), module)
    sides = [Image.open(io.BytesIO(base64.b64decode(i.partition(",")[2]))).width for i in heard]
    assert sides == [8, 8 + int(2 / 0.35), 8 + int(4 / 0.35), 8 + int(6 / 0.35)]


def test_none_comes_after_the_job_has_ended() -> None:
    heard: list[str] = []

    async def job() -> None:
        previews = Previews(ProgressOptions(previews=True), heard.append, NoThreads("local", 1, 1))
        previews.on_frame(frame(picture(8)))
        previews.end()
        await asyncio.sleep(5)

    run_at_once(job(), module)
    assert heard == []


def test_they_are_asked_for_in_the_request() -> None:
    given: dict[str, Any] = {"workflow": plain(), "progress": {"previews": True}}
    request = parse_request(given, Settings())
    assert isinstance(request, WorkflowRequest) and request.progress.previews
    assert request.extra_data["preview_method"] == "auto"
    plainly = parse_request({"workflow": plain()}, Settings())
    assert isinstance(plainly, WorkflowRequest) and "preview_method" not in plainly.extra_data
    assert read_progress({"x": 1})[1] == ("ignored unknown fields of progress: x",)
    token = {"https://host/a.png?token=secret": 1}
    assert read_progress(token)[1] == ("ignored unknown fields of progress: https://host/a.png",)


@pytest.mark.parametrize(
    "given", [True, [], {"previews": "yes"}, {"preview_size": 8}, {"preview_size": 1000}]
)
def test_wrong_options_are_refused(given: Any) -> None:
    with pytest.raises(JobError) as caught:
        read_progress(given)
    assert caught.value.code == "request.wrong_type"
