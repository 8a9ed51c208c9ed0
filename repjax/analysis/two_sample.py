"""Device code: permutation tests of whether two samples have one distribution.

A statistic is made ready once for the pooled rows (a kernel matrix, the losses
of all actions, ...) and then asked for its value at many splits of them, each
said by vectors of 0 and 1. So all permutations are products of one matrix with
such vectors, and nothing is computed twice. The observed split is one of them,
treated like all others. For that the pool is in a random order: sums of equal
numbers are rounded by their places, and where many splits are alike, a first
sample that lies in one piece may be larger in the last digit than most.
"""

from collections.abc import Callable
from collections.abc import Mapping
import functools
from typing import Any
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from repjax import types
from repjax.types import InputError
from repjax.types import check_choice
from repjax.types import check_range


class Split(NamedTuple):
  """Which of N = 2 n pooled rows belong to what, as 0 and 1.

  Attributes:
    x: [N], n ones: the first sample.
    y: [N], n ones: the second sample.
    halves: [N], n ones, or n - 1 where n is odd: half of x and half of y.
  """

  x: jax.Array
  y: jax.Array
  halves: jax.Array


class Statistic(NamedTuple):
  """What a test compares; large where two samples differ.

  Attributes:
    name: What it is called in results.
    prepare: Pooled rows, a pytree of arrays [N, ...] -> arrays that its values
      are made of. Knows nothing of the split.
    value: (what `prepare` gave, split) -> scalar.
  """

  name: str
  prepare: Callable[[types.PyTree], types.PyTree]
  value: Callable[[types.PyTree, Split], jax.Array]


class Test(NamedTuple):
  """Result of a permutation test.

  Attributes:
    name: That of the statistic.
    value: The statistic of the two samples.
    p_value: Probability, if both have one distribution, of a value at least as
      large: (1 + #{permuted >= value}) / (permutations + 1), which is never too
      small, however few permutations there are (Phipson and Smyth, 2010,
      https://doi.org/10.2202/1544-6115.1585).
    permuted: The statistic of random splits, [num_permutations].
    num_rows: Rows of each sample, n.
  """

  name: str
  value: float
  p_value: float
  permuted: np.ndarray
  num_rows: int


def permutation_test(
  x: types.PyTree,
  y: types.PyTree,
  statistic: Statistic,
  *,
  rng: jax.Array,
  num_permutations: int = 99,
  sizes: Literal['equal', 'subsample'] = 'equal',
  chunk: int = 128,
) -> Test:
  """Tests whether x and y come from one distribution.

  Args:
    x: Rows of the first sample, an array [n, ...] or a pytree of them.
    y: Rows of the second sample, like x.
    statistic: `h_divergence.statistic`, `mmd.statistic`, or one of your own.
    rng: Of the permutations, and of what `sizes` draws.
    num_permutations: Random splits; the smallest p-value is 1 / (it + 1).
    sizes: 'equal' refuses samples of unequal sizes; 'subsample' takes as many
      rows of the larger one as the smaller one has, at random.
    chunk: Splits that are computed at once: memory against speed.

  Raises:
    InputError: The samples do not go together, are too small, or have a row
      that is not finite; or the statistic of them is not finite.
  """
  check_range('[1, inf)', num_permutations=num_permutations, chunk=chunk)
  for which, sample in (('first', x), ('second', y)):
    _check_finite(which, sample)
  rng_rows, rng_x, rng_y, rng_orders = jax.random.split(rng, 4)
  x, y = equal_sizes(x, y, sizes=sizes, rng=rng_rows)
  # Rows may be sorted, and a statistic may take the first half of a sample.
  x, y = shuffled(x, rng_x), shuffled(y, rng_y)
  num_rows = size(x)
  value, permuted = values(
    statistic,
    x,
    y,
    rng_orders,
    num_permutations=num_permutations,
    chunk=chunk,
  )
  if all((a == a[:1]).all() for a in jax.tree.leaves(pool(x, y))):
    # So are all splits, but for the order in which sums are rounded.
    permuted = jnp.full_like(permuted, value)
  # What is not known would count as the smallest of all, at p = 1.
  if not np.isfinite(value):
    raise InputError(
      f'{statistic.name} of these samples is {float(value)}, which nothing '
      'can be compared with: give other rows, or another statistic.'
    )
  return Test(
    name=statistic.name,
    value=float(value),
    p_value=float(p_value(num_larger(value, permuted), num_permutations)),
    permuted=np.asarray(permuted),
    num_rows=num_rows,
  )


def _check_finite(which, sample):
  for a in map(jnp.asarray, jax.tree.leaves(sample)):
    finite = jnp.isfinite(a).all(tuple(range(1, a.ndim)))
    if not finite.all():
      raise InputError(
        f'Row {finite.argmin()} of the {which} sample is not finite: take it '
        'out, or fill in what is missing.'
      )


def num_larger(value: jax.Array, permuted: jax.Array) -> jax.Array:
  """Number of random splits with a statistic that is at least as large.

  Args:
    value: The observed statistic, a scalar; if it is NaN, all are as large.
    permuted: Those of random splits, [B]; NaN counts as large.
  """
  return (~(permuted < value)).sum()


def p_value(
  num_larger: jax.typing.ArrayLike, num_permutations: int
) -> np.ndarray:
  """(1 + how many are as large) / (permutations + 1), in float64.

  So that a p-value of 1 / 20 is .05, and not the next number of float32.

  Args:
    num_larger: Of any shape.
    num_permutations: B.
  """
  return (1 + np.asarray(num_larger)) / (1 + num_permutations)


def values(
  statistic: Statistic,
  x: types.PyTree,
  y: types.PyTree,
  rng: jax.Array,
  *,
  num_permutations: int,
  chunk: int = 128,
) -> tuple[jax.Array, jax.Array]:
  """What `permutation_test` compares, for code that is traced.

  Args:
    statistic: What is computed.
    x: Rows of the first sample.
    y: As many rows of the second sample.
    rng: Of the pool's order and of the permutations.
    num_permutations: B.
    chunk: Splits that are computed at once.

  Returns:
    The observed statistic, a scalar, and those of random splits, [B]; of
    statistics `together`, by their names.
  """
  rng_pool, rng_orders = jax.random.split(rng)
  order = jax.random.permutation(rng_pool, 2 * size(x))
  return _values(
    statistic.prepare(jax.tree.map(lambda a: a[order], pool(x, y))),
    jnp.argsort(order),
    rng_orders,
    value_fn=statistic.value,
    num_permutations=num_permutations,
    chunk=chunk,
  )


@functools.partial(
  jax.jit, static_argnames=('value_fn', 'num_permutations', 'chunk')
)
def _values(prepared, observed, rng, *, value_fn, num_permutations, chunk):
  chunk = min(chunk, num_permutations + 1)
  # Whole chunks, since a product over fewer vectors might be summed in another
  # order, and equal splits would differ in their last digit.
  total = -(-(num_permutations + 1) // chunk) * chunk
  orders = jax.vmap(lambda key: jax.random.permutation(key, len(observed)))(
    jax.random.split(rng, total)
  )
  orders = orders.at[0].set(observed)
  found = jax.lax.map(
    lambda order: value_fn(prepared, split(order)), orders, batch_size=chunk
  )
  return jax.tree.map(lambda x: x[0], found), jax.tree.map(
    lambda x: x[1 : num_permutations + 1], found
  )


def together(statistics: Mapping[str, Statistic]) -> Statistic:
  """Several statistics of the same splits, for `values`: name -> value."""

  def prepare(rows):
    return {name: x.prepare(rows) for name, x in statistics.items()}

  def value(prepared, split):
    return {
      name: x.value(prepared[name], split) for name, x in statistics.items()
    }

  return Statistic(', '.join(statistics), prepare, value)


def split(order: jax.Array) -> Split:
  """The split whose first sample are the first half of the rows in an order.

  Args:
    order: A permutation of the N rows, N even.
  """
  num_rows = order.shape[0] // 2
  half = num_rows // 2
  none = jnp.zeros(2 * num_rows)
  x = none.at[order[:num_rows]].set(1.0)
  halves = none.at[order[:half]].set(1.0)
  halves = halves.at[order[num_rows : num_rows + half]].set(1.0)
  return Split(x, 1 - x, halves)


def pool(x: types.PyTree, y: types.PyTree) -> types.PyTree:
  """Rows of x, and then those of y."""
  return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), x, y)


def shuffled(x: types.PyTree, rng: jax.Array) -> types.PyTree:
  """The same rows in a random order."""
  order = jax.random.permutation(rng, size(x))
  return jax.tree.map(lambda a: a[order], x)


def size(x: types.PyTree) -> int:
  """Number of rows."""
  return jax.tree.leaves(x)[0].shape[0]


def _check_kept(x, y):
  """Raises InputError where 32 bits lose how rows differ, as of dates."""
  if all(
    not isinstance(a, np.ndarray) or a.dtype == np.float32 or a.itemsize < 4
    for a in (x, y)
  ):
    return
  for a in (x, y):
    if a.dtype.kind in 'iu' and (np.asarray(jnp.asarray(a)) != a).any():
      raise InputError(
        f'rows of {a.dtype} have numbers that JAX, which has 32 bits, would '
        'take for others: give them as floating-point numbers.'
      )
  kept = jnp.zeros(()).dtype  # Of all that is computed.
  rows = np.concatenate([np.asarray(a, np.float64) for a in (x, y)])
  lost = np.abs(rows).max(0) * np.finfo(kept).eps
  if ((lost > 0.5 * rows.std(0)) & (np.ptp(rows, 0) > 0)).any():
    raise InputError(
      f'{kept} keeps too little of how the rows of both samples differ: '
      'subtract what they have in common (such as a date) first.'
    )


def equal_sizes(
  x: types.PyTree,
  y: types.PyTree,
  *,
  sizes: Literal['equal', 'subsample'],
  rng: jax.Array,
) -> tuple[types.PyTree, types.PyTree]:
  """Two samples of one size, of two rows at the least.

  Args:
    x: Rows [n, ...].
    y: Rows [n', ...] of the same shape.
    sizes: 'equal' to refuse unequal sizes, 'subsample' to draw of the larger.
    rng: What is drawn with.

  Raises:
    InputError: Sizes or shapes do not go together, there are too few rows, or
      32 bits lose how they differ.
  """
  check_choice('sizes', sizes, ('equal', 'subsample'))
  given = jax.tree.leaves(x), jax.tree.leaves(y)
  x, y = jax.tree.map(jnp.asarray, (x, y))
  for sample in (x, y):
    if len({a.shape[:1] for a in jax.tree.leaves(sample)}) != 1:
      raise InputError('All arrays of one sample need the same rows.')
  trees: list[Any] = [jax.tree.structure(sample) for sample in (x, y)]
  if trees[0] != trees[1] or any(
    a.shape[1:] != b.shape[1:]
    for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
  ):
    raise InputError(
      'Rows of both samples must have the same shape; got '
      f'{jax.tree.map(jnp.shape, x)} and {jax.tree.map(jnp.shape, y)}.'
    )
  num_rows = min(size(x), size(y))
  if num_rows < 2:
    raise InputError(f'A sample needs at least 2 rows; got {num_rows}.')
  for a, b in zip(*given, strict=True):
    _check_kept(a, b)
  if size(x) == size(y):
    return x, y
  if sizes == 'equal':
    # With more rows, a sample is fitted less closely: its entropy is higher.
    raise InputError(
      f'Samples have {size(x)} and {size(y)} rows, and only equal numbers can '
      "be compared: sizes='subsample' takes as many of the larger one."
    )
  rows = jax.random.permutation(rng, max(size(x), size(y)))[:num_rows]
  take = lambda sample: (  # noqa: E731
    sample
    if size(sample) == num_rows
    else jax.tree.map(lambda a: a[rows], sample)
  )
  return take(x), take(y)
