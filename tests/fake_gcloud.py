"""A program that stands for gcloud in tests: a cloud of folders.

A TPU VM is a folder beside this file, its home; what is to run on its workers really runs there. With a file
`preempt` beside it, the next start of a job loses its slice.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

BASE = pathlib.Path(__file__).parent
RESOURCES = BASE / "resources.json"


def read() -> dict[str, list[str]]:
  """{queued resource: states that it will be seen in, the last one for good}."""
  return json.loads(RESOURCES.read_text()) if RESOURCES.exists() else {}


def write(resources: dict[str, list[str]]) -> None:
  temporary = RESOURCES.with_suffix(f".{os.getpid()}")
  temporary.write_text(json.dumps(resources))
  temporary.replace(RESOURCES)


def queued_resources(verb: str, name: str) -> int:
  resources = read()
  if verb == "list":
    rows = [{"name": f"x/{n}", "state": {"state": states[0]}} for n, states in resources.items()]
    print(json.dumps(rows))
    return 0
  if verb == "describe":
    if name not in resources:
      return 1
    print(resources[name][0])
    if len(resources[name]) > 1:
      write(resources | {name: resources[name][1:]})
  if verb == "create":
    write(resources | {name: ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]})
  if verb == "delete":
    write({n: states for n, states in resources.items() if n != name})
    for home in [BASE / "vms" / name, *(BASE / "vms").glob(f"{name}-?")]:
      shutil.rmtree(home, ignore_errors=True)
  return 0


def copy(words: list[str]) -> int:
  paths = [word for word in words if not word.startswith("--")]
  *sources, target = paths
  if ":" in sources[0]:
    vm, _, path = sources[0].partition(":")
    shutil.copy(BASE / "vms" / vm / path, target)
    return 0
  home = BASE / "vms" / target.rstrip(":")
  home.mkdir(parents=True, exist_ok=True)
  for source in sources:
    shutil.copy(source, home)
  return 0


def ssh(vm: str, command: str) -> int:
  home = BASE / "vms" / vm
  if "worker.sh" in command and (BASE / "preempt").exists():
    (BASE / "preempt").unlink(missing_ok=True)
    write({name: ["SUSPENDED"] for name in read()})
    shutil.rmtree(home, ignore_errors=True)
    return 255
  if not home.exists():
    return 255
  env = {**os.environ, "HOME": str(home), "PATH": f"{BASE}/there:{os.environ['PATH']}"}
  return subprocess.run(["bash", "-c", command], cwd=home, env=env).returncode


def main(words: list[str]) -> int:
  with open(BASE / "calls", "a") as file:
    file.write(" ".join(words) + "\n")
  if words[:2] == ["auth", "list"]:
    print("me@example.com")
    return 0
  group, verb, *rest = words[2:]
  if group == "queued-resources":
    return queued_resources(verb, rest[0])
  if verb == "scp":
    return copy(rest)
  (command,) = (w.partition("=")[2] for w in rest if w.startswith("--command="))
  return ssh(rest[0], command)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
