"""A models folder on the worker's own disk that ComfyUI is given."""

from __future__ import annotations

import json
from pathlib import Path

from bootstrap.models.provision import ProvisionResult
from bootstrap.models.provisioner import cached_models, link_cached, shown_locally
from bootstrap.volume.args_file import FLAG, describe_local_models, local_folders
from demo.volume import DemoVolume
from tests.support.provisioning import spec


def comfyui(folder: Path, known: str, flag: str = FLAG) -> Path:
    """A source tree that says what we read of it."""
    (folder / "comfy").mkdir(parents=True)
    (folder / "comfy" / "cli_args.py").write_text(f'parser.add_argument("{flag}", type=str)\n')
    lines = [f'os.path.join(models_dir, "{name}")' for name in known.split()]
    (folder / "folder_paths.py").write_text("\n".join(lines))
    return folder


def test_a_real_comfyui_is_reported_of_every_kind_it_knows(demo: DemoVolume) -> None:
    folders = local_folders(demo.comfyui)
    assert {"checkpoints", "loras", "vae", "text_encoders", "diffusion_models"} <= set(folders)
    assert folders["controlnet"] == "controlnet" and "t2i_adapter" not in folders
    assert shown_locally(spec("https://x.y/a", directory="clip"), folders)
    assert shown_locally(spec("https://x.y/a", directory="loras/xl"), folders)


def test_a_folder_of_a_custom_node_is_left_alone(demo: DemoVolume) -> None:
    folders = local_folders(demo.comfyui)
    assert not shown_locally(spec("https://x.y/a", directory="ipadapter"), folders)


def test_an_old_comfyui_is_reported_by_the_names_it_knows(tmp_path: Path) -> None:
    folders = local_folders(comfyui(tmp_path, "clip unet loras"))
    assert folders == {"clip": "text_encoders", "unet": "diffusion_models", "loras": "loras"}


def test_one_that_cannot_be_reported_gets_nothing(tmp_path: Path) -> None:
    mute = comfyui(tmp_path / "mute", "loras", flag="--listen")
    assert local_folders(mute) == local_folders(None) == local_folders(tmp_path) == {}
    assert describe_local_models(mute, tmp_path / "models", tmp_path / "m.yaml") is None
    assert not shown_locally(spec("https://x.y/a"), {})


def test_the_file_it_is_reported_by(tmp_path: Path) -> None:
    own, config = tmp_path / "it's: here #1", tmp_path / "paths.yaml"
    assert describe_local_models(comfyui(tmp_path / "c", "loras"), own, config) == config
    (section,) = json.loads(config.read_text()).values()
    assert section == {"base_path": str(own), "loras": "loras"}
    assert own.is_dir()
    unwritable = tmp_path / "no" / "such" / "folder" / "paths.yaml"
    assert describe_local_models(tmp_path / "c", own, unwritable) is None


def test_a_link_that_leads_nowhere_any_more_is_made_again(tmp_path: Path) -> None:
    here = tmp_path / "cache" / "m.safetensors"
    here.parent.mkdir()
    here.write_bytes(b"x")
    place = tmp_path / "models" / "text_encoders" / "m.safetensors"
    place.parent.mkdir(parents=True)
    place.symlink_to(tmp_path / "another host's")
    results = [ProvisionResult(spec("https://x.y/m", directory="clip"), "cached", here)]
    (reported,) = cached_models(tmp_path / "models")
    assert (reported["size"], reported["from"]) == (None, str(tmp_path / "another host's"))
    assert link_cached(results, tmp_path / "models") == [place]
    (reported,) = cached_models(tmp_path / "models")
    assert reported == {"path": "text_encoders/m.safetensors", "size": 1, "from": str(here)}
    assert place.read_bytes() == b"x"
    assert link_cached(results, tmp_path / "models") == []
