"""Host side: how far a run is from private, found by attacking it.

Canaries are rows made to be found. Each is in the training set with probability
1/2, a score of each is computed from what training released, and whoever
guesses the canaries' membership better than the claim allows has proved the
claim wrong: noise that was forgotten, scaled down or reused, clipping that does
not bound. One run is enough, because the canaries' coins are independent
(Steinke, Nasr and Jagielski, 'Privacy Auditing with One (1) Training Run',
NeurIPS 2023, https://arxiv.org/abs/2305.08846).

    members, scores = auditing.play(train, num_canaries=1000, seed=0)
    auditing.epsilon_lower_bound(scores, members, delta=1e-5)

Two bounds. `epsilon_lower_bound` holds for any mechanism, and is far below the
truth for most. `gaussian_lower_bound` is for runs that are a Gaussian mechanism
(every row in every step), uses that mechanism's whole trade-off curve, and sees
noise that is half of what was claimed (Mahloujifar, Melis and Chaudhuri,
'Auditing f-Differential Privacy in One Run', ICML 2025,
https://proceedings.mlr.press/v267/mahloujifar25a.html). A high bound is proof;
a low one proves nothing, since a better attack may exist.
"""

from collections.abc import Callable
from collections.abc import Mapping
import math

import jax
import jax.numpy as jnp
import numpy as np

from repjax import types

# Shares of the canaries about which guesses are made, those with the clearest
# scores. Each is a test of its own and gets its part of the error probability.
_SHARES = (0.02, 0.05, 0.1, 0.2, 0.4)


def play(
  train: Callable[[np.ndarray], np.ndarray], *, num_canaries: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """Draws who is in, trains, and scores.

  Args:
    train: Trains with the canaries that are marked, bool [m], and returns one
      score a canary, [m]: higher for those that seem to be in, around 0 where
      nothing can be said.
    num_canaries: m.
    seed: Of the coins. Training must not know it: noise has a key of its own.

  Returns:
    (members bool [m], scores [m]).
  """
  if num_canaries < 1:
    raise ValueError(f'Need num_canaries >= 1; got {num_canaries=}')
  members = np.random.default_rng(seed).random(num_canaries) < 0.5
  scores = np.asarray(train(members), np.float64)
  if scores.shape != members.shape:
    raise ValueError(
      f'train returns one score a canary, {members.shape}; got {scores.shape}'
    )
  return members, scores


def epsilon_lower_bound(
  scores: np.ndarray,
  members: np.ndarray,
  *,
  delta: float,
  confidence: float = 0.95,
) -> float:
  """Epsilon is at least this, whatever the mechanism (Steinke et al.).

  Args:
    scores: One a canary, [m]; positive says 'in', the larger the surer.
    members: Which canaries were in, bool [m].
    delta: In [0, 1).
    confidence: Probability that the bound holds.
  """
  if not 0 <= delta < 1:
    raise ValueError(f'Need 0 <= delta < 1; got {delta=}')
  tests, error = _guesses(scores, members, confidence)

  def rejected(epsilon):
    return any(
      _p_value(len(members), r, v, epsilon, delta) <= error for r, v in tests
    )

  return _largest(rejected)


def gaussian_lower_bound(
  scores: np.ndarray,
  members: np.ndarray,
  *,
  delta: float,
  confidence: float = 0.95,
) -> float:
  """Epsilon is at least this, if the run is a Gaussian mechanism.

  Rejects the largest mu = sensitivity / noise whose trade-off curve does not
  allow guesses that good (Mahloujifar et al.), and translates it into epsilon
  (Dong, Roth and Su, 'Gaussian Differential Privacy', 2022,
  https://arxiv.org/abs/1905.02383).

  Args:
    scores: One a canary, [m]; positive says 'in', the larger the surer.
    members: Which canaries were in, bool [m].
    delta: In (0, 1).
    confidence: Probability that the bound holds.
  """
  if not 0 < delta < 1:
    raise ValueError(f'Need 0 < delta < 1; got {delta=}')
  tests, error = _guesses(scores, members, confidence)

  def rejected(mu):
    return any(
      _gaussian_rejects(len(members), r, v, mu, error) for r, v in tests
    )

  return gaussian_epsilon(_largest(rejected), delta)


def gaussian_epsilon(mu: float, delta: float) -> float:
  """Epsilon of a Gaussian mechanism with mu = sensitivity / noise, at delta."""
  from scipy import special

  def excess(epsilon):
    a = special.ndtr(mu / 2 - epsilon / mu)
    b = special.log_ndtr(-mu / 2 - epsilon / mu)
    return a - math.exp(min(epsilon + b, 700.0)) - delta

  return _largest(lambda epsilon: mu > 0 and excess(epsilon) > 0)


def with_canaries(loss_fn: types.LossFn, *, scale: float) -> types.LossFn:
  """A loss whose canaries have a coordinate of the gradient each.

  The strongest canary that clipping lets through: a gradient of norm C in a
  direction of its own. It meets every link of DP-SGD: per-example gradients,
  clipping, the sum over devices, noise, the divisor, the optimizer. `score`
  reads it off the trained parameters.

  Args:
    loss_fn: As without canaries.
    scale: Norm of a canary's gradient before clipping; well above the clip
      norm, so that it is clipped to it. Styles other than 'flat' clip it to
      less, which makes the attack weaker.

  Returns:
    A loss of `canary_params`, over batches with a column 'canary': the
    canary's number, or -1 for ordinary rows, int32 [B].
  """

  def with_rows(params, model_state, batch, rng):
    batch = dict(batch)
    canary = batch.pop('canary')
    out = loss_fn(params['model'], model_state, batch, rng)
    # The minus makes those that are in grow.
    own = -scale * params['canaries'][jnp.maximum(canary, 0)]
    return out._replace(loss=jnp.where(canary < 0, out.loss, own))

  return with_rows


def canary_params(params: types.PyTree, num_canaries: int) -> types.PyTree:
  """Parameters of `with_canaries`: the model's, and one a canary."""
  return {'model': params, 'canaries': jnp.zeros(num_canaries)}


def canary_rows(
  batch: Mapping[str, jax.Array], members: jax.Array
) -> dict[str, jax.Array]:
  """The batch with canaries behind its rows, of which members are unmasked.

  Args:
    batch: Rows of the set, with 'mask' [B].
    members: Which canaries are in, [m].

  Returns:
    A batch of B + m rows, 'canary' among its columns.
  """
  count = members.shape[0]

  def extend(x):
    return jnp.concatenate([x, jnp.zeros((count, *x.shape[1:]), x.dtype)])

  rows = {name: extend(jnp.asarray(x)) for name, x in batch.items()}
  number = jnp.arange(count, dtype=jnp.int32)
  ordinary = jnp.full(batch['mask'].shape, -1, jnp.int32)
  mask = jnp.concatenate(
    [jnp.asarray(batch['mask']), members.astype(jnp.float32)]
  )
  canary = jnp.concatenate([ordinary, number])
  return {**rows, 'mask': mask, 'canary': canary}


def score(params: types.PyTree, *, step: float) -> jax.Array:
  """One score a canary of trained `canary_params`, [m].

  Args:
    params: After training from `canary_params`.
    step: How far training moves a canary that is in, without noise: for plain
      SGD, learning rate * steps * clip norm / expected_batch_size.
  """
  return params['canaries'] - step / 2


def _guesses(scores, members, confidence):
  """([(guesses, correct ones)], error probability of each test)."""
  scores, members = np.asarray(scores), np.asarray(members, bool)
  if scores.ndim != 1 or scores.shape != members.shape or not len(scores):
    raise ValueError(
      'scores and members are one a canary, [m]; got shapes '
      f'{scores.shape} and {members.shape}'
    )
  if not 0 < confidence < 1:
    raise ValueError(f'Need 0 < confidence < 1; got {confidence=}')
  if not np.isfinite(scores).all():
    raise ValueError('scores must be finite: the audited run diverged')
  # Scores that are equal stand in random order: ties must not tell anything.
  order = np.random.default_rng(0).permutation(len(scores))
  order = order[np.argsort(-np.abs(scores[order]), kind='stable')]
  correct = np.cumsum((scores > 0)[order] == members[order])
  counts = sorted({max(1, int(share * len(scores))) for share in _SHARES})
  tests = [(r, int(correct[r - 1])) for r in counts]
  return tests, (1 - confidence) / len(tests)


def _p_value(num_canaries, guesses, correct, epsilon, delta):
  """Of so many correct guesses, under (epsilon, delta) (Steinke et al.).

  Without delta, the number of correct guesses is at most binomial with
  success e^epsilon / (1 + e^epsilon).
  """
  from scipy import special
  from scipy import stats

  rate = special.expit(epsilon)
  tail = stats.binom.sf(correct - 1, guesses, rate)
  if delta == 0:
    return tail
  fewer = np.arange(1, correct + 1)
  between = stats.binom.sf(correct - fewer - 1, guesses, rate) - tail
  slope = np.max(between / fewer, initial=0.0)
  return min(tail + 2 * num_canaries * delta * slope, 1.0)


def _gaussian_rejects(num_canaries, guesses, correct, mu, error):
  """Whether mu-Gaussian privacy rules out guesses that good.

  The recursion of Mahloujifar et al.: h and r bound the probabilities of
  exactly so many wrong and correct guesses, from all of them downwards.
  """
  from scipy import special

  r = error * correct / num_canaries
  h = error * (guesses - correct) / num_canaries
  for i in range(correct - 1, -1, -1):
    new = max(h, special.ndtr(special.ndtri(r) - mu))
    if new == h:
      break
    r = min(r + i / (guesses - i) * (new - h), 1.0)
    h = new
  return r + h > guesses / num_canaries


def _largest(rejected):
  """Where a test that holds up to some point stops to; 0 if it never does."""
  if not rejected(0.0):
    return 0.0
  lower, upper = 0.0, 1.0
  while rejected(upper):
    lower, upper = upper, 2 * upper
    if upper > 1e4:
      return math.inf
  while upper - lower > 1e-5 * upper:
    middle = (lower + upper) / 2
    lower, upper = (middle, upper) if rejected(middle) else (lower, middle)
  return lower
