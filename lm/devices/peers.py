"""What the processes of a run tell each other beside arrays: facts that must agree, and how one has ended.

It goes through the store of jax's coordination service, which process 0 holds, so that it works before
there are devices, and while a process waits for others in a collective.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import platform
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from lm.config import command_line, interrupts
from lm.config.errors import ConfigError, first_line, no_room

SAID, ENDS = "isoflop/said", "isoflop/ends"  # folders of the store
EVERY = 0.5  # seconds between two looks at what the others have said, where this one waits for it
WATCH = 2.0  # seconds between two looks at how the others are, where it does not
PATIENCE = 8.0  # seconds that others have to read how process 0 ended, and to close what they write
NOTICE = 3.0  # seconds after a broken connection in which the process at its other end may say why
SHOWN = 5  # names of facts that a line holds beside the first
BROKEN = (
  "gloo", "connection closed", "connection reset", "coordination", "heartbeat", "nccl", "socket closed",
)  # fmt: skip

_meetings = itertools.count()  # all processes hold them in the same order
_closing = threading.Lock()  # taken once, by the thread that ends this process
_owner: list[int] = []  # that thread
_closer: list[Callable[["PeerEnded"], object]] = []
_said_end: list[int] = []


class PeerEnded(Exception):
  """Another process of the run has ended: the line about it, its exit code, whether all have been told."""

  def __init__(self, line: str, code: int, is_told: bool = True):
    super().__init__(line)
    self.code, self.is_told = code, is_told


class End(NamedTuple):
  process: int
  host: str
  code: int
  line: str


def begin() -> None:
  """Watches from now on how the other processes end; call it once, after jax.distributed.initialize."""
  if count() > 1:
    threading.Thread(target=_watch, daemon=True, name="peers").start()


def count() -> int:
  """How many processes there are; asks for no devices."""
  return _state().num_processes if _state().client is not None else 1


def agree(facts: Mapping[str, object], remedy: str) -> None:
  """Returns where all processes have the same facts; all must call it together, and wait for the last one.

  Raises:
    ConfigError: the same one everywhere; it names the first fact that differs, and whose it is.
    PeerEnded: a process has ended before it came here.
  """
  if count() == 1:
    return
  mine = json.dumps({name: str(value) for name, value in facts.items()})
  if len(set(_gather(hashlib.sha256(mine.encode()).hexdigest()))) == 1:
    return
  said = [json.loads(text) for text in _gather(f"[{json.dumps(platform.node())}, {mine}]")]
  line = difference([found for _, found in said], [host for host, _ in said], remedy)
  if line:
    raise ConfigError(line)


def difference(facts: Sequence[Mapping[str, str]], hosts: Sequence[str], remedy: str) -> str | None:
  """`name=value: ...; remedy` for the first fact that not all processes have alike; None where all have.

  The odd ones are the processes without the value that most have, or that process 0 has.

  >>> difference([{"corpus": "a"}, {"corpus": "b"}], ["host0", "host1"], "copy it")
  'corpus=b: in process 1 of 2 (host1), and a in process 0 (host0); copy it'
  """
  names = dict.fromkeys(name for found in facts for name in found)
  differ = [n for n in names if len({found.get(n) for found in facts}) > 1]
  if not differ:
    return None
  name, *others = differ
  values = [found.get(name) for found in facts]
  usual = max(values, key=lambda v: (values.count(v), v == values[0]))
  odd = next(i for i, value in enumerate(values) if value != usual)
  most = values.index(usual)
  more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
  verb = "differs" if len(others) == 1 else "differ"
  also = f"; {', '.join(others[:SHOWN])}{more} {verb} too" if others else ""
  return (
    f"{name}={values[odd]}: in process {odd} of {len(facts)} ({hosts[odd]}), and {usual} in process {most} "
    f"({hosts[most]}){also}; {remedy}"
  )


def together(main: Callable[[Sequence[str]], int | None]) -> Callable[[Sequence[str]], int | None]:
  """A program's main whose processes end together: an error in one is a line and the exit code of all."""

  @functools.wraps(main)
  def call(argv):
    try:
      code = main(argv)
    except PeerEnded as ended:
      say_end(ended.code, "" if ended.is_told else str(ended))
      interrupts.leave(ended.code, str(ended))
    except BaseException as error:
      if count() == 1:
        raise
      code, line, known = _as_end(error)
      say_end(code, line)
      if not known:
        traceback.print_exc()
        interrupts.leave(code)
      command_line.leave_behind("the other processes")
      raise
    if count() > 1 and not _said_end:
      _put(f"{ENDS}/{_state().process_id}", [platform.node(), code or 0, ""])
    if _said_end:
      command_line.leave_behind("the other processes")
    return code

  return call


def say_end(code: int, line: str) -> None:
  """Tells the other processes how this one ends, which ends them; process 0 waits until they have read it."""
  take_over()
  if count() == 1 or _said_end:
    return
  _said_end.append(code)
  _put(f"{ENDS}/{_state().process_id}", [platform.node(), code, line])
  until = time.monotonic() + PATIENCE
  while _state().process_id == 0 and time.monotonic() < until and len(_ends()) < count():
    time.sleep(EVERY / 5)


def take_over() -> bool:
  """Says that this thread closes what the process writes; False where another thread does already."""
  if _closing.acquire(blocking=False):
    _owner.append(threading.get_ident())
  return _owner == [threading.get_ident()]


def on_end(closer: Callable[[PeerEnded], object] | None) -> None:
  """What to call where another process has ended, before this one leaves; None = nothing."""
  _closer[:] = [closer] if closer else []


def broke(error: BaseException) -> PeerEnded | None:
  """The end of another process that an error comes from; None where it comes from this one."""
  if isinstance(error, PeerEnded):
    return error
  if count() == 1 or not any(word in str(error).lower() for word in BROKEN):
    return None
  until = time.monotonic() + NOTICE
  while time.monotonic() < until:
    if found := _failed():
      return found
    time.sleep(EVERY / 5)
  return PeerEnded(
    "another process is gone without a word, as after kill -9, or the network to it is",
    1,
    is_told=False,
  )


def _as_end(error: BaseException) -> tuple[int, str, bool]:
  """(exit code, line, whether `run_main` has a line for it) of what ends a program."""
  if isinstance(error, ConfigError):
    return 2, str(error), True
  if isinstance(error, KeyboardInterrupt):
    number = error.number if isinstance(error, interrupts.Stopped) else signal.SIGINT
    return 128 + number, interrupts.line(number), True
  if isinstance(error, SystemExit):
    return (error.code if isinstance(error.code, int) else 1), "left", True
  known = bool(no_room(error)) or (isinstance(error, OSError) and error.filename is not None)
  return 1, f"{type(error).__name__}: {first_line(error)}", known


def _gather(text: str) -> list[str]:
  """The texts of all processes, in their order; waits for the last one."""
  folder, wait = f"{SAID}/{_next_meeting()}", EVERY / 50
  _state().client.key_value_set(f"{folder}/{_state().process_id}", text)
  while True:
    found = _folder(folder)
    if len(found) == count():
      return [found[number] for number in sorted(found)]
    if ended := _failed():
      raise ended
    done = [end for end in _ends() if end.process not in found]
    if done:
      raise ConfigError(
        f"process={done[0].process}: it ({done[0].host}) has ended with nothing left to do, and process "
        f"{_state().process_id} ({platform.node()}) goes on; give all the same command, and a --workdir that "
        "they share"
      )
    time.sleep(wait)
    wait = min(2 * wait, EVERY)


def _watch() -> None:
  while True:
    time.sleep(WATCH)
    ended = _failed()
    if ended is None:
      continue
    if take_over():
      for closer in _closer:
        with contextlib.suppress(Exception):  # it raises what ended this process, too
          closer(ended)
    else:
      time.sleep(PATIENCE)  # the main thread closes; it may hang
    say_end(ended.code, "")
    interrupts.leave(ended.code, str(ended))


def _failed() -> PeerEnded | None:
  """The first process, not this one, that has ended with a line: not with others, and not in its order."""
  for end in _ends():
    if end.code and end.line and end.process != _state().process_id:
      return PeerEnded(f"process {end.process} of {count()} ({end.host}): {end.line}", end.code)
  return None


def _ends() -> list[End]:
  return [End(number, *json.loads(text)) for number, text in sorted(_folder(ENDS).items())]


def _folder(name: str) -> dict[int, str]:
  """{process: text} of a folder of the store; empty where process 0, which holds it, is gone."""
  try:
    pairs = _state().client.key_value_dir_get(name)
  except Exception:
    return {}
  return {int(key.rpartition("/")[2]): text for key, text in pairs}


def _next_meeting() -> int:
  return next(_meetings)


def _put(key: str, value: object) -> None:
  with contextlib.suppress(Exception):  # process 0 is gone, and with it whoever would read this
    _state().client.key_value_set(key, json.dumps(value))


def _state() -> Any:
  from jax._src import distributed  # its store has no other name

  return distributed.global_state
