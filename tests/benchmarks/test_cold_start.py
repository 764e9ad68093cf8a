"""A short cold-start benchmark, without a simulated network and without targets: it must run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.checkpoint import SIZES, WRITER
from benchmarks.cold_start import pages
from benchmarks.cold_start.__main__ import keep
from benchmarks.cold_start.bars import BARS, Bar, verdicts
from benchmarks.cold_start.contenders import Contender, four
from benchmarks.cold_start.loads import tiny
from benchmarks.cold_start.measure import NoResult, posted
from benchmarks.cold_start.scene import furnished
from benchmarks.cold_start.session import Figures, Plan, run_session
from benchmarks.cold_start.tables import section
from benchmarks.document import put_section
from benchmarks.machine import this_machine
from benchmarks.node_packs import write_node_packs
from demo.volume import DemoVolume
from tests.support.rig import ready_rig

PACKS, FILES = 3, 60


@pytest.fixture(scope="module")
def contenders() -> list[Contender]:
    """All but "all local", which equals "ours, volume" without a simulated network."""
    return [c for c in four(tiny()) if c.through_network]


@pytest.fixture(scope="module")
def figures(demo: DemoVolume, contenders: list[Contender]) -> Figures:
    """One round of each contender, then one thaw of a hot worker."""
    figures = Figures()
    plan = Plan(contenders, 1, prepare=False, hot_load=tiny(), thaw=1, frozen_seconds=0.5)
    with furnished(demo, [tiny()], None, PACKS, FILES) as scene:
        run_session(scene, plan, figures)
    assert not scene.folder.exists()
    return figures


def test_every_contender_returns_a_picture_step_by_step(figures: Figures) -> None:
    assert len(figures.runs) == 3
    for run in figures.runs:
        assert set(run.marks) >= {"job taken", "ComfyUI up", "prompt submitted", "posted"}
        up, submitted, posted_at = (
            run.marks[step] for step in ("ComfyUI up", "prompt submitted", "posted")
        )
        assert 0 < up <= submitted <= posted_at == run.seconds


def test_every_contender_imports_the_node_packs(figures: Figures) -> None:
    for run in figures.runs:
        log = "\n".join(text for _, text in run.detail["log"])
        found = re.findall(r"seconds(.*): \S*/custom_nodes/ComfyUI-Benchmark-Pack-\d+", log)
        assert found == [""] * PACKS, run.contender  # not "(IMPORT FAILED)"


def test_the_hot_worker_is_measured_before_and_after_a_thaw(figures: Figures) -> None:
    assert [*figures.pairs] == ["thawed", "hot", "thawed plain", "hot plain"]
    assert all(len(seconds) == 1 for seconds in figures.pairs.values())
    assert all(seconds > 0 for pair in figures.pairs.values() for seconds in pair)


def test_the_section_holds_all_figures_in_well_formed_tables(
    demo: DemoVolume, figures: Figures, contenders: list[Contender]
) -> None:
    machine = this_machine(demo)
    found = verdicts(figures.series)
    text = section(machine.sentence(), contenders, figures, found)
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) == 4  # verdicts, times, marks, our boot
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1, table
    for contender in contenders:
        assert f"| {contender.name}, {contender.load.label} | " in tables[1]
    assert "ComfyUI ready" in tables[3]
    assert "0.3.75" in text and "nan" not in text


def test_the_figures_are_saved_as_data(demo: DemoVolume, figures: Figures, tmp_path: Path) -> None:
    kept = json.loads(keep(this_machine(demo), figures, tmp_path).read_text())
    assert [run["contender"] for run in kept["runs"]] == [r.contender for r in figures.runs]
    (ours,) = (run for run in kept["runs"] if run["contender"] == "ours-tiny")
    assert ours["detail"]["boot"]["timeline"] and ours["detail"]["timings"]
    assert kept["machine"]["cores"] >= 1


def test_a_reply_without_a_picture_is_not_a_result() -> None:
    with ready_rig() as rig:
        replies: list[dict[str, Any]] = [{"error": "no such model"}, {"images": []}]
        for value in (*replies, {"results": [{"image": "eHh4"}]}):
            job = rig.plane.submit({"do": "return", "value": value})
            with pytest.raises(NoResult, match="no picture"):
                posted(rig.plane, rig.worker, job, 20)
        rig.worker.kill()
        with pytest.raises(NoResult, match="exit code -9"):
            posted(rig.plane, rig.worker, rig.plane.submit({}), 20)


def test_bars_compare_medians() -> None:
    bar = Bar("ours", "theirs", 0.85, "what")
    (met,) = verdicts({"ours": [8, 9, 1000], "theirs": [1, 11, 12]}, [bar])
    assert met.ratio == pytest.approx(9 / 11)
    assert met.met and "met" in str(met)
    (missed,) = verdicts({"ours": [10], "theirs": [11]}, [bar])
    assert not missed.met and "MISSED" in str(missed)
    assert verdicts({"ours": [1.0]}, [bar]) == []
    assert len({b.what for b in BARS}) == len(BARS)


def test_node_packs_have_as_many_files_as_asked_and_never_differ(tmp_path: Path) -> None:
    contents = []
    for place in (tmp_path / "a", tmp_path / "b"):
        written = write_node_packs(place, 15, 2000)
        files = sorted(path for path in place.rglob("*") if path.is_file())
        assert (len(list(place.iterdir())), len(files)) == (15, 2000)
        assert sum(path.stat().st_size for path in files) == written.size
        contents.append([(path.relative_to(place), path.read_bytes()) for path in files])
    assert contents[0] == contents[1]
    with pytest.raises(ValueError, match="150 or more"):
        write_node_packs(tmp_path / "c", 15, 100)


def test_pages_are_dropped_and_the_share_in_memory_shows_it(tmp_path: Path) -> None:
    kind = subprocess.check_output(["stat", "-f", "-c", "%T", tmp_path], text=True).strip()
    if kind in ("tmpfs", "ramfs"):
        pytest.skip("the temp folder is in memory, whose pages cannot be dropped")
    path = tmp_path / "deep" / "file"
    path.parent.mkdir()
    path.write_bytes(bytes(10_000_000))
    assert pages.share_in_memory(path) == 1.0
    pages.forget([tmp_path])
    assert pages.share_in_memory(path) < 0.01
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead, however large
        file.read(5_000_000)
    assert 0.4 < pages.share_in_memory(path) < 1.0


def test_a_benchmark_replaces_only_its_own_section(tmp_path: Path) -> None:
    file = tmp_path / "benchmarks.md"
    for name, text in (("one", "first"), ("two", r"second \1"), ("one", "third")):
        put_section(name, text, file)
    document = file.read_text()
    assert "first" not in document
    assert document.index("third") < document.index(r"second \1")
    assert document.count("<!-- one -->") == document.count("<!-- /two -->") == 1


RECOGNISED = """
import json, sys, pathlib
sys.path.insert(0, str(pathlib.Path(sys.argv[1]).parent))
import checkpoint_writer
found = {}
for kind in checkpoint_writer.UNETS:
    shapes = checkpoint_writer.shapes(kind)
    import torch, comfy.model_detection as detection
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    model = detection.model_config_from_unet(state, "model.diffusion_model.")
    found[kind] = type(model).__name__, sum(2 * tensor.numel() for tensor in state.values())
print(json.dumps(found))
"""


def test_comfyui_recognises_the_checkpoints(demo: DemoVolume) -> None:
    done = subprocess.run(
        [str(demo.python), "-c", RECOGNISED, str(WRITER)],
        cwd=demo.comfyui,
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert {kind: name for kind, (name, _) in found.items()} == {"sd15": "SD15", "sdxl": "SDXL"}
    assert all(0.9 * SIZES[kind] < size < SIZES[kind] for kind, (_, size) in found.items())


def test_a_checkpoint_is_a_complete_safetensors_file(demo: DemoVolume, tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    shapes = {"a.weight": [3, 5], "a.bias": [3], "norm.weight": [5]}
    code = "import json, sys; sys.path.insert(0, sys.argv[1]); import checkpoint_writer as w;"
    code += "from pathlib import Path; w.write(Path(sys.argv[2]), json.loads(sys.argv[3]));"
    code += "from safetensors.numpy import load_file as load;"
    code += "print(json.dumps({n: t.astype(float).tolist() for n, t in load(sys.argv[2]).items()}))"
    done = subprocess.run(
        [str(demo.python), "-c", code, str(WRITER.parent), str(path), json.dumps(shapes)],
        capture_output=True,
        text=True,
        check=True,
    )
    tensors = json.loads(done.stdout)
    assert tensors["a.bias"] == [0.0] * 3 and tensors["norm.weight"] == [1.0] * 5
    numbers = [abs(n) for row in tensors["a.weight"] for n in row]
    assert len(numbers) == 15 and all(0.0156 <= n < 0.0313 for n in numbers)


def test_the_command_line_says_what_is_wrong() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.cold_start", "--rounds", "0"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 2
    assert "--rounds 0: 1 or more" in done.stderr
