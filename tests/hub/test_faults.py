"""What the Hub, the network and the disk can do to a download, through the real client.

Each fault ends in the right weights or in one line that says what to do; the cache stays sound; and a run without the
fault then succeeds without fetching again what had arrived whole. The table of it all is printed after the tests.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hub.faults import Fault
from hub.repositories import Repository
from hub.server import Hub
from hub.xet import packed

pytestmark = pytest.mark.hub

MB = 10**6
WEIGHTS = "model.safetensors"
FILES = {"config.json": b'{"format": 1}', "README.md": b"---\nlicense: mit\n---\nStreets.\n"}
# The client writes in pieces of 10 MiB, so only a part larger than that is there to go on from.
SMALL, LARGE = (random.Random(0).randbytes(size) for size in (3 * MB, 30 * MB))

CHILD = """
import json, sys
from fapn_zoo import _hub
name, arguments, setup = json.loads(sys.argv[1])
_hub.FIRST_PAUSE, _hub.LONGEST_PAUSE = 0.05, 5.0
exec(setup)
try:
    print(json.dumps({"folder": str(_hub.download(name, **arguments))}))
except ValueError as error:
    print(json.dumps({"error": str(error)}))
"""
# Files of this process cannot grow beyond a megabyte, as on a disk that is full or a quota that is used up.
NO_ROOM = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))"


@dataclass(frozen=True)
class Case:
    """A fault and what it must end in.

    Attributes:
        title: of the row.
        words: None where the right weights must be there, else words of the one-line error.
        says: words of the one line that is logged.
        faults: played during the first run only.
        name, arguments, environment, setup: of the first run only (``name``: what is downloaded).
        warm: the repository is in the cache already.
        gone: the Hub is shut down during the first run. changed: a file of the cache is overwritten before it.
        flags: of the repository. data: its weights. xet: they lie in Xet storage, and by HTTP as well.
        again: bytes of weights that the second, clean run may fetch; by default none after a success, all after an
            error.
        at_most: seconds that the first run may take, with room for a busy machine.
        most: bytes of weights that may be sent during the first run.
    """

    title: str
    words: str | None
    faults: tuple[Fault, ...] = ()
    name: str = "me/streets"
    says: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    setup: str = ""
    warm: bool = False
    gone: bool = False
    changed: str = ""
    flags: dict[str, bool] = field(default_factory=dict)
    data: bytes = SMALL
    xet: bool = False
    again: int | None = None
    at_most: float = 40
    most: int | None = None


def status(code: int, match: str, times: int | None = None, **headers: str) -> tuple[Fault, ...]:
    return (Fault("status", match, times, status=code, headers={k.replace("_", "-"): v for k, v in headers.items()}),)


COMMIT = Repository("me/streets").commit(FILES | {WEIGHTS: SMALL}).id
ANY, HEAD_CONFIG, BODY, XET = ".", "^HEAD .*config", "^GET /(cdn|xet-object)/", "^GET /xet-object/"
READER, STRANGER = {"HF_TOKEN": "hf_reader"}, {"HF_TOKEN": "hf_stranger"}
CACHED = f"taking commit {COMMIT[:12]} from the cache"
HURRY = {"HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "1"}
PACKED = packed(SMALL)
LIMITED = {"ratelimit": '"resolvers";r=0;t=1', "ratelimit_policy": '"fixed window";"resolvers";q=5;w=300'}
CASES = [
    Case("none", None),
    Case("404 repository", "no repository me/other", name="me/other"),
    Case("404 repository, with a token", "no repository me/other", name="me/other", environment=READER),
    Case("404 revision", "no revision 'v9'", name="me/streets@v9"),
    Case("404 revision, warm cache", "no revision 'v9'", name="me/streets@v9", warm=True, again=0),
    Case("401 private", "set HF_TOKEN to a token", flags={"private": True}),
    Case("401 token not valid", "the token is not valid", environment={"HF_TOKEN": "hf_old"}),
    Case("401 gated, no token", "accept its terms at", flags={"gated": True}),
    Case("403 gated, token without leave", "accept its terms at", flags={"gated": True}, environment=STRANGER),
    Case("403 gated, warm cache", None, flags={"gated": True}, environment=STRANGER, warm=True,
         says=CACHED),
    Case("gated, token with leave", None, flags={"gated": True}, environment=READER),
    Case("429 once, Retry-After 1 s", None, status(429, HEAD_CONFIG, 1, Retry_After="1")),
    Case("429 once on the body, ratelimit 1 s", None, status(429, BODY, 1, **LIMITED)),
    Case("429 for ever, ratelimit 1 s", "(429); wait 1 s", status(429, ANY, **LIMITED)),
    Case("429 for an hour", "(429); wait 3600 s", status(429, HEAD_CONFIG, Retry_After="3600"), at_most=20),
    Case("429 for an hour on the body", "(429); wait 3600 s", status(429, BODY, Retry_After="3600"), at_most=20),
    Case("500 twice", None, status(500, HEAD_CONFIG, 2)),
    Case("500 twice on the body", None, status(500, BODY, 2)),
    Case("503 for ever", "answers 503", status(503, ANY), at_most=20),
    Case("503 for ever, warm cache", None, status(503, ANY), warm=True, at_most=20, says=CACHED),
    Case("200 from something else", "does not answer as a Hub", status(200, ANY)),
    Case("slow body", None, (Fault("slow", seconds=0.03),)),
    Case("stalled body once", None, (Fault("stall", times=1),)),
    Case("stalled body for ever", "no answer from", (Fault("stall"),), environment=HURRY, at_most=60),
    Case("no answer at all", "no answer from", (Fault("mute", ANY),), environment=HURRY),
    Case("no answer at all, warm cache", None, (Fault("mute", ANY),), warm=True, environment=HURRY, says=CACHED),
    Case("cut at 40 % once", None, (Fault("cut", times=1),)),
    Case("cut at 40 % once, 30 MB", None, (Fault("cut", times=1),), data=LARGE, most=len(LARGE) + 2 * MB),
    Case("cut at 40 % for ever", "no answer from", (Fault("cut"),)),
    Case("wrong bytes once", None, (Fault("wrong", times=1),)),
    Case("wrong bytes for ever", "was damaged", (Fault("wrong"),)),
    Case("wrong bytes in a small file", "config.json was damaged", (Fault("wrong", "^GET .*config.json"),)),
    Case("truncated once", None, (Fault("short", times=1),)),
    Case("truncated for ever", "arrived with a wrong length", (Fault("short"),)),
    Case("truncated small file, lengths agree", "config.json was damaged", (Fault("short", "config.json"),)),
    Case("wrong sha256 registered", "expected abab", arguments={"sha256": "ab" * 32}),
    Case("wrong sha256 registered, warm cache", "expected abab", arguments={"sha256": "ab" * 32}, warm=True, again=0),
    Case("weights changed on disk", None, warm=True, changed=WEIGHTS, most=len(SMALL)),
    Case("small file changed on disk", None, warm=True, changed="config.json", most=0),
    Case("disk full", "no room for model.safetensors of 3.0 MB", setup=NO_ROOM),
    Case("Xet: none", None, xet=True, most=len(PACKED)),
    Case("Xet: 500 for ever", None, status(500, XET), xet=True),
    Case("Xet: no token for it", None, status(404, "xet-read-token"), xet=True),
    Case("Xet: cut at 40 % once", None, (Fault("cut", XET, times=1),), xet=True),
    Case("Xet: cut at 40 % for ever", None, (Fault("cut", XET),), xet=True),
    Case("Xet: wrong bytes for ever", None, (Fault("wrong", XET),), xet=True),
    Case("Xet: wrong bytes, also by HTTP", "was damaged", (Fault("wrong", BODY),), xet=True, again=len(PACKED)),
    Case("Xet: disk full", "no room for model.safetensors of 3.0 MB", setup=NO_ROOM, xet=True, again=len(PACKED)),
    Case("cache not writable", "cannot be written", arguments={"cache_dir": f"{__file__}/cache"}),
    Case("HF_HUB_OFFLINE, warm cache", None, environment={"HF_HUB_OFFLINE": "1"}, warm=True),
    Case("HF_HUB_OFFLINE, cold cache", "HF_HUB_OFFLINE is set", environment={"HF_HUB_OFFLINE": "1"}),
    Case("Hub gone, warm cache", None, gone=True, warm=True, says=CACHED),
    Case("Hub gone, cold cache", "no answer from", gone=True),
    Case("Hub gone, pinned, warm cache", None, name=f"me/streets@{COMMIT}", gone=True, warm=True, at_most=20),
]


@dataclass
class Outcome:
    """What the first run said, took and left, and what the clean run after it said and needed."""

    first: dict[str, str]
    log: str
    seconds: float
    requests: int
    sent: int
    damaged: list[str]  # files of the cache that are not what the Hub has
    partial: list[str]
    again: list[str]  # files that were whole after the first run and came once more
    second: dict[str, str]
    second_requests: int
    second_sent: int


def start(name: str, hub: Hub, root: Path, arguments: dict[str, Any] | None = None, setup: str = "", **more: str):
    """A process that downloads; one of its own, because the client reads its environment when it is imported."""
    arguments = {"cache_dir": str(root / "cache")} | (arguments or {})
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    environment = inherited | {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(root / "home"), "FAPN_ZOO_CACHE": str(root / "own"), "NO_PROXY": "*",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "2",
        "HF_HUB_ETAG_TIMEOUT": "2", "HF_XET_CLIENT_RETRY_BASE_DELAY": "50ms", "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "2",
        "HF_XET_CLIENT_READ_TIMEOUT": "2s",
    } | more  # no telemetry, since it is a request of its own
    return subprocess.Popen([sys.executable, "-c", CHILD, json.dumps([name, arguments, setup])], env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> tuple[dict[str, str], str]:
    try:
        out, log = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, log
    return json.loads(out), log


def serve(data: bytes = SMALL, xet: bool = False) -> Hub:
    hub = Hub()
    hub.xet = xet
    hub.tokens |= {"hf_reader": "reader", "hf_stranger": "stranger"}
    hub.add("me/streets", FILES | {WEIGHTS: data})
    hub.repositories["me/streets"].granted.add("reader")
    return hub


def look(root: Path, data: bytes = SMALL) -> tuple[set[str], list[str], list[str]]:
    """Names of whole and of damaged files in the cache's snapshots, and of partial files anywhere."""
    truth, whole, damaged = FILES | {WEIGHTS: data}, set(), []
    for path in root.glob("cache/models--*/snapshots/*/*"):
        if path.exists() and path.read_bytes() == truth[path.name]:
            whole.add(path.name)
        else:
            damaged.append(path.name)
    return whole, damaged, [path.name for path in root.rglob("*.incomplete")]


def play(case: Case, root: Path) -> Outcome:
    hub = serve(case.data, case.xet)
    try:
        if case.warm:
            assert "folder" in finish(start("me/streets", hub, root))[0]
        for path in root.glob(f"cache/models--*/snapshots/*/{case.changed}") if case.changed else ():
            blob = path.resolve()
            blob.write_bytes(bytes(reversed(blob.read_bytes())))
        hub.faults = list(case.faults)
        repository = hub.repositories["me/streets"]
        for flag, value in case.flags.items():
            setattr(repository, flag, value)
        if case.gone:
            hub.close()
        hub.requests.clear()
        begin = time.monotonic()
        first, log = finish(start(case.name, hub, root, case.arguments, case.setup, **case.environment))
        seconds = time.monotonic() - begin
        played = len(hub.requests), hub.sent(BODY)
        whole, damaged, partial = look(root, case.data)
        hub.close()
        hub = serve(case.data, case.xet)
        second, _ = finish(start("me/streets", hub, root))
        again = [name for name in whole if hub.count(f"^GET .*{name}")]
        return Outcome(first, log, seconds, *played, damaged, partial, again, second, len(hub.requests), hub.sent(BODY))
    finally:
        hub.close()


@pytest.fixture(scope="module")
def played(tmp_path_factory, request):
    """All chosen cases, several at a time, since they mostly wait."""
    chosen = {item.callspec.params["case"].title for item in request.session.items
              if item.originalname == "test_a_fault" and hasattr(item, "callspec")}
    with ThreadPoolExecutor(6) as pool:
        # Those that wait longest begin first.
        cases = sorted((case for case in CASES if case.title in chosen), key=lambda case: -case.at_most)
        yield {case.title: pool.submit(play, case, tmp_path_factory.mktemp("fault")) for case in cases}


def folder_is_right(answer: dict[str, str], data: bytes = SMALL) -> bool:
    return "folder" in answer and all(
        Path(answer["folder"], name).read_bytes() == content for name, content in (FILES | {WEIGHTS: data}).items()
    )


def row(title: str, first: dict[str, str], seconds: float, requests: int, again: str) -> dict[str, str]:
    outcome = first.get("error", "right weights").partition(" from the Hub: ")
    outcome = outcome[2] or outcome[0]
    return {"fault": title, "requests": str(requests), "seconds": f"{seconds:.1f}", "clean run after it": again,
            "outcome": outcome if len(outcome) < 110 else outcome[:107] + "..."}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_a_fault(case, played, record_property):
    seen = played[case.title].result()
    again = f"{seen.second_requests} requests, {seen.second_sent / MB:.1f} MB"
    record_property("row of Hub faults", row(case.title, seen.first, seen.seconds, seen.requests, again))
    if case.words is None:
        assert folder_is_right(seen.first, case.data) or seen.first.get("folder") and seen.second == seen.first
    else:
        error = seen.first["error"]
        assert error.startswith(f"cannot fetch {case.name!r} from the Hub: ") and case.words in error
        assert "\n" not in error and len(error) < 400
    assert "Traceback" not in seen.log
    assert not case.says or (case.says in seen.log and seen.log.strip().count("\n") == 0)
    assert not seen.damaged and not seen.partial and not seen.again
    assert folder_is_right(seen.second, case.data)
    expected = case.again if case.again is not None else 0 if case.words is None else len(case.data)
    assert seen.second_sent == expected
    assert seen.seconds < case.at_most
    assert case.most is None or seen.sent <= case.most
