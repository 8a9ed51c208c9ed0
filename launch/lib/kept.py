"""A folder of results stays as it is where measuring again changes nothing.

So that repeating a measurement does not change a checkout by times alone.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import pathlib
from typing import Any

from launch.lib import results
from repjax import files


class Kept:
  """What a folder held before its study was measured again."""

  _BEGUN = ('config.json', 'log.txt')  # Written before, as are plots.
  _EVENTS = 'events.out.tfevents.*'  # A file more for each measurement.
  _NUMBERS = ('claims', 'scalars', 'figures', 'seeds', 'config', 'sources')

  def __init__(self, folder: pathlib.Path):
    """Reads it.

    Args:
      folder: Of the study's report; it may be missing.
    """
    self._folder = folder
    self._report = results.read(folder)
    self._events = set(folder.glob(self._EVENTS))
    self._begun = {
      name: (folder / name).read_bytes()
      for name in (
        *self._BEGUN,
        *(f'plots/{x.name}' for x in folder.glob('plots/*.png')),
      )
      if (folder / name).is_file()
    }

  def clear_log(self) -> None:
    """A log is of one measurement."""
    (self._folder / 'log.txt').unlink(missing_ok=True)

  def is_the_same(self, found: Mapping[str, Any]) -> bool:
    """Whether the numbers and what measured them are those of before."""
    if self._report is None:
      return False
    return all(
      _rounded(files.plain(self._report.get(name)))
      == _rounded(files.plain(found[name]))
      for name in self._NUMBERS
    )

  @contextlib.contextmanager
  def restored_if_stopped(self) -> Iterator[None]:
    """What ends before its numbers are there leaves the record as it was."""
    try:
      yield
    except BaseException:
      if self._report is not None:
        self.restore()
      raise

  def restore(self) -> None:
    """Puts back what has been overwritten since."""
    for name, content in self._begun.items():
      # Another file: to that of the log, what still runs may write.
      (self._folder / name).unlink(missing_ok=True)
      (self._folder / name).write_bytes(content)
    for path in set(self._folder.glob(self._EVENTS)) - self._events:
      path.unlink()


def _rounded(tree: Any) -> Any:
  """Floats to nine digits: sums of floats come in the order of threads."""
  if isinstance(tree, dict):
    return {name: _rounded(x) for name, x in tree.items()}
  if isinstance(tree, list):
    return [_rounded(x) for x in tree]
  return f'{tree:.9g}' if isinstance(tree, float) else tree
