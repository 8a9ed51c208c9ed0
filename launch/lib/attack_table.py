"""The table of `launch.attack`: who is fooled by what, and how sure that is."""

from collections.abc import Mapping
from typing import Any

from repjax.metrics import averages
from repjax.protocols import transfer_matrix

# Network -> attack, or 'none' -> name of a figure -> figure.
Table = Mapping[str, Mapping[str, Mapping[str, Any]]]


def table(measured: transfer_matrix.Measured, num_rows: int) -> Table:
  """Network -> attack -> what became of its predictions.

  'interval' is that of 'accuracy', over rows (Wilson, 95 %): what other rows of
  the same kind would give.

  Args:
    measured: Of one seed.
    num_rows: How many rows were attacked.
  """

  def cell(accuracy, fooled):
    return {
      'accuracy': float(accuracy),
      'interval': list(averages.wilson(float(accuracy), num_rows)),
      'fooled': float(fooled),
    }

  return {
    target: {
      'none': cell(accuracy[0], 0.0),
      **{
        name: cell(
          measured.robust[name, target][0], measured.fooled[name, target][0]
        )
        for name in measured.images
      },
    }
    for target, accuracy in measured.accuracy.items()
  }


def text(rows: Table, num_rows: int) -> str:
  """A row an attack, a column a network.

  >>> cell = {'accuracy': 0.5, 'interval': [0.404, 0.596], 'fooled': 0.25}
  >>> print(text({'itself': {'none': cell}}, 100), end='')
  accuracy [its 95 % interval over 100 rows] (fooled), in %
  attack                              itself
  none              50.0 [40.4, 59.6] (25.0)
  """
  width = max(27, *(len(x) + 2 for x in rows))
  lines = [
    f'accuracy [its 95 % interval over {num_rows} rows] (fooled), in %',
    f'{"attack":15}' + ''.join(f'{x:>{width}}' for x in rows),
  ]
  for name in next(iter(rows.values())):
    cells = [_said(networks[name]) for networks in rows.values()]
    lines.append(f'{name:15}' + ''.join(f'{x:>{width}}' for x in cells))
  return '\n'.join(lines) + '\n'


def _said(cell) -> str:
  low, high = cell['interval']
  return (
    f'{100 * cell["accuracy"]:.1f} [{100 * low:.1f}, {100 * high:.1f}] '
    f'({100 * cell["fooled"]:.1f})'
  )
