"""Protocol: from a teacher of one domain to a student of two.

What stands around `methods.startup`: what a student starts from, and a learning
rate that is chosen without a label of the target.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Literal
from typing import NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from repjax import start
from repjax import trees
from repjax import types
from repjax.protocols import seed_loop
from repjax.protocols import side_by_side

Take = Literal['backbone', 'all', 'nothing']


def begin(
  state: types.TrainState,
  teacher: types.PyTree,
  *,
  take: Take = 'backbone',
  head: str = 'head',
) -> types.TrainState:
  """A student that starts from its teacher.

  Args:
    state: Fresh, of a student of `startup.make`.
    teacher: Variables of its classifier: 'params' and batch statistics, as
      `start.from_run` gives them.
    take: The teacher's 'backbone', as published, so that the student learns a
      head anew; 'all', with the head; or 'nothing', statistics neither.
    head: Module names of the head, joined by '/'.

  Raises:
    InputError: If the teacher's network is another one.
  """
  types.check_choice('take', take, ('backbone', 'all', 'nothing'))
  if take == 'nothing':
    return state
  names = tuple(head.split('/'))

  def keep(path):
    if path[0] == 'projector':
      return True
    return take == 'backbone' and path[1 : 1 + len(names)] == names

  found = {
    name: jax.tree.map(jnp.array, teacher.get(_TEACHES[name], {}))
    for name in state.model_state
    if name in _TEACHES
  }
  for name, tree in found.items():
    trees.check_leaves(
      trees.flatten(tree),
      trees.flatten(state.model_state[name]),
      what='The batch statistics of the teacher',
    )
  return start.with_params(
    state.replace(model_state={**state.model_state, **found}),
    {'model': teacher['params']},
    keep=keep,
    what='The parameters of the teacher',
  )


# Collection of a student -> that of its teacher.
_TEACHES = {'batch_stats': 'batch_stats', 'base_batch_stats': 'batch_stats'}


class Chosen(NamedTuple):
  """A rate for each seed.

  Attributes:
    rates: The chosen ones, [S].
    losses: Of the held-out rows at each rate, [R, S]; infinite where training
      diverged.
  """

  rates: np.ndarray
  losses: np.ndarray


def choose_rate(
  name: str,
  method: types.Method,
  states: types.TrainState,
  columns: Mapping[str, np.ndarray],
  order: np.ndarray,
  *,
  held_out: Callable[[types.TrainState], jax.Array],
  seeds: Sequence[int],
  rates: Sequence[float],
  vectorize: bool = True,
) -> Chosen:
  """The rate whose first updates leave the smallest loss on held-out rows.

  As the code of STARTUP's authors does (https://arxiv.org/abs/2010.07734): for
  each rate a student is trained for some 50 updates from one start, and thrown
  away.

  Args:
    name: For the progress lines.
    method: With a `side_by_side.swept` optimizer.
    states: Where training starts, with a leading seed axis.
    columns: Training rows of each seed, name -> [S, N, ...].
    order: Rows of each of those updates, [S, T, B].
    held_out: States with a seed axis -> a loss a seed, [S].
    seeds: S seeds.
    rates: R rates.
    vectorize: Whether seeds go side by side, or one after the other.

  Raises:
    InputError: If there is no rate, or all of them diverge for a seed.
  """
  if not rates or min(rates) <= 0:
    raise types.InputError(f'config.rates are above 0, at least one: {rates}')
  losses = []
  for rate in rates:
    finite = np.ones(len(seeds), bool)
    for _, trained, means in seed_loop.fit(
      method,
      side_by_side.with_rate(states, rate),
      columns,
      order,
      seeds=seeds,
      every=order.shape[1],
      vectorize=vectorize,
      stops=False,  # A seed that diverges takes no rate from the others.
    ):
      loss = np.asarray(held_out(trained), np.float64)
      finite &= np.isfinite(list(means.values())).all(0)
    losses.append(np.where(finite & np.isfinite(loss), loss, np.inf))
    logging.info('%s: held-out loss %.4f at %g', name, losses[-1].mean(), rate)
  found = np.stack(losses)
  if not np.isfinite(found.min(0)).all():
    raise types.InputError(
      f'{name}: training diverges at all of config.rates={tuple(rates)}: give '
      'smaller ones.'
    )
  return Chosen(np.asarray(rates)[found.argmin(0)], found)


def train(
  name: str,
  method: types.Method,
  states: types.TrainState,
  columns: Mapping[str, np.ndarray],
  *,
  held_out: Callable[[types.TrainState], jax.Array],
  seeds: Sequence[int],
  rates: Sequence[float],
  updates: int,
  steps: int,
  batch_size: int,
  vectorize: bool = True,
) -> tuple[types.TrainState, Chosen]:
  """Chooses a rate for each seed, and trains at it from the same start.

  Args:
    name: For the progress lines.
    method: With a `side_by_side.swept` optimizer.
    states: Where training starts, with a leading seed axis.
    columns: Training rows of each seed, name -> [S, N, ...].
    held_out: States with a seed axis -> a loss a seed, [S].
    seeds: S seeds, of the order of rows.
    rates: R rates.
    updates: After which a rate is judged.
    steps: Number of updates at the chosen rate.
    batch_size: Rows of a step.
    vectorize: Whether seeds go side by side, or one after the other.

  Returns:
    (states after the last step, how rates were chosen).
  """
  num_rows = next(iter(columns.values())).shape[1]
  order = seed_loop.epochs(num_rows, seeds, steps=steps, batch_size=batch_size)
  chosen = choose_rate(
    name,
    method,
    states,
    columns,
    order[:, :updates],
    held_out=held_out,
    seeds=seeds,
    rates=rates,
    vectorize=vectorize,
  )
  [(_, states, _)] = seed_loop.fit(
    method,
    side_by_side.with_rate(states, chosen.rates),
    columns,
    order,
    seeds=seeds,
    every=steps,
    vectorize=vectorize,
  )
  return states, chosen
