"""A custom node as a Pod template bakes it in: shows what ComfyUI has and sees where it runs.

Runs in ComfyUI's Python, so it imports nothing from the project.
"""

import importlib.util
import json
import os
import sys

import folder_paths


class TemplateLook:
    """Shows, as text: the environment, a package of the template's own, models by category."""

    CATEGORY = "tests"
    RETURN_TYPES = ()
    FUNCTION = "run"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def run(self):
        here = os.path.dirname(__file__)
        reported = {
            "prefix": sys.prefix,
            "own package": importlib.util.find_spec("template_only") is not None,
            "beside main.py": os.path.isfile(os.path.join(here, "../../main.py")),
            "loras": folder_paths.get_filename_list("loras"),
            "checkpoints": folder_paths.get_filename_list("checkpoints"),
        }
        return {"ui": {"text": [json.dumps(reported)]}}


NODE_CLASS_MAPPINGS = {"TemplateLook": TemplateLook}
