"""Host side: refuses runs that the accounting of privacy would not cover.

`private.Plan.guarded` makes an experiment's guard of both checks.
"""

from collections.abc import Callable
from collections.abc import Mapping
import math
from typing import Any

from absl import logging
import jax
import numpy as np
import optax

from repjax import types
from repjax.data.batches import poisson
from repjax.data.batches import users
from repjax.experiments import private_keys
from repjax.optim import link
from repjax.privacy import overflow as overflows

# What no statement covers, besides `statements.NOT_COVERED`.
NOT_COVERED = (
  'checkpoints and the file noise_key, which hold the key of the noise: '
  'publish parameters alone',
  'other runs on the same rows, also with one key_file: each has noise of its '
  'own, and what they spend adds up',
  'what is trained again from one file noise_key with another optimizer, other '
  'initial weights, code or devices: its noise is the same',
  'whether and when a run ended because a number was not finite, which rows '
  'decide without noise',
)

# Kinds of batches that the accounting is about.
SAMPLED = (poisson.PoissonBatches, users.UserBatches)


def check_numbers(
  num_rows: int,
  *,
  batch_size: float,
  sampling_rate: float,
  epochs: float,
  clip_norm: float,
  epsilon: float,
  noise_multiplier: float,
  overflow: float,
  user_column: str,
  rows_per_user: int,
) -> None:
  """Refuses numbers that no plan can have; arguments of `private.plan`."""
  for name, value in (
    ('batch_size', batch_size),
    ('epochs', epochs),
    ('clip_norm', clip_norm),
  ):
    if not 0 < value < math.inf:
      raise types.InputError(
        f'Private training needs a finite {name} > 0; got {value}.'
      )
  if not epsilon > 0 or overflows.MOST < epsilon < math.inf:
    raise types.InputError(
      f'Need 0 < epsilon <= {overflows.MOST:g}, or inf, which clips without '
      f'noise; got {epsilon=}'
    )
  if noise_multiplier and epsilon < math.inf:
    raise types.InputError(
      f'Give epsilon or the noise that decides it; got {epsilon=} and '
      f'{noise_multiplier=}'
    )
  if not 0 <= overflow < 1:
    raise types.InputError(f'Need 0 <= overflow < 1; got {overflow=}')
  if rows_per_user < 1 or (rows_per_user > 1 and not user_column):
    raise types.InputError(
      'rows_per_user is 1 or more, and goes with user_column, the column that '
      f'says whose a row is; got {rows_per_user=} and {user_column=}.'
    )
  if not sampling_rate and batch_size > num_rows:
    raise types.InputError(
      f'{batch_size=} is more than the {num_rows} '
      f'{"users" if user_column else "rows"} of the training set: '
      'the whole set in every step is as large as a private batch can be.'
    )
  if not 0 < (sampling_rate or batch_size / num_rows) <= 1:
    raise types.InputError(f'Need 0 < sampling_rate <= 1; got {sampling_rate}')


def check(
  plan: Any,
  experiment: types.Experiment,
  state: types.TrainState,
  best: str,
) -> None:
  """Refuses a run whose claim to privacy would not hold.

  Args:
    plan: What is claimed, a `private.Plan`.
    experiment: From `Plan.guarded`.
    state: A fresh state of it.
    best: The metric that chooses a checkpoint; '' for none.

  Raises:
    InputError: If batches are not Poisson samples, no link of the optimizer
      makes gradients private, either is not as the plan says, another link asks
      for data, too, or remembers gradients in front of it, or a metric chooses
      what is published.
  """
  if not isinstance(experiment.train, SAMPLED):
    raise types.InputError(
      'The experiment claims privacy for Poisson samples, but its batches are '
      'those of a shuffled epoch, which the accounting does not cover: draw '
      'them with repjax.data.batches.poisson (private.Plan.batches).'
    )
  if not private_keys.of(state):
    raise types.InputError(private_keys.NO_LINK)
  _check_plan(plan, experiment.train, private_keys.links(state))
  # One of somebody else's is refused when the step is traced (`optim.link`).
  names = link.asking(state.opt_state)
  names.remove('dp_sgd')
  if names:
    raise types.InputError(
      'The experiment claims privacy, but its optimizer has links that ask for '
      f'data beside dp_sgd: {", ".join(names)}. Leave them out of the chain.'
    )
  for node in jax.tree.leaves(state.opt_state, is_leaf=_is_link):
    if 'dp_sgd' in link.asking(node) and not hasattr(node, 'asks'):
      raise types.InputError(
        f'dp_sgd stands inside of {type(node).__name__}, where the plain '
        'gradient may get through, decide, or train something else: put '
        'private.Plan.link() first in the one optax.chain that trains.'
      )
  if _keeps_before(state.opt_state):
    raise types.InputError(
      'A link in front of dp_sgd keeps numbers in its state, which come from '
      'gradients without noise and are saved with the parameters: put '
      'private.Plan.link() first in the chain, and what looks on behind it.'
    )
  if best:
    raise types.InputError(
      f'config.run.best={best!r} would choose the checkpoint by a metric '
      'without noise, which the privacy statement does not cover: set '
      "--config.run.best='' and publish the last one."
    )


def _check_plan(plan, train, links):
  if isinstance(train, users.UserBatches):
    num, unit, size = train.num_users, 'users', train.rows_per_user
  else:
    num, unit, size = len(train.source), 'rows', 0
  units = num, size, train.batch_size // max(size, 1)
  own = plan.rows_per_user if plan.user_column else 0
  least = plan.num_rows, own, plan.capacity
  if units[:2] != least[:2] or units[2] < least[2]:
    raise types.InputError(
      f'The experiment claims privacy for {_units(*least)}, but its batches '
      f'draw from {_units(*units)}: take those of private.Plan.batches.'
    )
  if train.rate > plan.rate * (1 + 1e-9):
    raise types.InputError(
      f'The experiment claims privacy for {unit} that are in a batch with '
      f'probability {plan.rate:g}, but its batches have a rate of '
      f'{train.rate:g}: take those of private.Plan.batches.'
    )
  for link_state in links:
    # Of all devices, or of runs side by side.
    noise = np.min(jax.device_get(link_state.noise_multiplier))
    rows = np.unique(jax.device_get(link_state.rows_per_user))
    if noise < plan.noise_multiplier * (1 - 1e-6):
      raise types.InputError(
        'The experiment claims privacy for a noise_multiplier of '
        f'{plan.noise_multiplier:g}, but dp_sgd in its optimizer has '
        f'{noise:g}: begin the chain with private.Plan.link().'
      )
    if rows.tolist() != [max(size, 1)]:
      raise types.InputError(
        f'dp_sgd in the optimizer clips rows_per_user={rows[0]} rows as one, '
        f'and batches have {max(size, 1)} of each: begin the chain with '
        'private.Plan.link().'
      )


def _units(num, size, capacity):
  what = f'users of {size} rows' if size else 'rows'
  return f'{num} {what}, {capacity} a batch'


def check_resumed(
  fresh: types.TrainState, restored: types.TrainState, same_config: bool
) -> None:
  """Refuses to go on in a way that the statement does not cover.

  Repeating a step with the same key gives the same noise and tells nothing
  new; with another key both results together would tell more.

  Args:
    fresh: The state before the first step.
    restored: The state to go on from.
    same_config: Whether both have one config.

  Raises:
    InputError: If the config or the key of the noise differs, or there was less
      noise.
  """
  if not same_config:
    raise types.InputError(
      'A private run goes on with the config that it was begun with alone, '
      'since its privacy statement is about one kind of step: leave out '
      '--resume_config=new, or give another --workdir.'
    )
  equal = [
    np.array_equal(a, b)
    for a, b in zip(
      private_keys.of(fresh), private_keys.of(restored), strict=True
    )
  ]
  if not all(equal):
    raise types.InputError(
      'The checkpoint was made with another key of the noise, and repeated '
      'steps would tell more than the privacy statement says: the key follows '
      'from the file noise_key in --workdir, the key_file, the config and the '
      'training rows (and the version of repjax). Go on with those that the '
      'run was begun with, or give another --workdir.'
    )
  for now, kept in zip(
    private_keys.links(fresh), private_keys.links(restored), strict=True
  ):
    least = np.min(jax.device_get(kept.noise_multiplier))
    if least < np.max(jax.device_get(now.noise_multiplier)) * (1 - 1e-6):
      raise types.InputError(
        f'The checkpoint was made with less noise ({least:g}) than is planned '
        'now, by other versions or devices: go on with those that it was begun '
        'with, or give another --workdir.'
      )


def _is_link(x):
  """Whether it is the state of a link or wrapper, and not a chain's tuple.

  `optax.inject_hyperparams` changes numbers alone. A dict may hold the states
  of several optimizers.
  """
  hyperparams = optax.InjectStatefulHyperparamsState
  named = hasattr(x, '_fields') and not isinstance(x, hyperparams)
  return named or isinstance(x, Mapping)


def _keeps_before(opt_state):
  """Whether what stands in front of dp_sgd in its chain has a state."""
  if isinstance(opt_state, optax.InjectStatefulHyperparamsState):
    return _keeps_before(opt_state.inner_state)
  if hasattr(opt_state, '_fields'):
    return False  # It is the link itself.
  for node in opt_state:
    if 'dp_sgd' in link.asking(node):
      return _keeps_before(node)
    if jax.tree.leaves(node):
      return True
  return False


def watch(clip_norm: float) -> Callable[[Mapping[str, float]], None]:
  """Says once when all rows of an interval are clipped.

  Args:
    clip_norm: C of the run.

  Returns:
    A `types.Guard.watch`.
  """
  said = False

  def look(means):
    nonlocal said
    if said or means.get('unclipped') != 0:
      return
    said = True
    logging.warning(
      'All rows since the last line were clipped (unclipped 0): the median '
      'norm of their gradients is %.3g, and clip_norm is %g. Rows then count '
      'by their direction alone, and a model can collapse to the larger class '
      'without any noise: if the accuracy stays there, try a clip_norm near '
      'the median norm on public rows (README, "Private training").',
      means['median_norm'],
      clip_norm,
    )

  return look
