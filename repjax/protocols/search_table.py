"""Searches over a table of private runs, which are trained once.

What Papernot and Steinke (ICLR 2022, figure 7) measure: whatever the law of the
number of trials, a search draws runs from the same table, so that expectations
over searches are sums over its runs.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from repjax import types
from repjax.data.batches import poisson
from repjax.privacy.search import laws


def table(
  make: Callable[[optax.GradientTransformation], types.Method],
  rows: Mapping[str, np.ndarray],
  held_out: Mapping[str, np.ndarray],
  test: Mapping[str, np.ndarray],
  *,
  learning_rates: Sequence[float],
  momentum: float,
  repeats: int,
  batch_size: float,
  steps: int,
  score_noise: float,
  seed: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Trains all candidates, each several times, side by side.

  Args:
    make: The optimizer that follows the private gradient -> a method over
      'image' and 'label' whose `predict` gives 'logits'.
    rows: Training rows, name -> [N, ...].
    held_out: Rows that score the runs.
    test: Rows that judge them.
    learning_rates: R candidates.
    momentum: Of SGD.
    repeats: Runs of each, with initial values, batches and noise of their own.
    batch_size: Rows of a step on average; batches are Poisson samples.
    steps: Number of updates.
    score_noise: Standard deviation of the noise on the number of held-out rows
      that are right, which makes that score private.
    seed: Of everything.

  Returns:
    (noisy number of held-out rows that are right, test accuracy), each
    [R, repeats].
  """
  num_rows = len(rows['label'])
  rate = batch_size / num_rows
  # The learning rate is part of the state, so that all runs are one program.
  method = make(
    optax.inject_hyperparams(optax.sgd)(learning_rate=0.0, momentum=momentum)
  )
  rows, held_out, test = (
    {name: jnp.asarray(x[name]) for name in ('image', 'label')}
    for x in (rows, held_out, test)
  )

  def hits(state, columns):
    batch = {**columns, 'mask': jnp.ones(columns['label'].shape)}
    guess = method.predict(state, batch)['logits'].argmax(-1)
    return (guess == columns['label']).sum()

  @jax.jit
  @jax.vmap
  def train_and_count(number, learning_rate, order):
    rng = jax.random.fold_in(jax.random.key(seed), number)
    first = {name: x[:1] for name, x in rows.items()}
    state = method.init(rng, {**first, 'mask': jnp.ones(1)})
    state = state.replace(
      opt_state=optax.tree_utils.tree_set(
        state.opt_state, learning_rate=learning_rate
      )
    )

    def step(state, drawn):
      batch = {name: x[drawn] for name, x in rows.items()}
      batch['mask'] = (drawn >= 0).astype(jnp.float32)
      state, _ = method.update(
        state, batch, jax.random.fold_in(rng, state.step)
      )
      return state, None

    state, _ = jax.lax.scan(step, state, order)
    return hits(state, held_out), hits(state, test)

  numbers = np.arange(len(learning_rates) * repeats)
  capacity = poisson.capacity(num_rows, rate)
  order = np.full((len(numbers), steps, capacity), -1, np.int32)
  for number in numbers:
    for step in range(steps):
      drawn = poisson.rows_at(step, num_rows, rate, 1000 * seed + int(number))
      order[number, step, : len(drawn)] = drawn[:capacity]
  found = train_and_count(
    numbers, np.repeat(np.asarray(learning_rates, np.float32), repeats), order
  )
  scores, right = (np.asarray(x, np.float64) for x in found)
  noise = np.random.default_rng([seed, 1]).standard_normal(len(scores))
  scores += score_noise * noise
  shape = (len(learning_rates), repeats)
  accuracy = right / len(test['label'])
  return scores.reshape(shape), accuracy.reshape(shape)


def chosen(law: laws.Law, scores: np.ndarray, values: np.ndarray) -> float:
  """Expected value of the run that a search over the table publishes.

  Args:
    law: Of the number of trials, each a run of the table with replacement.
    scores: What runs are chosen by, [R, repeats]; without ties.
    values: What is averaged, [R, repeats].
  """
  by_score = values.ravel()[np.argsort(scores, axis=None)]
  ends = law.generating(np.linspace(0, 1, len(by_score) + 1))
  # Without any trial, the first candidate stands in.
  return float(np.diff(ends) @ by_score + ends[0] * values[0].mean())


def simulated_rank(
  law: laws.Law, scores: np.ndarray, *, searches: int, seed: int
) -> float:
  """Mean rank, in [0, 1], of the winners of searches that are carried out.

  Args:
    law: Of the number of trials, at least 1.
    scores: What runs are chosen by, of any shape.
    searches: How many.
    seed: Of the numbers of trials and the draws.
  """
  rng = np.random.default_rng([seed, 2])
  counts = laws.sample(law, rng, searches)
  ranks = np.empty(scores.size)
  ranks[np.argsort(scores, axis=None)] = np.arange(scores.size) + 0.5
  drawn = ranks[rng.integers(scores.size, size=counts.sum())] / scores.size
  starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
  return float(np.maximum.reduceat(drawn, starts).mean())
