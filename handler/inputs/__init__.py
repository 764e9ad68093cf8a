"""Input files on local disk, where ComfyUI looks for them: decoded, fetched, or from the volume."""

from handler.inputs.fetch import Fetcher
from handler.inputs.job_inputs import JobInputs, missing_inputs
from handler.inputs.volume_cache import VolumeInputs

__all__ = ["Fetcher", "JobInputs", "VolumeInputs", "missing_inputs"]
