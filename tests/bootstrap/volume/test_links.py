"""Link plans on real file systems: what becomes visible, what survives, and concurrent workers."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bootstrap.config import Settings
from bootstrap.core.findings import Finding, Severity
from bootstrap.volume import links
from bootstrap.volume.link_plan import LinkPlan
from bootstrap.volume.links import link_models, plan_for
from bootstrap.volume.locate import Layout, locate
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[3]
OLD_FOLDER_PATHS = """
folder_names_and_paths["clip"] = ([os.path.join(models_dir, "clip")], supported_pt_extensions)
folder_names_and_paths["unet"] = ([os.path.join(models_dir, "unet")], supported_pt_extensions)
folder_names_and_paths["loras"] = ([os.path.join(models_dir, "loras")], supported_pt_extensions)
"""
NEW_FOLDER_PATHS = """
folder_names_and_paths["text_encoders"] = ([os.path.join(models_dir, "text_encoders"),
    os.path.join(models_dir, "clip")], supported_pt_extensions)
folder_names_and_paths["diffusion_models"] = ([os.path.join(models_dir, "unet"),
    os.path.join(models_dir, "diffusion_models")], supported_pt_extensions)
folder_names_and_paths["loras"] = ([os.path.join(models_dir, "loras")], supported_pt_extensions)
"""


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    root = tmp_path / "volume"
    write(root / "ComfyUI/main.py", "")
    return root


def write(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def layout(volume: Path, image: Path | None = None) -> Layout:
    return locate(Settings(volume_path=volume, comfyui_dir=image))


def link(volume: Path, image: Path | None = None) -> list[Finding]:
    return link_models(layout(volume, image))


def nothing_left_to_do(volume: Path, image: Path | None = None) -> bool:
    return plan_for(layout(volume, image)).actions == ()


def codes(findings: list[Finding]) -> list[str]:
    return [finding.code for finding in findings]


def test_a_whole_folder_is_linked_where_comfyui_has_none(volume: Path) -> None:
    write(volume / "models/loras/a.pt", "a")
    assert codes(link(volume)) == ["links.made"]
    assert os.readlink(volume / "ComfyUI/models") == "../models"
    assert link(volume) == []


def test_a_category_is_linked_where_comfyui_lacks_it(volume: Path) -> None:
    write(volume / "models/loras/a.pt", "a")
    write(volume / "ComfyUI/models/vae/b.pt", "b")
    link(volume)
    assert os.readlink(volume / "ComfyUI/models/loras") == "../../models/loras"
    assert (volume / "ComfyUI/models/vae/b.pt").read_text() == "b"
    assert nothing_left_to_do(volume)


def test_files_are_linked_where_comfyui_has_the_category(volume: Path) -> None:
    write(volume / "models/loras/a.pt", "a")
    write(volume / "ComfyUI/models/loras/put_loras_here", "")
    link(volume)
    assert (volume / "ComfyUI/models/loras/a.pt").read_text() == "a"
    assert (volume / "ComfyUI/models/loras/put_loras_here").exists()
    assert nothing_left_to_do(volume)


def test_links_survive_a_volume_that_is_mounted_elsewhere(volume: Path, tmp_path: Path) -> None:
    write(volume / "models/loras/a.pt", "a")
    write(volume / "models/vae/b.pt", "b")
    write(volume / "ComfyUI/models/vae/put_vae_here", "")
    link(volume)
    elsewhere = volume.rename(tmp_path / "workspace")
    assert (elsewhere / "ComfyUI/models/loras/a.pt").read_text() == "a"
    assert (elsewhere / "ComfyUI/models/vae/b.pt").read_text() == "b"
    assert link(elsewhere) == []


def test_links_from_a_comfyui_in_the_image_are_absolute(volume: Path, tmp_path: Path) -> None:
    (volume / "ComfyUI/main.py").unlink()
    image = tmp_path / "image/ComfyUI"
    write(image / "main.py", "")
    write(image / "models/vae/put_vae_here", "")
    write(volume / "models/loras/a.pt", "a")
    write(volume / "ComfyUI/models/vae/b.pt", "b")
    link(volume, image)
    assert os.readlink(image / "models/loras") == str(volume / "models/loras")
    assert (image / "models/vae/b.pt").read_text() == "b"
    assert nothing_left_to_do(volume, image)


def test_a_volume_reached_by_a_link_gets_relative_links(volume: Path, tmp_path: Path) -> None:
    write(volume / "models/loras/a.pt", "a")
    (tmp_path / "mount").symlink_to(volume)
    link(tmp_path / "mount")
    assert os.readlink(volume / "ComfyUI/models") == "../models"
    assert link(volume) == []


def test_a_comfyui_that_knows_only_the_old_names_finds_models_of_the_new(volume: Path) -> None:
    write(volume / "ComfyUI/folder_paths.py", OLD_FOLDER_PATHS)
    write(volume / "models/text_encoders/t5.pt", "t5")
    write(volume / "models/clip/l.pt", "l")
    write(volume / "models/diffusion_models/flux.pt", "flux")
    link(volume)
    models = volume / "ComfyUI/models"
    assert (models / "clip/t5.pt").read_text() == "t5"
    assert (models / "clip/l.pt").read_text() == "l"
    assert (models / "unet/flux.pt").read_text() == "flux"
    assert not (volume / "models/unet").exists()
    assert nothing_left_to_do(volume)


def test_a_comfyui_that_knows_both_names_gets_each_file_once(volume: Path) -> None:
    write(volume / "ComfyUI/folder_paths.py", NEW_FOLDER_PATHS)
    write(volume / "models/text_encoders/t5.pt", "t5")
    write(volume / "models/unet/flux.pt", "flux")
    link(volume)
    found = sorted(p.relative_to(volume / "models") for p in (volume / "models").rglob("*.pt"))
    assert found == [Path("text_encoders/t5.pt"), Path("unet/flux.pt")]
    assert os.readlink(volume / "ComfyUI/models") == "../models"


def test_different_files_of_one_name_are_a_conflict_that_names_both(volume: Path) -> None:
    mine = write(volume / "ComfyUI/models/loras/a.pt", "mine")
    theirs = write(volume / "models/loras/a.pt", "theirs")
    (finding,) = link(volume)
    assert (finding.code, finding.severity) == ("links.conflict", Severity.WARNING)
    assert finding.details == {"source": str(theirs), "place": str(mine)}
    assert (mine.read_text(), theirs.read_text()) == ("mine", "theirs")


def test_the_same_file_twice_is_not_a_conflict(volume: Path) -> None:
    content = "same" * 50_000
    write(volume / "ComfyUI/models/loras/a.pt", content)
    write(volume / "models/loras/a.pt", content)
    assert link(volume) == []


@pytest.mark.parametrize("position", [0, 199_999])
def test_files_of_one_size_that_differ_at_an_end_are_a_conflict(
    volume: Path, position: int
) -> None:
    content = "same" * 50_000
    write(volume / "ComfyUI/models/loras/a.pt", content)
    write(volume / "models/loras/a.pt", content[:position] + "X" + content[position + 1 :])
    assert codes(link(volume)) == ["links.conflict"]


def test_our_broken_links_go_and_anothers_stay(volume: Path) -> None:
    write(volume / "ComfyUI/models/loras/put_loras_here", "")
    model = write(volume / "models/loras/a.pt", "a")
    link(volume)
    foreign = volume / "ComfyUI/models/loras/b.pt"
    foreign.symlink_to("/nowhere/b.pt")
    model.unlink()
    (finding,) = link(volume)
    assert "removed 1 of our links" in finding.message
    assert not os.path.lexists(volume / "ComfyUI/models/loras/a.pt")
    assert os.readlink(foreign) == "/nowhere/b.pt"


def test_our_links_go_with_their_category_and_with_the_whole_folder(volume: Path) -> None:
    write(volume / "ComfyUI/models/loras/put_loras_here", "")
    model = write(volume / "models/loras/a.pt", "a")
    link(volume)
    model.unlink()
    model.parent.rmdir()
    model.parent.parent.rmdir()
    link(volume)
    assert os.listdir(volume / "ComfyUI/models/loras") == ["put_loras_here"]


def test_a_link_that_leads_somewhere_again_is_not_removed(volume: Path) -> None:
    write(volume / "ComfyUI/models/loras/put_loras_here", "")
    model = write(volume / "models/loras/a.pt", "a")
    link(volume)
    model.unlink()
    planned = plan_for(layout(volume))
    assert len(planned.actions) == 1
    write(model, "back")
    assert links.apply(planned, []) == []
    assert (volume / "ComfyUI/models/loras/a.pt").read_text() == "back"


def test_a_real_file_that_took_a_links_place_is_not_removed(volume: Path) -> None:
    write(volume / "ComfyUI/models/loras/put_loras_here", "")
    model = write(volume / "models/loras/a.pt", "a")
    link(volume)
    model.unlink()
    planned = plan_for(layout(volume))
    place = volume / "ComfyUI/models/loras/a.pt"
    place.unlink()
    write(place, "precious")
    assert links.apply(planned, []) == []
    assert sorted(os.listdir(place.parent)) == ["a.pt", "put_loras_here"]
    assert place.read_text() == "precious"


def test_a_link_that_another_worker_removes_while_it_is_read_ends_nothing(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's realpath looks whether there is a link, and raises when it cannot read it then."""
    write(volume / "ComfyUI/models/loras/put_loras_here", "")
    write(volume / "elsewhere/b.pt", "b")
    fleeting = volume / "ComfyUI/models/new"
    fleeting.symlink_to("../../elsewhere")
    write(volume / "models/loras/a.pt", "a")
    read = os.readlink

    def removed_meanwhile(path: str | Path) -> str:
        if Path(path) == fleeting:
            fleeting.unlink(missing_ok=True)
        return read(path)

    monkeypatch.setattr(os, "readlink", removed_meanwhile)
    assert codes(link(volume)) == ["links.made"]
    assert not fleeting.is_symlink()
    assert (volume / "ComfyUI/models/loras/a.pt").read_text() == "a"


def test_without_comfyui_nothing_is_done(tmp_path: Path) -> None:
    write(tmp_path / "models/loras/a.pt", "a")
    assert link(tmp_path) == []
    assert plan_for(layout(tmp_path)) == LinkPlan()


def test_a_volume_that_cannot_be_written_is_said_once(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        write(volume / f"models/loras/{number}.pt", "x")
    write(volume / "ComfyUI/models/loras/put_loras_here", "")

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "symlink", refuse)
    (finding,) = link(volume)
    assert (finding.code, finding.severity) == ("links.not_writable", Severity.ERROR)
    assert "Read-only file system" in finding.message


def test_a_folder_that_may_not_be_written_is_said_once_and_the_others_are_linked(
    volume: Path,
) -> None:
    for name in ("loras", "vae"):
        for number in range(3):
            write(volume / f"models/{name}/{number}.pt", "x")
        write(volume / f"ComfyUI/models/{name}/put_here", "")
    script = (
        "import os, sys; from pathlib import Path; from bootstrap.volume.links import link_models\n"
        "from bootstrap.config import Settings; from bootstrap.volume import locate\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "found = link_models(locate(Settings(volume_path=Path(sys.argv[1]))))\n"
        "print(*(f'{f.code} {f.message}' for f in found), sep='\\n')\n"
    )
    for folder in (*volume.parents, volume):
        if folder.is_relative_to(tempfile.gettempdir()) and folder != Path(tempfile.gettempdir()):
            folder.chmod(0o755)
    (volume / "ComfyUI/models/vae").chmod(0o777)
    (volume / "ComfyUI/models/loras").chmod(0o555)
    done = subprocess.run(
        [sys.executable, "-c", script, str(volume)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = done.stdout.splitlines()
    assert first.startswith("links.not_writable") and "Permission denied" in first
    assert second.startswith("links.made") and "0.pt" in second
    assert len(os.listdir(volume / "ComfyUI/models/vae")) == 4


def test_eight_workers_link_one_volume_while_models_come_and_go(volume: Path) -> None:
    write(volume / "ComfyUI/models/loras/put_loras_here", "")
    stay = {write(volume / f"models/loras/stay{n}.pt", f"{n}") for n in range(10)}
    precious = write(volume / "ComfyUI/models/loras/own.pt", "own")
    script = (
        "import sys; from pathlib import Path; from bootstrap.volume.links import link_models\n"
        "from bootstrap.config import Settings; from bootstrap.volume import locate\n"
        "for _ in range(60):\n"
        "    bad = [f for f in link_models(locate(Settings(volume_path=Path(sys.argv[1]))))\n"
        "           if f.code != 'links.made']\n"
        "    if bad: sys.exit(str(bad))\n"
    )
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(volume)], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        for _ in range(8)
    ]
    number = 0
    while any(worker.poll() is None for worker in workers):
        model = write(volume / f"models/loras/fleeting{number % 7}.pt", str(number))
        extra = write(volume / f"models/new{number % 3}/m.pt", str(number))
        time.sleep(0.003)
        model.unlink()
        extra.unlink()
        extra.parent.rmdir()
        number += 1
    assert [worker.communicate()[1] for worker in workers] == [""] * 8
    assert [worker.returncode for worker in workers] == [0] * 8
    link(volume)
    here = volume / "ComfyUI/models"
    assert sorted(os.listdir(here / "loras")) == sorted(
        ["own.pt", "put_loras_here", *(path.name for path in stay)]
    )
    assert os.listdir(here) == ["loras"]
    assert precious.read_text() == "own"
    assert all((here / "loras" / path.name).read_text() == path.read_text() for path in stay)
    assert nothing_left_to_do(volume)


# Small random trees: paths below a models folder, with names that meet often.
_names = st.sampled_from(["a", "b", ".h", "clip", "text_encoders", "unet"])
_paths = st.lists(_names, min_size=1, max_size=3).map("/".join)
_contents = st.one_of(
    st.sampled_from(["one", "two"]),
    st.just(None),  # a folder
    st.sampled_from(["→ a", "→ ../a", "→ /nowhere", "→ ../../models/b/a"]),
)
_trees = st.dictionaries(_paths, _contents, max_size=7)


def build(root: Path, tree: dict[str, str | None]) -> None:
    """Make what can be made of `tree`: an entry whose place is taken is left out."""
    for path, content in sorted(tree.items()):
        place = root / path
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                place.mkdir(exist_ok=True)
            elif content.startswith("→ "):
                place.symlink_to(content[2:])
            elif not place.is_symlink():
                place.write_text(content)
        except OSError:
            continue


def real_things(root: Path) -> dict[str, str]:
    """Every real file and folder below `root` that is reached without a link."""
    found: dict[str, str] = {}
    for parent, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(parent) / name
            if not path.is_symlink():
                found[str(path)] = path.read_text() if path.is_file() else ""
    return found


def visible_files(folder: Path, below: Path = Path()) -> Iterator[Path]:
    """Files a user sees in `folder`: no hidden ones, links to files included, real folders."""
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir() and not entry.is_symlink():
            yield from visible_files(entry, below / entry.name)
        elif entry.is_file():
            yield below / entry.name


def all_links(root: Path) -> dict[str, str]:
    walked = ((Path(p) / n for n in (*d, *f)) for p, d, f in os.walk(root))
    return {str(p): os.readlink(p) for paths in walked for p in paths if p.is_symlink()}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def named_by_a_conflict(findings: list[Finding], source: Path, place: Path) -> bool:
    for finding in findings:
        if finding.code == "links.conflict":
            named = (Path(finding.details["source"]), Path(finding.details["place"]))
            places = (place, place.resolve())  # through a link in ComfyUI's own folder
            if source.is_relative_to(named[0]) and any(p.is_relative_to(named[1]) for p in places):
                return True
    return False


def check_invariants(root: Path, findings: list[Finding]) -> None:
    target = root / "ComfyUI/models"
    for name in visible_files(root / "models"):
        source, place = root / "models" / name, target / name
        seen = place.is_file() and digest(place) == digest(source)
        assert seen or named_by_a_conflict(findings, source, place), (name, findings)


def test_a_link_of_the_user_to_itself_is_not_ours(tmp_path: Path) -> None:
    """It reads as a link of ours would, were models/ linked into itself."""
    write(tmp_path / "ComfyUI/main.py", "")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/a").symlink_to("a")
    for _ in range(2):
        link(tmp_path)
        assert os.readlink(tmp_path / "models/a") == "a"


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(models=_trees, own=st.one_of(st.none(), _trees), old=st.booleans(), gone=st.data())
def test_whatever_the_trees_nothing_is_lost_and_everything_is_seen_or_named(
    models: dict[str, str | None], own: dict[str, str | None] | None, old: bool, gone: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        write(root / "ComfyUI/main.py", "")
        write(root / "ComfyUI/folder_paths.py", OLD_FOLDER_PATHS if old else NEW_FOLDER_PATHS)
        (root / "models").mkdir()
        build(root / "models", models)
        if own is not None:
            (root / "ComfyUI/models").mkdir()
            build(root / "ComfyUI/models", own)
        before, foreign = real_things(root), all_links(root)
        check_invariants(root, link(root))
        after = real_things(root)
        assert {path: after.get(path) for path in before} == before
        assert set(all_links(root)) >= set(foreign)
        ours = all_links(root).keys() - foreign.keys()

        linked = all_links(root)
        check_invariants(root, link(root))
        assert (all_links(root), real_things(root)) == (linked, after)

        files = sorted(visible_files(root / "models"))
        if files:
            (root / "models" / gone.draw(st.sampled_from(files))).unlink()
        check_invariants(root, link(root))
        assert [path for path in ours if os.path.islink(path) and not os.path.exists(path)] == []
        left = all_links(root)
        assert {p: left.get(p) for p in foreign if os.path.lexists(p)} == {
            p: text for p, text in foreign.items() if os.path.lexists(p)
        }


def test_a_worker_killed_amid_linking_leaves_nothing_that_the_next_cannot_finish(
    volume: Path,
) -> None:
    write(volume / "ComfyUI/models/loras/put_loras_here", "")
    for number in range(400):
        write(volume / f"models/loras/{number}.pt", "x")
    script = (
        "import sys; from pathlib import Path; from bootstrap.volume.links import link_models\n"
        "from bootstrap.config import Settings; from bootstrap.volume import locate\n"
        "link_models(locate(Settings(volume_path=Path(sys.argv[1]))))\n"
    )
    worker = subprocess.Popen([sys.executable, "-c", script, str(volume)], cwd=ROOT)
    wait_until(lambda: len(os.listdir(volume / "ComfyUI/models/loras")) > 5)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    link(volume)
    assert len(os.listdir(volume / "ComfyUI/models/loras")) == 401
    assert nothing_left_to_do(volume)
