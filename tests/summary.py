"""A pytest plugin: what a run cost, file by file, and the house's figures.

Seconds of CPU do not depend on what else a machine does, as a clock would.
"""

import collections
import os

import pytest

# With an empty cache of compiled programs: of a system, and of what belongs to
# none (the loop, data, privacy, launchers, reports, the start of two workers,
# networks with published weights, instructions, federated rounds).
_SYSTEM, _BASE = 25, 1200
# Not in `make test`.
_UNCOUNTED = ('slow', 'parity', 'colab')


class Summary:
  """Prints the ten dearest test files; fails the run beyond the limit."""

  def __init__(self, config):
    self._config = config
    self._seconds = collections.Counter()
    self._house = []
    recipes = (config.rootpath / 'configs').glob('[a-z]*.py')
    systems = sum(path.stem != 'presets' for path in recipes)
    self._limit = _BASE + _SYSTEM * systems

  def pytest_collection_finish(self):
    self._seconds['start and collection'] = _cpu_seconds()

  @pytest.hookimpl(wrapper=True)
  def pytest_runtest_protocol(self, item):
    started = _cpu_seconds()
    try:
      return (yield)
    finally:
      if not any(item.get_closest_marker(name) for name in _UNCOUNTED):
        file = item.nodeid.partition('::')[0]
        self._seconds[file] += _cpu_seconds() - started

  def pytest_runtest_logreport(self, report):
    if report.when == 'call':
      self._house += [
        x for name, x in report.user_properties if name == 'house'
      ]

  @pytest.hookimpl(optionalhook=True)
  def pytest_testnodedown(self, node):
    self._seconds.update(getattr(node, 'workeroutput', {}).get('seconds', {}))

  def pytest_sessionfinish(self, session):
    if hasattr(self._config, 'workeroutput'):  # A worker of pytest-xdist.
      self._config.workeroutput['seconds'] = dict(self._seconds)
    elif self._seconds.total() > self._limit and not session.exitstatus:
      session.exitstatus = pytest.ExitCode.TESTS_FAILED

  def pytest_terminal_summary(self, terminalreporter):
    write = terminalreporter.line
    if self._house:
      terminalreporter.section('the house')
      for line in sorted(self._house):
        write(line)
    terminalreporter.section('seconds of CPU')
    for file, seconds in self._seconds.most_common(10):
      write(f'{seconds:6.1f} {file}')
    total = self._seconds.total()
    verdict = 'within' if total <= self._limit else 'BEYOND'
    write(f'{total:6.1f} in all, {verdict} the limit of {self._limit}')


def _cpu_seconds():
  """Of this process with its threads, and of processes that it started."""
  return sum(os.times()[:4])
