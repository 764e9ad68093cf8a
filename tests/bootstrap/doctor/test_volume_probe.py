"""Facts about a volume: mount, places, links, leftovers; limited, and never hanging."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from benchmarks.simulated_volume import Delays, why_not
from benchmarks.simulated_volume import mounted as simulated
from bootstrap.core.concurrency import BoundedCaller, VolumeTimeout
from bootstrap.core.files import lease_name, list_folder
from bootstrap.core.findings import Finding, Severity
from bootstrap.core.temp_files import beside, kind_of, look_at_leftover
from bootstrap.doctor.checks.volume import check_volume
from bootstrap.doctor.facts import volume_probe as gatherer
from bootstrap.doctor.facts.volume_facts import LinkTarget, VolumeState, look_at_link, try_writing
from bootstrap.doctor.facts.volume_places import read_lines, resolve
from bootstrap.doctor.facts.volume_probe import mount_points
from bootstrap.environment.python_probe import look_at_venv
from bootstrap.volume import Layout, locate
from bootstrap.volume.locate import mount_of
from tests.support.volumes import facts_of, model, mounted, settings
from tests.support.waiting import Clock

PROJECT = Path(__file__).parents[3]
HEX = "0123456789abcdef" * 2
HOMES = ["/runpod-volume", "/workspace"]


# --- mounts


@pytest.mark.parametrize(
    ("line", "system", "network"),
    [
        ("rw - fuse mfs#eu-ro-1.runpod.net:9421 rw,user_id=0", "MooseFS", True),
        ("rw shared:3 - nfs4 server:/export rw,vers=4.2", "NFS", True),
        ("rw - fuse.juicefs JuiceFS:vol rw", "fuse.juicefs", True),
        ("rw - fuse.fuse-overlayfs x rw", "fuse.fuse-overlayfs", False),
        ("rw - ext4 /dev/sdb rw", "ext4", False),
    ],
)
def test_kinds_of_mounts(tmp_path: Path, line: str, system: str, network: bool) -> None:
    info = tmp_path / "mountinfo"
    info.write_text(
        f"27 1 254:0 / / rw - overlay o rw\n36 27 0:42 / /run\\040me {line}\nnonsense\n"
    )
    mount = mount_of("/run me/below", info)
    assert mount is not None
    assert (mount.point, mount.system, mount.network) == ("/run me", system, network)
    assert not mount.read_only
    outside = mount_of("/run me too", info)
    assert outside is not None and outside.point == "/"


@pytest.mark.parametrize("line", ["ro - ext4 /dev/sdb rw", "rw - ext4 /dev/sdb ro,discard"])
def test_read_only_by_mount_or_by_file_system(tmp_path: Path, line: str) -> None:
    info = tmp_path / "mountinfo"
    info.write_text(f"36 27 0:42 / /v {line}\n")
    mount = mount_of("/v", info)
    assert mount is not None and mount.read_only
    assert mount_of("/elsewhere", info) is None
    assert mount_of("/v", tmp_path / "none") is None


def test_a_later_mount_hides_an_earlier_one(tmp_path: Path) -> None:
    info = tmp_path / "mountinfo"
    info.write_text("1 0 0:1 / /v rw - nfs a rw\n2 1 0:2 / /v rw - tmpfs b rw\n")
    mount = mount_of("/v/x", info)
    assert mount is not None and mount.kind == "tmpfs"


def test_a_real_mount_is_seen_in_the_real_mountinfo(tmp_path: Path) -> None:
    with mounted(tmp_path / "with space") as place:
        mount = mount_of(str(place), gatherer.MOUNTINFO)
        assert mount is not None
        assert (mount.point, mount.kind, mount.network) == (str(place), "tmpfs", False)


# --- the whole


def test_a_healthy_volume(root: Path) -> None:
    facts = facts_of(root)
    assert facts.state is VolumeState.FOLDER
    assert facts.comfyui == str(root / "ComfyUI") and facts.comfyui_on_volume
    assert facts.models.homes == (str(root / "ComfyUI/models"),)
    assert not (facts.models.missing or facts.models.strays or facts.links or facts.places)
    assert facts.writing is not None and facts.writing.trouble is None
    assert facts.space is not None and facts.space.total > 0
    assert facts.silent_after is None and facts.mounted


def test_nothing_is_left_on_the_volume(root: Path) -> None:
    before = sorted(root.rglob("*"))
    facts_of(root)
    assert sorted(root.rglob("*")) == before


def test_facts_are_json_of_bounded_size_whatever_the_names(root: Path) -> None:
    for number in range(300):
        os.symlink("gone", os.fsencode(root / f"l{number}") + b"\xff\n" + b"n" * 200)
        (root / f"ComfyUI/output/.{number:032x}.part").touch()
    data = facts_of(root).as_dict()
    text = json.dumps(data, ensure_ascii=False, allow_nan=False)
    assert len(text.encode()) < 200_000
    assert data["link_count"] == 200 and len(data["links"]) == 50
    assert data["leftover_count"] == 200
    assert data["state"] == "folder" and data["links"][0]["leads"] == "nowhere"


def test_a_root_that_is_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "workspace").symlink_to(root)
    facts = facts_of(tmp_path / "workspace")
    assert facts.comfyui == str(tmp_path / "workspace/ComfyUI")
    assert facts.real == str(root)
    assert facts.links == () and facts.models.homes


def test_asked_afresh_whatever_the_layout_says(root: Path) -> None:
    given = settings(root)
    layout = Layout(root, True, None)
    facts = gatherer.gather_volume(layout, given)
    assert facts.comfyui == str(root / "ComfyUI")


# --- never hanging


def test_a_root_that_does_not_answer(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(path: str) -> object:
        time.sleep(60)
        raise AssertionError

    monkeypatch.setattr(gatherer, "list_folder", hang)
    facts = facts_of(root, timeout=0.3)
    assert facts.silent_after == 0.3 and facts.state is None and facts.mount is not None


def test_a_volume_that_falls_silent_keeps_what_is_known(
    root: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(_: str) -> None:
        clock.ahead = 60.0
        time.sleep(60)

    monkeypatch.setattr(gatherer, "has_main", silent)
    facts = facts_of(root, timeout=50)
    assert facts.silent_after == 50
    assert facts.state is VolumeState.FOLDER and facts.writing is not None


@pytest.mark.parametrize("call", ["lstat", "stat", "scandir", "readlink", "listdir"])
def test_no_call_to_the_volume_is_without_a_limit(
    root: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """All are made in the threads of a pool, which can be abandoned."""
    (root / "other/custom_nodes/pack").mkdir(parents=True)
    real, waited, layout = getattr(os, call), [], locate(settings(root))

    def watched(path: object = ".", *more: Any, **also: Any) -> object:
        on_volume = str(path).startswith(str(root))
        if on_volume and threading.current_thread() is threading.main_thread():
            waited.append(path)
        return real(path, *more, **also)

    monkeypatch.setattr(os, call, watched)
    gatherer.gather_volume(layout, settings(root))
    assert waited == []


def test_a_hanging_call_does_not_keep_the_process_from_ending() -> None:
    code = (
        "import time\n"
        "from bootstrap.core.concurrency import VolumeTimeout, BoundedCaller\n"
        "try:\n    BoundedCaller(0.2).one(lambda: time.sleep(60))\n"
        "except VolumeTimeout as silence:\n    print(silence)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "no answer in 0.2 s\n")


def test_a_network_mount_whose_server_hangs_and_then_dies(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why_not() is not None:
        pytest.skip(f"no volume can be simulated here: {why_not()}")
    place = tmp_path / "seen"
    place.mkdir()
    with simulated(root, place, Delays(attr_seconds=0)):
        given = settings(place)
        layout = locate(given)
        facts = gatherer.gather_volume(layout, given)
        assert facts.silent_after is None and facts.mount is not None and facts.mount.network
        server = server_of(place)
        os.kill(server, signal.SIGSTOP)
        try:
            with monkeypatch.context() as patches:
                patches.setattr(gatherer, "TIMEOUT", 0.5)
                (finding,) = check_volume(gatherer.gather_volume(layout, given), given)
        finally:
            os.kill(server, signal.SIGCONT)
        assert finding.code == "volume.silent"
        assert check_volume(gatherer.gather_volume(layout, given), given)[0].code == "volume.found"
        os.kill(server, signal.SIGKILL)
        finding = until(lambda: check_volume(gatherer.gather_volume(layout, given), given)[0])
    assert (finding.code, finding.host_fault) == ("volume.io_error", True)


def server_of(place: Path) -> int:
    """The process that serves the mount at `place`."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if "--metadata-ms" in entry.read_text() and str(place) in entry.read_text():
                return int(entry.parent.name)
    raise AssertionError("no one serves it")


def until(look: Callable[[], Finding]) -> Finding:
    """What `look` sees once it sees something bad; 10 s at most."""
    end = time.monotonic() + 10
    while (finding := look()).severity is Severity.OK and time.monotonic() < end:
        time.sleep(0.05)
    return finding


def test_together_keeps_the_order_and_raises_what_is_raised() -> None:
    caller = BoundedCaller(20)
    assert caller.each(lambda n: n * n, range(100)) == [n * n for n in range(100)]
    assert caller.each(len, []) == []
    with pytest.raises(ZeroDivisionError):
        caller.each(lambda n: 1 // n, [1, 0])
    with pytest.raises(VolumeTimeout):
        BoundedCaller(0).one(lambda: time.sleep(5))


def test_round_trips_are_made_side_by_side() -> None:
    together = threading.Barrier(16)
    assert len(BoundedCaller(20).each(lambda _: together.wait(20), range(160))) == 160


# --- parts


def test_writing_leaves_nothing_also_when_it_fails(tmp_path: Path) -> None:
    assert try_writing(str(tmp_path)).trouble is None
    trouble = try_writing(str(tmp_path / "none")).trouble
    assert trouble is not None and trouble.name == "ENOENT"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_listed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert not list_folder(str(tmp_path / "none")).exists
    assert not list_folder(str(tmp_path / "file")).exists
    assert list_folder(str(tmp_path)).files == {"file"}


@pytest.mark.parametrize(
    ("text", "leads", "relative"),
    [
        ("store", LinkTarget.OK, None),
        ("gone", LinkTarget.BROKEN, None),
        ("link", LinkTarget.LOOP, None),
        (".", LinkTarget.UP, None),
        ("..", LinkTarget.UP, None),
        ("/usr", LinkTarget.OUTSIDE, None),
        ("/workspace/store", LinkTarget.BROKEN, "store"),
        ("/runpod-volume/store/", LinkTarget.BROKEN, "store"),
        ("/workspace/gone", LinkTarget.BROKEN, None),
        ("/workspace/../etc", LinkTarget.BROKEN, None),
        ("/workspaces/store", LinkTarget.BROKEN, None),
    ],
)
def test_where_links_lead(
    tmp_path: Path, text: str, leads: LinkTarget, relative: str | None
) -> None:
    root = tmp_path / "volume"
    (root / "store").mkdir(parents=True)
    (root / "link").symlink_to(text)
    link = look_at_link(str(root / "link"), str(root), str(root), HOMES)
    assert link is not None
    assert (link.text, link.leads, link.relative) == (text, leads, relative)
    assert look_at_link(str(root / "none"), str(root), str(root), HOMES) is None


def test_a_volume_path_below_a_usual_mount_is_not_a_second_name(root: Path) -> None:
    facts = facts_of(root)
    assert mount_points(facts) == [str(root), *HOMES]
    object.__setattr__(facts, "root", "/workspace/mine")
    object.__setattr__(facts, "real", "/workspace/mine")
    assert mount_points(facts) == ["/workspace/mine", "/runpod-volume"]


PATHS = """\
# a comment
mine:
    base_path: "/workspace/store"   # where they are
    is_default: true
    checkpoints: models/checkpoints # kept
    loras: |
        a
        /abs/b

    vae: 'with space'
other:   # nothing above it
  clip: ../clip
  odd line
  list: [1, 2
"""


def test_the_paths_file_is_read_tolerantly(tmp_path: Path) -> None:
    file = tmp_path / "extra_model_paths.yaml"
    file.write_text(PATHS)
    paths = resolve(read_lines(str(file)), "/v/ComfyUI", HOMES)
    assert [(p.number, p.section, p.key, p.path, p.below_base, p.home) for p in paths] == [
        (3, "mine", "base_path", "/workspace/store", False, "/workspace"),
        (5, "mine", "checkpoints", "/workspace/store/models/checkpoints", True, None),
        (7, "mine", "loras", "/workspace/store/a", True, None),
        (8, "mine", "loras", "/abs/b", False, None),
        (10, "mine", "vae", "/workspace/store/with space", True, None),
        (12, "other", "clip", "/v/clip", False, None),
        (14, "other", "list", "/v/ComfyUI/[1, 2", False, None),
    ]
    assert read_lines(str(tmp_path / "none")) == []


@pytest.mark.parametrize("text", ["", ":", "a:\n\tb: c", "a:\n  b: |", "\x00", "- x\n" * 99])
def test_no_paths_file_breaks_the_reader(tmp_path: Path, text: str) -> None:
    (tmp_path / "f").write_text(text)
    resolve(read_lines(str(tmp_path / "f")), str(tmp_path), HOMES)


def test_a_venv_shows_where_and_by_which_python_it_was_made(tmp_path: Path) -> None:
    assert look_at_venv(str(tmp_path)) is None
    made = [sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "v")]
    subprocess.run(made, check=True)
    venv = look_at_venv(str(tmp_path / "v"))
    assert venv is not None and venv.python_exists
    assert venv.version == "{}.{}".format(*sys.version_info)
    assert venv.made_at == str(tmp_path / "v")


def test_only_strict_names_are_ours() -> None:
    assert kind_of(f".{HEX}.part") == "part"
    assert kind_of(f".{HEX}.unlinking") == "unlinking"
    assert kind_of(beside("x.safetensors", HEX[:16], "part")) == "model"
    assert kind_of(lease_name("x.safetensors")) == "model"
    for name in (f"{HEX}.part", f".{HEX}x.part", f".{HEX.upper()}.part", "x.part", f".{HEX}.part2"):
        assert kind_of(name) is None


def test_what_may_be_a_users_is_not_removable(tmp_path: Path) -> None:
    now = time.time()
    (tmp_path / f".{HEX}.part").mkdir()
    model(tmp_path / f".{'a' * 32}.unlinking")
    (tmp_path / f".{'b' * 32}.unlinking").symlink_to("/usr")
    (tmp_path / f".{'c' * 32}.unlinking").symlink_to("gone")
    (tmp_path / f".{'d' * 32}.part").symlink_to("gone")
    found = [look_at_leftover(str(path), now) for path in sorted(tmp_path.iterdir())]
    assert [f.removable for f in found if f] == [False, False, False, True, False]
