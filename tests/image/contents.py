"""What the image holds. Run by `make image-test`."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from tests.image.buildah import Buildah, Layer
from tests.image.container import CPU, WORKER, Container
from tests.image.search import places

pytestmark = pytest.mark.timeout(3600)  # the first check waits for the build

COMFYUI = "/opt/comfyui/bin/python"
SECOND = 10**9  # as Docker counts
_PATHS = "import json, sys; print(json.dumps([p for p in sys.path if p.endswith('-packages')]))"


def test_no_layer_holds_a_secret_or_a_name_of_this_machine(
    image: Buildah, clues: list[str]
) -> None:
    metadata = image.metadata()
    assert [clue for clue in clues if clue in metadata] == []
    assert _found_in(image.layers()[1:], clues) == []  # the first is the base


def test_nor_does_a_layer_with_comfyui(image: Buildah, with_comfyui: str, clues: list[str]) -> None:
    metadata = image.metadata(with_comfyui)
    assert [clue for clue in clues if clue in metadata] == []
    searched = {layer.tar.name for layer in image.layers()}
    new = [layer for layer in image.layers(with_comfyui) if layer.tar.name not in searched]
    assert new
    assert _found_in(new, clues) == []


def test_the_images_configuration(image: Buildah) -> None:
    config = image.image_config()
    names = {pair.partition("=")[0] for pair in config["Env"]}
    assert names == set(
        "PATH LANG PYTHONUNBUFFERED MALLOC_ARENA_MAX COMFYUI_DIR NVIDIA_DRIVER_CAPABILITIES".split()
    )
    assert config["Entrypoint"] == ["tini", "--"]
    assert config["Cmd"] == [WORKER, "-m", "handler"]
    labels = {name.rpartition(".")[2]: text for name, text in config["Labels"].items()}
    assert (labels["revision"], labels["source"]) == ("image-test", "https://example.com/source")
    assert config["Healthcheck"] == {
        "Test": ["CMD", WORKER, "-m", "bootstrap.healthcheck"],
        "Interval": 15 * SECOND,
        "Timeout": 5 * SECOND,
        "StartPeriod": 15 * 60 * SECOND,
        "Retries": 3,
    }


def test_the_two_pythons_share_nothing(container: Container) -> None:
    paths = [json.loads(container.output(python, "-c", _PATHS)) for python in (WORKER, COMFYUI)]
    assert paths[0]
    assert set(paths[0]).isdisjoint(paths[1])
    assert _importable(container, WORKER, "runpod", "torch", "transformers") == ["runpod"]
    assert _importable(container, COMFYUI, "runpod", "torch", "transformers") == [
        *("torch", "transformers")
    ]


def test_bytecode_is_there_before_the_first_start(image: Buildah) -> None:
    with image.container() as (_, root):
        for folder in ("worker", "opt/comfyui/lib"):
            compiled = list((root / folder).rglob("__pycache__/*.pyc"))
            sources = list((root / folder).rglob("*.py"))
            assert len(compiled) > 0.99 * len(sources) > 0  # some are templates that do not compile


def test_a_venv_on_the_volume_has_the_images_torch(container: Container) -> None:
    """Made as docs/image.md says, on a Pod, which mounts the volume elsewhere."""
    venv = "/runpod-volume/ComfyUI/venv"
    container.output("python3", "-m", "venv", "--system-site-packages", venv)
    assert "torch" in _importable(container, f"{venv}/bin/python", "torch")
    reported = container.output(f"{venv}/bin/pip", "install", "--no-index", "--no-deps", "torch")
    assert "already satisfied: torch" in reported
    assert _importable(container, WORKER, "torch") == []
    report = json.loads(container.output(WORKER, "-m", "bootstrap", "--json", env=CPU))
    assert report["outcome"] == "ready"
    (copied,) = [stage for stage in report["timeline"] if stage["name"] == "copy Python"]
    assert copied["outcome"] == "ok" and copied["note"] not in (
        "not needed",
        "runs from the volume",
    )


def _importable(container: Container, python: str, *modules: str) -> list[str]:
    program = f"from importlib.util import find_spec as f; print(*filter(f, {modules!r}))"
    return container.output(python, "-c", program).split()


def _found_in(layers: Sequence[Layer], clues: list[str]) -> list[str]:
    """`CLUE in FILE of a layer`, to find out how it got there."""
    return [
        f"{place} of a layer of {layer.size} bytes ({layer.tar})"
        for layer in layers
        for place in places(layer.tar, clues)
    ]
