"""What the Hub, the network and the disk can do to a download, through the real client.

Each fault ends in the right weights or in one line that says what to do; the cache stays sound; and a run without the
fault then succeeds without fetching again what had arrived whole. The table of it all is printed after the tests.
"""

from __future__ import annotations

import hashlib
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from toys.hub.client import FILES, LARGE, MB, SMALL, WEIGHTS, finish, is_right, look, serve, start
from toys.hub.faults import Fault
from toys.hub.repositories import Repository
from toys.hub.xet import packed

pytestmark = pytest.mark.hub

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
        name, arguments, environment, setup: of the first run only (`name`: what is downloaded).
        warm: the repository is in the cache already.
        gone: the Hub is shut down during the first run. changed: a file of the cache is overwritten before it.
        kept: and is still there after it.
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
    kept: bool = False
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
# A file of the cache that is damaged stays until another one has come, and is named in the last line.
DAMAGED = f"model.safetensors, in the cache, is damaged ({len(SMALL)} bytes with digest "
DAMAGED += f"{hashlib.sha256(SMALL[::-1]).hexdigest()}, the Hub announced {hashlib.sha256(SMALL).hexdigest()})"
CHANGED = {"warm": True, "changed": WEIGHTS, "kept": True}
SMALL_CHANGED = CHANGED | {"changed": "config.json", "again": 0}
OFFLINE = {"HF_HUB_OFFLINE": "1"}
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
    Case("403 gated, warm cache", None, flags={"gated": True}, environment=STRANGER, warm=True, says=CACHED),
    Case("gated, token with leave", None, flags={"gated": True}, environment=READER),
    Case("429 once, Retry-After 1 s", None, status(429, HEAD_CONFIG, 1, Retry_After="1")),
    Case("429 once on the body, ratelimit 1 s", None, status(429, BODY, 1, **LIMITED)),
    Case("429 for ever, ratelimit 1 s", "(429); wait 1 s", status(429, ANY, **LIMITED)),
    Case("429 for an hour", "(429); wait 3600 s", status(429, HEAD_CONFIG, Retry_After="3600"), at_most=20),
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
    Case(
        "wrong bytes once, cache without links",
        None,
        (Fault("wrong", times=1),),
        environment={"HF_HUB_DISABLE_SYMLINKS": "1"},
    ),
    Case("truncated once", None, (Fault("short", times=1),)),
    Case("truncated for ever", "arrived with a wrong length", (Fault("short"),)),
    Case("truncated small file, lengths agree", "config.json was damaged", (Fault("short", "config.json"),)),
    Case("wrong sha256 registered", "expected abab", arguments={"sha256": "ab" * 32}),
    Case("wrong sha256 registered, warm cache", "expected abab", arguments={"sha256": "ab" * 32}, warm=True, again=0),
    Case("weights changed on disk", None, warm=True, changed=WEIGHTS, most=len(SMALL)),
    Case("small file changed on disk", None, warm=True, changed="config.json", most=0),
    Case("weights changed, offline", f"{DAMAGED}, and HF_HUB_OFFLINE is set; unset it", **CHANGED, environment=OFFLINE),
    Case("weights changed, Hub gone", f"{DAMAGED}, and no other can be had: ", **CHANGED, gone=True),
    Case("weights changed, 500 for ever", f"{DAMAGED}, and no other can", status(500, "HEAD .*safetensors"), **CHANGED),
    Case("weights changed, pinned, offline", DAMAGED, name=f"me/streets@{COMMIT}", **CHANGED, environment=OFFLINE),
    Case("weights changed, disk full", "no room for model.safetensors", setup=NO_ROOM, **CHANGED),
    Case("weights changed, wrong bytes", "damaged on the way", (Fault("wrong"),), **CHANGED | {"kept": False}),
    Case("small file changed, offline", "config.json, in the cache, is damaged", **SMALL_CHANGED, environment=OFFLINE),
    Case("disk full", "no room for model.safetensors of 3.0 MB", setup=NO_ROOM),
    Case("Xet: none", None, xet=True, most=len(PACKED)),
    Case("Xet: 500 for ever", "HF_HUB_DISABLE_XET=1", status(500, XET), xet=True, again=len(PACKED)),
    Case("Xet: no token for it", "answers 404", status(404, "xet-read-token"), xet=True, again=len(PACKED)),
    Case("Xet: cut at 40 % once", None, (Fault("cut", XET, times=1),), xet=True),
    Case("Xet: cut at 40 % for ever", "no answer from", (Fault("cut", XET),), xet=True, again=len(PACKED)),
    Case("Xet: wrong bytes for ever", "was damaged", (Fault("wrong", XET),), xet=True, again=len(PACKED)),
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


Played = Mapping[str, Future[Outcome]]


def play(case: Case, root: Path, warm: Path | None) -> Outcome:
    hub = serve(case.data, case.xet)
    try:
        if case.warm:
            shutil.copytree(warm, root, symlinks=True, dirs_exist_ok=True)
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
def played(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Played]:
    """All chosen cases, several at a time, since they mostly wait."""
    chosen = {
        item.callspec.params["case"].title
        for item in request.session.items
        if item.originalname == "test_a_fault" and hasattr(item, "callspec")
    }
    cases = [case for case in CASES if case.title in chosen]
    warm = None
    if any(case.warm for case in cases):
        warm = tmp_path_factory.mktemp("warm")
        with serve() as hub:
            assert is_right(finish(start("me/streets", hub, warm))[0])
    with ThreadPoolExecutor(6) as pool:
        # Those that wait longest begin first.
        cases.sort(key=lambda case: case.at_most < 60)
        yield {case.title: pool.submit(play, case, tmp_path_factory.mktemp("fault"), warm) for case in cases}


def row(title: str, first: dict[str, str], seconds: float, requests: int, again: str) -> dict[str, str]:
    outcome = first.get("error", "right weights").partition(" from the Hub: ")
    outcome = outcome[2] or outcome[0]
    return {
        "fault": title,
        "requests": str(requests),
        "seconds": f"{seconds:.1f}",
        "clean run after it": again,
        "outcome": outcome if len(outcome) < 110 else outcome[:107] + "...",
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_a_fault(case: Case, played: Played, record_property: Callable[[str, Any], None]) -> None:
    seen = played[case.title].result()
    again = f"{seen.second_requests} requests, {seen.second_sent / MB:.1f} MB"
    record_property("row of Hub faults", row(case.title, seen.first, seen.seconds, seen.requests, again))
    if case.words is None:
        assert is_right(seen.first, case.data) or seen.first.get("folder") and seen.second == seen.first
    else:
        error = seen.first["error"]
        assert error.startswith(f"cannot fetch {case.name!r} from the Hub: ") and case.words in error
        assert "\n" not in error and len(error) < (900 if case.changed else 400)
    assert "Traceback" not in seen.log
    assert not case.says or (case.says in seen.log and seen.log.strip().count("\n") == 0)
    assert seen.damaged == [case.changed] * case.kept and not seen.partial and not seen.again
    assert not case.changed or seen.log.count("; fetching it again") == 1
    assert is_right(seen.second, case.data)
    expected = case.again if case.again is not None else 0 if case.words is None else len(case.data)
    assert seen.second_sent == expected
    assert seen.seconds < case.at_most
    assert case.most is None or seen.sent <= case.most


def test_two_processes_at_once_fetch_once(tmp_path: Path, record_property: Callable[[str, Any], None]) -> None:
    with serve() as hub:
        hub.faults = [Fault("slow", seconds=0.01)]
        begin = time.monotonic()
        processes = [start("me/streets", hub, tmp_path) for _ in range(2)]
        answers = [finish(process)[0] for process in processes]
        seconds, requests = time.monotonic() - begin, len(hub.requests)
        assert all(map(is_right, answers)) and look(tmp_path) == ({*FILES, WEIGHTS}, [], [])
        assert hub.count(BODY) == 1
        hub.requests.clear()
        assert is_right(finish(start("me/streets", hub, tmp_path))[0])
        again = f"{len(hub.requests)} requests, {hub.sent(BODY) / MB:.1f} MB"
        assert hub.sent(BODY) == 0
    record_property("row of Hub faults", row("two processes at once", answers[0], seconds, requests, again))


def test_killed_on_the_way(tmp_path: Path, record_property: Callable[[str, Any], None]) -> None:
    """What was whole stays; the part that was on its way is not taken for the file."""
    with serve() as hub:
        hub.faults = [Fault("slow", seconds=0.05)]
        begin = time.monotonic()
        process = start("me/streets", hub, tmp_path)
        while hub.sent(BODY) < MB:
            assert process.poll() is None and time.monotonic() < begin + 60
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        seconds, requests = time.monotonic() - begin, len(hub.requests)
        whole, damaged, partial = look(tmp_path)
        assert whole == {"config.json"} and not damaged and len(partial) == 1
        hub.faults, before = [], len(hub.requests)
        hub.requests.clear()
        answer = finish(start("me/streets", hub, tmp_path))[0]
        assert is_right(answer) and look(tmp_path)[:2] == ({*FILES, WEIGHTS}, [])
        assert hub.count("^GET .*config.json") == 0 and hub.sent(BODY) == len(SMALL) and before == requests
        again = f"{len(hub.requests)} requests, {hub.sent(BODY) / MB:.1f} MB"
    record_property("row of Hub faults", row("killed on the way", {"error": "killed"}, seconds, requests, again))


# A disk of two megabytes, and then of sixteen, in a namespace of its own that is gone with the process.
SMALL_DISK = """
import os, subprocess
os.makedirs(arguments["cache_dir"])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", arguments["cache_dir"]], check=True)
full = attempt()
subprocess.run(["mount", "-o", "remount,size=16m", arguments["cache_dir"]], check=True)
left = [name for _, _, names in os.walk(arguments["cache_dir"]) for name in names if name.endswith(".incomplete")]
answer = attempt()
print(json.dumps({"full": full, "left": left, "bytes": os.path.getsize(answer["folder"] + "/model.safetensors")}))
sys.exit()
"""
may_mount = (
    shutil.which("unshare")
    and subprocess.run(["unshare", "-Urm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True).returncode
    == 0
)


@pytest.mark.skipif(not may_mount, reason="this user may not mount a small disk; 'disk full' above plays it by a limit")
def test_a_small_disk(tmp_path: Path, record_property: Callable[[str, Any], None]) -> None:
    with serve() as hub:
        begin = time.monotonic()
        seen = finish(start("me/streets", hub, tmp_path, setup=SMALL_DISK, before=("unshare", "-Urm")))[0]
        row_of_it = row("disk full (tmpfs of 2 MB)", seen["full"], time.monotonic() - begin, len(hub.requests), "-")
        assert hub.count("^GET .*config.json") == 1
    assert "no room for model.safetensors of 3.0 MB in" in seen["full"]["error"]
    assert "(2.1 MB free); make room, or name another place" in seen["full"]["error"]
    assert seen["left"] == [] and seen["bytes"] == len(SMALL)
    record_property("row of Hub faults", row_of_it)
