"""What benchmarks measured as rows of a markdown table."""

from collections.abc import Iterator
from collections.abc import Mapping
import numbers
from typing import Any

FULL = 'the device is out of memory'


def is_full(error: Exception) -> bool:
  """Whether XLA says that a device has no memory left."""
  return 'RESOURCE_EXHAUSTED' in str(error)


def heading(command: str, device: str) -> str:
  """The line above a table, and its first two lines."""
  return (
    f'`{command}`, on {device}:\n\n| benchmark | what | figure |\n|---|---|---|'
  )


def rows(benchmark: str, result: Mapping[str, Any]) -> list[str]:
  """A row a figure; figures against a length share one.

  Args:
    benchmark: Its name.
    result: What it returned: figures, texts, lists, and mappings of those.

  Returns:
    Lines of markdown without line ends.
  """
  return [
    '| ' + ' | '.join(_cell(x) for x in (benchmark, what, value)) + ' |'
    for what, value in _flat(result)
  ]


def _flat(result, before='') -> Iterator[tuple[str, str]]:
  for name, value in result.items():
    what = f'{before}, {name}' if before else str(name)
    if not isinstance(value, Mapping):
      yield what, _text(value)
    elif value and all(isinstance(x, int) for x in value):
      where = ', '.join(f'{x:,}' for x in value)
      yield f'{what}; at {where}', '; '.join(map(_text, value.values()))
    else:
      yield from _flat(value, what)


def _text(value) -> str:
  if isinstance(value, (list, tuple)):
    return ', '.join(map(_text, value))
  if isinstance(value, bool) or not isinstance(value, numbers.Real):
    return str(value)
  number = float(value)
  return f'{number:,.0f}' if abs(number) >= 100 else f'{number:.3g}'


def _cell(text: str) -> str:
  return text.replace('|', r'\|')
