"""Where launchers write what they are told to."""

import os
import pathlib

from repjax import types


def check(path: pathlib.Path, flag: str) -> None:
  """Refuses a path at which nothing can be made; makes nothing.

  Args:
    path: Absolute, of a file or a folder that may be there already.
    flag: That names it, such as '--to=folder', for the error.

  Raises:
    InputError: What it lies in is no folder, or may not be written.
  """
  there = next(x for x in path.parents if x.exists())
  if not there.is_dir():
    reason = f'{there} is a file'
  elif not os.access(there, os.W_OK | os.X_OK):
    reason = f'{there} may not be written to'
  else:
    return
  raise types.InputError(
    f'{flag} cannot be written, as {reason}: give another place.'
  )
