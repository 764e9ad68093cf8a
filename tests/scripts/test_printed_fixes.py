"""Wrong turns that people take: each ends in a sentence with a fix, and the fix, typed as it is
printed, makes the next check clean. Nothing is copied from the code: it is read off the screen."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from scripts.check_volume import main
from tests.scripts.test_check_volume import _NO_ONE, codes, furnished, public, root, run
from tests.support.model_folders import safetensors
from tests.support.volumes import mounted

__all__ = ["public", "root"]
Spoil = Callable[[Path], object]
MODELS = "ComfyUI/models"


def commands(shown: str) -> list[str]:
    """What stands alone on a line, further in than what is said."""
    return re.findall(r"^(?:  |      )(\S.*)$", shown, re.MULTILINE)


@pytest.fixture
def check(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Shown]:
    """What a check shows, its codes and how it ends; this machine's Python is not looked for."""
    monkeypatch.setattr("bootstrap.environment.python_choice.which", lambda _: None)

    def look(*arguments: object, **env: str) -> Shown:
        code = main(list(map(str, arguments)), env, command="comfyui-worker doctor")
        shown = "".join(capsys.readouterr())
        return Shown(shown, re.findall(r"\[(\w+\.\w+)\]", shown), code)

    return look


def typed(command: str) -> str:
    """What a command printed that was typed as it stands."""
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


class Shown(NamedTuple):
    """What a person sees of a check."""

    text: str
    codes: list[str]
    exit_code: int


class Turn(NamedTuple):
    """What went wrong with a volume, and the code that it is reported by."""

    code: str
    spoil: Spoil
    named: str = ""

    def __str__(self) -> str:
        return f"{self.code} {self.named}".strip()


def written(place: str, text: str | bytes) -> Spoil:
    def spoil(volume: Path) -> None:
        file = volume / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode() if isinstance(text, str) else text)

    return spoil


def model(place: str) -> Spoil:
    return lambda volume: safetensors(volume / place)


def cut_off(volume: Path) -> None:
    whole = safetensors(volume / MODELS / "vae/cut.safetensors").read_bytes()
    (volume / MODELS / "vae/cut.safetensors").write_bytes(whole[:-9])


TURNS = [
    Turn("models.truncated", cut_off),
    Turn("models.web_page", written(f"{MODELS}/loras/x.safetensors", "<html>Log in</html>")),
    Turn("models.empty_file", written(f"{MODELS}/loras/x.safetensors", "")),
    Turn("models.damaged", written(f"{MODELS}/loras/x.safetensors", bytes(range(200)) * 9)),
    Turn("volume.models_misplaced", model("loras/x.safetensors")),
    Turn("volume.models_loose", model("x.safetensors")),
    Turn("models.outside_category", model(f"{MODELS}/x.safetensors")),
    Turn("models.folder_unknown", model(f"{MODELS}/My LoRAs/a b.safetensors")),
    Turn("volume.models_unread", model("downloads/'q'.safetensors")),
    Turn("volume.models_unread", model("my models/deeper/x.safetensors"), "below"),
    Turn("models.web_page", written(f"{MODELS}/x.safetensors", "<html>Log in</html>"), "outside"),
    Turn("models.web_page", written("x.safetensors", "<html>Log in</html>"), "at the root"),
    Turn("models.web_page", written("new/x.safetensors", "<html>Log in</html>"), "in a new folder"),
    Turn("models.empty_file", written("ComfyUI/x.ckpt", ""), "beside ComfyUI"),
    Turn("models.empty_file", written(f"{MODELS}/lora/x.safetensors", ""), "misnamed folder"),
    Turn("models.folder_misnamed", model(f"{MODELS}/lora/x.safetensors")),
    Turn("volume.wrong_case", model(f"{MODELS}/Loras/x.safetensors")),
    Turn("volume.paths_tabs", written("ComfyUI/extra_model_paths.yaml", "a:\n\tbase_path: ..\n")),
    Turn("manifest.unreadable", written("models.yaml", "version: 1\nmodels:\n\t[]\n"), "tab"),
]


@pytest.mark.parametrize("turn", TURNS, ids=str)
def test_the_command_that_is_printed_makes_the_check_clean(
    turn: Turn, root: Path, check: Callable[..., Shown]
) -> None:
    turn.spoil(root)
    shown = check(root)
    assert shown.codes == [turn.code], shown.text
    typed(commands(shown.text)[0])
    assert check(root)[1:] == ([], 0)


def test_a_broken_file_is_deleted_before_its_folder_is_renamed(
    root: Path, check: Callable[..., Shown]
) -> None:
    written(f"{MODELS}/Loras/deep/x.safetensors", "<html>Log in</html>")(root)
    whole = safetensors(root / MODELS / "Loras/deep/y.safetensors").name
    shown = check(root)
    assert shown.codes == ["models.web_page", "volume.wrong_case"], shown.text
    for command in commands(shown.text):
        if not command.startswith("curl"):
            typed(command)
    assert check(root)[1:] == ([], 0) and (root / MODELS / "loras/deep" / whole).is_file()


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("models.json", '{"version": 1,\n "models": [],\n}\n'),
        ("nodes.json", '{"version": 1, "nodes": [],}'),
    ],
)
def test_the_comma_that_is_named_is_the_one_to_delete(
    root: Path, file: str, text: str, check: Callable[..., Shown]
) -> None:
    written(file, text)(root)
    shown = check(root).text
    place = re.search(r"a trailing comma in line (\d+), column (\d+)\.", shown)
    assert place and "Delete that comma in the file." in shown, shown
    lines = text.splitlines(keepends=True)
    line, column = int(place[1]) - 1, int(place[2]) - 1
    assert lines[line][column] == ","
    lines[line] = lines[line][:column] + lines[line][column + 1 :]
    (root / file).write_text("".join(lines))
    assert check(root)[1:] == ([], 0)


CLOSED = [("", 0o700), ("ComfyUI", 0o700), ("ComfyUI/main.py", 0o600), ("ComfyUI/models", 0o755)]


@pytest.mark.parametrize(("place", "mode"), CLOSED)
def test_who_may_not_read_or_write_gets_the_right_to(public: Path, place: str, mode: int) -> None:
    furnished(public)
    (public / place).chmod(mode)
    found = {""}
    for _ in range(3):  # what is in a closed folder is seen when it is open
        done = run(public, user=_NO_ONE)
        found = set(codes(done))
        assert found <= {"volume.unreadable", "volume.not_writable"}, done.stdout
        for command in commands(done.stdout):
            if not command.startswith("chown"):  # the other way to the same
                typed(command)
        if not found:
            break
    assert not found


def test_a_read_only_volume_is_mounted_again(
    root: Path, tmp_path: Path, check: Callable[..., Shown]
) -> None:
    with mounted(tmp_path / "mount", "-o", "size=64m") as place:
        shutil.copytree(root, place, dirs_exist_ok=True)
        safetensors(place / "loras/x.safetensors")
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        shown = check(place)
        assert shown.codes == ["volume.read_only", "volume.models_misplaced"], shown.text
        assert "--fix" not in shown.text, "nothing can be moved"
        typed(commands(shown.text)[0])
        assert "volume.read_only" not in check(place).codes


def test_what_fills_a_volume_is_seen_and_removed(
    root: Path, tmp_path: Path, check: Callable[..., Shown]
) -> None:
    with mounted(tmp_path / "mount", "-o", "size=8m") as place:
        shutil.copytree(root, place, dirs_exist_ok=True)
        with pytest.raises(OSError, match="No space"):
            (place / "ComfyUI/models/large.iso").write_bytes(bytes(16 << 20))
        shown = check(place)
        assert shown.codes[0] == "volume.full" and shown.exit_code == 1, shown.text
        largest = [line.split("\t")[1] for line in typed(commands(shown.text)[0]).splitlines()]
        file = next(path for path in reversed(largest) if os.path.isfile(path))
        assert file.endswith("large.iso")
        os.unlink(file)
        assert "volume.full" not in check(place).codes


@pytest.mark.parametrize("typo", ["{}s", "{}/ComfyUI", "{}/ComfyUI/models", "{}/ComfyUI/main.py"])
def test_a_path_that_is_no_volume_gets_the_command_for_the_one_that_is_meant(
    root: Path, typo: str
) -> None:
    (root / "workflows").mkdir()
    done = run(typo.format(root))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 2
    assert "No problems found" in typed(commands(done.stderr)[0])


def _renamed(env: dict[str, str], shown: str) -> None:
    found = re.search(r"Rename (\w+) to (\w+) in the endpoint's", shown)
    assert found, shown
    env[found[2]] = env.pop(found[1])


def _set(env: dict[str, str], shown: str) -> None:
    found = re.search(r"Set (\w+)=(\S+) in the endpoint's", shown)
    assert found, shown
    env[found[1]] = found[2]


def _removed(env: dict[str, str], shown: str) -> None:
    found = re.search(r"Set (\w+) to .* or remove it to use the default", shown)
    assert found, shown
    del env[found[1]]


@pytest.mark.parametrize(
    ("name", "value", "code", "act"),
    [
        ("VOLUME_PAHT", "{}", "env.name_near", _renamed),
        ("volume_path", "{}", "env.name_case", _renamed),
        ("VOLUME_PATH", "{}s", "volume.not_found", _set),
        ("MAX_WAIT", "soon", "settings.invalid", _removed),
    ],
)
def test_a_variable_that_is_wrong_is_set_right(
    root: Path,
    name: str,
    value: str,
    code: str,
    act: Callable[[dict[str, str], str], None],
    check: Callable[..., Shown],
) -> None:
    env = {name: value.format(root)}
    named = [] if "path" in name.lower() or "PAHT" in name else [str(root)]
    shown = check(*named, **env)
    assert code in shown.codes, shown.text
    act(env, " ".join(shown.text.split()))
    assert check(*named, **env)[1:] == ([], 0)
