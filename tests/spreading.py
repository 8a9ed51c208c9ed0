"""How pytest-xdist spreads tests: a file to a worker, of the contract a recipe.

What a file compiles for its tests is compiled once, and no worker is left with
all recipes. Files that start processes come first, since a worker is busy for
minutes with one of them, and then those of many tests. Each worker has cores of
its own.
"""

import collections
from collections.abc import Mapping
import contextlib
import os
import re

from xdist import scheduler

_ALL = os.sched_getaffinity(0) if hasattr(os, 'sched_getaffinity') else set()


def put_long_files_first(items) -> None:
  """Sorts pytest's items by their files, and leaves a file's in their order."""
  count = collections.Counter(x.path for x in items)
  slow = {x.path for x in items if x.get_closest_marker('slow')}
  items.sort(key=lambda x: (x.path not in slow, -count[x.path], str(x.path)))


def keep_to_own_cores(environ: Mapping[str, str]) -> None:
  """Gives a worker of pytest-xdist, and what it starts, its share of the cores.

  Threads of two programs on the same cores wait for one another: two launches
  at once would take as long as one after the other.

  Args:
    environ: Where pytest-xdist says which of how many workers this is.
  """
  worker = environ.get('PYTEST_XDIST_WORKER', '')
  if not worker or not hasattr(os, 'sched_setaffinity'):
    return
  number = int(worker.removeprefix('gw'))
  count = int(environ['PYTEST_XDIST_WORKER_COUNT'])
  cores = sorted(os.sched_getaffinity(0))
  own = cores[number::count] or [cores[number % len(cores)]]
  os.sched_setaffinity(0, own)


def take_all_cores(pid: int) -> None:
  """For processes of one job, which wait for one another at every step."""
  if _ALL:
    with contextlib.suppress(ProcessLookupError):  # It has ended already.
      os.sched_setaffinity(pid, _ALL)


class PerFileOrRecipe(scheduler.LoadFileScheduling):
  """Is `--dist loadfile` but for tests/test_contract.py."""

  def _split_scope(self, nodeid):
    file, _, test = nodeid.partition('::')
    recipe = re.search(r'\[([a-z]\w*)', test)
    if file.endswith('test_contract.py') and recipe:
      return f'{file}::{recipe[1]}'
    return file
