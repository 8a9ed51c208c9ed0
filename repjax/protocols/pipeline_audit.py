"""Protocol: is a private recipe's own pipeline what its claim is about?

`canaries` attacks the link of DP-SGD in a program of its own. Here it is the
recipe's loss, batches and devices that are measured, by what a step releases:
the recipe is built with `readable` in the place of its optimizer, so that a
state after a step tells the private gradient exactly.

- Movement: canaries, which are real rows and hostile ones, are in a batch and
  out of it, at states in which one layer after the other is large. With the
  same noise on both, the difference is what the canary moves, all layers
  together: at most the clip norm.
- Noise: what batches of padding release, layer by layer, step by step, on every
  device, and in a second run.
- Sampling: which rows are in which step, against Poisson's law.

What is measured is then accounted for again: an epsilon above the claimed one
is a fault, up to the error probability of the tests, 1e-6 each. The other way
round nothing is proved: `CANNOT_SEE`.
"""

from collections.abc import Iterator
import math
from typing import Any

import jax
import numpy as np
import optax

from repjax import loop
from repjax import parallel
from repjax import trees
from repjax import types
from repjax.experiments import private_keys
from repjax.privacy import accounting
from repjax.protocols import audit_of_batches

CANNOT_SEE = (
  'canaries, layers and states that were not tried',
  "what the recipe's own optimizer reads besides the private gradient: SGD "
  'stands in for it',
  'random numbers that an attacker can predict, and floating-point rounding',
  'devices of other processes',
  'what was fitted to the rows before training: vocabularies, means, the '
  'choice of hyperparameters',
  'metrics of training rows, which are logged without noise',
)

# So large that the parameters that it is added to are rounded off, instead of
# the private gradient.
_RATE = 2.0**20
_ERROR = audit_of_batches.ERROR
_ROUNDING = 5e-3
_MOST = 2**16  # Numbers of a leaf whose noise is looked at.


def readable(*args: Any, **kwargs: Any) -> optax.GradientTransformation:
  """Takes the place of `optax.adamw` and others in a recipe's `build`."""
  del args, kwargs
  return optax.sgd(_RATE)


def audit(
  experiment: types.Experiment,
  *,
  seed: int,
  steps: int = 20,
  draws: int = 200,
  rows: int = 3,
  layers: int = 8,
) -> list[audit_of_batches.Finding]:
  """Measures a pipeline.

  Args:
    experiment: Built with the optimizer `readable`.
    seed: Of the initial values and the canaries.
    steps: Steps whose noise is measured.
    draws: Steps whose rows are looked at.
    rows: Real rows that are canaries, each also as a hostile one.
    layers: Layers that are made large, one after the other.

  Returns:
    What was found; the last one is the epsilon.

  Raises:
    InputError: If the experiment claims nothing, or its guard refuses it.
  """
  begun = experiment.guard.begin(experiment, None, {})
  claim = begun.guard.statement(begun.steps).get('privacy')
  if claim is None:
    raise types.InputError(
      'The recipe claims no privacy (types.Experiment.guard, or epsilon is '
      'infinite): there is nothing to audit.'
    )
  step = _Step(begun, seed)
  begun.guard.check(begun, step.state, '')
  moved = _movement(step, rows=rows, layers=layers, seed=seed)
  noise = _noise(
    step,
    _Step(experiment.guard.begin(experiment, None, {}), seed, step),
    claim.noise_multiplier,
    steps,
  )
  sampled = audit_of_batches.sampling(begun.train, claim.sampling_rate, draws)
  # What chance explains is no fault.
  share = 1.0 if noise[0].holds else noise[0].measured
  share /= 1.0 if moved.holds else moved.measured
  found = math.inf
  if share > 0:
    found = accounting.epsilon(
      noise_multiplier=claim.noise_multiplier * share,
      sampling_rate=claim.sampling_rate,
      steps=claim.steps,
      delta=claim.delta,
      accountant=claim.accountant,
    )
  epsilon = audit_of_batches.Finding(
    'epsilon of the movement and the noise that were measured',
    claim.epsilon,
    found,
    found <= claim.epsilon * (1 + 1e-6),
  )
  return [moved, *noise, *sampled, epsilon]


class _Step:
  """The private gradients that one run would release."""

  def __init__(self, experiment, seed, like=None):
    train = experiment.train
    self.batch = train.batch(0)
    fresh = loop.init(experiment.method, self.batch, seed)
    fresh = experiment.warm_start(experiment.guard.keyed(fresh))
    self.state = jax.device_get(fresh)
    self._rng = jax.random.key(seed)
    self._update = experiment.method.update
    # A second run of the same method is one program with the first.
    same = like is not None and like._update is self._update
    self._step = like._step if same else parallel.train_step(self._update)
    (link,) = private_keys.links(self.state)
    self._clip_norm = float(link.clip_norm)
    self._size = train.expected_batch_size

  def __call__(
    self, state: types.TrainState, batch: types.HostBatch
  ) -> tuple[dict[tuple[str, ...], np.ndarray], types.TrainState, bool]:
    """(private sum in clip norms a leaf, state after, do devices agree?)."""
    new, _ = self._step(
      parallel.replicate(state), parallel.shard(batch), self._rng
    )
    agree = all(
      np.array_equal(shard.data, x.addressable_shards[0].data)
      for x in jax.tree.leaves((new.params, new.opt_state))
      for shard in x.addressable_shards
    )
    new = jax.device_get(new)
    unit = self._size / (_RATE * self._clip_norm)
    before, after = trees.flatten(state.params), trees.flatten(new.params)
    gradient = {
      path: (np.float64(x) - np.float64(after[path])) * unit
      for path, x in before.items()
    }
    return gradient, new.replace(params=state.params), agree


def _movement(step, *, rows, layers, seed) -> audit_of_batches.Finding:
  """The most that a canary moves the private sum, in clip norms."""
  worst, where = 0.0, ''
  rng = np.random.default_rng(seed)
  canaries = list(_canaries(step.batch, rows, rng))
  for layer, state in _states(step.state, layers, rng):
    for name, unit, batch in canaries:
      mask = np.array(batch['mask'])
      mask[unit] = 0
      inside, _, _ = step(state, batch)
      outside, _, _ = step(state, {**batch, 'mask': mask})
      by_leaf = {
        path: np.linalg.norm(x - outside[path]) for path, x in inside.items()
      }
      size = float(np.linalg.norm(list(by_leaf.values())))
      if not size <= worst:  # NaN is the worst of all.
        most = max(by_leaf, key=by_leaf.__getitem__)
        worst = size if math.isfinite(size) else math.inf
        where = f'{name}, {layer}; most of it in {"/".join(most)}'
  return audit_of_batches.Finding(
    'movement by one canary, in clip norms',
    1.0,
    worst,
    worst <= 1 + _ROUNDING,
    where,
  )


def _canaries(
  batch: types.HostBatch, count: int, rng: np.random.Generator
) -> Iterator[tuple[str, np.ndarray, types.HostBatch]]:
  """(name, rows of the batch that are its, batch with it)."""
  real = np.flatnonzero(np.asarray(batch['mask']) > 0)
  if not len(real):
    raise types.InputError(
      'The first batch drew no row: there is nothing to audit. Run it again.'
    )
  owners = batch.get('user', np.arange(len(batch['mask'])))
  chosen = rng.permutation(np.unique(owners[real]))[:count]
  for owner in chosen:
    unit = np.flatnonzero((owners == owner) & (np.asarray(batch['mask']) > 0))
    yield f'unit {owner}', unit, batch
    hostile = dict(batch)
    for name in set(types.INPUTS) & set(batch):
      x = np.array(batch[name])
      if np.issubdtype(x.dtype, np.floating):
        x[unit] *= 1000
      else:
        x[unit] = x[unit][..., ::-1]
      hostile[name] = x
    if 'label' in batch and np.issubdtype(batch['label'].dtype, np.integer):
      hostile['label'] = np.array(batch['label'])
      hostile['label'][unit] = batch['label'].max() - batch['label'][unit]
    yield f'hostile unit {owner}', unit, hostile


def _states(state, count, rng) -> Iterator[tuple[str, types.TrainState]]:
  """(name, state): as it begins, and with one layer after the other large."""
  yield 'at the start', state
  flat = trees.flatten(state.params)
  owners = list(dict.fromkeys(path[:-1] for path in flat))
  chosen = np.linspace(0, len(owners) - 1, min(count, len(owners))).astype(int)
  for owner in dict.fromkeys(owners[i] for i in chosen):
    leaves = [
      np.float32(8 * x + rng.normal(size=np.shape(x)))
      if path[:-1] == owner
      else x
      for path, x in flat.items()
    ]
    params = jax.tree.unflatten(jax.tree.structure(state.params), leaves)
    yield f'with large {"/".join(owner)}', state.replace(params=params)


def _noise(step, other, multiplier, steps) -> list[audit_of_batches.Finding]:
  """The least of the layers' noise first."""
  from scipy import stats

  empty = {**step.batch, 'mask': np.zeros_like(step.batch['mask'])}

  def draw(step):
    state, drawn = step.state, []
    for _ in range(steps):
      gradient, state, agree = step(state, empty)
      drawn.append(gradient)
      agrees.append(agree)
    return {
      path: np.stack([x[path].ravel()[:_MOST] for x in drawn]) / multiplier
      for path in drawn[0]
    }

  agrees: list[bool] = []
  leaves, again = draw(step), draw(other)
  shares = {path: float(np.sqrt(np.mean(x**2))) for path, x in leaves.items()}
  # A layer with less noise than chance allows of what is claimed.
  floors = {
    path: math.sqrt(stats.chi2.ppf(_ERROR / len(leaves), x.size) / x.size)
    for path, x in leaves.items()
  }
  least = min(shares, key=lambda path: shares[path] / floors[path])
  missing = shares[least] < floors[least]
  whole = np.concatenate(list(leaves.values()), axis=1)
  total = float(np.sqrt(np.mean(whole**2)))
  limit = _largest_correlation(whole.shape[1], steps**2)
  return [
    audit_of_batches.Finding(
      'noise, as a share of the claimed',
      1.0,
      shares[least] if missing else total,
      not missing,
      '/'.join(least) if missing else '',
    ),
    audit_of_batches.at_most(
      'correlation of the noise of two steps',
      _correlation(whole, whole, same=True),
      limit,
    ),
    audit_of_batches.at_most(
      'correlation of the noise of two runs',
      _correlation(
        whole, np.concatenate(list(again.values()), axis=1), same=False
      ),
      limit,
    ),
    _between(list(leaves.values())),
    audit_of_batches.Finding(
      'steps after which devices differ',
      0.0,
      float(len(agrees) - sum(agrees)),
      all(agrees),
    ),
  ]


def _correlation(a, b, *, same):
  """The largest of any two rows of [S, D] and [S, D]."""
  a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
  found = np.abs(a @ b.T)
  return float((found - same * np.eye(len(a))).max())


def _between(leaves):
  """Whether two leaves have noise in common, where both have numbers."""
  found = [0.0, 1.0]
  for i, x in enumerate(leaves):
    for y in leaves[:i]:
      size = min(x.shape[1], y.shape[1])
      a, b = x[:, :size].ravel(), y[:, :size].ravel()
      # A layer without noise is another fault.
      norms = np.linalg.norm(a) * np.linalg.norm(b)
      cosine = abs(a @ b) / norms if norms else 0.0
      limit = _largest_correlation(a.size, len(leaves) ** 2)
      found = max(found, [float(cosine), limit], key=lambda x: x[0] / x[1])
  return audit_of_batches.at_most(
    'correlation of the noise of two layers', *found
  )


def _largest_correlation(size, pairs):
  """Of independent normal vectors, the largest of so many pairs."""
  from scipy import stats

  return min(1.0, stats.norm.isf(_ERROR / 2 / pairs) / math.sqrt(size))
