"""Host side: rows of numbers, none of which is NaN or infinite."""

import numpy as np

from repjax import types


def check(**rows: np.ndarray) -> None:
  """Refuses rows with a number that is not finite.

  Args:
    **rows: What they are -> [N, D].

  Raises:
    InputError: It names the first such row.
  """
  for name, values in rows.items():
    bad = np.flatnonzero(~np.isfinite(values).all(1))
    if bad.size:
      raise types.InputError(
        f'{name} of row {bad[0]} are not finite ({bad.size} rows): leave such '
        'rows out.'
      )
