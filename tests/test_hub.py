"""A hub's repositories, on a server of this machine that answers as the hub does."""

import hashlib
import http.server
import json
import re
import threading
import typing
import urllib.parse

import pytest
from huggingface_hub import constants

from lm import hub
from lm.config.errors import ConfigError
from lm.data import sources
from lm.hf.__main__ import main
from lm.setup.load import load_config
from tests import trained

COMMITS = {"main": "a" * 40, "v1": "b" * 40}


class Hub(http.server.BaseHTTPRequestHandler):
  """/api/KINDs/NAME[/revision/REV] and [/datasets]/NAME/resolve/REV/FILE, as is asked."""

  repositories: typing.ClassVar[dict] = {}  # (kind, name) -> {revision: {file: bytes}}
  asked: typing.ClassVar[list] = []
  moves: typing.ClassVar[list] = []  # after so many requests, main becomes another commit

  def do_GET(self):
    self._answer(True)

  def do_HEAD(self):
    self._answer(False)

  def _answer(self, body):
    parts = urllib.parse.unquote(urllib.parse.urlparse(self.path).path).strip("/").split("/")
    self.asked.append(self.path)
    if self.moves and len(self.asked) > self.moves[0]:
      COMMITS.update(old=COMMITS["main"], main="c" * 40)
      revisions = self.repositories["dataset", "who/what"]
      revisions.update(old=revisions["main"], main=revisions["next"])
      self.moves.clear()
    if parts[0] == "api":
      kind, name, rest = parts[1].removesuffix("s"), "/".join(parts[2:4]), parts[4:]
      found = self._revision(kind, name, rest[1] if rest else "main")
      if found and rest and rest[0] == "tree":
        oid = lambda content: hashlib.sha1(content).hexdigest()
        tree = [
          {"type": "file", "path": path, "size": len(content), "oid": oid(content)}
          for path, content in found[1].items()
        ]
        self._send(json.dumps(tree).encode(), {"Content-Type": "application/json"}, body)
      elif found:
        commit, files = found
        siblings = [{"rfilename": each} for each in files]
        about = {"id": name, "sha": commit, "siblings": siblings, "tags": [], "private": False}
        about |= {"downloads": 0, "likes": 0, "gated": False, "disabled": False}
        self._send(json.dumps(about).encode(), {"Content-Type": "application/json"}, body)
      return
    kind, parts = ("dataset", parts[1:]) if parts[0] == "datasets" else ("model", parts)
    found = self._revision(kind, "/".join(parts[:2]), parts[3])
    if found:
      content = found[1]["/".join(parts[4:])]
      etag = f'"{hashlib.sha1(content).hexdigest()}"'
      self._send(content, {"ETag": etag, "X-Repo-Commit": found[0]}, body)

  def _revision(self, kind, name, revision):
    revisions = self.repositories.get((kind, name))
    branch = {commit: each for each, commit in COMMITS.items()}.get(revision, revision)
    if revisions is None or branch not in revisions:
      gated = revisions == {}
      code = ("GatedRepo" if gated else "RepoNotFound") if not revisions else "RevisionNotFound"
      self.send_response(403 if gated else 404)
      self.send_header("X-Error-Code", code)
      self.send_header("Content-Length", "0")
      self.end_headers()
      return None
    return COMMITS[branch], revisions[branch]

  def _send(self, content, headers, body):
    self.send_response(200)
    for key, value in {**headers, "Content-Length": str(len(content))}.items():
      self.send_header(key, value)
    self.end_headers()
    if body:
      self.wfile.write(content)

  def log_message(self, *args):
    pass


@pytest.fixture
def server(tmp_path, monkeypatch):
  lines = lambda *texts: "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
  files = {
    "README.md": b"# A card", "data/a-0.jsonl": lines("one", "two"), "data/a-1.jsonl": lines("three"),
    "data/deep/b.txt": b"deep",
  }  # fmt: skip
  old = {**files, "data/a-1.jsonl": lines("older")}
  monkeypatch.setattr(Hub, "repositories", {
    ("dataset", "who/what"): {"main": files, "v1": old}, ("dataset", "who/gated"): {},
  })  # fmt: skip
  monkeypatch.setattr(Hub, "asked", [])
  monkeypatch.setattr(Hub, "moves", [])
  monkeypatch.setitem(globals(), "COMMITS", dict(COMMITS))
  monkeypatch.setattr(hub, "_commits", {})
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as served:
    threading.Thread(target=served.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{served.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                        url + "/{repo_id}/resolve/{revision}/{filename}")  # fmt: skip
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield served
    served.shutdown()


def config(tmp_path, **changes):
  changes = {k.replace("__", "."): v for k, v in changes.items()}
  return load_config(
    "configs/smoke.py", {"data.cache_dir": str(tmp_path / "tokens"), **changes}
  ).data


def read(spec, cfg):
  return list(sources.documents(spec, cfg, "train"))


def test_documents_are_those_of_the_files_that_match(server, tmp_path):
  cfg = config(tmp_path)
  assert read("hub:who/what/data/*.jsonl", cfg) == ["one", "two", "three"]
  # Nothing else is fetched.
  assert not any("README" in path or "deep" in path for path in Hub.asked)
  assert read("hub:who/what@v1/data/a-1.jsonl", cfg) == ["older"]
  assert read("hub:who/what/**/*.txt", cfg) == ["deep"]
  copy = tmp_path / "copy"
  copy.mkdir()
  for name in ("a-0.jsonl", "a-1.jsonl"):
    (copy / name).write_bytes(Hub.repositories["dataset", "who/what"]["main"][f"data/{name}"])
  same = sources.identity("hub:who/what/data/*.jsonl", cfg, "train")
  assert same == sources.identity(f"text:{copy}/*.jsonl", cfg, "train")
  assert same != sources.identity("hub:who/what@v1/data/*.jsonl", cfg, "train")


def test_a_commit_is_asked_for_once(server, tmp_path):
  cfg, name = config(tmp_path), f"hub:who/what@{COMMITS['v1']}/data/*.jsonl"
  found = read(name, cfg)
  asked = len(Hub.asked)
  assert read(name, cfg) == found == ["one", "two", "older"] and len(Hub.asked) == asked > 0
  assert read("hub:who/what@v1/data/*.jsonl", cfg) == found and len(Hub.asked) > asked


def test_what_was_fetched_is_read_without_the_hub(server, tmp_path):
  cfg = config(tmp_path)
  read("hub:who/what@v1/data/a-0.jsonl", cfg)
  found = read("hub:who/what/data/*.jsonl", cfg)
  server.shutdown()
  server.server_close()
  hub._commits.clear()  # as another process
  assert read("hub:who/what/data/*.jsonl", cfg) == found
  # A part of what is asked for is not taken for all of it.
  for name in ("who/else/a", "who/what@v1/data/*.jsonl"):
    with pytest.raises(
      ConfigError, match=rf"^data.sources=hub:{re.escape(name)}: the hub cannot be reach"
    ):
      read(f"hub:{name}", cfg)


def test_a_process_reads_one_commit_of_a_branch_that_moves(server, tmp_path, monkeypatch):
  """The identity of a source is asked for first, its documents later: they were another commit's."""
  cfg, name = config(tmp_path), "hub:who/what/*.jsonl"
  content = {text: json.dumps({"text": text}).encode() for text in ("before", "after")}
  texts, most = [], 0
  for moves in range(9):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / f"cache{moves}"))
    hub._commits.clear()  # as another process
    COMMITS.pop("old", None)
    COMMITS["main"] = "a" * 40
    old, new = ({"a.jsonl": each} for each in content.values())
    Hub.repositories["dataset", "who/what"] = {"main": old, "next": new}
    Hub.asked.clear()
    Hub.moves[:] = [moves]
    identity = sources.identity(name, cfg, "train")
    (text,) = read(name, cfg)
    most = max(most, len(Hub.asked))
    (tmp_path / "copy.jsonl").write_bytes(content[text])
    assert identity == sources.identity(f"text:{tmp_path}/copy.jsonl", cfg, "train")
    assert read(name, cfg) == [text]
    texts.append(text)
  assert texts[0] == "after" and texts[-1] == "before" and most < 9  # it moved in every gap


@pytest.mark.parametrize(("name", "message"), [
  ("who", r"must be OWNER/NAME\[@REVISION\]/FILES; write e.g. hub:"),
  ("who/what", r"names no file; add a pattern: it has README.md, data/a-0.jsonl"),
  ("who/what/data/a-O.jsonl", "no file of who/what matches; did you mean data/a-1.jsonl"),
  ("who/what@v9/data/*", "has no such revision"),
  ("who/none/data/*", "no such repository, or a private one"),
  ("who/gated/data/*", "asks for leave to read it; accept its terms"),
])  # fmt: skip
def test_what_is_not_there_is_said(server, tmp_path, name, message):
  with pytest.raises(ConfigError, match=rf"^data.sources=hub:{re.escape(name)}: {message}"):
    read(f"hub:{name}", config(tmp_path))


@pytest.mark.slow  # a run
def test_a_run_trains_on_the_hub_and_a_model_comes_from_it(server, tmp_path):
  rows = [json.dumps({"text": f"number {i} and {i * i}"}) for i in range(200)]
  Hub.repositories["dataset", "who/what"]["main"]["big.jsonl"] = "\n".join(rows).encode()
  trained.run(tmp_path / "run", data__sources="hub:who/what/big.jsonl", train__steps=2)
  assert main(["export", "--workdir", str(tmp_path / "run"), "--to", str(tmp_path / "out")]) == 0
  made = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
  Hub.repositories["model", "who/model"] = {"main": {**made, "training.log": b"x"}}
  begin = len(Hub.asked)
  assert main(["import", "--from", "hub:who/model", "--workdir", str(tmp_path / "back")]) == 0
  assert not any("training.log" in path for path in Hub.asked[begin:])
  assert (tmp_path / "back/config.json").exists()
  with pytest.raises(ConfigError, match=r"has no \*.safetensors; name a .gguf file"):
    Hub.repositories["model", "who/bare"] = {"main": {"config.json": b"{}"}}
    main(["import", "--from", "hub:who/bare", "--workdir", str(tmp_path / "no")])


def test_patterns_are_those_of_paths():
  assert hub.matches("a[1].txt", "a[1].txt") and hub.matches("a1.txt", "a[1].txt")
  assert not hub.matches("a/b.txt", "*.txt") and not hub.matches("ab", "a")
  negated = ("val.txt", "a/val.txt", "train.txt", "!al.txt")
  assert [hub.matches(name, "[!t]*.txt") for name in negated] == [True, False, False, True]
  assert not hub.matches("a/b", "a[!x]b") and hub.matches("a]b", "a[]]b")
  assert not hub.matches("1x", r"[\d]x") and not hub.matches("m.txt", "[z-a].txt")


def test_a_commit_in_part_in_the_cache_is_not_taken_for_the_whole(server, tmp_path):
  """huggingface-hub 1 says nothing of files that its cache lacks, so requirements.txt asks for 2."""
  pinned = f"who/what@{COMMITS['main']}/data"
  assert len(hub.files(f"{pinned}/a-0.jsonl", "dataset", "x")) == 1
  assert len(hub.files(f"{pinned}/*.jsonl", "dataset", "x")) == 2
