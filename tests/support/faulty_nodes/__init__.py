"""Custom nodes that misbehave on demand; copied into a test volume's `custom_nodes`.

Runs in ComfyUI's Python, so it imports nothing from the project.
"""

import json
import os
import signal
import threading
import time


class Sleep:
    """Passes an image on after `seconds`, or once the file `until` exists; if `obedient`, it can be
    interrupted meanwhile."""

    CATEGORY = "tests"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"image": ("IMAGE",), "seconds": ("FLOAT", {"default": 1.0, "max": 1e6})},
            "optional": {"obedient": ("BOOLEAN", {"default": True}), "until": ("STRING", {})},
        }

    def run(self, image, seconds, obedient=True, until=""):
        import comfy.model_management as management

        print("TestSleep runs", flush=True)
        end = time.monotonic() + seconds
        while time.monotonic() < end and not (until and os.path.exists(until)):
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


class WriteAside:
    """Saves a picture outside ComfyUI's output folder, as some nodes do, and reports it as if it
    were there: `beside the code`, in the `working directory` or at another `place`."""

    CATEGORY = "tests"
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"place": ("STRING", {}), "name": ("STRING", {})}}

    def run(self, place, name):
        import folder_paths
        from PIL import Image

        code = os.path.dirname(os.path.realpath(folder_paths.__file__))
        known = {"beside the code": os.path.join(code, "output"), "working directory": "output"}
        path = os.path.join(known.get(place, place), "aside", name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Image.new("RGB", (8, 8), (255, 0, 0)).save(path)
        output = folder_paths.get_output_directory()
        below = "aside" if place in known else os.path.relpath(os.path.dirname(path), output)
        return {"ui": {"images": [{"filename": name, "subfolder": below, "type": "output"}]}}


class ShowEnvironment:
    """Shows the names and values of ComfyUI's environment as text."""

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


class WriteBeside:
    """Downloads a model beside itself and changes its own settings, as many nodes do."""

    CATEGORY = "tests"
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"text": ("STRING", {"default": ""})}}

    def run(self, text):
        here = os.path.dirname(os.path.abspath(__file__))
        os.makedirs(os.path.join(here, "ckpts"), exist_ok=True)
        for name in ("ckpts/downloaded.bin", "settings.json"):
            with open(os.path.join(here, name), "w") as file:
                file.write(text)
        return {"ui": {"text": [here]}}


class ShowKey:
    """Shows the Comfy.org key that ComfyUI passes to API nodes, backwards."""

    CATEGORY = "tests"
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}, "hidden": {"key": "API_KEY_COMFY_ORG"}}

    def run(self, key=None):
        return {"ui": {"text": [(key or "none")[::-1]]}}


_failed = set()


class Raise:
    """Raises by name: SystemExit, torch's out-of-memory error, else a RuntimeError with `said`.

    With `once`, only the first time in a process for that word.
    """

    CATEGORY = "tests"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"image": ("IMAGE",), "what": ("STRING", {})},
            "optional": {"once": ("STRING", {"default": ""}), "said": ("STRING", {"default": ""})},
        }

    @classmethod
    def IS_CHANGED(cls, **_):
        return float("nan")

    def run(self, image, what, once="", said=""):
        if once in _failed:
            return (image,)
        if once:
            _failed.add(once)
        if what == "SystemExit":
            raise SystemExit(3)
        if what == "OutOfMemoryError":
            import torch

            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        raise RuntimeError(said)


class Socket:
    """Closes the worker's socket, or drops it, as ComfyUI does when a stale one closes late."""

    CATEGORY = "tests"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",), "way": (["drop", "silence"],)}}

    @classmethod
    def IS_CHANGED(cls, **_):
        return float("nan")

    def run(self, image, way):
        import asyncio

        import server

        instance = server.PromptServer.instance
        if way == "drop":
            for socket in list(instance.sockets.values()):
                asyncio.run_coroutine_threadsafe(socket.close(), instance.loop)
        else:
            instance.sockets.clear()
        time.sleep(0.5)
        return (image,)


class HoldLock:
    """Computes without releasing the GIL, so that the server cannot answer meanwhile."""

    CATEGORY = "tests"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",), "seconds": ("FLOAT", {"default": 1.0})}}

    def run(self, image, seconds):
        start = time.monotonic()
        sum(range(10_000_000))
        a_piece = time.monotonic() - start
        sum(range(int(10_000_000 * seconds / a_piece)))
        return (image,)


class NotJson:
    """Reports what is not JSON; quietly, so that only the history holds it, or to the socket."""

    CATEGORY = "tests"
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",), "quietly": ("BOOLEAN", {"default": False})}}

    def run(self, image, quietly):
        if quietly:
            import server

            server.PromptServer.instance.client_id = None
        return {"ui": {"what": [object()]}}


class Steps:
    """Runs in steps and reports each, as samplers do."""

    CATEGORY = "tests"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "image": ("IMAGE",),
                "steps": ("INT", {"default": 10}),
                "seconds": ("FLOAT", {"default": 1.0}),
            },
            "optional": {"preview": ("INT", {"default": 0})},
        }

    @classmethod
    def IS_CHANGED(cls, **_):
        return float("nan")

    def run(self, image, steps, seconds, preview=0):
        import comfy.utils
        from PIL import Image

        bar = comfy.utils.ProgressBar(steps)
        for step in range(1, steps + 1):
            time.sleep(seconds / steps)
            picture = Image.effect_noise((preview, preview), 90).convert("RGB") if preview else None
            shown = ("JPEG", picture, preview) if preview else None
            bar.update_absolute(step, steps, shown)
        return (image,)


class Conditioning:
    """What a text encoder returns for an empty text, without an encoder."""

    CATEGORY = "tests"
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"width": ("INT", {"default": 768})}}

    def run(self, width):
        import torch

        return ([[torch.zeros(1, 77, width), {}]],)


class AskVolume:
    """Looks up missing files in `folder`, again and again, for some seconds."""

    CATEGORY = "tests"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "image": ("IMAGE",),
                "folder": ("STRING", {}),
                "seconds": ("FLOAT", {"default": 1.0}),
            }
        }

    def run(self, image, folder, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            os.path.lexists(os.path.join(folder, str(time.monotonic_ns())))
            time.sleep(0.05)
        return (image,)


_hoard = []


class Memory:
    """Takes memory and keeps it: in ComfyUI's cache, in the process, or more until it is killed."""

    CATEGORY = "tests"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        ways = ["cached", "for good", "without end"]
        amount = ("INT", {"default": 0, "max": 1_000_000})
        return {"required": {"image": ("IMAGE",), "megabytes": amount, "way": (ways,)}}

    @classmethod
    def IS_CHANGED(cls, **_):
        return float("nan")

    def run(self, image, megabytes, way):
        taken = [b"x" * 1_000_000 * megabytes]  # one block, which goes back to the system at once
        if way == "cached":
            self.taken = taken  # this instance is in a cache that /free empties
        else:
            _hoard.extend(taken)
        while way == "without end":
            _hoard.append(b"x" * 50_000_000)
        return (image,)


class SaveOddly:
    """Reports a text file that it saves `late`, by 0.2 s, that will `change` by then, that it has
    replaced with a `fifo`, or that it writes `slowly`, for 1 s, in a thread that outlives its
    prompt."""

    CATEGORY = "tests"
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        how = (["late", "change", "fifo", "slowly", "at once"],)
        return {"required": {"name": ("STRING", {}), "content": ("STRING", {}), "how": how}}

    def run(self, name, content, how):
        import folder_paths

        path = os.path.join(folder_paths.get_output_directory(), name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC

        def put(text):
            with open(path + ".part", "w") as file:
                file.write(text)
            os.replace(path + ".part", path)

        def later():
            time.sleep(0.2)
            put(content)

        def slowly(descriptor):
            for part in content:
                os.write(descriptor, part.encode())
                time.sleep(1 / len(content))
            os.close(descriptor)

        if how == "at once":
            put(content)
        elif how == "slowly":
            threading.Thread(target=slowly, args=[os.open(path, flags)]).start()
        elif how != "late":
            put("not yet " + content)
        if how == "fifo":
            os.unlink(path)
            os.mkfifo(path)
        elif how in ("late", "change"):
            threading.Thread(target=later).start()
        return {"ui": {"files": [{"filename": name, "subfolder": "", "type": "output"}]}}


_runs = {}


class Counted:
    """Passes an image on, and counts how often it ran for a word."""

    CATEGORY = "tests"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",), "word": ("STRING", {})}}

    def run(self, image, word):
        _runs[word] = _runs.get(word, 0) + 1
        return (image,)


class Counts:
    """Shows how often `Counted` ran for a word."""

    CATEGORY = "tests"
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"word": ("STRING", {})}}

    @classmethod
    def IS_CHANGED(cls, **_):
        return float("nan")

    def run(self, word):
        return {"ui": {"text": [str(_runs.get(word, 0))]}}


class _Anything(dict):
    def __contains__(self, name):
        return True

    def __getitem__(self, name):
        return ("*", {})


class SaveAnything:
    """Takes any inputs, saves a text file that names them, and passes the image on."""

    CATEGORY = "tests"
    RETURN_TYPES = ("IMAGE",)
    OUTPUT_NODE = True
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        hidden = {"prompt": "PROMPT", "extra": "EXTRA_PNGINFO"}
        return {"required": {"image": ("IMAGE",)}, "optional": _Anything(), "hidden": hidden}

    def run(self, image, prompt=None, extra=None, **more):
        import folder_paths

        name = f"anything_{time.time_ns()}.txt"
        with open(os.path.join(folder_paths.get_output_directory(), name), "w") as file:
            json.dump({"inputs": sorted(more), "prompt": prompt, "extra": extra}, file)
        item = {"filename": name, "subfolder": "", "type": "output"}
        return {"ui": {"files": [item]}, "result": (image,)}


class Expand:
    """Expands into a node that counts and one that saves, `deep` times over."""

    CATEGORY = "tests"
    RETURN_TYPES = ("IMAGE",)
    OUTPUT_NODE = True
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        more = {"word": ("STRING", {"default": ""}), "deep": ("INT", {"default": 0})}
        return {"required": {"image": ("IMAGE", {"rawLink": True})}, "optional": more}

    def run(self, image, word="", deep=0):
        from comfy_execution.graph_utils import GraphBuilder

        graph = GraphBuilder()
        counted = graph.node("TestCounted", image=image, word=word)
        if deep:
            graph.node("TestExpand", image=counted.out(0), word=word, deep=deep - 1)
        else:
            graph.node("SaveImage", images=counted.out(0), filename_prefix="expanded")
        return {"result": (counted.out(0),), "expand": graph.finalize()}


class Stop:
    """Interrupts the workflow, as some nodes do when their condition is not met."""

    CATEGORY = "tests"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",)}}

    def run(self, image):
        import comfy.model_management

        raise comfy.model_management.InterruptProcessingException()


class Block:
    """Blocks what comes after it, with or without a message."""

    CATEGORY = "tests"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",), "said": ("STRING", {"default": ""})}}

    def run(self, image, said):
        from comfy_execution.graph import ExecutionBlocker

        return (ExecutionBlocker(said or None),)


class QueuePrompt:
    """Queues another workflow, given as JSON, then raises if it `fails`."""

    CATEGORY = "tests"
    RETURN_TYPES = ("IMAGE",)
    OUTPUT_NODE = True
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        more = {"workflow": ("STRING", {}), "fails": ("BOOLEAN", {"default": False})}
        return {"required": {"image": ("IMAGE",), **more}}

    @classmethod
    def IS_CHANGED(cls, **_):
        return float("nan")

    def run(self, image, workflow, fails):
        import urllib.request

        import server

        body = json.dumps({"prompt": json.loads(workflow)}).encode()
        address = f"http://127.0.0.1:{server.PromptServer.instance.port}/prompt"
        headers = {"Content-Type": "application/json"}
        urllib.request.urlopen(urllib.request.Request(address, body, headers)).read()
        if fails:
            raise RuntimeError("after it has queued")
        return (image,)


NODE_CLASS_MAPPINGS = {
    "TestCounted": Counted,
    "TestCounts": Counts,
    "TestSaveAnything": SaveAnything,
    "TestExpand": Expand,
    "TestStop": Stop,
    "TestBlock": Block,
    "TestQueuePrompt": QueuePrompt,
    "TestSaveOddly": SaveOddly,
    "TestMemory": Memory,
    "TestAskVolume": AskVolume,
    "TestHoldLock": HoldLock,
    "TestRaise": Raise,
    "TestSocket": Socket,
    "TestNotJson": NotJson,
    "TestSteps": Steps,
    "TestConditioning": Conditioning,
    "TestShowKey": ShowKey,
    "TestWriteAside": WriteAside,
    "TestWriteBeside": WriteBeside,
    "TestSleep": Sleep,
    "TestDie": Die,
    "TestShowEnvironment": ShowEnvironment,
    "TestReport": Report,
}
