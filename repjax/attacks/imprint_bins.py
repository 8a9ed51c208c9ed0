"""Host side: where the bins of an imprint lie, and how many inputs they give.

What the server knows of private inputs is public: other inputs like them, or a
mean and a deviation. Fowl et al., ICLR 2022, sections 3 and 4
(https://arxiv.org/abs/2110.13057).
"""

import math
import statistics
from typing import Literal

import numpy as np

from repjax import types
from repjax.data.reading import source as sources

Law = Literal['normal', 'laplace']
Direction = Literal['mean', 'fourier', 'randn', 'rand']

_DIRECTIONS = ('mean', 'fourier', 'randn', 'rand')
_FAR = 10.0  # Standard deviations: what the authors' code has for infinity.


def direction(
  kind: Direction, shape: tuple[int, ...], *, mode: int = 32, seed: int = 0
) -> np.ndarray:
  """What all rows of an imprint look along, [d].

  Args:
    kind: By the names of the authors' code: 'mean' (theirs is 'avg'),
      'fourier' (one mode of a discrete cosine transform, scaled as there, which
      they call unfinished), 'randn' and 'rand' (random numbers of mean 0, and
      of length 1).
    shape: Of an input, (H, W, C) for images.
    mode: Of 'fourier', which runs channel by channel, >= 0.
    seed: Of the random ones.

  Raises:
    InputError: If the kind is unknown or the mode is negative.
  """
  types.check_choice('direction', kind, _DIRECTIONS)
  types.check_range('[0, inf)', mode=mode)
  size = math.prod(shape)
  if kind == 'mean':
    return np.full(size, 1 / size)
  if kind == 'fourier':
    wave = np.cos(math.pi / size * (np.arange(size) + 0.5) * mode)
    wave *= 4 * max(mode, 0.33) / size
    # PyTorch's images have channels first.
    first = wave.reshape((shape[-1], *shape[:-1]))
    return np.moveaxis(first, 0, -1).reshape(-1)
  generator = np.random.default_rng(seed)
  drawn = generator.normal(size=size)
  if kind == 'rand':
    drawn = generator.uniform(size=size)
  return (drawn - drawn.mean()) / drawn.std(ddof=1) / math.sqrt(size)


def by_law(
  num_bins: int, law: Law = 'normal', *, mean: float = 0.0, std: float = 1.0
) -> np.ndarray:
  """Edges of bins of equal mass under a law, [k + 1].

  Args:
    num_bins: k.
    law: 'normal', or 'laplace', which the authors take for 'fourier'.
    mean: Of the inputs along the direction.
    std: Of them, > 0.

  Raises:
    InputError: If there are fewer than 2 bins.
  """
  types.check_choice('law', law, ('normal', 'laplace'))
  types.check_range('(0, inf)', std=std)
  shares = _shares(num_bins)
  if law == 'normal':
    inner = np.asarray([statistics.NormalDist().inv_cdf(x) for x in shares])
  else:
    tail = np.log(2 * np.minimum(shares, 1 - shares)) / math.sqrt(2)
    inner = np.where(shares < 0.5, tail, -tail)
  return mean + std * np.concatenate([[-_FAR], inner, [_FAR]])


def of_public(scores: np.ndarray, num_bins: int) -> np.ndarray:
  """Edges of bins with equal numbers of public inputs, [k + 1].

  Args:
    scores: Public inputs along the direction, [m].
    num_bins: k.

  Raises:
    InputError: If there are fewer than 2 bins, or public inputs do not differ.
  """
  scores = np.asarray(scores, np.float64)
  shares = _shares(num_bins)
  mean, std = scores.mean(), scores.std()
  if not std > 0:
    raise types.InputError(
      'public inputs are all the same along the direction: no bins tell '
      'inputs apart; take another direction.'
    )
  ends = mean - _FAR * std, mean + _FAR * std
  return np.concatenate([[ends[0]], np.quantile(scores, shares), [ends[1]]])


def around(target: float, num_bins: int, edges: np.ndarray) -> np.ndarray:
  """Edges of the one-shot imprint, two rows around one bin, [3].

  The bin of the target out of `num_bins`, and all above it.

  Args:
    target: What is known of the input that is wanted, along the direction.
    num_bins: k of the edges.
    edges: From `by_law` or `of_public`, [k + 1].
  """
  if len(edges) != num_bins + 1:
    raise types.InputError(
      f'{num_bins=} have {num_bins + 1} edges; got {len(edges)}.'
    )
  bin_of = np.clip(np.searchsorted(edges, target) - 1, 0, num_bins - 2)
  return np.asarray([edges[bin_of], edges[bin_of + 1], edges[-1]])


def check_public(public: sources.Source, private: sources.Source) -> None:
  """Refuses bins from rows that the server cannot know.

  Raises:
    InputError: If a private row stands among the public ones; names both sets.
  """

  def rows(source):
    columns = source.read(np.arange(len(source)))
    inputs = [columns[x] for x in types.INPUTS if x in columns]
    return [
      b''.join(x[i].tobytes() for x in inputs) for i in range(len(source))
    ]

  known = set(rows(private))
  shared = sum(x in known for x in rows(public))
  if shared:
    raise types.InputError(
      f'bins from private data: {shared} of the {len(public)} rows of '
      f'{public.name} {public.split} that bins are made of are rows of the '
      f'private {private.name} {private.split}, which the server does not '
      'have; give public rows, or a law (imprint_bins.by_law).'
    )


def singles(scores: np.ndarray, edges: np.ndarray) -> np.ndarray:
  """Which inputs are alone in their bin, [n] booleans: what is recovered.

  Args:
    scores: Private inputs along the direction, [n].
    edges: [k + 1]; the top bin has no upper edge, and what lies below the
      lowest edge is in no bin.
  """
  # A row answers to what is above its edge: bins are (c_i, c_i+1].
  bin_of = np.searchsorted(edges[:-1], scores, side='left') - 1
  counts = np.bincount(bin_of[bin_of >= 0], minlength=len(edges) - 1)
  return (bin_of >= 0) & (counts[bin_of] == 1)


def expected(num_rows: int, num_bins: int) -> float:
  """How many of n inputs are alone in one of k bins of equal mass, on average.

  n (1 - 1/k)^(n - 1), of inputs that are drawn independently.
  """
  types.check_range('[2, inf)', num_bins=num_bins)
  types.check_range('[1, inf)', num_rows=num_rows)
  return num_rows * (1 - 1 / num_bins) ** (num_rows - 1)


def published(num_rows: int, num_bins: int) -> float:
  """The paper's r(n, k), as its code has it (proposition 1).

  It takes all ways to put n inputs that look alike into k bins for equally
  likely, which they are not: those with many inputs in one bin are rarer. So
  it lies below `expected`. n / k of it are taken off for the top bin, which the
  authors' code does not invert.
  """
  types.check_range('[2, inf)', num_bins=num_bins)
  types.check_range('[1, inf)', num_rows=num_rows)
  n, k = num_rows, num_bins
  total = n * math.comb(k, n)
  for alone in range(1, min(n - 1, k + 1)):
    others = sum(
      math.comb(k - alone, bins) * math.comb(n - alone - bins - 1, bins - 1)
      for bins in range(1, (n - alone) // 2 + 1)
    )
    total += alone * math.comb(k, alone) * others
  return total / math.comb(n + k - 1, k - 1) - n / k


def one_shot(num_rows: int, num_bins: int) -> float:
  """Probability that one bin holds one of n inputs, inputs independent."""
  return expected(num_rows, num_bins) / num_bins


def published_one_shot(num_rows: int, num_bins: int) -> float:
  """The same by the authors' code, of equally likely ways as in `published`."""
  types.check_range('[2, inf)', num_bins=num_bins)
  types.check_range('[1, inf)', num_rows=num_rows)
  n, k = num_rows, num_bins
  return math.comb(n + k - 3, k - 2) / math.comb(n + k - 1, k - 1)


def _shares(num_bins):
  """Inner edges of k bins, as shares of the inputs below them, [k - 1]."""
  types.check_range('[2, inf)', num_bins=num_bins)
  return np.arange(1, num_bins) / num_bins
