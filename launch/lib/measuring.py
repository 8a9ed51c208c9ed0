"""In which order studies are measured, and what is left after a stop."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import json
import pathlib
import sys
import threading
from typing import Any
import zlib

from absl import logging

from launch.lib import app
from launch.lib import executors
from launch.lib import results
from repjax import files
from repjax import types


class Begun:
  """Which of several studies are measured: only the same command goes on.

  Args:
    out: Folder of the reports.
    what: Says what is measured, with 'papers', a mapping with their names.
  """

  def __init__(self, out: pathlib.Path, what: Mapping[str, Any]):
    digest = zlib.crc32(json.dumps(what).encode())
    # There until all are measured.
    self._file = out / f'.begun-{digest:08x}.json'
    read = files.read_json_if_whole(self._file, 'measured') or {}
    self._measured = list(read.get('measured', []))
    self.left = [x for x in what['papers'] if x not in self._measured]
    for paper in self._measured:
      logging.info(
        '%s is kept; to measure it again, delete %s', paper, self._file
      )

  def add(self, paper: str) -> None:
    """This one is measured."""
    self._measured.append(paper)
    files.write_json(self._file, {'measured': self._measured})

  def end(self) -> None:
    """All are."""
    self._file.unlink(missing_ok=True)


def one_by_one(
  begun: Begun, measure: Callable[[str], None], write: Callable[[], None]
) -> None:
  """Measures what is left in this process, one after the other.

  Args:
    begun: What is measured.
    measure: Takes a paper's name.
    write: Writes RESULTS.md, after each paper.
  """
  for paper in begun.left:
    measure(paper)
    begun.add(paper)
    write()
  begun.end()


def side_by_side(
  begun: Begun,
  folders: Mapping[str, pathlib.Path],
  flags: Sequence[str],
  write: Callable[[], None],
  *,
  num_parallel: int,
  stop: threading.Event,
) -> None:
  """Measures what is left in processes of their own, several at a time.

  Those that took longest the last time start first. What a process prints goes
  into output.txt of its folder, which stays only if it fails; the others go on.

  Args:
    begun: What is measured.
    folders: Paper -> where its report is written.
    flags: Of launch.reproduce, for each.
    write: Writes RESULTS.md, after each paper.
    num_parallel: Processes at a time.
    stop: Event that stops them.

  Raises:
    PreemptedError: If they were stopped.
    SystemExit: With its exit code, if a study failed.
  """

  def seconds(paper):
    last = results.read(folders[paper]) or {}
    return float(last.get('seconds', 0.0))

  def job(paper):
    command = (sys.executable, '-m', 'launch.reproduce', f'--papers={paper}')
    output = folders[paper] / 'output.txt'
    return executors.Job(paper, (*command, *flags), output)

  def seen(job, code):
    if code:
      if code != app.PREEMPTED:
        logging.info(
          '%s: exit code %d: %s', job.name, code, executors.last_line(job.log)
        )
      return
    job.log.unlink(missing_ok=True)
    found = results.read(folders[job.name]) or {}
    logging.info('%s, %.0f s', job.name, found['seconds'])
    for line in results.verdicts(found['claims']):
      logging.info('  %s', line)
    begun.add(job.name)
    write()

  execute = executors.local(num_parallel)
  logging.info(
    '%d studies, %d at a time; progress is in log.txt of the folder of each',
    len(begun.left),
    num_parallel,
  )
  order = sorted(begun.left, key=seconds, reverse=True)
  codes = execute([job(paper) for paper in order], stop, seen)
  if stop.is_set() or app.PREEMPTED in codes.values():
    raise types.PreemptedError(
      'some studies were stopped: run the same command again to go on.'
    )
  failed = {paper: code for paper, code in codes.items() if code}
  if failed:
    print(
      f'ERROR: {", ".join(failed)} failed; see output.txt in the folder of '
      'each, and run the same command again to measure what is left.',
      file=sys.stderr,
    )
    code = next(iter(failed.values()))
    raise SystemExit(code if code > 0 else app.USAGE)
  begun.end()
