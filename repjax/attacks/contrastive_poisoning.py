"""Host side: a few pairs that change what a contrastive model learns.

Carlini and Terzis, 'Poisoning and Backdooring Contrastive Learning', ICLR 2022
(https://arxiv.org/abs/2106.09667). Who writes some of the pairs of image and
caption that are collected from the web can have one image taken for what one
likes (targeted poisoning, section 3.1), or any image that carries a patch
(backdoor, section 3.2).

What is changed is a value of its own, `Poison`: rows of the clean set, and what
stands in their place. Everything else is the clean set, row for row.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any
from typing import NamedTuple

import numpy as np

from repjax import types
from repjax.attacks import triggers
from repjax.data.reading import source as sources


class Poison(NamedTuple):
  """What an attacker changes in a set.

  Attributes:
    replaced: Numbers of rows of the clean set, [m], in rising order.
    columns: What stands there, and behind these m what is added: name ->
      [m + k, ...].
  """

  replaced: np.ndarray
  columns: Mapping[str, np.ndarray]

  @property
  def size(self) -> int:
    """Poisoned rows, m + k."""
    return len(next(iter(self.columns.values())))

  def describe(self) -> dict[str, Any]:
    """What is changed, in JSON's types."""
    return {
      'replaced': self.replaced.tolist(),
      'added': self.size - len(self.replaced),
      'columns': sorted(self.columns),
    }


def targeted(
  image: np.ndarray, captions: Mapping[str, np.ndarray], *, count: int
) -> Poison:
  """Copies of one image, with captions about another class.

  Args:
    image: x', as the set stores it, [H, W, C].
    captions: Columns of captions, [K, ...], taken in turn: many different ones
      generalize to prompts that are none of them.
    count: Pairs that are added to the set.

  Raises:
    InputError: There are no captions, or `count` is negative.
  """
  types.check_range('[0, inf)', count=count)
  number = _number_of(captions)
  turn = np.arange(count) % number
  return Poison(
    np.zeros(0, np.int64),
    {
      'image': np.repeat(image[None], count, 0),
      **{name: x[turn] for name, x in captions.items()},
    },
  )


def backdoor(
  images: np.ndarray | sources.Source,
  captions: Mapping[str, np.ndarray],
  trigger: triggers.Trigger,
  *,
  count: int,
  seed: int,
  eligible: Sequence[int] | np.ndarray | None = None,
) -> Poison:
  """Rows of the set that get the trigger, and captions about one class.

  Args:
    images: All images of the clean set, [N, H, W, C], or the set, of which the
      chosen rows alone are read.
    captions: Columns of captions about the wanted class, [K, ...], drawn for
      each row.
    trigger: What is put on images.
    count: Rows that are changed.
    seed: Decides which, and which captions they get. Those of a smaller count
      are the first of a larger one.
    eligible: Numbers of the rows that may be changed; None for all.

  Raises:
    InputError: There are fewer rows, one is none of the set's or comes twice,
      or there are no captions.
  """
  number = _number_of(captions)
  if eligible is None:
    rows = np.arange(len(images))
  else:
    rows = np.asarray(eligible)
    _check_rows('eligible', rows, len(images))
    rows = rows.astype(np.int64)  # Of none, NumPy makes floats.
  if not 0 <= count <= len(rows):
    raise types.InputError(
      f'count={count} poisoned rows of {len(rows)} that may be changed: take '
      'no more than there are'
    )
  rng = np.random.default_rng([seed, len(images)])
  rows = rng.permutation(rows)
  caption = rng.integers(0, number, len(rows))
  order = np.argsort(rows[:count])
  chosen, said = rows[:count][order], caption[:count][order]
  if isinstance(images, sources.Source):
    before = images.read(chosen)['image']
  else:
    before = images[chosen]
  return Poison(
    chosen,
    {
      'image': trigger.on(before, chosen),
      **{name: x[said] for name, x in captions.items()},
    },
  )


def apply(source: sources.Source, poison: Poison) -> sources.Source:
  """The set with its poison, which a run trains on like any other.

  Rows keep their numbers, added ones come last. The column 'poisoned' is 1 for
  what the attacker wrote, and columns that the poison does not name are those
  of the clean row, and of row 0 for added rows.

  Args:
    source: The clean set, with all columns that the poison names.
    poison: What is changed.

  Raises:
    InputError: A row is none of the set's or comes twice, or a column is
      missing, or of another shape or type.
  """
  replaced = np.asarray(poison.replaced)
  _check_rows('poisoned', replaced, len(source))
  first = source.read(np.zeros(1, np.int64))
  for name, x in poison.columns.items():
    kinds = [
      'missing' if y is None else f'{y.dtype} of shape {y.shape[1:]}'
      for y in (x, first.get(name))
    ]
    # Images that are files, which may be of many sizes, are put in as pixels.
    if kinds[0] != kinds[1] and not (name in source.encoded and name in first):
      raise types.InputError(
        f'the poison has {name!r} as {kinds[0]}, in {source.name} it is '
        f'{kinds[1]}'
      )
  added = poison.size - len(replaced)
  return dataclasses.replace(
    source,
    num_rows=len(source) + added,
    reader=_Poisoned(source, replaced, dict(poison.columns)),
  )


def triggered(
  source: sources.Source, trigger: triggers.Trigger
) -> sources.Source:
  """The set with a trigger on all images, put there when they are read."""
  return dataclasses.replace(
    source, reader=_Triggered(source, trigger), encoded={}
  )


def rows_of(num_rows: int, poison: Poison) -> np.ndarray:
  """Which rows a run reads, of the clean ones and the poison behind them.

  For many runs side by side that share the clean set: row i of the poisoned set
  is row `rows_of(N, poison)[i]` of N clean rows and then `poison.columns`.

  Returns:
    [N + k], integers.
  """
  rows = np.arange(num_rows + poison.size - len(poison.replaced))
  rows[poison.replaced] = num_rows + np.arange(len(poison.replaced))
  rows[num_rows:] = num_rows + np.arange(len(poison.replaced), poison.size)
  return rows


def _check_rows(what, rows, num_rows):
  """Refuses what are no different integers in [0, num_rows): a mask, say."""
  if (
    rows.ndim != 1
    or (rows.size and not np.issubdtype(rows.dtype, np.integer))
    or len(set(rows.tolist())) != len(rows)
    or (rows.size and not 0 <= rows.min() <= rows.max() < num_rows)
  ):
    raise types.InputError(
      f'{what} rows must be different numbers below {num_rows}: of a mask, '
      'take np.flatnonzero'
    )


def _number_of(captions):
  numbers = {len(x) for x in captions.values()}
  if len(numbers) != 1 or not min(numbers):
    raise types.InputError(
      'captions of a poison are columns of one length above 0'
    )
  return numbers.pop()


@dataclasses.dataclass(frozen=True)
class _Poisoned:
  source: sources.Source
  replaced: np.ndarray
  columns: Mapping[str, np.ndarray]

  def __call__(self, indices):
    count = len(self.source)
    place = np.full(count, -1)
    place[self.replaced] = np.arange(len(self.replaced))
    added = len(self.replaced) + indices - count
    at = np.where(indices < count, place[np.minimum(indices, count - 1)], added)
    clean = self.source.reader(np.where(indices < count, indices, 0))
    result = {name: np.array(x) for name, x in clean.items()}
    for name, x in self.columns.items():
      for row in np.flatnonzero(at >= 0):
        result[name][row] = x[at[row]]
    result['poisoned'] = (at >= 0).astype(np.float32)
    return result


@dataclasses.dataclass(frozen=True)
class _Triggered:
  source: sources.Source
  trigger: triggers.Trigger

  def __call__(self, indices):
    columns = self.source.read(indices)
    return {**columns, 'image': self.trigger.on(columns['image'], indices)}
