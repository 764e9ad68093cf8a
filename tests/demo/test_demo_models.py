"""`make demo-models`, as a user runs it."""

from __future__ import annotations

import subprocess
import sys

from tests.support.sources import ROOT


def test_a_manifest_is_planned_pulled_pulled_again_without_network_and_verified() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "demo", "models"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said = done.stderr
    assert done.returncode == 0, said
    for source in ("from Hugging Face", "from Civitai (127.0.0.1), with CIVITAI_TOKEN", "optional"):
        assert source in said
    assert said.count("5 of 5 models are there.") == 2
    assert said.count("[models] ") == 8, "the second pull fetched nothing"
    compared = [said.count(f"compared with {what}\n") for what in ("its receipt", "nothing yet")]
    assert compared == [4, 1], "a file that was there before had never been hashed"
    assert "demo-token" not in said
