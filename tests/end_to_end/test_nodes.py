"""nodes.json on a volume, from a boot that fetches its packs to a job that uses them, on a real
ComfyUI; and a job whose node is missing, answered with the pack that has it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootstrap.core.findings import Severity
from demo.volume import DemoVolume
from tests.conftest import BootedWorker, environment, furnished, ready_worker
from tests.end_to_end.test_worker import assert_refused, plain
from tests.support.pack_server import COMMIT, PackServer, refresh_map

NODE = """
import torch

class FromManifest:
    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "make", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"size": ("INT", {"default": 16})}}

    def make(self, size):
        return (torch.ones(1, size, size, 3),)

NODE_CLASS_MAPPINGS = {"FromManifest": FromManifest}
"""
# What ComfyUI's app/logger.py does since May 2026.
COLOURED = """
import logging

class Coloured(logging.Formatter):
    def format(self, record):
        number, bold = (33, "\\033[1m") if record.levelno >= logging.WARNING else (32, "")
        return f"{bold}\\033[{number}m[{record.levelname}]\\033[0m {super().format(record)}"

for handler in logging.getLogger().handlers:
    handler.setFormatter(Coloured("%(message)s"))
"""
MAP = {"https://github.com/owner/Absent-Pack": [["AbsentNode"], {"title_aux": "Absent"}]}


@pytest.fixture(scope="module")
def server() -> Iterator[PackServer]:
    with PackServer() as running:
        asked = {"__init__.py": NODE, "requirements.txt": "surely-not-there==1.0\n"}
        running.repository("owner/A-Pack", asked)
        running.answer("/map.json", MAP)
        yield running


@pytest.fixture(scope="module")
def own_volume(
    demo: DemoVolume, server: PackServer, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    volume = furnished(demo, tmp_path_factory.mktemp("nodes") / "volume")
    wanted = [
        {"git": f"{server.url}/owner/A-Pack", "commit": COMMIT},
        {"git": f"{server.url}/owner/Gone", "commit": COMMIT},
    ]
    (volume / "nodes.json").write_text(json.dumps({"version": 1, "nodes": wanted}))
    packs = volume / "ComfyUI" / "custom_nodes"
    for name, file, content in (
        ("coloured", "prestartup_script.py", COLOURED),
        ("coloured", "__init__.py", "NODE_CLASS_MAPPINGS = {}"),
        ("broken", "__init__.py", "import surely_not_there"),
    ):
        (packs / name).mkdir(exist_ok=True)
        (packs / name / file).write_text(content)
    return volume


@pytest.fixture(scope="module")
def supplied(
    demo: DemoVolume, own_volume: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BootedWorker]:
    env = environment(demo, own_volume, tmp_path_factory.mktemp("work"))
    with ready_worker({**env, "ALLOW_PRIVATE_DOWNLOAD_URLS": "true"}) as booted:
        yield booted


def test_a_boot_fetches_what_is_listed_and_a_job_uses_it(
    supplied: BootedWorker, own_volume: Path
) -> None:
    assert (own_volume / "ComfyUI/custom_nodes/A-Pack/__init__.py").read_text() == NODE
    nodes = plain()
    nodes["1"] = {"class_type": "FromManifest", "inputs": {"size": 24}}
    reply = supplied.ask({"workflow": nodes})
    assert reply["status"] == "completed", reply
    rows = {stage.name: stage.note for stage in supplied.report.timeline}
    assert rows["fetch nodes"] == "1 of 2 fetched"
    said = [f.message for f in (*supplied.report.findings, *supplied.report.noticed)]
    assert any("surely-not-there" in text for text in said), "its requirements are judged"


def test_a_pack_that_cannot_be_fetched_is_reported_and_jobs_still_run(
    supplied: BootedWorker,
) -> None:
    (missing,) = [f for f in supplied.report.findings if f.details.get("pack") == "Gone"]
    assert (missing.code, missing.severity) == ("nodes.no_ref", Severity.WARNING)
    assert supplied.ask({"workflow": plain()})["status"] == "completed"


def test_a_pack_that_cannot_be_imported_is_found_in_a_coloured_log(supplied: BootedWorker) -> None:
    (failed,) = [f for f in supplied.report.noticed if f.code == "nodes.import_failed"]
    assert "broken" in failed.message and "surely_not_there" in failed.message
    log = supplied.serving.comfyui.log_tail(2000)
    assert any(line.startswith("   0.") and line.endswith("/coloured") for line in log)
    assert not any("\x1b" in line for line in log)


def test_an_images_comfyui_gets_packs_on_a_volume_without_any(
    demo: DemoVolume, server: PackServer, tmp_path: Path
) -> None:
    image, volume = tmp_path / "image/ComfyUI", tmp_path / "volume"
    shutil.copytree(demo.comfyui, image, symlinks=True)
    (volume / "models").mkdir(parents=True)
    entry = {"git": f"{server.url}/owner/A-Pack", "commit": COMMIT}
    text = json.dumps({"version": 1, "nodes": [entry]})
    env = environment(demo, volume, tmp_path / "work") | {
        "COMFYUI_DIR": str(image),
        "NODES_MANIFEST": text,
        "ALLOW_PRIVATE_DOWNLOAD_URLS": "true",
    }
    nodes = {**plain(), "1": {"class_type": "FromManifest", "inputs": {"size": 24}}}
    with ready_worker(env) as booted:
        assert booted.ask({"workflow": nodes})["status"] == "completed"
    assert (volume / "ComfyUI/custom_nodes/A-Pack").is_dir()
    assert not (image / "custom_nodes/A-Pack").exists()


def test_a_missing_node_is_named_with_the_pack_that_has_it(
    supplied: BootedWorker, server: PackServer, own_volume: Path
) -> None:
    nodes = {**plain(), "3": {"class_type": "AbsentNode", "inputs": {}}}
    reply = supplied.ask({"workflow": nodes})
    assert_refused(reply, "workflow.unknown_node", "AbsentNode", "nodes map --refresh")
    known = refresh_map(server, own_volume, "/map.json")
    seen = len(server.seen)
    reply = supplied.ask({"workflow": nodes})
    pack = "https://github.com/owner/Absent-Pack"
    assert_refused(reply, "workflow.unknown_node", f"nodes add {pack}", known.fetched)
    assert reply["details"]["packs"] == {"AbsentNode": [pack]}
    assert len(server.seen) == seen, "a job asks no server"
    (own_volume / "ComfyUI/custom_nodes/Absent-Pack").mkdir()
    reply = supplied.ask({"workflow": nodes})
    assert_refused(reply, "workflow.unknown_node", "is in custom_nodes but was not loaded")
