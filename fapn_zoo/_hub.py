"""The only module that talks to the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

FILES = ["config.json", "README.md"]
WEIGHTS = "model.safetensors"


def download(
    repository: str, *, cache_dir: str | Path | None = None, sha256: str | None = None, weights: bool = True
) -> Path:
    """Fetches a weights folder through huggingface_hub's cache and returns its path.

    Args:
        repository: ``owner/name`` or ``owner/name@revision``.
        cache_dir: None is the client's own place (``HF_HOME``). ``HF_ENDPOINT``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE``
            are honoured by the client.
        sha256: expected digest of ``model.safetensors``.
        weights: False fetches the description only.

    Raises:
        ValueError: a malformed name, or a repository, revision or file that cannot be had (with the cause).
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repo_id, _, revision = repository.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise ValueError(f"Hub repository {repository!r}; expected 'owner/name' or 'owner/name@revision'")
    try:
        folder = Path(snapshot_download(
            repo_id, revision=revision or None, cache_dir=cache_dir, allow_patterns=FILES + [WEIGHTS] * weights,
        ))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        cause = str(error).strip().split("\n")[0]
        raise ValueError(f"cannot fetch {repository!r} from the Hub: {cause}") from error
    if weights and not (folder / WEIGHTS).is_file():
        raise ValueError(f"Hub repository {repository!r} holds no {WEIGHTS}")
    if weights and sha256 is not None:
        digest = file_sha256(folder / WEIGHTS)
        if digest != sha256:
            raise ValueError(f"{WEIGHTS} of {repository!r} has sha256 {digest}, expected {sha256}")
    return folder


def file_sha256(path: Path) -> str:
    """Hex digest of a file, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
