"""What a study chose from a grid: whether the best lies inside.

A study's `GRIDS` tells scalars that were chosen, by a pattern of their names,
and the field of the config with what they were chosen from.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import re
from typing import Any


def line(grids: Mapping[str, str], report: Mapping[str, Any]) -> str:
  """How many of a report's choices lie inside, and which are at an edge.

  Args:
    grids: Of the study; the first pattern that is found in a name counts.
    report: With 'scalars' and 'config'.

  Returns:
    A sentence; '' if nothing was chosen.

  Raises:
    ValueError: If a choice is not of its grid.
  """
  inside, edges, unknown = 0, [], []
  for name, values, grid in _choices(grids, report):
    if grid is None:
      unknown.append(name)
      continue
    strangers = sorted(set(values) - set(grid))
    if strangers:
      raise ValueError(f'{name}: {strangers} are not of the grid {grid}')
    at = [x for x in values if x in (grid[0], grid[-1])]
    if at:
      often = f' in {len(at)} of {len(values)}' if len(values) > 1 else ''
      edges.append(
        f'{name} {_listed(sorted(set(at)))}{often} (of {_listed(grid)})'
      )
    else:
      inside += 1
  if not inside and not edges and not unknown:
    return ''
  text = (
    f'Best of their grids: {inside} of {inside + len(edges)} inside; at an '
    f'edge: {"; ".join(edges) or "none"}.'
  )
  if unknown:
    text += f' Not known, in a record of older code: {", ".join(unknown)}.'
  return text


def _choices(
  grids: Mapping[str, str], report: Mapping[str, Any]
) -> Iterator[tuple[str, list[float], list[float] | None]]:
  """(scalar, its values, its grid in rising order) where there was a choice.

  A grid is None where the run has no field for it.
  """
  for name, values in report['scalars'].items():
    path = next((x for key, x in grids.items() if re.search(key, name)), None)
    if path is None:
      continue
    field: Any = report['config']
    try:
      for part in path.split('.'):
        field = field[part]
    except KeyError:
      yield name, values, None
      continue
    if len(field) > 1:
      yield name, values, sorted(field)


def _listed(numbers: list[float]) -> str:
  return ', '.join(f'{x:g}' for x in numbers)
