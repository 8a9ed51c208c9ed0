"""Host side: ListOps, nested operations on lists of digits.

Nangia and Bowman, 'ListOps: A Diagnostic Dataset for Latent Tree Learning',
NAACL student workshop 2018 (https://arxiv.org/abs/1804.06028); in the long form
of Tay et al., 'Long Range Arena', ICLR 2021 (https://arxiv.org/abs/2011.04006).
A row is an expression such as `[MAX 2 9 [MIN 4 7 ] 0 ]`, its label the digit
that it is equal to (9). Operators are MIN, MAX, MED (the median, rounded down)
and SM (the sum modulo 10). The rules and defaults here are those of Long Range
Arena's public generator, which is not seeded: ours is, and its rows are not
those of the published files.
"""

from collections.abc import Iterable
import random

import numpy as np

from repjax import types
from repjax.data.reading import source as sources
from repjax.data.text import running_text

OPERATORS = ('[MIN', '[MAX', '[MED', '[SM')
WORDS = ('<pad>', '<start>', *(str(i) for i in range(10)), *OPERATORS, ']')
VOCAB_SIZE = len(WORDS)
NUM_CLASSES = 10
_ID = {word: i for i, word in enumerate(WORDS)}
_START, _END = _ID['<start>'], _ID[']']
_TRIES = 20_000  # Trees drawn for one row before lengths count as out of reach.


def load(
  num_rows: int,
  *,
  seed: int,
  split: str = 'train',
  min_length: int = 500,
  max_length: int = 2000,
  max_depth: int = 10,
  max_args: int = 10,
  operator_rate: float = 0.25,
) -> sources.Source:
  """Draws expressions; no two of a source are equal.

  Rows depend on the seed and on `split`. Lengths are met by rejection, as in
  the public generator.

  Args:
    num_rows: Number of expressions, >= 1.
    seed: Seed of the rows.
    split: 'train', 'validation' or 'test': other random numbers. That rows of
      two splits are equal is as unlikely as in the public generator's for long
      expressions; short ones should be drawn as one source and divided by
      `Source.select`.
    min_length: An expression has more tokens than this, as in the public code.
    max_length: An expression has fewer tokens than this, as in the public code.
    max_depth: Deepest level, the root being 1; a node there is a digit.
    max_args: Most arguments of an operator, >= 2.
    operator_rate: Probability that a node above `max_depth` is an operator.

  Returns:
    A source of 'tokens' int32 [max_length] (`<start>`, then at most max_length
    - 1 tokens), 'token_mask' float32 [max_length] and 'label' in [0, 10).

  Raises:
    InputError: A setting is out of range, or no expression is that long.
  """
  if (
    num_rows < 1
    or not 0 <= min_length < max_length - 1
    or max_depth < 1
    or max_args < 2
    or not 0 < operator_rate < 1
  ):
    raise types.InputError(
      'Need num_rows >= 1, 0 <= min_length < max_length - 1, max_depth >= 1, '
      f'max_args >= 2 and 0 < operator_rate < 1; got {num_rows=}, '
      f'{min_length=}, {max_length=}, {max_depth=}, {max_args=}, '
      f'{operator_rate=}'
    )
  generator = random.Random(f'listops {seed} {split}')
  settings = (max_depth, max_args, operator_rate, max_length)
  seen: set[tuple[int, ...]] = set()
  rows: list[tuple[int, ...]] = []
  tries = 0
  while len(rows) < num_rows:
    tries += 1
    expression: list[int] = []
    whole = _draw(generator, 1, expression, *settings)
    row = tuple(expression)
    if whole and min_length < len(row) < max_length and row not in seen:
      seen.add(row)
      rows.append(row)
      tries = 0
    elif tries > _TRIES:
      raise types.InputError(
        f'{_TRIES:,} trees in a row gave no new expression of {min_length} to '
        f'{max_length} tokens after {len(rows)}: raise max_depth, max_args or '
        'operator_rate, or lower num_rows'
      )
  tokens, mask = running_text.pad(
    [np.asarray((_START, *row)) for row in rows], length=max_length
  )
  return sources.from_arrays(
    'listops',
    {
      'tokens': tokens,
      'token_mask': mask,
      'label': np.array([value(row) for row in rows], np.int32),
    },
    num_classes=NUM_CLASSES,
    class_names=[str(i) for i in range(NUM_CLASSES)],
    split=split,
  )


def encode(expression: str) -> list[int]:
  """Ids of an expression as it is written.

  >>> value(encode('[MAX 2 9 [MIN 4 7 ] 0 ]'))
  9

  Raises:
    InputError: There is a word that is none of `WORDS`.
  """
  words = expression.split()
  unknown = [word for word in words if word not in _ID]
  if unknown:
    raise types.InputError(f'{unknown[0]!r} is none of {WORDS}')
  return [_ID[word] for word in words]


def decode(ids: Iterable[int]) -> str:
  """The expression of ids, without padding and start."""
  return ' '.join(WORDS[int(i)] for i in ids if int(i) > _START)


def value(ids: Iterable[int]) -> int:
  """What an expression is equal to.

  Raises:
    InputError: The ids are no expression.
  """
  stack: list[tuple[str, list[int]]] = [('', [])]
  for i in ids:
    word = WORDS[int(i)]
    if word in OPERATORS:
      stack.append((word, []))
    elif word == ']' and len(stack) > 1 and stack[-1][1]:
      operator, arguments = stack.pop()
      stack[-1][1].append(_apply(operator, arguments))
    elif word.isdigit():
      stack[-1][1].append(int(word))
    else:
      raise types.InputError(f'no expression: {decode(ids)!r}')
  if len(stack) != 1 or len(stack[0][1]) != 1:
    raise types.InputError(f'no expression: {decode(ids)!r}')
  return stack[0][1][0]


def _apply(operator, arguments):
  if operator == '[MIN':
    return min(arguments)
  if operator == '[MAX':
    return max(arguments)
  if operator == '[SM':
    return sum(arguments) % 10
  ordered, middle = sorted(arguments), len(arguments) // 2
  if len(arguments) % 2:
    return ordered[middle]
  return (ordered[middle - 1] + ordered[middle]) // 2


def _draw(generator, depth, out, max_depth, max_args, rate, max_length):
  """Appends a random tree to `out`; False where it gets too long."""
  if depth >= max_depth or generator.random() > rate:
    out.append(_ID[str(generator.randrange(10))])
    return True
  number = generator.randint(2, max_args)
  at = len(out)
  out.append(0)  # The operator comes after its arguments in the public order.
  for _ in range(number):
    if len(out) >= max_length:
      return False
    if not _draw(
      generator, depth + 1, out, max_depth, max_args, rate, max_length
    ):
      return False
  out[at] = _ID[generator.choice(OPERATORS)]
  out.append(_END)
  return True
