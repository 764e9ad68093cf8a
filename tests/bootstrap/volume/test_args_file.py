"""comfyui_args.txt of Runpod's template: what is used, skipped, and takes precedence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bootstrap.config import Settings
from bootstrap.volume import locate
from bootstrap.volume.args_file import ArgsFile, check_args_file, read_args_file, with_args_file
from bootstrap.volume.locate import CLI_ARGS, source_of
from demo.volume import DemoVolume


def read(tmp_path: Path, text: str) -> ArgsFile:
    (tmp_path / "runpod-slim/ComfyUI").mkdir(parents=True, exist_ok=True)
    (tmp_path / "runpod-slim/ComfyUI/main.py").write_text("")
    (tmp_path / "runpod-slim/comfyui_args.txt").write_text(text)
    file = read_args_file(locate(Settings(volume_path=tmp_path)))
    assert file is not None
    return file


def test_flags_comments_and_values(tmp_path: Path) -> None:
    file = read(tmp_path, "# mine\n--preview-method auto\n\n--fast  # quick\n--reserve-vram '2'\n")
    assert file.flags == ("--preview-method", "auto", "--fast", "--reserve-vram", "2")
    assert [f.code for f in check_args_file(file)] == ["comfyui.args_file"]


def test_the_workers_own_flags_are_left_out_with_their_values(tmp_path: Path) -> None:
    file = read(tmp_path, "--listen 0.0.0.0 --port 8188\n--enable-cors-header\n--lowvram\n")
    assert file.flags == ("--lowvram",)
    assert file.own == ("--listen", "--port", "--enable-cors-header")
    codes = [f.code for f in check_args_file(file)]
    assert codes == ["comfyui.args_file", "comfyui.args_file_left_out"]


@pytest.mark.parametrize("text", ["--note 'not closed\n", "lowvram\n"])
def test_what_is_not_understood_is_reported_and_not_used(tmp_path: Path, text: str) -> None:
    file = read(tmp_path, text)
    assert file.flags == ()
    (finding,) = check_args_file(file)
    assert finding.code == "comfyui.args_file_unreadable"
    assert check_args_file(read(tmp_path, "--lowvram\n"))[0].code == "comfyui.args_file"


@pytest.mark.parametrize(
    ("given", "together"),
    [
        ((), ("--highvram", "--preview-method", "auto")),
        (("--preview-method", "none"), ("--highvram", "--preview-method", "none")),
        (("--preview-method=none",), ("--highvram", "--preview-method=none")),
        (("--cpu",), ("--preview-method", "auto", "--cpu")),
    ],
)
def test_comfyui_args_go_before(
    tmp_path: Path, given: tuple[str, ...], together: tuple[str, ...]
) -> None:
    file = read(tmp_path, "--highvram\n--preview-method auto\n")
    assert with_args_file(Settings(comfyui_args=given), file).comfyui_args == together


def test_none_goes_with_one_that_comfyui_excludes(tmp_path: Path, demo: DemoVolume) -> None:
    """Both would end it with argparse's code 2."""
    code = source_of(demo.comfyui, CLI_ARGS)
    groups = {
        "newer cache": ["--cache-none", "--high-ram"],
        "newer manager": ["--disable-manager-ui", "--enable-manager-legacy-ui"],
    }
    for name, flag in re.findall(r"^(\w+)\.add_argument\(\"(--[\w-]+)", code, re.MULTILINE):
        groups.setdefault(name, []).append(flag)
    del groups["parser"]
    assert len(groups) > 7
    for flags in groups.values():
        given = Settings(comfyui_args=(flags[0],))
        for flag in flags[1:]:
            assert with_args_file(given, read(tmp_path, flag)) == given, flag


def test_without_a_file_nothing_changes(tmp_path: Path) -> None:
    (tmp_path / "ComfyUI").mkdir()
    (tmp_path / "ComfyUI/main.py").write_text("")
    assert read_args_file(locate(Settings(volume_path=tmp_path))) is None
    settings = Settings(comfyui_args=("--cpu",))
    assert with_args_file(settings, None) == settings and check_args_file(None) == []
