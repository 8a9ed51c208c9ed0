"""The training loop of many tiny models, one a seed, on one device.

For studies whose steps are too small for a device: whole stretches of training
are one call. Seed by seed it is what `loop.fit` does with the same order of
rows. A CPU runs what is inside of a loop on one core, so seeds that go side by
side are divided among the cores.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from concurrent import futures
import contextlib
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np

from repjax import loop
from repjax import trees
from repjax import types
from repjax.data.batches import in_order


def epochs(
  num_rows: int, seeds: Sequence[int], *, steps: int, batch_size: int
) -> np.ndarray:
  """Rows of each step, [S, T, B]: epochs, shuffled by each seed."""
  return np.stack(
    [in_order.rows_at(0, steps * batch_size, num_rows, seed) for seed in seeds]
  ).reshape((len(seeds), steps, batch_size))


def fit(
  method: types.Method,
  states: types.TrainState,
  columns: Mapping[str, np.ndarray],
  order: np.ndarray,
  *,
  seeds: Sequence[int],
  every: int,
  shared: Mapping[str, np.ndarray] | None = None,
  num_full: int = 0,
  vectorize: bool = True,
  stops: bool = True,
) -> Iterator[tuple[int, types.TrainState, dict[str, np.ndarray]]]:
  """Trains one model a seed; whole stretches of training are one call.

  Calls with one method and equal shapes share a compiled program.

  Args:
    method: What is trained.
    states: States to start from, with a leading seed axis; they are copied.
    columns: Rows of each seed's own, name -> [S, N, ...]; {} for none.
    order: Rows of each step, [S, T, B]; -1 is padding. The numbers of a seed's
      own rows go on behind those of the shared ones.
    seeds: S seeds.
    every: Steps between two yields.
    shared: Rows that all seeds see, name -> [M, ...]; not copied for each.
    num_full: The first places of a step, never padding, that the compiler may
      know of.
    vectorize: Whether seeds go side by side. On CPUs convolutions with weights
      a seed are slow, and so are convolutions inside a scan: False calls a
      compiled step at a time, one seed after the other.
    stops: Whether it ends where a mean is not finite.

  Yields:
    (step, states with a leading seed axis, name -> mean since the last
    yield, [S]), the last one at step T. States are those of the loop until it
    goes on, which may donate them: copy what is to be kept.

  Raises:
    InputError: If states have one key in their optimizers for several seeds, or
      something is not there once a seed.
    NonFiniteError: If a mean is not finite and it `stops`; names the seed.
  """
  trees.check_own_keys(states.opt_state)
  steps = order.shape[1]
  columns, shared = _on_device(columns), _on_device(shared or {})
  for x in jax.tree.leaves((states, columns, order)):
    if len(x) != len(seeds):  # JAX takes the last one where one is missing.
      raise types.InputError(
        f'{len(seeds)} seeds need as many states, orders and copies of own '
        f'rows; got {len(x)}.'
      )
  states = jax.tree.map(jnp.copy, states)  # They are donated below.
  rngs = jax.vmap(
    lambda seed: jax.random.fold_in(jax.random.key(seed), loop.TRAIN)
  )(jnp.asarray(seeds))
  run = _program(method.update, num_full, vectorize)
  count = num_parts(len(seeds)) if vectorize else 1
  split = functools.partial(_split, count=count)
  parts, own = split(states), split((rngs, columns, order))
  with contextlib.ExitStack() as stack:
    cores = [
      stack.enter_context(futures.ThreadPoolExecutor(1)) for _ in range(count)
    ]
    for start in range(0, steps, every):
      stop = min(start + every, steps)
      made = []
      for core, part, (rngs, columns, order) in zip(
        cores, parts, own, strict=True
      ):
        stretch = part, rngs, columns, shared, order[:, start:stop]
        # Returns as soon as it is compiled and on its way. What one thread
        # calls is computed one after the other.
        made.append(core.submit(run, *stretch).result())
      parts = [part for part, _ in made]
      states, sums = _joined(made)
      means = {
        # A stretch of padding alone has sums 0.
        name: np.asarray(total) / np.maximum(np.asarray(weight), 1e-9)
        for name, (total, weight) in sums.items()
      }
      for name, values in means.items():
        for seed, value in zip(seeds, values, strict=True):
          if stops and not np.isfinite(value):
            raise types.NonFiniteError(
              f'{name} is {value} in steps {start + 1} to {stop}, {seed=}'
            )
      yield stop, states, means


def num_parts(num_seeds: int) -> int:
  """In how many equal parts seeds are trained: at most one a core of a CPU.

  Parts are equal, so that they share a compiled program.
  """
  if jax.default_backend() != 'cpu':
    return 1
  cores = range(os.cpu_count() or 1, 0, -1)
  return next(x for x in cores if num_seeds % x == 0)


def _split(tree, count):
  """Parts of a tree whose leaves have a leading seed axis."""
  if count == 1:
    return [tree]

  def part(i, x):
    size = len(x) // count
    return x[i * size : (i + 1) * size]

  return [jax.tree.map(functools.partial(part, i), tree) for i in range(count)]


def _joined(parts):
  """The whole of such parts."""
  if len(parts) == 1:
    return parts[0]
  return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


# Several: `recropping` goes back to shapes that it has had.
@functools.lru_cache(maxsize=8)
def _program(update, num_full, vectorize):
  """(states, keys, own and shared columns, order) -> (states, sums)."""

  def step(state, rng, own, shared, rows):
    batch = _take(own, shared, rows)
    batch['mask'] = jnp.concatenate(
      [jnp.ones(num_full), (rows[num_full:] >= 0).astype(jnp.float32)]
    )
    return update(state, batch, jax.random.fold_in(rng, state.step))

  def stretch(state, rng, own, shared, order):
    state, sums = jax.lax.scan(
      lambda state, rows: step(state, rng, own, shared, rows), state, order
    )
    return state, jax.tree.map(lambda x: x.sum(0), sums)

  if vectorize:
    return jax.jit(
      jax.vmap(stretch, (0, 0, 0, None, 0)),
      donate_argnums=0,
    )
  one_step = jax.jit(step, donate_argnums=0)

  def one(states, rngs, columns, shared, order, seed):
    state, rng, own = jax.tree.map(lambda x: x[seed], (states, rngs, columns))
    total = None
    for rows in order[seed]:
      state, sums = one_step(state, rng, own, shared, rows)
      total = sums if total is None else jax.tree.map(jnp.add, total, sums)
    return state, total

  def one_by_one(*args):
    return trees.stack([one(*args, seed) for seed in range(len(args[-1]))])

  return one_by_one


def _take(own, shared, rows):
  """The named rows: the shared ones, and behind them a seed's own."""
  if not own or not shared:
    return {name: x[rows] for name, x in (own or shared).items()}
  count = len(next(iter(shared.values())))

  def choose(first, second):
    late = (rows >= count).reshape((-1,) + (1,) * (first.ndim - 1))
    return jnp.where(late, second[rows - count], first[rows])

  return {name: choose(x, own[name]) for name, x in shared.items()}


def _on_device(columns):
  return {name: jnp.asarray(x) for name, x in columns.items()}
