"""A pytest plugin: what a run cost, file by file, and the house's figures.

Limited are the programs that tests have compiled, most of the time of a run
that finds none of them in its cache: their number depends on no processor, as
seconds do, which are printed beside them.
"""

import collections
import os

import jax
import marks
import pytest

# Of a system, and of what belongs to none (the loop, data, privacy, launchers,
# reports, networks with published weights, instructions, federated rounds).
_SYSTEM, _BASE = 150, 3_600
# Not in `make test`.
_UNCOUNTED = ('slow', 'dear', 'parity', 'colab')


class Summary:
  """Prints the ten dearest test files; fails the run beyond the limit.

  And which tests have become dear (`marks`), by what they cost in this run.
  """

  def __init__(self, config):
    self._config = config
    self._seconds = collections.Counter()
    self._programs = collections.Counter()
    self._of_tests = collections.Counter()
    self._compiled = 0
    jax.monitoring.register_event_duration_secs_listener(self._on_duration)
    self._house = []
    recipes = (config.rootpath / 'configs').glob('[a-z]*.py')
    systems = sum(path.stem != 'presets' for path in recipes)
    self._limit = _BASE + _SYSTEM * systems

  def _on_duration(self, event, *unused_args, **unused):
    self._compiled += event == '/jax/core/compile/backend_compile_duration'

  def pytest_collection_finish(self):
    self._seconds['start and collection'] = _cpu_seconds()

  @pytest.hookimpl(wrapper=True)
  def pytest_runtest_protocol(self, item):
    started, compiled = _cpu_seconds(), self._compiled
    try:
      return (yield)
    finally:
      if not any(item.get_closest_marker(name) for name in _UNCOUNTED):
        file = item.nodeid.partition('::')[0]
        seconds = _cpu_seconds() - started
        self._seconds[file] += seconds
        self._programs[file] += self._compiled - compiled
        self._of_tests[marks.name_of(item.nodeid)] += seconds

  def pytest_runtest_logreport(self, report):
    if report.when == 'call':
      self._house += [
        x for name, x in report.user_properties if name == 'house'
      ]

  @pytest.hookimpl(optionalhook=True)
  def pytest_testnodedown(self, node):
    told = getattr(node, 'workeroutput', {})
    self._seconds.update(told.get('seconds', {}))
    self._programs.update(told.get('programs', {}))
    self._of_tests.update(told.get('of_tests', {}))

  def pytest_sessionfinish(self, session):
    if hasattr(self._config, 'workeroutput'):  # A worker of pytest-xdist.
      self._config.workeroutput['seconds'] = dict(self._seconds)
      self._config.workeroutput['programs'] = dict(self._programs)
      self._config.workeroutput['of_tests'] = dict(self._of_tests)
    elif self._programs.total() > self._limit and not session.exitstatus:
      session.exitstatus = pytest.ExitCode.TESTS_FAILED

  def pytest_terminal_summary(self, terminalreporter):
    write = terminalreporter.line
    if self._house:
      terminalreporter.section('the house')
      for line in sorted(self._house):
        write(line)
    terminalreporter.section('seconds of CPU, and programs compiled')
    for file, seconds in self._seconds.most_common(10):
      write(f'{seconds:8.1f} {self._programs[file]:6} {file}')
    programs = self._programs.total()
    verdict = 'within' if programs <= self._limit else 'BEYOND'
    write(
      f'{self._seconds.total():8.1f} {programs:6} in all, {verdict} the limit'
      f' of {self._limit} programs'
    )
    for name, seconds in self._of_tests.most_common():
      # What a file's tests share is paid by whichever is first.
      if seconds >= 10 * marks.SECONDS and marks.may_be_dear(name):
        write(f'{seconds:8.1f} s: a line of tests/dear.txt? {name}')


def _cpu_seconds():
  """Of this process with its threads, and of processes that it started."""
  return sum(os.times()[:4])
