"""A file's type: by its content, or else by its name."""

from __future__ import annotations

import pytest

from handler.common.media_types import extension_for, kind_of, mime_type, wrong_content

PNG = b"\x89PNG\r\n\x1a\n rest"
MP4 = b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41"
ZIP = b"PK\3\4 rest of it"
GLB = b"glTF\2\0\0\0"


@pytest.mark.parametrize(
    ("name", "expected", "kind"),
    [
        ("a.png", "image/png", "image"),
        ("a.WEBP", "image/webp", "image"),
        ("a.jpg", "image/jpeg", "image"),
        ("a.mp4", "video/mp4", "video"),
        ("a.webm", "video/webm", "video"),
        ("a.mkv", "video/x-matroska", "video"),
        ("a.flac", "audio/flac", "audio"),
        ("a.mp3", "audio/mpeg", "audio"),
        ("a.glb", "model/gltf-binary", "model"),
        ("a.latent", "application/octet-stream", "file"),
        ("a.txt", "text/plain", "file"),
        ("png", "application/octet-stream", "file"),
        ("a.b.unheard-of", "application/octet-stream", "file"),
    ],
)
def test_a_name_alone_gives_the_kind(name: str, expected: str, kind: str) -> None:
    found = mime_type(b"", name)
    assert (found, kind_of(found)) == (expected, kind)


@pytest.mark.parametrize(
    ("head", "name", "expected"),
    [
        (PNG, "a.jpg", "image/png"),
        (PNG, "a", "image/png"),
        (MP4, "a.bin", "video/mp4"),
        (MP4, "a.m4a", "audio/mp4"),
        (GLB, "a.bin", "model/gltf-binary"),
        (ZIP, "a.npz", "application/zip"),
        (b"%PDF-1.7", "a.ai", "application/postscript"),
        (b"fLaC\0\0", "a.x", "audio/flac"),
        (b"RIFF\0\0\0\0WAVEfmt ", "a.x", "audio/wav"),
        (b"nothing known", "a.png", "image/png"),
    ],
)
def test_content_goes_before_the_name(head: bytes, name: str, expected: str) -> None:
    assert mime_type(head, name) == expected


@pytest.mark.parametrize(
    ("head", "name", "said"),
    [
        (b"<!DOCTYPE html><p>no", "a.png", "a web page"),
        (b"\n  <html>", "a.mp4", "a web page"),
        (b'{"error": "no"}', "a.wav", "text"),
        ("ünicode".encode()[:-1] + b"\xc3", "a.png", "text"),
        (ZIP, "a.png", "application/zip"),
        (b"%PDF-1.7", "a.jpg", "application/pdf"),
    ],
)
def test_what_is_not_a_picture_film_or_sound_is_noticed(head: bytes, name: str, said: str) -> None:
    assert wrong_content(head, name) == said


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (PNG, "a.jpg"),
        (MP4, "a.wav"),
        (b"unknown\0binary", "a.png"),
        (b"#?RADIANCE\n\x01", "a.hdr"),
        (b"<svg/>", "a.svg"),
        (b"any text", "a.txt"),
        (b"any text", "a"),
    ],
)
def test_the_rest_is_left_to_comfyui(head: bytes, name: str) -> None:
    assert wrong_content(head, name) is None


def test_an_extension_is_found_for_content() -> None:
    assert (extension_for(PNG), extension_for(b"?")) == (".png", "")
