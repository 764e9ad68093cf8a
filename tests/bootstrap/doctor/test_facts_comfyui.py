"""Reading a ComfyUI's folder: version, completeness, git, node packs."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from bootstrap.doctor.facts import comfyui as facts
from bootstrap.doctor.facts.comfyui import gather_comfyui
from bootstrap.environment.node_packs import MOST_PACKS, Pack, PackState, look_at_git

FILES = {
    "main.py": "import comfy.options\nfrom app.logger import setup\nimport cuda_malloc\n",
    "nodes.py": "from comfy_execution.utils import x\n",
    "execution.py": "import nodes\n",
    "server.py": "import aiohttp\n",
    "folder_paths.py": "import os\n",
    "cuda_malloc.py": "import os\n",
    "comfy/options.py": "",
    "comfy_extras/nodes_canny.py": "",
    "comfy_execution/utils.py": "",
    "app/logger.py": "",
    "comfyui_version.py": '# generated\n__version__ = "0.3.75"\n',
    "pyproject.toml": '[project]\nversion = "0.3.74"\nrequires-python = ">=3.9"\n',
    "requirements.txt": "torch\naiohttp>=3.11.8\n",
}


@pytest.fixture
def comfyui(tmp_path: Path) -> Path:
    """A small tree in which nothing is missing."""
    for name, text in FILES.items():
        write(tmp_path / "ComfyUI" / name, text)
    (tmp_path / "ComfyUI" / "custom_nodes").mkdir()
    return tmp_path / "ComfyUI"


def write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    subprocess.run(command, check=True, capture_output=True)


def packs_of(comfyui: Path) -> dict[str, Pack]:
    return {pack.name: pack for pack in gather_comfyui(comfyui).packs}


def lines_of(pack: Pack) -> tuple[str, ...]:
    return pack.requirements.lines if pack.requirements else ()


def test_a_complete_tree(comfyui: Path) -> None:
    found = gather_comfyui(comfyui)
    assert (found.version, found.version_source) == ("0.3.75", "comfyui_version.py")
    assert (found.missing, found.packs, found.git) == ((), (), None)
    assert found.own is not None
    assert found.own.lines == ("torch", "aiohttp>=3.11.8")


@pytest.mark.parametrize("name", ["nodes.py", "cuda_malloc.py", "server.py", "folder_paths.py"])
def test_a_missing_or_blank_file(comfyui: Path, name: str) -> None:
    (comfyui / name).unlink()
    shown = "cuda_malloc" if name == "cuda_malloc.py" else name
    assert gather_comfyui(comfyui).missing == (shown,)


def test_a_file_that_a_full_volume_left_blank(comfyui: Path) -> None:
    (comfyui / "nodes.py").write_text("")
    # What nodes.py would import is then not known to be needed.
    assert gather_comfyui(comfyui).missing == ("nodes.py",)


@pytest.mark.parametrize("name", ["comfy", "comfy_execution", "app", "comfy_extras"])
def test_an_empty_folder_is_a_missing_one(comfyui: Path, name: str) -> None:
    for file in (comfyui / name).iterdir():
        file.unlink()
    (comfyui / name / "__pycache__").mkdir()
    assert gather_comfyui(comfyui).missing == (name,)


def test_what_no_file_imports_need_not_be_there(comfyui: Path) -> None:
    """As in a version of 2023, which had no such folder."""
    (comfyui / "main.py").write_text("import comfy.options\n")
    (comfyui / "app" / "logger.py").unlink()
    (comfyui / "app").rmdir()
    assert gather_comfyui(comfyui).missing == ()


def test_the_version_from_pyproject_then_from_a_tag(comfyui: Path) -> None:
    (comfyui / "comfyui_version.py").unlink()
    assert gather_comfyui(comfyui).version_source == "pyproject.toml"
    (comfyui / "pyproject.toml").unlink()
    assert gather_comfyui(comfyui).version is None
    git(comfyui, "init")
    git(comfyui, "add", ".")
    git(comfyui, "commit", "-m", "all")
    git(comfyui, "tag", "-a", "v0.2.2", "-m", "annotated")
    git(comfyui, "pack-refs", "--all")
    found = gather_comfyui(comfyui)
    assert (found.version, found.version_source) == ("0.2.2", "git")


@pytest.mark.parametrize(
    ("config", "origin"),
    [
        ('[remote "origin"]\n' + "        fetch = +refs\n" * 2000, None),
        ('[remote "origin"]\n' + "        \n" * 6000 + "\turl = https://a.example/x\n", "x"),
        (
            '[core]\n\turl = https://a.example/no\n[remote "origin"]\nurl=https://a.example/x',
            "x",
        ),
        ('[remote "origin"]\n\tfetch = +refs\n[remote "b"]\n\turl = https://a.example/no\n', None),
        ('[remote "origin"] ; mine\n\tURL=https://a.example/x\n', "x"),
    ],
)
def test_a_git_config_is_read_line_by_line(tmp_path: Path, config: str, origin: str | None) -> None:
    """The first one hung a boot: no url, and a pattern with exponential backtracking on spaces."""
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/HEAD").write_text("ref: refs/heads/main\n")
    (tmp_path / ".git/config").write_text(config)
    found = look_at_git(str(tmp_path))
    assert found is not None
    assert found.origin == (origin and f"https://a.example/{origin}")


def test_git_without_its_secrets(tmp_path: Path) -> None:
    git(tmp_path, "init", "-b", "master")
    address = "https://someone:marker-token@example.org/pack.git"
    git(tmp_path, "remote", "add", "origin", address)
    found = look_at_git(str(tmp_path))
    assert found is not None
    assert (found.branch, found.commit) == ("master", None)
    assert found.origin == "https://example.org/pack.git"
    (tmp_path / "a").touch()
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "one")
    git(tmp_path, "checkout", "--detach")
    found = look_at_git(str(tmp_path))
    assert found is not None
    assert found.branch is None
    assert found.commit is not None
    assert look_at_git(str(tmp_path / "nothing")) is None


@pytest.mark.parametrize("name", [".git", ".git/HEAD"])
def test_a_damaged_checkout_that_names_an_impossible_path(tmp_path: Path, name: str) -> None:
    """A full volume leaves zeros in place of what was written."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(f"{'gitdir:' if name == '.git' else 'ref: refs/heads/'} a\0b\n")
    found = look_at_git(str(tmp_path))
    assert found is None or found.commit is None


def test_packs_as_comfyui_would_try_them(comfyui: Path, tmp_path: Path) -> None:
    home = comfyui / "custom_nodes"
    write(home / "good" / "__init__.py")
    write(home / "good" / "install.py")
    write(home / "single.py")
    write(home / "off.disabled" / "__init__.py")
    write(home / "off.py.disabled")
    write(home / "notes.txt")
    write(home / "example_node.py.example")
    write(home / ".git" / "HEAD")
    write(home / "__pycache__" / "x.pyc")
    write(tmp_path / "elsewhere" / "__init__.py")
    (home / "linked").symlink_to(tmp_path / "elsewhere")
    packs = packs_of(comfyui)
    assert sorted(packs) == ["good", "linked", "off.disabled", "off.py.disabled", "single.py"]
    assert all(pack.state is PackState.GOOD for pack in packs.values())
    assert [n for n, p in packs.items() if p.disabled] == ["off.disabled", "off.py.disabled"]
    assert packs["good"].install_script
    assert len(gather_comfyui(comfyui).active) == 3


def test_packs_that_cannot_be_imported(comfyui: Path) -> None:
    home = comfyui / "custom_nodes"
    (home / "empty").mkdir()
    (home / "cut_off").mkdir()
    git(home / "cut_off", "init")
    git(home / "cut_off", "remote", "add", "origin", "https://example.org/cut_off")
    write(home / "deep" / "deep-main" / "__init__.py", "NODE_CLASS_MAPPINGS = {}\n")
    write(home / "no_pack" / "readme.md")
    (home / "dangling").symlink_to("/workspace/nowhere")
    packs = packs_of(comfyui)
    assert packs["empty"].state is PackState.EMPTY
    assert not packs["empty"].only_git
    assert packs["cut_off"].state is PackState.EMPTY
    assert packs["cut_off"].only_git
    assert packs["cut_off"].origin == "https://example.org/cut_off"
    assert (packs["deep"].state, packs["deep"].inner) == (PackState.NO_INIT, "deep-main")
    assert (packs["no_pack"].state, packs["no_pack"].inner) == (PackState.NO_INIT, None)
    assert packs["dangling"].state is PackState.LINK_BROKEN


def test_requirements_and_what_they_include(comfyui: Path) -> None:
    home = comfyui / "custom_nodes"
    pack = home / "pack"
    write(pack / "__init__.py")
    write(pack / "requirements.txt", "a\n-r more/b.txt\n-r ../../requirements.txt\n-r gone.txt\n")
    write(pack / "more" / "b.txt", "b\n-r ../requirements.txt\n-r c.txt\n")
    write(pack / "more" / "c.txt", "c\n")
    write(home / "modern" / "__init__.py")
    write(home / "modern" / "pyproject.toml", '[project]\ndependencies = ["d>=1"]\n')
    write(home / "powershell" / "__init__.py")
    (home / "powershell" / "requirements.txt").write_bytes("e\r\n".encode("utf-16"))
    packs = packs_of(comfyui)
    lines = {n: p.requirements.lines for n, p in packs.items() if p.requirements}
    assert lines == {"pack": ("a", "b", "c"), "modern": (), "powershell": ("e",)}
    modern = packs["modern"].requirements
    assert modern is not None and modern.toml is not None
    assert modern.path == str(home / "modern" / "pyproject.toml")


def test_an_include_cannot_leave_its_pack_by_a_link(comfyui: Path, tmp_path: Path) -> None:
    pack = comfyui / "custom_nodes" / "pack"
    write(tmp_path / "outside.txt", "secret\n")
    write(pack / "__init__.py")
    write(pack / "requirements.txt", "a\n-r link.txt\n")
    (pack / "link.txt").symlink_to(tmp_path / "outside.txt")
    assert lines_of(packs_of(comfyui)["pack"]) == ("a",)


def test_a_pack_reached_by_a_link_is_read(comfyui: Path, tmp_path: Path) -> None:
    write(tmp_path / "real" / "__init__.py")
    write(tmp_path / "real" / "requirements.txt", "a\n")
    (comfyui / "custom_nodes" / "pack").symlink_to(tmp_path / "real")
    assert lines_of(packs_of(comfyui)["pack"]) == ("a",)


def test_the_facts_are_bounded_and_fit_into_json(comfyui: Path) -> None:
    home = comfyui / "custom_nodes"
    for number in range(MOST_PACKS + 5):
        write(home / f"pack{number:04}{'x' * 200}" / "__init__.py")
    (home / "caf\udce9").mkdir()
    found = gather_comfyui(comfyui)
    assert len(found.packs) == MOST_PACKS
    text = json.dumps(found.as_dict())
    assert len(text) < 100_000


def test_no_folder_at_all(tmp_path: Path) -> None:
    found = gather_comfyui(tmp_path / "nothing")
    assert (found.missing, found.packs, found.own) == ((), (), None)


def test_a_volume_that_does_not_answer(comfyui: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "read_text", lambda path: time.sleep(60))
    monkeypatch.setattr(facts, "GATHER_SECONDS", 0.05)
    found = gather_comfyui(comfyui)
    assert found.silent_after == 0.05
    assert found.missing == ()
