"""Text that a terminal or a locale has no characters for, from programs run as people run them."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bootstrap.core.log import say, show
from tests.support.model_folders import link, safetensors, write

ROOT = Path(__file__).resolve().parents[3]
LOCALES = [
    {"LC_ALL": "C"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "latin-1"},
]


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """Names in Chinese, and one that is not UTF-8."""
    root = tmp_path / "卷"
    write(root / "ComfyUI/main.py", b"")
    safetensors(root / "models/loras/水墨.safetensors")
    write(root / "models/loras/空.safetensors", b"")
    write(root / "models/loras" / os.fsdecode(b"bad\xff.safetensors"), b"")
    link(root / "ComfyUI/models/checkpoints/断.safetensors", "/workspace/模型/断.safetensors")
    entry = '{"name": "墨.safetensors", "url": "https://127.0.0.1:1/墨", "directory": "loras"}'
    write(root / "models.json", f'{{"version": 1, "models": [{entry}]}}'.encode())
    return root


def run(locale: dict[str, str], *command: str, **env: str) -> str:
    """What a program of ours says; it must not fail by itself."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON"))}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**plain, **locale, **env},
        capture_output=True,
        check=False,
        timeout=300,
    )
    said = (done.stdout + done.stderr).decode("utf-8", "replace")
    assert "Traceback" not in said, said
    assert "doctor.check_crashed" not in said and "doctor.part_failed" not in said, said
    return said


@pytest.mark.parametrize("locale", LOCALES, ids=str)
def test_names_in_chinese_are_checked_and_planned_in_every_locale(
    locale: dict[str, str], volume: Path
) -> None:
    said = run(locale, "scripts/check_volume.py", str(volume), "--fix")
    assert "models.empty" in said or "models.link_other_mount" in said, said
    env = {"VOLUME_PATH": str(volume), "ALLOW_PRIVATE_DOWNLOAD_URLS": "true"}
    planned = run(locale, "-m", "bootstrap", "models", "list", **env)
    assert "墨.safetensors" in planned or "\\u58a8.safetensors" in planned
    run(locale, "-m", "bootstrap", "models", "plan", **env)


def test_what_an_encoding_lacks_is_spelt_out(capsys: pytest.CaptureFixture[str]) -> None:
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    show("水 \udcff", ascii_only)
    ascii_only.seek(0)
    assert ascii_only.read() == "\\u6c34 \\udcff"
    say("half \ud83d a character")
    assert "half \\ud83d a character" in capsys.readouterr().err
