"""The mirror of a real environment, ComfyUI's own: torch, numpy, scipy, av, transformers."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootstrap.environment.venv_mirror import Mirror, record_opened
from demo.volume import DemoVolume
from tests.bootstrap.environment.venvs import VolumeVenv, ask, asked

# Libraries with $ORIGIN in their search path, data beside modules, entry points, lazy imports.
_PROGRAM = """
import importlib.metadata, sys
import av, numpy, PIL.Image, scipy.linalg, torch, transformers, yaml
from transformers import CLIPTokenizer
torch.manual_seed(1)
product = torch.ones(8, 8) @ torch.eye(8)
spread = scipy.linalg.svdvals(numpy.eye(4) * 3).tolist()
names = sorted({d.metadata["Name"] for d in importlib.metadata.distributions()})
with open("/proc/self/maps") as maps:
    mapped = sorted({line.split(None, 5)[5].strip() for line in maps if "site-packages" in line})
places = {m.__file__ for m in list(sys.modules.values()) if getattr(m, "__file__", None)}
"""
_ANSWER = (
    "[[float(product.sum()), spread, names, torch.__version__, len(av.codecs_available)], "
    "sorted(places), mapped]"
)


@pytest.fixture
def venv(demo: DemoVolume, tmp_path: Path) -> VolumeVenv:
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume/venv").symlink_to(demo.python.parent.parent)
    return VolumeVenv(tmp_path / "volume/venv", tmp_path)


@pytest.mark.timeout(400)
def test_a_real_environment_works_alike(venv: VolumeVenv) -> None:
    wanted, *_ = ask(venv.path / "bin/python", _PROGRAM, _ANSWER)
    first = venv.mirror(timeout=200)
    with asked(first.python, _PROGRAM, _ANSWER) as (answer, *_):
        assert answer == wanted
        assert record_opened(first).endswith("archived")
    second = venv.mirror(timeout=200)
    assert "from the archive" in second.note
    with asked(second.python, _PROGRAM, _ANSWER) as (answer, places, mapped):
        assert answer == wanted
        assert record_opened(second) == "the archive is up to date"
    assert_local(second, places, mapped)


def assert_local(mirror: Mirror, places: list[str], mapped: list[str]) -> None:
    """Of all that the program used, only large libraries are on the volume."""
    inside = [place for place in places if "site-packages" in place]
    assert len(inside) > 1500
    assert [place for place in inside if not place.startswith(f"{mirror.site}/")] == []
    large = {str(mirror.site / path) for path in mirror.tree.large}
    assert {place for place in inside if Path(place).is_symlink()} <= large
    through = {place for place in mapped if not place.startswith(f"{mirror.site}/")}
    assert through <= {str(mirror.venv.site / path) for path in mirror.tree.large}
