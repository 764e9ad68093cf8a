"""The model checks: each broken volume gives exactly its finding, and running its fix fixes it."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from bootstrap.config import Settings
from bootstrap.core.findings import Finding, Severity, worst_first
from bootstrap.core.text import printable, shell_quote, size_text, summarize_list
from bootstrap.doctor.checks import volume_links
from bootstrap.doctor.checks.models import CODES, check_models
from bootstrap.doctor.checks.volume_links import check_links
from bootstrap.doctor.facts.inventory import Inventory, gather_models
from bootstrap.doctor.facts.volume_facts import VolumeFacts
from bootstrap.doctor.facts.walk import WalkProblem
from bootstrap.models.weights_file import Examined, WeightsState
from tests.support.model_folders import (
    HTML,
    REFUSAL,
    healthy,
    link,
    pickle,
    safetensors,
    write,
)

GB = 1024**3
INFO, WARNING = Severity.INFO, Severity.WARNING
# What a healthy volume has to say of itself; none of it a warning.
USUAL = {"models.found", "models.empty_category", "models.pickle"}
# The part of a fix that one types.
COMMAND = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Case:
    """One fault: how it is made, and its finding. `fixed`: running the fix helps without a person's
    decision."""

    code: str
    severity: Severity
    make: Callable[[Path], object]
    says: str
    fixed: bool = True


def cut(path: Path) -> None:
    os.truncate(safetensors(path, 5000), 3000)


def lengthen(path: Path) -> None:
    with open(safetensors(path), "ab") as file:
        file.write(b"x")


def twice(folder: Path) -> None:
    safetensors(folder / "a.safetensors", 3 << 20)
    safetensors(folder / "b.safetensors", 3 << 20)


def escape(models: Path) -> None:
    write(models.parent.parent / "elsewhere" / "x.safetensors", b"")
    safetensors(models.parent.parent / "elsewhere" / "x.safetensors")
    link(models / "loras" / "x.safetensors", models.parent.parent / "elsewhere" / "x.safetensors")


def archive(models: Path) -> None:
    packed = pickle(models / "loras" / "pack.zip")
    assert packed.exists()


def from_a_pod(models: Path) -> None:
    safetensors(models.parent / "store" / "x.safetensors")
    link(models / "loras" / "x.safetensors", "/workspace/store/x.safetensors")


CASES = [
    Case(
        "models.empty_file",
        WARNING,
        lambda m: write(m / "loras" / "it's.safetensors", b""),
        "models/loras/it's.safetensors has zero bytes",
    ),
    Case(
        "models.truncated",
        WARNING,
        lambda m: cut(m / "vae" / "x.safetensors"),
        "cut off: 3,000 bytes instead of 5,110",
    ),
    Case("models.too_long", WARNING, lambda m: lengthen(m / "vae" / "x.sft"), "x.sft has bytes"),
    Case(
        "models.damaged",
        WARNING,
        lambda m: write(m / "checkpoints" / "x.safetensors", bytes(100_000)),
        "it begins with zeros",
    ),
    Case(
        "models.mislabelled",
        WARNING,
        lambda m: safetensors(m / "checkpoints" / "x.ckpt"),
        "models/checkpoints/x.ckpt is a .safetensors",
    ),
    Case(
        "models.web_page",
        WARNING,
        lambda m: write(m / "loras" / "x.safetensors", HTML),
        "is a web page, not a model: <!DOCTYPE html>",
    ),
    Case(
        "models.server_message",
        WARNING,
        lambda m: write(m / "loras" / "x.pt", REFUSAL),
        'not a model: {"error":"Unauthorized"',
    ),
    Case(
        "models.lfs_pointer",
        WARNING,
        lambda m: write(
            m / "clip" / "x.bin",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 6979321856\n",
        ),
        "the model itself of 6.5 GiB was never fetched",
        fixed=False,
    ),
    Case(
        "models.duplicate",
        INFO,
        lambda m: twice(m / "loras"),
        "wastes 3.0 MiB: models/loras/a.safetensors = models/loras/b.safetensors",
    ),
    Case(
        "models.folder_misnamed",
        WARNING,
        lambda m: [safetensors(m / name / "x.safetensors") for name in ("Lora", "checkpoint")],
        "Lora (it reads loras), checkpoint (it reads checkpoints): 2 models",
    ),
    Case(
        "models.folder_unknown",
        INFO,
        lambda m: safetensors(m / "My LoRAs" / "a b.safetensors"),
        "does not read My LoRAs (1 model",
    ),
    Case(
        "models.outside_category",
        WARNING,
        lambda m: safetensors(m / "x.safetensors"),
        "models/x.safetensors lies straight under models/",
    ),
    Case(
        "models.ignored_extension",
        WARNING,
        lambda m: safetensors(m / "loras" / "x.safetensors.1"),
        "models/loras/x.safetensors.1 is not listed by ComfyUI",
    ),
    Case("models.archive", WARNING, archive, "models/loras/pack.zip is an archive"),
    Case(
        "models.partial_download",
        INFO,
        lambda m: write(m / "loras" / "x.safetensors.aria2", b"1234"),
        "x.safetensors.aria2 is a download under way or broken off (4 bytes)",
    ),
    Case(
        "models.name_unusable",
        WARNING,
        lambda m: safetensors(m / "loras" / "a\nb\\c.safetensors"),
        "a\\x0ab\\c.safetensors",
    ),
    Case(
        "models.name_spaces",
        WARNING,
        lambda m: safetensors(m / "loras" / " x.safetensors"),
        "' x.safetensors'",
    ),
    Case(
        "models.name_not_nfc",
        INFO,
        lambda m: safetensors(m / "loras" / "e\u0301.safetensors"),
        "accents",
    ),
    Case(
        "models.name_too_long",
        INFO,
        lambda m: safetensors(m / "loras" / ("漢" * 80 + ".safetensors")),
        "of more than 249 bytes",
    ),
    Case(
        "models.names_differ_by_case",
        INFO,
        lambda m: safetensors(m / "vae" / "VAE.safetensors"),
        "1 name exists in several spellings",
    ),
    Case(
        "models.link_broken",
        WARNING,
        lambda m: link(m / "loras" / "x.safetensors", "/gone/x.safetensors"),
        "1 broken link, which ComfyUI lists and jobs cannot load: ",
    ),
    Case("models.link_other_mount", WARNING, from_a_pod, "→ /workspace/store/x.safetensors"),
    Case(
        "models.link_loop", WARNING, lambda m: link(m / "loras" / "up", ".."), "search never ends"
    ),
    Case("models.link_escapes", WARNING, escape, "1 link off the volume"),
]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return healthy(tmp_path / "volume" / "models")


def look(models: Path) -> list[Finding]:
    volume = models.parent
    inventory = gather_models([models], inside=[volume])
    return check_all(inventory, volume)


def check_all(inventory: Inventory, volume: Path) -> list[Finding]:
    links = check_links(VolumeFacts(str(volume)), Settings(link_other_mount=False), inventory)
    return [*check_models(inventory, 24 * GB, 64 * GB), *links]


def unusual(findings: list[Finding]) -> list[Finding]:
    return [f for f in findings if f.code not in USUAL]


def type_fix(fix: str) -> None:
    found = COMMAND.search(fix)
    assert found, fix
    command = found[1]
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stderr}"


def test_a_healthy_volume_gives_no_warning(models: Path) -> None:
    findings = look(models)
    assert {f.code for f in findings} == USUAL
    assert worst_first(findings)[0].severity is INFO
    (overview,) = (f for f in findings if f.code == "models.found")
    assert overview.message.startswith("6 models, ")
    assert "checkpoints 1 (4.1 KiB)" in overview.message


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.code)
def test_exactly_this_finding_and_its_fix_fixes_it(case: Case, models: Path) -> None:
    case.make(models)
    (finding,) = unusual(look(models))
    assert (finding.code, finding.severity) == (case.code, case.severity)
    assert case.says in finding.message
    assert finding.fix and "\n" not in finding.message + finding.fix
    json.dumps(finding.as_dict())
    if case.fixed:
        type_fix(finding.fix)
        assert not unusual(look(models))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.code)
def test_a_thousand_faults_are_still_few_findings(case: Case, tmp_path: Path) -> None:
    """One look at 25 volumes with the same fault: one finding of a bounded length."""
    roots = [healthy(tmp_path / f"v{i}" / "models") for i in range(25)]
    for root in roots:
        case.make(root)
    findings = check_all(gather_models(roots, inside=[tmp_path]), tmp_path)
    codes = [f.code for f in findings]
    assert len(codes) == len(set(codes))
    assert max(len(f.message) + len(f.fix) for f in findings) < 6000


def test_no_model_at_all(tmp_path: Path) -> None:
    (tmp_path / "models" / "checkpoints").mkdir(parents=True)
    finding = look(tmp_path / "models")[0]
    assert (finding.code, finding.severity) == ("models.none", WARNING)
    assert str(tmp_path / "models") in finding.message
    (nowhere,) = check_models(Inventory())
    assert nowhere.code == "models.none" and "no model folder" in nowhere.message


def test_an_incomplete_look_says_so_and_no_more(tmp_path: Path) -> None:
    (finding,) = check_models(Inventory(complete=False, seconds=2.0))
    assert (finding.code, finding.severity) == ("models.incomplete", INFO)


def test_what_cannot_be_read(models: Path) -> None:
    inventory = gather_models([models])
    closed = WalkProblem(str(models / "my loras"), os.strerror(13), 13)
    (finding,) = unusual(check_models(replace(inventory, problems=(closed,), problem_count=1)))
    assert finding.code == "models.unreadable" and "Permission denied" in finding.message
    assert f"chmod -R a+rX '{models}/my loras'" in finding.fix
    failing = replace(
        inventory.models[0], examined=Examined(WeightsState.UNREADABLE, os.strerror(5))
    )
    (finding,) = unusual(check_models(replace(inventory, files=(failing,))))
    assert finding.code == "models.unreadable" and "Look again" in finding.fix


def test_the_largest_against_gpu_and_memory(models: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 40 * GB]}})
    data = struct.pack("<Q", len(header)) + header.encode()
    path = write(models / "checkpoints" / "large.safetensors", data)
    os.truncate(path, len(data) + 40 * GB)
    inventory = gather_models([models])

    def codes(gpu: int | None, memory: int | None) -> list[str]:
        return [f.code for f in unusual(check_models(inventory, gpu, memory))]

    assert codes(None, None) == codes(20 * GB, 41 * GB) == []
    assert codes(19 * GB, None) == ["models.larger_than_gpu"]
    assert codes(None, 40 * GB) == ["models.larger_than_memory"]
    (finding,) = unusual(check_models(inventory, 16 * GB))
    assert "large.safetensors takes 20 GiB on a GPU, this one has 16 GiB" in finding.message


def test_previews_and_notes_are_left_alone(models: Path) -> None:
    for name in ("x.preview.png", "x.civitai.info", "x.json", "x.sha256", ".gitkeep", "README.md"):
        write(models / "loras" / name, b"x")
    write(models / "checkpoints" / "demo.mp4", bytes(11 << 20))
    assert not unusual(look(models))


def test_a_large_file_without_a_known_ending_is_reported(models: Path) -> None:
    write(models / "checkpoints" / "mymodel", bytes(11 << 20))
    (finding,) = unusual(look(models))
    assert finding.code == "models.ignored_extension"
    assert f"{models}/checkpoints/mymodel.safetensors" in finding.fix


def test_gguf_in_a_folder_that_no_one_reads_it_from(models: Path) -> None:
    write(models / "checkpoints" / "flux.gguf", b"GGUF" + bytes(range(200)))
    (models / "diffusion_models").mkdir()
    (finding,) = unusual(look(models))
    assert finding.code == "models.ignored_extension"
    type_fix(finding.fix)
    assert not unusual(look(models))


def test_every_code_is_made_by_a_test() -> None:
    others = {"models.none", "models.incomplete", "models.unreadable", *USUAL}
    others |= {"models.larger_than_gpu", "models.larger_than_memory", "models.unopened"}
    of_links = {code for code in volume_links.CODES if code.startswith("models.")}
    assert {case.code for case in CASES} | others == {*CODES, *of_links}


def test_words() -> None:
    assert [size_text(n) for n in (0, 1, 1023, 1 << 20, int(6.46 * GB), 2000 * GB)] == [
        "0 bytes",
        "1 byte",
        "1023 bytes",
        "1.0 MiB",
        "6.5 GiB",
        "2,000 GiB",
    ]
    assert summarize_list(["a", "b", "c"], 2) == "a, b and 1 more"
    assert printable("a\x1b[31mb\u202ec\udcff") == "a\\x1b[31mb\\u202ec\\xff"


@pytest.mark.parametrize(
    "name", ["plain", "it's", "a b", "-rf", "a\nb", "$(x)", "é\u200b", "\\'\t"]
)
def test_typed_names_come_out_of_bash_as_they_are(name: str) -> None:
    command = shell_quote("printf", "%s", name)
    assert subprocess.check_output(["bash", "-c", command]).decode() == name
    assert "\n" not in command


def test_bytes_that_are_not_text_come_out_of_bash_as_they_are() -> None:
    name = os.fsdecode(b"a\xff'b")
    assert subprocess.check_output(["bash", "-c", shell_quote("printf", "%s", name)]) == b"a\xff'b"
