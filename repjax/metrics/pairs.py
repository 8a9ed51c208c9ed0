"""Host side: every method against every other, on the same episodes or seeds.

    accuracy = on_episodes.accuracy(features, sampler, classifiers, count=600)
    mean, half = pairs.differences(accuracy)['l2']['cosine']
    print(pairs.table(accuracy))

Intervals of paired differences, several times narrower than the distance of two
means is known from their own intervals. Each is at 95 % by itself: of 21 pairs
of equal methods about one is expected to lie beside 0.
"""

from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

from repjax.metrics import averages


def differences(
  values: Mapping[str, Sequence[float] | np.ndarray],
) -> dict[str, dict[str, tuple[float, float]]]:
  """Method -> other -> (mean of the first minus the other, half its interval).

  Args:
    values: Method -> one value an episode, in the same order for all.

  >>> found = differences({'a': [1.0, 2.0, 3.0], 'b': [0.0, 1.0, 2.0]})
  >>> found['a']['b'], found['b']['a']
  ((1.0, 0.0), (-1.0, 0.0))
  """
  arrays = {name: np.asarray(x, np.float64) for name, x in values.items()}
  if len({x.shape for x in arrays.values()}) > 1:
    raise ValueError(
      'All methods need as many values, got '
      f'{ {name: x.shape for name, x in arrays.items()} }.'
    )
  return {
    name: {
      other: averages.interval((x - y).tolist())
      for other, y in arrays.items()
      if other != name
    }
    for name, x in arrays.items()
  }


def table(values: Mapping[str, Sequence[float] | np.ndarray]) -> str:
  """Means, and each row minus the columns before it, in points (hundredths).

  Below each figure stands half of its 95 % interval.

  >>> print(table({'cosine': [0.5, 0.6], 'l2': [0.6, 0.7]}))
              mean      1
  1 cosine    55.0
            +-63.5
  2 l2        65.0  +10.0
            +-63.5  +-0.0
  """
  over = differences(values)
  names = list(values)
  rows = [['', 'mean', *(str(i + 1) for i in range(len(names) - 1))]]
  for i, name in enumerate(names):
    mean, half = averages.interval(np.asarray(values[name]).tolist())
    before = [over[name][other] for other in names[:i]]
    gains = [f'{100 * x:+.1f}' for x, _ in before]
    halves = [f'+-{100 * x:.1f}' for x in (half, *(x for _, x in before))]
    rows += [[f'{i + 1} {name}', f'{100 * mean:.1f}', *gains], ['', *halves]]
  widths = [
    max(len(row[i]) for row in rows if len(row) > i)
    for i in range(len(rows[0]))
  ]
  return '\n'.join(
    '  '.join(
      [row[0].ljust(widths[0])]
      + [x.rjust(width) for x, width in zip(row[1:], widths[1:], strict=False)]
    )
    for row in rows
  )
