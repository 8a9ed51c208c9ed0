"""DP-SGD as one link of an `optax.chain`.

Abadi et al., 'Deep Learning with Differential Privacy', CCS 2016, algorithm 1
(https://arxiv.org/abs/1607.00133), with the sums of `repjax.privacy.clipping`,
which `grad_fn` gives. Adaptive clipping: Andrew et al., 'Differentially Private
Learning with Adaptive Clipping', NeurIPS 2021
(https://arxiv.org/abs/1905.03871).
"""

import functools
import inspect
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from repjax.optim import link
from repjax.types import InputError

# Noise for more numbers than this is drawn in parts: the generator holds
# several copies of what it draws (on CPUs four), which made the noise of a
# large embedding the peak of a whole step's memory.
_PART = 2**20
# Code of what makes updates under a condition.
_CONDITIONS = frozenset(
  code
  for make in (
    optax.apply_if_finite,
    optax.conditionally_transform,
    optax.conditionally_mask,
  )
  for code in make.__code__.co_consts
  if inspect.iscode(code)
)

# Of what a loss draws: none of the keys that `split` makes of the same one.
_OF_ROWS = 7


class DpSgdState(NamedTuple):
  """State of `dp_sgd`.

  Attributes:
    key: Data of the key that all noise comes from, uint32.
    step: Number of noisy gradients so far, int32 scalar.
    clip_norm: C, float32 scalar; constant unless it is adapted.
    noise_multiplier: That of both queries together, float32 scalar.
    rows_per_user: Rows that are clipped as one, int32 scalar. Both never
      change: a statement about the run is compared with them.
  """

  key: jax.Array
  step: jax.Array
  clip_norm: jax.Array
  noise_multiplier: jax.Array
  rows_per_user: jax.Array

  def asks(self) -> str:
    """Name of the link, which asks `grad_fn`."""
    return 'dp_sgd'


class AdaptiveClipping(NamedTuple):
  """How C follows a quantile of the gradient norms (Andrew et al., sec. 2).

  Attributes:
    quantile: Share of examples that are not clipped, in (0, 1).
    rate: Step of log C, > 0; 0.2 is the authors'.
    count_stddev: Noise on the number of examples that are not clipped, > 1/2;
      the authors use expected_batch_size / 20.
  """

  quantile: float = 0.5
  rate: float = 0.2
  count_stddev: float = 10.0


def dp_sgd(
  clip_norm: float,
  noise_multiplier: float,
  *,
  expected_batch_size: float,
  key: jax.Array,
  method: str = 'auto',
  style: str = 'flat',
  rows_per_user: int = 1,
  adaptive: AdaptiveClipping | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Replaces the gradient by a differentially private one.

  (sum of clipped gradients + N(0, (noise_multiplier * clip_norm)^2 I)) /
  expected_batch_size. Put it first in the chain; what follows (momentum, Adam,
  weight decay) only sees the private gradient. A penalty on weights inside of
  the loss is clipped with it and makes every layer fall back to per-example
  gradients: decay weights in the chain instead. Every leaf of `params` gets
  noise, those without a gradient too: keep frozen parameters out of `params`,
  or mask the chain's updates.

  What it guarantees and what it does not: with batches drawn by Poisson
  sampling (`repjax.data.batches.poisson`) at rate q, T steps are T compositions
  of the subsampled Gaussian mechanism under add-or-remove neighbours, which
  `repjax.privacy.accounting` turns into epsilon. The divisor is a constant, not
  the number of rows that were drawn, which is itself private; that of all rows
  (or users), from which the divisor and mostly the noise follow, counts as
  public, although it differs by one between neighbours. The parameters
  after every step are covered. Not covered are checkpoints, which hold the key
  of the noise and what a link in front may keep of the plain gradient (publish
  parameters alone); the metrics that the training loop reports, which come
  from the data without noise; and the choice of hyperparameters
  (`repjax.privacy.tuning`).

  Noise is float32 and equal on all devices, because the key comes from the
  state. Two runs with one key add the same noise, and their difference has
  none: a run needs a key of its own. Models that train side by side share the
  one that is given here until each gets its own
  (`repjax.experiments.private.Plan.with_keys`), without which `seed_loop.fit`
  refuses them.

  Args:
    clip_norm: C > 0, in units of the gradient of one example's loss; the first
      one where it is adapted.
    noise_multiplier: Standard deviation of the noise in units of C, >= 0; 0 is
      not private.
    expected_batch_size: Rows of a step over all devices on average: sampling
      rate times the number of rows of the set.
    key: Of the noise, this run's alone; secret as long as the guarantee is
      needed.
    method: How the sum is computed, see `privacy.clipping.clipped_gradient`.
    style: How examples are clipped: 'flat', 'per_layer' or 'automatic'.
    rows_per_user: U protects users instead of rows: batches come from
      `repjax.data.batches.users.user_batches(rows_per_user=U)`, the mean
      gradient of a user's rows is clipped as a whole, and `expected_batch_size`
      counts users, as the sampling rate of the accounting does.
    adaptive: Lets C follow a quantile of the norms. The noise on the gradient
      is raised so that both queries together are as private as
      `noise_multiplier` says (theorem 1), which needs noise_multiplier <
      2 * count_stddev.

  Returns:
    A transformation whose `update` needs `params` and the extra argument
    `grad_fn`, a `repjax.types.GradFn`.

  Raises:
    ValueError: If an argument is out of range, or, at `update`, if `params` or
      `grad_fn` is missing.
    InputError: If it cannot stand where it does: see `optim.link`.
  """
  link.check_fixed(
    'dp_sgd',
    clip_norm=clip_norm,
    noise_multiplier=noise_multiplier,
    expected_batch_size=expected_batch_size,
    rows_per_user=rows_per_user,
  )
  if not 0 < clip_norm < math.inf:
    raise ValueError(f'Need a finite clip_norm > 0; got {clip_norm=}')
  if not 0 <= noise_multiplier < math.inf:
    raise ValueError(
      f'Need a finite noise_multiplier >= 0; got {noise_multiplier=}'
    )
  if not 0 < expected_batch_size < math.inf:
    raise ValueError(
      f'Need a finite expected_batch_size > 0; got {expected_batch_size=}'
    )
  gradient_multiplier = noise_multiplier
  if adaptive is not None:
    gradient_multiplier = _raise_noise(noise_multiplier, adaptive)
    if style == 'automatic':
      raise ValueError(
        "style='automatic' does not depend on how many examples are clipped; "
        f'got {adaptive=}'
      )
  impl = None
  if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    key, impl = jax.random.key_data(key), jax.random.key_impl(key)
  as_rng = functools.partial(jax.random.wrap_key_data, impl=impl)

  def init_fn(params):
    link.begin('dp_sgd', params)
    if link.around() & _CONDITIONS:
      raise InputError(
        'dp_sgd inside of optax.apply_if_finite or conditionally_transform '
        'would be left out by what the plain gradient says, which is not '
        'private: leave that out (in dp_sgd, rows that are not finite count '
        'for nothing).'
      )
    return DpSgdState(
      key=jnp.array(key),  # A copy: a state may be donated.
      step=jnp.zeros((), jnp.int32),
      clip_norm=jnp.asarray(clip_norm, jnp.float32),
      noise_multiplier=jnp.asarray(noise_multiplier, jnp.float32),
      rows_per_user=jnp.asarray(rows_per_user, jnp.int32),
    )

  def update_fn(updates, state, params=None, *, grad_fn=None, **extra):
    del extra
    link.ask(
      'dp_sgd', grad_fn, params=params, question='clipped', updates=updates
    )
    rng = jax.random.fold_in(as_rng(state.key), state.step)
    total, aux = grad_fn.clipped(
      params,
      state.clip_norm,
      method=method,
      style=style,
      rows_per_user=rows_per_user,
      # Masks of dropout go by places in the batch: who knows them sees that
      # rows have moved up, which moves the sum by more than one row may.
      rng=jax.random.fold_in(rng, _OF_ROWS),
    )
    link.close('dp_sgd', grad_fn)
    rng_noise, rng_count = jax.random.split(rng)
    stddev = gradient_multiplier * state.clip_norm
    leaves, treedef = jax.tree.flatten(total)
    rngs = jax.random.split(rng_noise, len(leaves))
    leaves = [
      (
        (x.astype(jnp.float32) + stddev * _normal(rng, x.shape))
        / expected_batch_size
      ).astype(x.dtype)
      for x, rng in zip(leaves, rngs, strict=True)
    ]
    new_clip_norm = state.clip_norm
    if adaptive is not None:
      unclipped, rows = aux.sums['unclipped']
      noise = adaptive.count_stddev * _normal(rng_count, ())
      # Centred at 1/2, so that one row moves the count by 1/2 (sec. 2.2).
      share = (unclipped - rows / 2 + noise) / expected_batch_size + 0.5
      new_clip_norm *= jnp.exp(-adaptive.rate * (share - adaptive.quantile))
    state = state._replace(step=state.step + 1, clip_norm=new_clip_norm)
    return jax.tree.unflatten(treedef, leaves), state

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def dp_adam(
  learning_rate: optax.ScalarOrSchedule,
  *,
  clip_norm: float,
  noise_multiplier: float,
  expected_batch_size: float,
  key: jax.Array,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
) -> optax.GradientTransformationExtraArgs:
  """Adam on private gradients (Li et al., ICLR 2022, section 3).

  https://arxiv.org/abs/2110.05679. For other settings chain `dp_sgd` yourself.

  Args:
    learning_rate: Of Adam; 5e-4 with C = 0.1 is the authors' on GLUE.
    clip_norm: C > 0, in units of the gradient of one example's loss.
    noise_multiplier: Standard deviation of the noise in units of C, >= 0.
    expected_batch_size: Rows of a step over all devices on average.
    key: Of the noise, this run's alone.
    b1: Decay of the first moment.
    b2: Decay of the second moment.
    eps: Added to the root of the second moment.
  """
  return optax.chain(
    dp_sgd(
      clip_norm,
      noise_multiplier,
      expected_batch_size=expected_batch_size,
      key=key,
    ),
    optax.adam(learning_rate, b1=b1, b2=b2, eps=eps),
  )


def _raise_noise(noise_multiplier, adaptive):
  """The gradient's share of the noise (Andrew et al., theorem 1)."""
  if not (
    0 < adaptive.quantile < 1
    and adaptive.rate > 0
    and adaptive.count_stddev > 0
    and noise_multiplier < 2 * adaptive.count_stddev
  ):
    raise ValueError(
      'Need 0 < quantile < 1, rate > 0 and count_stddev > noise_multiplier / '
      f'2; got {adaptive=}, {noise_multiplier=}'
    )
  if noise_multiplier == 0:
    return 0.0
  return (noise_multiplier**-2 - (2 * adaptive.count_stddev) ** -2) ** -0.5


def _normal(rng, shape):
  """Standard normal numbers; many of them part by part."""
  size = math.prod(shape)
  if size <= _PART:
    return jax.random.normal(rng, shape, jnp.float32)
  rngs = jax.random.split(rng, -(-size // _PART))
  parts = jax.lax.map(
    lambda rng: jax.random.normal(rng, (_PART,), jnp.float32), rngs
  )
  return parts.reshape(-1)[:size].reshape(shape)
