"""Back end `stacked`: processes of this machine, each of which trains several runs of one program."""

from collections.abc import Sequence

from experiments.launch import stacks
from experiments.launch.jobs import Asked
from experiments.launch.local import Local
from experiments.launch.slots import find_devices, make_slots
from experiments.sweep.sweep import Member, devices_needed
from lm.config.errors import ConfigError

WORDS: dict[str, str] = {}


def make(asked: Asked, members: Sequence[Member]) -> Local:
  """One process by default: its runs are spread over all devices."""
  needed = max(devices_needed(m.asked) for m in members)
  if needed > 1:
    raise ConfigError(
      f"on=stacked: a stack spreads its runs over devices, not one run (mesh of {needed}); "
      "use --on local"
    )
  devices = find_devices()
  workers = asked.workers or 1
  slots = make_slots(devices, workers, max(1, devices.count // workers))[: len(members)]
  return Local(slots, lambda some: stacks.stacked_jobs(some, asked.settings, asked.stack))
