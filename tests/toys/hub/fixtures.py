"""The hosts of the official releases on loopback, and two small models that they hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from toys.hub.release_server import ReleaseServer

from fapn_zoo.zoo import registry

if TYPE_CHECKING:
    from toys.hub.official_toys import Toys


@pytest.fixture(scope="module")
def toys() -> Iterator[Toys]:
    """Name -> (model, released file, official tensors); registered until the module's tests are done."""
    from toys.hub.official_toys import register_toys

    before = dict(registry._registered)
    yield register_toys()
    registry._registered.clear()
    registry._registered.update(before)


@pytest.fixture(scope="module")
def release_hosts(toys: Toys, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReleaseServer]:
    from toys.hub.official_toys import DRIVE, DRIVE_ID, HTTPS

    with ReleaseServer(tmp_path_factory.mktemp("authority")) as server:
        server.files[toys[HTTPS][0].weights["paper"].location] = toys[HTTPS][1]
        server.drive[DRIVE_ID] = toys[DRIVE][1]
        yield server


@pytest.fixture
def releases(release_hosts: ReleaseServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ReleaseServer:
    """The hosts without faults; this process and its children find them and an empty cache, and hardly pause."""
    from fapn_zoo.weights import failures

    release_hosts.reset()
    for name, value in (release_hosts.environment | {"FAPN_ZOO_CACHE": str(tmp_path / "cache")}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(failures, "FIRST_PAUSE", 0.01)
    return release_hosts


@pytest.fixture
def ask_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """`ask_hub(url)`: the Hub client of this process, which has read its environment long ago, asks there."""
    from huggingface_hub import constants

    monkeypatch.setenv("FAPN_ZOO_CACHE", str(tmp_path / "own"))

    def ask_hub(url: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)

    return ask_hub


@pytest.fixture
def row(record_property: Callable[[str, Any], None]) -> Callable[[str, str], None]:
    """`row(fault, outcome)`: a row of the table at the end of the run."""

    def row(fault: str, outcome: str) -> None:
        record_property("row of official releases: faults and outcomes", {"fault": fault, "outcome": outcome})

    return row


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(path)
    return path
