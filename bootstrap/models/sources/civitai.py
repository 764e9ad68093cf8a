"""Civitai: by version id, page link or AIR. Observed behaviour: HEAD gives 401 even with a valid
token, so the first byte is requested instead. The response redirects to a signed storage URL (R2,
or b2.civitai.com), which answers 400 or 401 if it also gets the Authorization header, so the token
goes only to the API's hosts by full name. With a browser-like User-Agent a missing login gives a
page with status 200. The API's own addresses by type, format and fp may answer 404, those by fileId
do not. API: https://developer.civitai.com/docs/api/public-rest
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from bootstrap.core.redact import Secret
from bootstrap.models.download.remote import Remote, probe
from bootstrap.models.download.verify import Wanted
from bootstrap.models.sources import CIVITAI_HOSTS, CivitaiFile, Description, Link
from bootstrap.models.sources.https import given_name
from bootstrap.net import DownloadError
from bootstrap.net.http import Channel, Credential, Reply, Words, explain

# The file's type decides first, then the model's. Keys are lower case without spaces.
_BY_FILE = {
    "vae": "vae",
    "textencoder": "text_encoders",
    "unet": "diffusion_models",
    "diffusionmodel": "diffusion_models",
    "clipvision": "clip_vision",
    "controlnet": "controlnet",
    "upscaler": "upscale_models",
}
_BY_MODEL = {
    "checkpoint": "checkpoints",
    "lora": "loras",
    "locon": "loras",
    "dora": "loras",
    "textualinversion": "embeddings",
    "hypernetwork": "hypernetworks",
    "controlnet": "controlnet",
    "upscaler": "upscale_models",
    "vae": "vae",
    "motionmodule": "animatediff_models",
    "textencoder": "text_encoders",
    "clip": "text_encoders",
    "unet": "diffusion_models",
}
_NO_MODELS = ("trainingdata", "archive", "workflow", "workflows", "config", "negative")
# A file's extension in an AIR -> its format in the API.
_FORMATS = {"safetensors": "safetensor", "ckpt": "pickletensor", "pt": "pickletensor"}
_LOGIN = (
    "Make an API key at https://civitai.com/user/account (API Keys) and set it as CIVITAI_TOKEN "
    "in the endpoint's environment variables; if one is set, it may have been revoked."
)
_WORDS: Words = {
    400: (
        "download.http_status",
        "Civitai does not understand the request (400).",
        "Check the link's format, size and fp fields.",
    ),
    401: ("download.login_needed", "Civitai requires a login for this model (401).", _LOGIN),
    403: (
        "download.forbidden",
        "Civitai refuses this model to this account (403): early access, or no permission.",
        "Open the model's page with the account of the API key; buy early access or wait for it.",
    ),
    404: (
        "download.not_found",
        "Civitai has no such model version (404).",
        (
            "Check the id: the version's, not the model's (`modelVersionId` in the page's "
            "address). A model that only civitai.red shows needs a link to https://civitai.red/...."
        ),
    ),
    410: (
        "download.gone",
        "The model was archived or removed at Civitai (410).",
        "Choose another version or source.",
    ),
    429: (
        "download.rate_limited",
        "Civitai's download quota of this account is used up (429).",
        "Wait until it is renewed, or use a token of an account with a larger quota.",
    ),
}


def choose_file(version: Mapping[str, Any], choice: Mapping[str, str]) -> Mapping[str, Any]:
    """The file that the link's fields pick; without fields the primary file, or the first model.
    Raises NoSuchFile if the fields pick no file or several, and DownloadError if the version has no
    model at all.
    """
    listed = version.get("files")
    files = [f for f in listed if isinstance(f, Mapping)] if isinstance(listed, list) else []
    chosen = [f for f in files if _matches(f, choice)] if choice else _models_in(files)
    chosen = [f for f in chosen if f.get("primary") is True] or chosen
    if choice and len(chosen) != 1:
        raise NoSuchFile(version, files, chosen, choice)
    if not chosen or not _models_in(chosen[:1]):
        kind = files[0].get("type") if files else "nothing"
        raise DownloadError(
            "download.wrong_type",
            f"the Civitai version holds {kind}, which is not a model.",
            "Use the link of a version with a model file.",
        )
    return chosen[0]


def _models_in(files: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [f for f in files if _plain(f.get("type")) not in _NO_MODELS]


class NoSuchFile(DownloadError):
    """The link's fields do not pick one file of the version."""

    def __init__(
        self,
        version: Mapping[str, Any],
        files: Sequence[Mapping[str, Any]],
        chosen: Sequence[Mapping[str, Any]],
        choice: Mapping[str, str],
    ) -> None:
        asked = " and ".join(f"{key} {value}" for key, value in choice.items())
        count = f"{len(chosen)} files" if chosen else "no file"
        listed = ", ".join(_file_line(file) for file in (chosen or files)[:12]) or "none"
        super().__init__(
            "download.not_found",
            f"the Civitai version {version.get('id', '')} has {count} with {asked[:120]}.",
            f"Choose one by its fileId (`?fileId=...`): {listed}.",
        )


def _file_line(file: Mapping[str, Any]) -> str:
    return f"{file.get('id')} ({file.get('name') or file.get('type')})"


def folder_for(version: Mapping[str, Any], file: Mapping[str, Any]) -> str | None:
    """The folder under `models/`; None if the user must give it."""
    by_file = _BY_FILE.get(_plain(file.get("type")))
    model = version.get("model")
    kind = model.get("type") if isinstance(model, Mapping) else None
    if _plain(kind) in _NO_MODELS:
        return None
    return by_file or _BY_MODEL.get(_plain(kind))


def sha256_of(file: Mapping[str, Any]) -> str | None:
    """The file's SHA-256 in lower case."""
    hashes = file.get("hashes")
    value = hashes.get("SHA256") if isinstance(hashes, Mapping) else None
    if isinstance(value, str) and re.fullmatch(r"[0-9a-fA-F]{64}", value):
        return value.lower()
    return None


def size_of(file: Mapping[str, Any]) -> int | None:
    """Bytes, if `sizeKB` (KiB, with a fraction) is a whole number of bytes."""
    kib = file.get("sizeKB")
    if not isinstance(kib, (int, float)) or isinstance(kib, bool) or not 0 < kib < 2**50:
        return None
    size = kib * 1024
    return round(size) if abs(size - round(size)) < 0.01 else None


def _matches(file: Mapping[str, Any], choice: Mapping[str, str]) -> bool:
    metadata = file.get("metadata")
    metadata = metadata if isinstance(metadata, Mapping) else {}
    if "fileId" in choice:
        return str(file.get("id")) == choice["fileId"]
    for key, value in choice.items():
        actual = file.get("type") if key == "type" else metadata.get(key)
        if _plain(actual) != _FORMATS.get(_plain(value), _plain(value)):
            return False
    return True


def _plain(value: Any) -> str:
    return re.sub(r"[\s_-]", "", value).lower() if isinstance(value, str) else ""


def belongs_to_civitai(scheme: str, host: str, port: int) -> bool:
    """May this host get the token? Only the API's hosts, by full name."""
    return host in CIVITAI_HOSTS and scheme == "https" and port == 443


class Civitai:
    """`base` replaces https://civitai.com for tests and the demo: the token then belongs to that
    origin only."""

    name = "Civitai"

    def __init__(self, token: Secret | None = None, base: str | None = None) -> None:
        self._base = base
        self._credential: Credential | None = None
        if token is not None:
            own = belongs_to_civitai if base is None else _only(base)
            self._credential = Credential("CIVITAI_TOKEN", token, own)
        self._versions: dict[tuple[str, int], dict[str, Any]] = {}

    def understands(self, link: Link) -> bool:
        """Links to civitai.com and civitai.red, and AIRs."""
        return isinstance(link, CivitaiFile)

    def host_of(self, link: Link) -> str:
        """civitai.com or civitai.red; the file itself comes from their storage."""
        assert isinstance(link, CivitaiFile)
        return urlsplit(self._site(link)).hostname or ""

    def credential_name(self, link: Link) -> str | None:
        """CIVITAI_TOKEN, when there is one."""
        return None if self._credential is None else self._credential.name

    def locate(self, link: Link, revision: str | None, wanted: Wanted, channel: Channel) -> Remote:
        """The file's signed URL. The API is asked for the hash if the manifest has none, and for
        the file if the link chooses it by fields other than fileId."""
        assert isinstance(link, CivitaiFile)
        if link.version is None:
            raise _no_version()
        sha256 = wanted.sha256
        if sha256 is None or (link.choice and "fileId" not in dict(link.choice)):
            link, sha256 = self._known_file(link, sha256, channel)
        return self._probe(link, sha256, wanted.text_is_fine, channel)[0]

    def describe(self, link: Link, channel: Channel) -> Description:
        """Name, folder, size and hash, from Civitai's API; a page without a version means the
        newest."""
        assert isinstance(link, CivitaiFile)
        if link.version is None:
            link = replace(link, version=self._newest_version(link, channel))
        version = self._version(link, channel)
        file = choose_file(version, dict(link.choice))
        link = _by_id(link, file)
        name, size = str(file.get("name") or ""), None
        if not name:
            remote, reply = self._probe(link, None, False, channel)
            name, size = given_name(reply), remote.size
        return Description(
            url=str(link),
            name=name,
            directory=folder_for(version, file),
            size=size_of(file) or size,
            sha256=sha256_of(file),
        )

    def _site(self, link: CivitaiFile) -> str:
        return self._base or f"https://{link.host}"

    def _probe(
        self, link: CivitaiFile, sha256: str | None, text_is_fine: bool, channel: Channel
    ) -> tuple[Remote, Reply]:
        query = f"?{link.query}" if link.choice else ""
        remote, reply = probe(
            channel,
            Remote(
                f"{self._site(link)}/api/download/models/{link.version}{query}",
                f"civitai:{link.version}?{link.query}",
                self._explain,
                sha256=sha256,
                credential=self._credential,
                text_is_fine=text_is_fine,
            ),
        )
        return remote, reply

    def _known_file(
        self, link: CivitaiFile, pinned: str | None, channel: Channel
    ) -> tuple[CivitaiFile, str | None]:
        """The link by fileId, if it chooses a file, and the file's SHA-256, `pinned` or from the
        API; an API that does not answer is not an error. Raises NoSuchFile."""
        try:
            version = self._version(link, channel)
            file = _file_with(pinned, version) or choose_file(version, dict(link.choice))
        except NoSuchFile:
            if pinned is None:
                raise
            return link, pinned  # bytes other than the pinned ones are refused later
        except DownloadError:
            return link, pinned
        return _by_id(link, file), pinned or sha256_of(file)

    def _version(self, link: CivitaiFile, channel: Channel) -> dict[str, Any]:
        assert link.version is not None
        key = (link.host, link.version)
        if key not in self._versions:
            path = f"/api/v1/model-versions/{link.version}"
            self._versions[key] = self._api(link, path, channel)
        return self._versions[key]

    def _newest_version(self, link: CivitaiFile, channel: Channel) -> int:
        model = self._api(link, f"/api/v1/models/{link.model}", channel)
        versions = model.get("modelVersions")
        newest = versions[0] if isinstance(versions, list) and versions else None
        if not isinstance(newest, dict) or type(newest.get("id")) is not int:
            raise _no_version()
        return int(newest["id"])

    def _api(self, link: CivitaiFile, path: str, channel: Channel) -> dict[str, Any]:
        reply = channel.get(f"{self._site(link)}{path}", self._credential)
        if reply.status != 200:
            raise self._explain(reply)
        try:
            data = json.loads(reply.read_text(8_000_000))
        except (ValueError, RecursionError):
            data = None
        finally:
            channel.close()
        if not isinstance(data, dict):
            raise DownloadError(
                "download.bad_answer",
                "Civitai's API answers with something that is not a JSON object.",
                "Try again later.",
                transient=True,
            )
        return data

    def _explain(self, reply: Reply) -> DownloadError:
        detail = ""
        if "json" in reply.headers.get("content-type", ""):
            try:
                said = json.loads(reply.read_text(10_000)).get("error", "")
                detail = said if isinstance(said, str) else str(said.get("message", ""))
            except (ValueError, AttributeError, RecursionError):
                pass
        # The storage answers 403 if the signature has expired; RangeFetch then asks again.
        return explain(reply, _WORDS, detail)


def _file_with(sha256: str | None, version: Mapping[str, Any]) -> Mapping[str, Any] | None:
    listed = version.get("files")
    files = listed if sha256 and isinstance(listed, list) else []
    return next((f for f in files if isinstance(f, Mapping) and sha256_of(f) == sha256), None)


def _by_id(link: CivitaiFile, file: Mapping[str, Any]) -> CivitaiFile:
    """The link with its choice by fileId; unchanged if it has none, or the id is unknown."""
    number = file.get("id")
    if not link.choice or type(number) is not int:
        return link
    return replace(link, choice=(("fileId", str(number)),))


def _only(base: str) -> Any:
    parts = urlsplit(base)
    origin = (parts.scheme, parts.hostname, parts.port)
    return lambda scheme, host, port: (scheme, host, port) == origin


def _no_version() -> DownloadError:
    return DownloadError(
        "download.not_found",
        "the Civitai link names a model but no version.",
        "Choose a version on the model's page and copy that address (`?modelVersionId=...`).",
    )
