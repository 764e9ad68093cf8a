"""Custom nodes that misbehave on demand; copied into a test volume's `custom_nodes`.

Runs in ComfyUI's Python, so it imports nothing of the project.
"""

import json
import os
import signal
import time


class Sleep:
    """Passes an image on after `seconds`; an obedient one can be interrupted meanwhile."""

    CATEGORY = "tests"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"image": ("IMAGE",), "seconds": ("FLOAT", {"default": 1.0, "max": 1e6})},
            "optional": {"obedient": ("BOOLEAN", {"default": True})},
        }

    def run(self, image, seconds, obedient=True):
        import comfy.model_management as management

        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.05)
            if obedient:
                management.throw_exception_if_processing_interrupted()
        return (image,)


class Die:
    """Ends the whole process in one of several ways."""

    CATEGORY = "tests"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        ways = ["SIGKILL", "SIGSEGV", "exit 3"]
        return {"required": {"image": ("IMAGE",), "way": (ways,)}}

    def run(self, image, way):
        print("about to die", flush=True)
        if way.startswith("exit"):
            os._exit(int(way.split()[1]))
        os.kill(os.getpid(), signal.Signals[way])
        time.sleep(10)
        return (image,)


class Report:
    """Writes files below the output folder and reports whatever `ui` says, as JSON."""

    CATEGORY = "tests"
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"files": ("STRING", {}), "ui": ("STRING", {})},
            "optional": {"megabytes": ("INT", {"default": 0})},
        }

    def run(self, files, ui, megabytes=0):
        import folder_paths

        output = folder_paths.get_output_directory()
        for name in files.split():
            path = os.path.join(output, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w") as file:
                file.write(f"content of {name}")
                file.write("x" * megabytes * 1_000_000)
        return {"ui": json.loads(ui.replace("OUTPUT", output))}


class ShowEnvironment:
    """Tells the names and values of ComfyUI's environment as text."""

    CATEGORY = "tests"
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def run(self):
        text = "\n".join(f"{name}={value}" for name, value in os.environ.items())
        return {"ui": {"text": [text]}}


NODE_CLASS_MAPPINGS = {
    "TestSleep": Sleep,
    "TestDie": Die,
    "TestShowEnvironment": ShowEnvironment,
    "TestReport": Report,
}
