"""scripts/check_volume.py as a person runs it: the real program on real folders."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootstrap.core.text import MB
from bootstrap.volume.find_comfyui import USUAL_ROOTS
from scripts.check_volume import main
from scripts.one_file import write
from scripts.printing import ScanProgress
from tests.support.model_folders import safetensors
from tests.support.volumes import healthy

ROOT = Path(__file__).parents[2]
CHECKER = ROOT / "scripts" / "check_volume.py"
_NO_ONE = 65534


def run(
    *arguments: object, user: int | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """The checker, with nothing set that a person has not set; as another user, who may not reach
    this Python, from the moment that its modules are imported."""
    as_another = (
        f"import encodings.utf_8_sig, os, sys; sys.path[:0] = {[str(ROOT), *sys.path]!r}\n"
        "from scripts.check_volume import main\n"
        f"os.setgroups([]); os.setgid({user}); os.setuid({user}); sys.exit(main(sys.argv[1:]))"
    )
    program = [str(CHECKER)] if user is None else ["-c", as_another]
    return subprocess.run(
        [sys.executable, *program, *map(str, arguments)],
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **env},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def codes(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Of the findings that it printed, in order."""
    return re.findall(r"\[(\w+\.\w+)\]", done.stdout)


def tensors(path: Path, *names: str) -> Path:
    """A whole safetensors file with tensors of these names."""
    header = {
        name: {"dtype": "F16", "shape": [2], "data_offsets": [4 * i, 4 * i + 4]}
        for i, name in enumerate(names)
    }
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(range(1, 4 * len(names) + 1)))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small fit volume with a real model."""
    return furnished(healthy(tmp_path / "volume"))


def furnished(volume: Path) -> Path:
    """With all that a ComfyUI needs to be whole."""
    safetensors(volume / "ComfyUI/models/checkpoints/real.safetensors")
    for name in ("execution", "server"):
        (volume / f"ComfyUI/{name}.py").write_text("#")
    for path in volume.glob("ComfyUI/*.py"):
        path.write_text("#")
    for name in ("comfy", "comfy_extras"):
        (volume / "ComfyUI" / name).mkdir(exist_ok=True)
        (volume / "ComfyUI" / name / "__init__.py").write_text("#")
    return volume


def test_a_fit_volume_passes_and_what_was_not_checked_is_said_once(root: Path) -> None:
    done = run(root)
    assert (done.returncode, codes(done)) == (0, []), done.stdout
    assert done.stdout.count("packages were not checked") == 1
    assert "1 model," in done.stdout


@pytest.fixture
def public() -> Iterator[Path]:
    """A fit volume in a folder that every user reaches; pytest's own are closed."""
    if os.geteuid() != 0:
        pytest.skip("only root can look as another")
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield healthy(Path(name) / "volume")


@pytest.mark.parametrize("closed", ["volume", ""])
def test_a_volume_that_may_not_be_read_is_an_error(public: Path, closed: str) -> None:
    folder = public.parent / closed
    folder.chmod(0o700)
    try:
        done = run(public, user=_NO_ONE)
    finally:
        folder.chmod(0o755)
    assert (done.returncode, codes(done)) == (1, ["volume.unreadable"]), done.stdout + done.stderr
    assert f"\n      chmod a+rx {folder}\n" in done.stdout
    assert f"\n      chown {_NO_ONE} {folder}\n" in done.stdout


def test_a_part_that_fails_never_passes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("deliberate")

    for part in ("locate", "gather_volume", "gather_models", "gather_comfyui"):
        with monkeypatch.context() as patch:
            patch.setattr(f"bootstrap.doctor.facts.{part}", fail)
            assert main([str(root)], {}) == 1, part
    monkeypatch.setattr("bootstrap.doctor.facts.gather_machine", fail)
    assert main([str(root)], {}) == 0, "it says nothing about the volume"


@pytest.mark.parametrize(
    "path", ["/", "//", "/.", "/home", "/usr/", "/usr/local", "/etc", "/proc/1"]
)
def test_a_folder_of_the_system_is_refused(path: str) -> None:
    for done in (run(path, "--fix"), run("--fix", "--yes", VOLUME_PATH=path)):
        assert done.returncode == 2
        assert "system's own folders" in done.stderr and "/workspace" in done.stderr
        assert done.stdout == "" and "Make" not in done.stderr and "mkdir" not in done.stderr


@pytest.mark.parametrize(
    "part", ["models", "ComfyUI", "ComfyUI/models", "ComfyUI/models/loras", "ComfyUI/custom_nodes"]
)
def test_a_part_of_a_volume_is_refused_with_the_volume_to_check(root: Path, part: str) -> None:
    (root / part).mkdir(parents=True, exist_ok=True)
    (root / "workflows").mkdir()  # what a volume has, and a ComfyUI's parent folder elsewhere not
    done = run(root / part)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines()[1:] == [f"  python3 {CHECKER} {root}"]
    assert run(VOLUME_PATH=str(root / part)).stderr == done.stderr


def test_a_volume_that_is_a_comfyui_is_one(root: Path, tmp_path: Path) -> None:
    assert run(root / "ComfyUI").returncode == 0, "on a machine's own disk"
    os.rename(root / "ComfyUI", tmp_path / "ours")
    assert run(tmp_path / "ours").returncode == 0


def test_a_file_is_refused_with_the_volume_to_check(root: Path) -> None:
    (root / "workflows").mkdir()
    done = run(root / "ComfyUI/main.py")
    assert done.returncode == 2 and "is a file on the volume at" in done.stderr
    assert done.stderr.splitlines()[1:] == [f"  python3 {CHECKER} {root}"]
    assert "Name the folder where the volume is mounted" in run(CHECKER).stderr


def test_the_command_that_is_suggested_is_the_one_that_was_run(root: Path) -> None:
    one = root / "my checker.py"
    write(one)
    env = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
    near = f"{root}s"
    for words, start in (
        (["my checker.py"], f"python3 'my checker.py' {root}"),
        (["-"], f"| python3 - {root}"),
    ):
        with one.open("rb") as source:
            done = subprocess.run(
                [sys.executable, *words, near],
                stdin=source,
                env=env,
                cwd=root,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        assert done.returncode == 2 and done.stderr.endswith(f"{start}\n"), done.stderr


def test_a_misspelt_path_is_corrected(root: Path) -> None:
    near = f"{root}s"
    said = run(near).stderr
    assert said.endswith(f"Did you mean this?\n  python3 {CHECKER} {root}\n")
    assert "Did you mean" not in run("/workspace").stderr  # /work is none
    done = run(VOLUME_PATH=near)
    assert (done.returncode, codes(done)) == (1, ["volume.not_found"])
    assert f"Did you mean {root}?" in " ".join(done.stdout.split())
    for slip in ("/workspac", "workspac"):
        assert run(slip).stderr.endswith(f"python3 {CHECKER} /workspace\n"), slip
    assert "Did you mean /workspace?" in run(VOLUME_PATH="/workspac").stdout


def test_what_comfyui_brings_is_not_a_model(root: Path) -> None:
    models = root / "ComfyUI/models"
    (models / "checkpoints/real.safetensors").unlink()
    for name in ("configs/v1-inference.yaml", "checkpoints/put_checkpoints_here"):
        (models / name).parent.mkdir(exist_ok=True)
        (models / name).write_text("")
    (models / "loras/gone.safetensors").symlink_to("/nowhere/gone.safetensors")
    done = run(root)
    assert "models.none" in codes(done)
    assert "0 models" in done.stdout


LORA = "lora_unet_x.lora_down.weight"
CHECKPOINT = ("model.diffusion_model.x", "first_stage_model.x")


def test_single_models_are_moved_to_where_their_contents_say(root: Path) -> None:
    tensors(root / "a.safetensors", LORA)
    tensors(root / "ComfyUI/b.safetensors", *CHECKPOINT)
    tensors(root / "ComfyUI/models/c.safetensors", "decoder.conv_in.weight")
    unknown = tensors(root / "d.safetensors", "weight")
    taken = tensors(root / "ComfyUI/models/loras/e.safetensors", LORA, "other")
    kept = tensors(root / "e.safetensors", LORA)
    seen = run(root, "--fix", "--dry-run")
    assert {"volume.models_loose", "models.outside_category"} <= {*codes(seen)}
    plan = ["a.safetensors → ComfyUI/models/loras/", "b.safetensors → ComfyUI/models/checkpoints/"]
    assert all(f"{line}\n" in seen.stderr for line in plan) and (root / "a.safetensors").exists()
    run(root, "--fix", "--yes")
    models = root / "ComfyUI/models"
    for place in ("loras/a.safetensors", "checkpoints/b.safetensors", "vae/c.safetensors"):
        assert (models / place).is_file(), place
    assert unknown.is_file() and kept.is_file()
    assert kept.read_bytes() != taken.read_bytes()
    assert "d.safetensors and e.safetensors" not in run(root).stdout
    assert "volume.models_loose" in codes(run(root))


def test_a_model_that_is_cut_off_is_not_moved(root: Path) -> None:
    file = tensors(root / "ComfyUI/models/c.safetensors", "decoder.conv_in.weight")
    os.truncate(file, file.stat().st_size - 1)
    assert codes(run(root, "--fix", "--yes")) == ["models.truncated"]
    assert file.is_file()


def test_misnamed_folders_are_repaired_and_nothing_is_overwritten(root: Path) -> None:
    models = root / "ComfyUI/models"
    for folder in ("lora", "Checkpoints"):
        safetensors(models / folder / "sub/new.safetensors")
    safetensors(models / "loras/sub/old.safetensors")
    safetensors(models / "lora/sub/old.safetensors", 128)
    seen = run(root)
    assert sorted(codes(seen)) == ["models.folder_misnamed", "volume.wrong_case"]
    assert seen.stdout.count("--fix repairs this.") == 2
    run(root, "--fix", "--yes")
    assert (models / "loras/sub/new.safetensors").is_file()
    assert (models / "checkpoints/sub/new.safetensors").is_file()
    assert not (models / "Checkpoints").exists()
    assert (models / "lora/sub/old.safetensors").is_file(), "its name is taken"


def test_a_link_is_made_relative_where_what_it_means_is_there(root: Path) -> None:
    models = root / "ComfyUI/models"
    safetensors(root / "store/x.safetensors")
    (models / "loras/x.safetensors").symlink_to("/workspace/store/x.safetensors")
    (models / "loras/y.safetensors").symlink_to("/workspace/store/gone.safetensors")
    done = run(root, LINK_OTHER_MOUNT="false")
    assert sorted(codes(done)) == ["models.link_broken", "models.link_other_mount"]
    assert done.stdout.count("ln -sfn") == 1
    assert "models/loras/x.safetensors → /workspace/store" in " ".join(done.stdout.split())
    run(root, "--fix", "--yes")
    assert os.readlink(models / "loras/x.safetensors") == "../../../store/x.safetensors"
    assert (models / "loras/y.safetensors").is_symlink()
    assert codes(run(root)) == ["models.link_broken"]


@pytest.mark.parametrize(
    ("text", "code"),
    [("../../gone", "links.broken"), ("sams", "links.endless"), ("{away}", "links.outward")],
)
def test_a_link_is_reported_once(root: Path, text: str, code: str) -> None:
    safetensors(root.parent / "away/x.safetensors")
    (root / "ComfyUI/models/sams").symlink_to(text.format(away=root.parent / "away"))
    assert codes(run(root)) == [code]


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        (b'{"version": 1,\n "models": [\n  {},\n ]}', "manifest.unreadable", "line 3, column 5"),
        (b'{"version": 1, "models": [],}', "manifest.unreadable", "a trailing comma in line 1"),
        (b"models", "manifest.unreadable", "line 1, column 1"),
        (b"[]", "manifest.shape", "not a JSON object"),
        (b'{"version": 1, "models": {}}', "manifest.shape", "not a list"),
        (b'{"version": 1, "models": [{"name": 1}]}', "manifest.field", "models[0]"),
    ],
)
def test_a_faulty_manifest_is_reported(root: Path, text: bytes, code: str, said: str) -> None:
    (root / "models.json").write_bytes(text)
    done = run(root)
    assert done.returncode == 1 and code in codes(done), done.stdout
    assert said in " ".join(done.stdout.split())


def test_a_manifest_with_a_bom_is_fine(root: Path) -> None:
    (root / "models.json").write_bytes(b'\xef\xbb\xbf{"version": 1, "models": []}')
    assert run(root).returncode == 0


def test_an_unresolved_secret_is_this_machines_and_reported_once(root: Path) -> None:
    secret = "{{ RUNPOD_SECRET_hf }}"
    done = run(root, HF_TOKEN=secret)
    assert (done.returncode, codes(done)) == (0, []), done.stdout
    told = run(root, "-v", HF_TOKEN=secret)
    assert told.returncode == 0 and codes(told).count("env.token_unresolved") == 1
    worker = run(root, HF_TOKEN=secret, RUNPOD_WEBHOOK_GET_JOB="x")
    assert codes(worker).count("env.token_unresolved") == 1
    assert "settings.invalid" not in codes(worker)
    spaced = run(root, HF_TOKEN="Bearer hf_x", RUNPOD_WEBHOOK_GET_JOB="x")
    assert [c for c in codes(spaced) if c.startswith(("env.token", "settings"))] == [
        "settings.invalid"
    ]


def test_a_volume_path_that_is_not_valid_is_the_only_thing_said_of_it() -> None:
    if any(usual.exists() for usual in USUAL_ROOTS):
        pytest.skip("a usual mount point is there")
    found = codes(run(VOLUME_PATH="data"))
    assert "settings.invalid" in found and "volume.not_found" not in found
    assert "volume.not_found" in codes(run())


def test_a_volume_of_models_only_is_offered_the_image_that_has_comfyui(root: Path) -> None:
    os.rename(root / "ComfyUI/models", root / "models")
    shutil.rmtree(root / "ComfyUI")
    done = run(root)
    assert codes(done)[0] == "comfyui.not_found"
    assert "latest-comfyui" in done.stdout and "models but no ComfyUI" in done.stdout
    bake = (ROOT / "docker-bake.hcl").read_text()
    assert '"${IMAGE}:${TAG}-comfyui"' in bake


@pytest.mark.parametrize("program", ["scripts/check_volume.py", "scripts/one_file.py"])
def test_an_old_python_gets_as_far_as_the_sentence(program: str) -> None:
    """What stands before the sentence, and all that is compiled with it, is syntax of 3.6."""
    source = (ROOT / program).read_text()
    if program.endswith("one_file.py"):
        source = re.search(r"_HEAD = r'''(.*?)'''", source, re.DOTALL)[1]  # type: ignore[index]
    ast.parse(source, feature_version=(3, 6))
    assert "__future__" not in source
    assert "needs Python 3.10 or newer" in source and "sys.exit(2)" in source


@pytest.mark.parametrize("version", ["3.6", "3.7", "3.8", "3.9"])
def test_old_pythons_that_are_here_say_the_sentence(version: str, tmp_path: Path) -> None:
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    found = [*versions.glob(f"{version}.*/bin/python3"), shutil.which(f"python{version}")]
    old = next((str(python) for python in found if python), None)
    if old is None:
        pytest.skip(f"there is no Python {version} here")
    one = tmp_path / "check_volume.py"
    write(one)
    for program in (CHECKER, one):
        done = subprocess.run([old, str(program)], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(r"check_volume.py needs Python 3.10 or newer; .*\n", done.stderr)


def test_make_checker_says_what_it_wrote(tmp_path: Path) -> None:
    target = tmp_path / "dist" / "check_volume.py"
    done = subprocess.run(
        [sys.executable, "-m", "scripts.one_file", str(target)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{target}\n"
    assert 10_000 < target.stat().st_size < 3 * MB


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_a_long_look_shows_on_a_terminal_how_far_it_is(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([100.0, 100.5, 102.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys, "stderr", stream)
    with ScanProgress("looking at the volume") as progress:
        progress.update(7)  # too early to be worth a line
        progress.update(1234)
    shown = "\rlooking at the volume: 1,234 files and folders \r\033[K"
    assert stream.getvalue() == (shown if stream.isatty() else "")
