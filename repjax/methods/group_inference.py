"""Groups inferred from a model that has learnt what is easy.

Ahmed et al., 'Systematic generalisation with group invariant predictions', ICLR
2021 (https://openreview.net/forum?id=b9PoimzZFJ), section 3 and the authors'
code: for each class a small network divides the rows, by the features of a
reference model, into two environments between which the model's predictions
differ most in the sense of IRM. The harder one is the minority (group 1).
`free` is the older form of EIIL (Creager et al., ICML 2021,
https://arxiv.org/abs/2010.07249), with one free number for each row.
"""

from collections.abc import Sequence
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from repjax import types
from repjax.methods import dividing_network
from repjax.methods import irm
from repjax.types import InputError


class Partition(NamedTuple):
  """Two groups of all training rows.

  Attributes:
    group: 0 majority, 1 minority, int32 [N].
    share: Soft membership in group 1 before rounding, in [0, 1], [N].
  """

  group: np.ndarray
  share: np.ndarray

  def report(self, true: np.ndarray) -> dict[str, float]:
    """How well group 1 is that of the truth.

    Args:
      true: 1 for rows of the true minority, [N].

    Returns:
      'precision' and 'recall' of group 1, 'base_rate', the precision of a
      partition by chance, and 'size', the share of rows in group 1. Precision
      is 0 where group 1 is empty.

    Raises:
      InputError: If the truth has no minority.
    """
    true = np.asarray(true) > 0
    if true.shape != self.group.shape or not true.any():
      raise InputError(
        f'The true groups are {self.group.shape} numbers, some of them 1; got '
        f'{true.shape} with {true.sum()}.'
      )
    found = self.group > 0
    hits = float((found & true).sum())
    return {
      'precision': hits / max(float(found.sum()), 1.0),
      'recall': hits / float(true.sum()),
      'base_rate': float(true.mean()),
      'size': float(found.mean()),
    }


def infer(
  features: np.ndarray,
  logits: np.ndarray,
  label: np.ndarray,
  *,
  num_classes: int,
  seed: int,
  steps: int = 100,
  learning_rate: float = 1e-4,
  batch_size: int = 512,
  widths: Sequence[int] = (64, 32, 21),
  temperature: float = 10.0,
  penalty: float = 10.0,
) -> Partition:
  """Divides each class by a network on the features.

  Args:
    features: Of the reference model in evaluation mode, [N, D].
    logits: Of that model, [N, C].
    label: [N].
    num_classes: C.
    seed: Of networks and batches.
    steps: Updates of each class's network.
    learning_rate: Of Adam.
    batch_size: Rows of an update, drawn without replacement; all of a class
      that has fewer.
    widths: Of the network's hidden layers.
    temperature: T: a row's share is (1 + tanh(o / T)) / 2 of the output o.
    penalty: What IRM's terms count beside the losses.

  Raises:
    InputError: If shapes do not fit, an input is not finite, a label is no
      integer in [0, C), a class has fewer than two rows, or the temperature is
      so small that a network's shares are 0 or 1 alone and it diverges.
  """
  _check(logits, label, num_classes, features=features)
  types.check_range('[0, inf)', steps=steps, penalty=penalty)
  types.check_range('[2, inf)', batch_size=batch_size)
  types.check_range(
    '(0, inf)', learning_rate=learning_rate, temperature=temperature
  )
  features, logits = (np.asarray(x, np.float32) for x in (features, logits))
  label = np.asarray(label)
  rng = np.random.default_rng(seed)
  rows = [np.flatnonzero(label == index) for index in range(num_classes)]
  longest = max(map(len, rows))
  size = min(batch_size, longest)
  # All classes side by side: -1 are places without a row.
  at = np.full((num_classes, longest), -1)
  order = np.full((num_classes, steps, size), -1)
  for index, own in enumerate(rows):
    at[index, : len(own)] = own
    for step in range(steps):
      chosen = rng.permutation(len(own))[:size]
      order[index, step, : len(chosen)] = chosen
  share = _divide(
    features[at],
    logits[at],
    label[at],
    order,
    jax.random.split(jax.random.key(seed), num_classes),
    learning_rate=float(learning_rate),
    widths=tuple(widths),
    temperature=float(temperature),
    penalty=float(penalty),
  )
  shares = np.empty(len(label), np.float32)
  shares[at[at >= 0]] = np.asarray(share)[at >= 0]
  _check_shares(shares, f'raise {temperature=} or lower {learning_rate=}')
  return _partition(shares, logits, label, num_classes)


def free(
  logits: np.ndarray,
  label: np.ndarray,
  *,
  seed: int,
  steps: int = 10_000,
  learning_rate: float = 1e-3,
) -> Partition:
  """Divides all rows together, by one free number for each (EIIL).

  It maximizes IRM's penalty alone, of one scale of all logits. Group 1 is the
  one with the larger mean loss. (The authors' code leaves the groups as they
  come.)

  Args:
    logits: Of the reference model in evaluation mode, [N, C].
    label: [N].
    seed: Of the start.
    steps: Updates with all rows.
    learning_rate: Of Adam.

  Raises:
    InputError: If shapes do not fit, a logit is not finite, a label is no
      integer in [0, C), or shares diverge.
  """
  _check(logits, label, np.shape(logits)[-1], present=False)
  logits, label = np.asarray(logits, np.float32), np.asarray(label)
  slopes = irm.scale_gradients(jnp.asarray(logits), jnp.asarray(label)).sum(-1)
  tx = optax.adam(learning_rate)

  def loss(free):
    share = jax.nn.sigmoid(free)
    parts = [(x * slopes).mean() for x in (share, 1 - share)]
    return -sum(jnp.square(x) for x in parts)

  @jax.jit
  def run(free):
    def step(carry, _):
      free, state = carry
      updates, state = tx.update(jax.grad(loss)(free), state, free)
      return (optax.apply_updates(free, updates), state), None

    carry, _ = jax.lax.scan(step, (free, tx.init(free)), length=steps)
    return jax.nn.sigmoid(carry[0])

  start = jax.random.normal(jax.random.key(seed), label.shape)
  together = np.zeros(len(label), int)
  share = np.asarray(run(start))
  _check_shares(share, 'logits are too large')
  return _partition(share, logits, label, 1, within=together)


def objective(
  share: jax.Array,
  logits: jax.Array,
  label: jax.Array,
  mask: jax.Array,
  *,
  penalty: float = 10.0,
) -> jax.Array:
  """What the networks maximize: (R1 + R2 + penalty * (G1 + G2)) / 2.

  R is the mean loss of an environment, rows weighted by their share, and G the
  squared norm of its gradient by a scale of each class's logits.

  Args:
    share: Of environment 1, [n]; environment 2 has the rest.
    logits: [n, C].
    label: [n].
    mask: 1 for rows that count, [n].
    penalty: 10 in the authors' code.
  """
  nll = optax.softmax_cross_entropy_with_integer_labels(logits, label)
  slopes = irm.scale_gradients(logits, label)
  total = jnp.zeros(())
  for weights in (share * mask, (1 - share) * mask):
    weights = weights / weights.sum()
    risk, slope = (
      jnp.matmul(weights, x, precision=jax.lax.Precision.HIGHEST)
      for x in (nll, slopes)
    )
    total += risk + penalty * jnp.square(slope).sum()
  return total / 2


@functools.partial(
  jax.jit,
  static_argnames=('learning_rate', 'widths', 'temperature', 'penalty'),
)
def _divide(
  features,
  logits,
  label,
  order,
  rngs,
  *,
  learning_rate,
  widths,
  temperature,
  penalty,
):
  """Shares of group 1 of all rows, class by class, [C, n]."""
  tx = optax.adam(learning_rate)

  def share_of(params, sides, x):
    output, sides = dividing_network.apply(params, sides, x)
    return 0.5 * (1 + jnp.tanh(output / temperature)), sides

  def one(features, logits, label, order, rng):
    def loss(params, sides, rows):
      mask = (rows >= 0).astype(jnp.float32)
      share, sides = share_of(params, sides, features[rows])
      return -objective(
        share, logits[rows], label[rows], mask, penalty=penalty
      ), sides

    def step(carry, rows):
      params, sides, state = carry
      grads, sides = jax.grad(loss, has_aux=True)(params, sides, rows)
      updates, state = tx.update(grads, state, params)
      return (optax.apply_updates(params, updates), sides, state), None

    params, sides = dividing_network.init(rng, features.shape[-1], widths)
    (params, sides, _), _ = jax.lax.scan(
      step, (params, sides, tx.init(params)), order
    )
    return share_of(params, sides, features)[0]

  return jax.vmap(one)(features, logits, label, order, rngs)


def _partition(share, logits, label, num_classes, within=None):
  """Rounds, and names the harder part of each class group 1.

  A class that its network has not divided stays whole on the side where it is:
  no two means are there to compare.
  """
  shifted = logits - logits.max(-1, keepdims=True)
  log_probs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
  nll = -log_probs[np.arange(len(label)), label]
  group = (share > 0.5).astype(np.int32)
  share = np.array(share, np.float32)
  within = label if within is None else within
  for index in range(num_classes):
    rows = np.flatnonzero(within == index)
    first, second = (nll[rows[group[rows] == k]] for k in (0, 1))
    if len(first) and len(second) and second.mean() < first.mean():
      group[rows], share[rows] = 1 - group[rows], 1 - share[rows]
  return Partition(group, share)


def _check(logits, label, num_classes, *, features=None, present=True):
  logits, label = np.asarray(logits), np.asarray(label)
  if logits.ndim != 2 or label.shape != logits.shape[:1]:
    raise InputError(
      f'Need logits [N, C] and label [N]; got {logits.shape}, {label.shape}.'
    )
  if features is not None and len(features) != len(label):
    raise InputError(
      f'There are {len(features)} rows of features and {len(label)} labels.'
    )
  for name, x in (('features', features), ('logits', logits)):
    if x is not None and not np.isfinite(x).all():
      raise InputError(f'The reference model has diverged: {name} not finite.')
  if logits.shape[1] != num_classes:
    raise InputError(
      f'The reference model has {logits.shape[1]} logits a row, and the labels '
      f'{num_classes} classes.'
    )
  wrong = np.ones(label.shape, bool)
  if np.issubdtype(label.dtype, np.integer):
    wrong = (label < 0) | (label >= num_classes)
  if wrong.any():
    raise InputError(
      f'Labels are integers in [0, {num_classes}); row {wrong.argmax()} has '
      f'{label[wrong].tolist()[0]!r}.'
    )
  counts = np.bincount(label, minlength=num_classes)
  if present and counts.min() < 2:
    raise InputError(
      f'Each of the {num_classes} classes needs two rows and more to be '
      f'divided; they have {counts.tolist()}.'
    )


def _check_shares(share, advice):
  """Refuses what rounding would call the majority."""
  wrong = ~np.isfinite(share)
  if wrong.any():
    raise InputError(
      f'Shares of {wrong.sum()} of {len(share)} rows are not finite: {advice}.'
    )
