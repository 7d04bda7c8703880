"""Weights folders to the Hugging Face Hub: everything is checked on this machine first, then goes up as one commit."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fapn_zoo import __version__
from fapn_zoo.runtime.files import json_text
from fapn_zoo.weights import CARD, CONFIG, WEIGHTS
from fapn_zoo.weights import card as cards
from fapn_zoo.weights.card import Config, Rows
from fapn_zoo.weights.digests import file_digest
from fapn_zoo.weights.failures import ATTEMPTS, Failure, Wish, explained, patiently
from fapn_zoo.weights.finite import check_finite
from fapn_zoo.weights.folder import read_config
from fapn_zoo.weights.probe import check, probe

if TYPE_CHECKING:
    from fapn_zoo.model import ZooModel

logger = logging.getLogger(__name__)

EXAMPLE_SIZE = 1280  # longest side in pixels of an example photo

T = TypeVar("T")


@dataclass(frozen=True)
class Package:
    """What one commit will hold, checked. `files`: name in the repository -> content, or the file it is read from."""

    repository: str
    revision: str | None
    model: str
    files: Mapping[str, bytes | Path]
    sha256: str

    @property
    def card(self) -> str:
        return self.files[CARD].decode()

    def describe(self) -> str:
        """One line per file, then the card."""
        sizes = {n: len(c) if isinstance(c, bytes) else c.stat().st_size for n, c in self.files.items()}
        target = f"{self.repository}{f'@{self.revision}' if self.revision else ''}"
        lines = [f"{self.model} -> {target}"]
        lines += [f"  {name:<18} {size:>12,} bytes" for name, size in sizes.items()]
        return "\n".join([*lines, f"  {WEIGHTS} has sha256 {self.sha256}", "", self.card])


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    license: str | None = None,
    example: Any = None,
    message: str | None = None,
    dry_run: bool = False,
) -> str:
    """Uploads a weights folder, so that `create_model("hf-hub:owner/name", pretrained=True)` gives the same model.

    The folder is loaded and must compute the outputs stored in it; the card is rendered anew from `config.json` (own
    words between the card's comments are kept). Only the three files of a weights folder and the example go up, as one
    commit: a broken upload leaves the repository as it was. The folder itself is not changed.

    Args:
        folder: what training or `model.save` wrote.
        repo_id: `owner/name`; made where it is not there.
        private: of a new repository. revision: a branch instead of main, made where it is not there.
        license: an id such as `apache-2.0`, or a name and a link; needed where `config.json` states none.
        example: a photo; it and its overlay are shown on the model's page.
        message: of the commit.
        dry_run: only check. Needs no network.

    Returns:
        The commit's URL; of a dry run, the list of files and the card.

    Raises:
        FileNotFoundError, ValueError: the folder cannot be read, or is not fit to be published. PermissionError: no
            token, or one that may not write there. ConnectionError: the Hub cannot be reached, or the upload broke.
            OSError: what else the Hub says no to.
    """
    package = prepare(folder, repo_id, revision=revision, license=license, example=example)
    return package.describe() if dry_run else upload(package, private=private, message=message)


def prepare(
    folder: str | Path,
    repo_id: str,
    *,
    revision: str | None = None,
    license: str | None = None,
    example: Any = None,
    rows: Rows = (),
) -> Package:
    """All that `push` does without network. `rows`: lines of a result table for the card."""
    from huggingface_hub import constants

    from fapn_zoo import create_model

    _check_names(repo_id, revision)
    folder = Path(folder)
    config = read_config(folder)
    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(f"{str(folder)!r} is no weights folder: it has no {WEIGHTS}")
    license = _license(config, folder, license)
    content, text = (folder / CONFIG).read_bytes(), json_text(config | {"license": license}, folder / CONFIG)
    if license != config.get("license"):
        config = config | {"license": license}
        content = f"{text}\n".encode()
    digest = file_digest(folder / WEIGHTS)
    model = create_model(f"local-dir:{folder}", pretrained=True)
    check_finite(model.state_dict().items(), f"{folder}: {model.spec.name} is not pushed: its weights")
    if not config.get("probe"):
        logger.warning("%s: no outputs were stored with the weights, so only running them was tried", folder)
    pictures = _example(model, example) if example is not None else {}
    words = cards.own_words((folder / CARD).read_text(encoding="utf-8")) if (folder / CARD).is_file() else ""
    shown = f"{constants.ENDPOINT}/{repo_id}/resolve/{revision or 'main'}/{cards.EXAMPLE}" if pictures else None
    target = f"{repo_id}@{revision}" if revision else repo_id
    card = cards.render_card(config, words, repository=target, rows=rows, example=shown)
    try:
        if config.get("probe"):
            check(model, config["probe"])
        else:
            probe(model)
        cards.check_card(card)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    files = {CONFIG: content, CARD: card.encode(), WEIGHTS: folder / WEIGHTS} | pictures
    return Package(repo_id, revision, model.spec.name, files, digest)


def upload(package: Package, *, private: bool = False, message: str | None = None) -> str:
    """Makes the repository where needed, sends one commit, and compares what the Hub then holds. Returns its URL."""
    from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise ConnectionError("the Hub client is set offline (HF_HUB_OFFLINE=1); unset it to push")
    if not get_token():
        raise PermissionError("no Hub token; run `hf auth login` or set HF_TOKEN to one that may write")
    api, repo_id, revision = HfApi(), package.repository, package.revision
    operations = [CommitOperationAdd(name, content) for name, content in package.files.items()]
    title = message or f"{package.model}, by fapn-zoo {__version__}"

    # None leaves it to the owner's own settings; an existing repository stays as it is.
    _ask(lambda: api.create_repo(repo_id, private=True if private else None, exist_ok=True), repo_id)
    if revision:
        _ask(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True), repo_id)
    commit = _ask(lambda: api.create_commit(repo_id, operations, commit_message=title, revision=revision), repo_id)
    found = _ask(lambda: api.get_paths_info(repo_id, [WEIGHTS], revision=commit.oid), repo_id)
    digest = found[0].lfs.sha256 if found and found[0].lfs else None
    if digest != package.sha256:
        said = f"{repo_id} now holds {WEIGHTS} with sha256 {digest}, the folder's has {package.sha256}"
        raise OSError(f"{said}; push again, nothing else writing to the folder or the repository")
    return commit.commit_url


def _ask(call: Callable[[], T], repo_id: str) -> T:
    """What the Hub answers; calls again where trouble may pass."""

    def attempt() -> T:
        with explained(Wish("upload", repo_id)):
            return call()

    try:
        return patiently(attempt, ATTEMPTS)
    except Failure as failure:
        raise failure.kind(str(failure)) from failure


def _check_names(repo_id: str, revision: str | None) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if not cards.HUB_ID.fullmatch(repo_id):
        raise ValueError(f"Hub repository {repo_id!r}; expected 'owner/name'")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"Hub repository {repo_id!r}: {' '.join(str(error).split())}") from error
    if revision is not None and not re.fullmatch(r"\w[\w./-]*", revision, re.ASCII):
        raise ValueError(f"branch {revision!r} of {repo_id}; expected letters, digits and any of '_./-'")


def _license(config: Config, folder: Path, wanted: str | None) -> str:
    """The licence to publish under. ValueError where none is known, or where it is not the folder's to give."""
    stated = str(config.get("license") or "")
    license = stated if wanted is None else wanted.strip()
    release = cards.official_release(config)
    if release is not None and not cards.has_license(release.license):
        reason = "which states no licence, so they cannot be passed on; others get them with create_model by name"
        raise ValueError(f"{folder} holds weights of {release.page}, {reason}")
    if release is not None and cards.license_metadata(license) != cards.license_metadata(release.license):
        reason = f"they cannot be pushed under {license or 'no licence'!r}"
        raise ValueError(f"{folder} holds weights of {release.page} under {release.license}; {reason}")
    if not cards.has_license(license):
        said = f"states no licence but {license!r}" if license else "states no licence"
        raise ValueError(f"{folder} {said}; name one, as in --license apache-2.0")
    training = config.get("training") or {}
    parents = cards.registered(str(training.get("model"))).values() if training.get("pretrained") else ()
    strict = next((parent.license for parent in parents if "-nc" in parent.license), None)
    if strict and "-nc" not in license.lower():
        logger.warning("training started from weights under %s, which the licence %s does not repeat", strict, license)
    return license


def _example(model: ZooModel, photo: Any) -> dict[str, bytes]:
    """A photo without its camera's notes (place and time among them), not larger than needed, and its overlay."""
    from PIL import Image

    from fapn_zoo.data.images import load_image

    if model.spec.in_chans != 3:
        raise ValueError(f"an example is shown in colour, but {model.spec.name} reads {model.spec.in_chans} channels")
    image = Image.fromarray(load_image(photo).pixels.round().byte().permute(1, 2, 0).numpy())
    image.thumbnail((EXAMPLE_SIZE, EXAMPLE_SIZE))
    files = {}
    for name, picture, kind in ((cards.EXAMPLE, image, "JPEG"), (cards.OVERLAY, model.predict(image).overlay(), "PNG")):
        buffer = io.BytesIO()
        picture.save(buffer, kind, quality=90)  # which PNG has no use for
        files[name] = buffer.getvalue()
    return files
