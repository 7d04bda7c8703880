"""The writing half of the loopback Hub: accounts, new repositories, large files and commits."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import yaml
from toys.hub.repositories import Blob, Refused, Repository, needs_lfs

if TYPE_CHECKING:
    from toys.hub.server import Handler

REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


def whoami(ask: Handler) -> None:
    user = ask.user()
    if user is None:
        raise Refused(401, "", "Invalid username or password.")
    ask.send_json(
        {
            "type": "user",
            "id": user,
            "name": user,
            "fullname": user,
            "orgs": [],
            "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}},
        }
    )


def create_repository(ask: Handler) -> None:
    wanted, user = ask.json_body(), ask.user()
    if user is None:
        raise Refused(401, "", "Invalid username or password.")
    owner = wanted.get("organization") or user
    if owner != user:
        raise Refused(403, "", f"You don't have the rights to create a model under the namespace {owner!r}")
    name = f"{owner}/{wanted['name']}"
    url = {"url": f"{ask.hub.url}/{name}", "name": name}
    if name in ask.hub.repositories:
        message = "You already created this model repo"
        return ask.send_json(url | {"error": message}, 409)
    private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
    repository = ask.hub.repositories[name] = Repository(name, private)
    repository.commit({".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}, "initial commit")
    ask.send_json(url)


def delete_repository(ask: Handler) -> None:
    wanted, user = ask.json_body(), ask.user()
    name = f"{wanted.get('organization') or user}/{wanted['name']}"
    ask.repository(name, write=True)
    del ask.hub.repositories[name]
    ask.send_json({})


def change_settings(ask: Handler, repo: str) -> None:
    repository, wanted = ask.repository(repo, write=True), ask.json_body()
    if "visibility" in wanted or "private" in wanted:
        repository.private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
    if "gated" in wanted:
        repository.gated = bool(wanted["gated"])
    ask.send_json({"private": repository.private, "gated": repository.gated})


def create_branch(ask: Handler, repo: str, branch: str) -> None:
    repository = ask.repository(repo, write=True)
    if branch in repository.branches:
        raise Refused(409, "", f"Reference already exists: {branch}")
    commit = ask.commit_of(repository, ask.json_body().get("startingPoint") or "main")
    repository.branches[branch] = commit.id
    ask.send_json({})


def create_tag(ask: Handler, repo: str, revision: str) -> None:
    repository, name = ask.repository(repo, write=True), ask.json_body()["tag"]
    if name in repository.tags:
        raise Refused(409, "", f"Tag reference exists already: {name}")
    repository.tags[name] = ask.commit_of(repository, revision).id
    ask.send_json({})


def delete_reference(ask: Handler, repo: str, kind: str, name: str) -> None:
    repository = ask.repository(repo, write=True)
    named = repository.tags if kind == "tag" else repository.branches
    if name not in named or (kind, name) == ("branch", "main"):
        raise Refused(404, "RevisionNotFound", f"no {kind} {name}")
    del named[name]
    ask.send_json({})


def validate_yaml(ask: Handler) -> None:
    """Refuses what the Hub refuses in a model card's metadata, as far as a test of ours depends on it."""
    match = re.match(r"---\r?\n(.*?)\r?\n---", ask.json_body()["content"], flags=re.DOTALL)
    errors, warnings = [], []
    if match is None:
        warnings.append("empty or missing yaml metadata in repo card")
    else:
        try:
            data = yaml.safe_load(match[1])
            if not isinstance(data, dict):
                errors.append('"metadata" must be a mapping')
            else:
                errors += [
                    f'"{key}" must be a string'
                    for key in ("license", "library_name", "pipeline_tag")
                    if key in data and not isinstance(data[key], str)
                ]
                errors += ['"tags" must be an array'] * ("tags" in data and not isinstance(data["tags"], list))
                errors += [
                    '"model-index[0].name" is required'
                    for entry in data.get("model-index") or []
                    if "name" not in entry
                ]
        except yaml.YAMLError as error:
            errors.append(str(error))
    answer = {"errors": [{"message": e} for e in errors], "warnings": [{"message": w} for w in warnings]}
    ask.send_json(answer, 400 if errors else 200)


def preupload(ask: Handler, repo: str, revision: str) -> None:
    repository = ask.repository(repo, write=True)
    commit = ask.commit_of(repository, revision)
    answer = []
    for file in ask.json_body()["files"]:
        there = commit.files.get(file["path"])
        mode = "lfs" if needs_lfs(file["path"], file["size"]) else "regular"
        answer.append(
            {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": there.etag if there else None}
        )
    ask.send_json({"files": answer, "commitOid": commit.id})


def lfs_batch(ask: Handler, repo: str) -> None:
    ask.repository(repo, write=True)
    objects = []
    for wanted in ask.json_body()["objects"]:
        found = {"oid": wanted["oid"], "size": wanted["size"], "authenticated": True}
        if wanted["oid"] not in ask.hub.objects:
            base = f"{ask.hub.url}/lfs/{repo}"
            found["actions"] = {
                "upload": {"href": f"{base}/{wanted['oid']}", "header": {}},
                "verify": {"href": f"{base}/verify", "header": {}},
            }
        objects.append(found)
    ask.send_json({"transfer": "basic", "objects": objects})


def lfs_put(ask: Handler, repo: str, oid: str) -> None:
    digest = hashlib.sha256(ask.body).hexdigest()
    if digest != oid:
        raise Refused(400, "", f"the content has sha256 {digest}, its name says {oid}")
    ask.hub.objects[oid] = ask.body
    ask.send(b"", {})


def lfs_verify(ask: Handler, repo: str) -> None:
    wanted = ask.json_body()
    if len(ask.hub.objects.get(wanted["oid"], b"")) != wanted["size"]:
        raise Refused(404, "", f"no object {wanted['oid']} of {wanted['size']} bytes")
    ask.send_json({})


def commit(ask: Handler, repo: str, revision: str) -> None:
    """Newline-delimited JSON: a header, then one line per file added, pointed to or removed."""
    repository = ask.repository(repo, write=True)
    head = ask.commit_of(repository, revision)
    if revision not in repository.branches:
        raise Refused(400, "", f"{revision} is no branch")
    files, title = dict(head.files), ""
    for line in ask.body.splitlines():
        item = json.loads(line)
        key, value = item["key"], item["value"]
        if key == "header":
            title = value["summary"]
            if value.get("parentCommit") not in (None, head.id):
                raise Refused(412, "", "A commit has happened since. Please refresh and try again.")
        elif key == "file":
            files[value["path"]] = Blob(base64.b64decode(value["content"]), lfs=False)
        elif key == "lfsFile":
            if value["oid"] not in ask.hub.objects:
                raise Refused(
                    400,
                    "",
                    f"Your push was rejected because an LFS pointer pointed to a file that does not "
                    f"exist: {value['path']} {value['oid']}",
                )
            files[value["path"]] = Blob(ask.hub.objects[value["oid"]], lfs=True)
        elif key == "deletedFile":
            if files.pop(value["path"], None) is None:
                raise Refused(404, "EntryNotFound", "A file with this name doesn't exist")
        elif key == "deletedFolder":
            files = {path: blob for path, blob in files.items() if not path.startswith(value["path"].rstrip("/") + "/")}
    if not title:
        raise Refused(400, "", "a commit needs a summary")
    made = repository.commit(files, title, branch=revision)
    ask.send_json(
        {"success": True, "commitOid": made.id, "commitUrl": f"{ask.hub.url}/{repo}/commit/{made.id}", "hookOutput": ""}
    )


UPLOADS: list[tuple[tuple[str, ...], str, Callable]] = [
    (("GET",), "/api/whoami-v2", whoami),
    (("POST",), "/api/repos/create", create_repository),
    (("DELETE",), "/api/repos/delete", delete_repository),
    (("POST",), "/api/validate-yaml", validate_yaml),
    (("PUT",), rf"/api/models/{REPO}/settings", change_settings),
    (("POST",), rf"/api/models/{REPO}/branch/(?P<branch>[^/]+)", create_branch),
    (("POST",), rf"/api/models/{REPO}/tag/(?P<revision>[^/]+)", create_tag),
    (("DELETE",), rf"/api/models/{REPO}/(?P<kind>branch|tag)/(?P<name>[^/]+)", delete_reference),
    (("POST",), rf"/api/models/{REPO}/preupload/(?P<revision>[^/]+)", preupload),
    (("POST",), rf"/api/models/{REPO}/commit/(?P<revision>[^/]+)", commit),
    (("POST",), rf"/{REPO}\.git/info/lfs/objects/batch", lfs_batch),
    (("POST",), rf"/lfs/{REPO}/verify", lfs_verify),
    (("PUT",), rf"/lfs/{REPO}/(?P<oid>[0-9a-f]{{64}})", lfs_put),
]
