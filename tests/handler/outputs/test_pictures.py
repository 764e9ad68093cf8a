"""Pictures in another format, and without their metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from handler.outputs.pictures import NotWritten, rewritten
from handler.request.fields import OutputOptions


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def saved(folder: Path, mode: str = "RGB", **reported: str) -> Path:
    info = PngInfo()
    for key, value in reported.items():
        info.add_text(key, value)
    picture = Image.new(mode, (16, 16), (200, 30, 30, 0)[: len(mode)])
    path = folder / "a.png"
    picture.save(path, pnginfo=info)
    return path


def made(source: Path, folder: Path, **options: Any) -> Any:
    path = rewritten(source, folder, OutputOptions(**options), [])
    assert path is not None
    return Image.open(path)


@pytest.mark.parametrize(("format", "name"), [("jpeg", "a.jpg"), ("webp", "a.webp")])
def test_a_picture_gets_the_format_that_is_wanted(
    tmp_path: Path, out: Path, format: str, name: str
) -> None:
    picture = made(saved(tmp_path), out, format=format)
    assert picture.format.lower() == format and Path(picture.filename).name == name


def test_quality_makes_a_difference_and_100_loses_nothing(tmp_path: Path, out: Path) -> None:
    source = tmp_path / "noise.png"
    Image.effect_noise((64, 64), 90).convert("RGB").save(source)
    sizes = []
    for quality in (5, 95):
        path = rewritten(source, out, OutputOptions(format="webp", quality=quality), [])
        assert path is not None
        sizes.append(path.stat().st_size)
    assert sizes[0] < sizes[1]
    lossless = made(source, out, format="webp", quality=100)
    assert lossless.convert("RGB").tobytes() == Image.open(source).tobytes()


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_the_workflow_goes_along_where_comfyui_puts_it(
    tmp_path: Path, out: Path, format: str
) -> None:
    picture = made(saved(tmp_path, prompt='{"1": {}}', workflow="{}"), out, format=format)
    assert picture.getexif()[0x0110] == 'prompt:{"1": {}}'
    assert picture.getexif()[0x010F] == "workflow:{}"


@pytest.mark.parametrize(("long", "kept"), [("workflow", ["prompt"]), ("prompt", [])])
def test_a_workflow_that_a_jpeg_cannot_hold_is_left_out_with_a_warning(
    tmp_path: Path, out: Path, long: str, kept: list[str]
) -> None:
    source = saved(tmp_path, **{"prompt": "{}", "workflow": "{}", long: "x" * 70_000})
    losses: list[str] = []
    path = rewritten(source, out, OutputOptions(format="jpeg"), losses)
    assert path is not None and Image.open(path).format == "JPEG"
    found = [str(text).partition(":")[0] for text in Image.open(path).getexif().values()]
    assert found == kept and losses[0].startswith("lacks its workflow")
    whole = made(source, out, format="webp")
    assert len(whole.getexif()) == 2


@pytest.mark.parametrize("format", [None, "png", "jpeg", "webp"])
def test_without_metadata_nothing_of_the_workflow_is_left(
    tmp_path: Path, out: Path, format: str | None
) -> None:
    source = saved(tmp_path, prompt="marker-1", workflow="marker-2", other="marker-3")
    picture = made(source, out, format=format, metadata=False)
    assert b"marker" not in Path(picture.filename).read_bytes()
    assert picture.size == (16, 16)


def test_a_png_without_metadata_has_the_same_pixels(tmp_path: Path, out: Path) -> None:
    source = saved(tmp_path, "RGBA", prompt="x")
    assert made(source, out, metadata=False).tobytes() == Image.open(source).tobytes()


def test_a_jpeg_loses_its_metadata_and_next_to_nothing_else(tmp_path: Path, out: Path) -> None:
    source = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0110] = "prompt:marker"
    Image.effect_noise((64, 64), 90).save(source, quality=77, exif=exif)
    picture = made(source, out, metadata=False)
    assert b"marker" not in Path(picture.filename).read_bytes()
    before: Any = Image.open(source)
    pairs = zip(picture.tobytes(), before.tobytes(), strict=True)
    assert sum(abs(a - b) for a, b in pairs) < len(before.tobytes())
    assert picture.quantization == before.quantization


def test_transparency_becomes_white_in_a_jpeg(tmp_path: Path, out: Path) -> None:
    picture = made(saved(tmp_path, "RGBA"), out, format="jpeg")
    assert min(picture.getpixel((8, 8))) > 250


@pytest.mark.parametrize("options", [{}, {"format": "png"}, {"metadata": False}])
def test_a_picture_that_is_right_already_is_left_alone(
    tmp_path: Path, out: Path, options: dict[str, Any]
) -> None:
    assert rewritten(saved(tmp_path), out, OutputOptions(**options), []) is None


def test_an_animation_is_not_made_a_still(tmp_path: Path, out: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:])
    with pytest.raises(NotWritten, match="animation"):
        rewritten(tmp_path / "a.webp", out, OutputOptions(format="jpeg"), [])


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n cut"])
def test_what_is_not_a_picture_is_left_alone(tmp_path: Path, out: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(NotWritten):
        rewritten(tmp_path / "a.png", out, OutputOptions(format="jpeg"), [])
