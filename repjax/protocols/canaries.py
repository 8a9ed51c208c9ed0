"""Protocol: canaries attack DP-SGD runs on digits.

A small network, every row in every step, and canaries of which each is in with
probability 1/2: how much of the claimed epsilon does the best guess of which
ones were show? `launch.audit` prints it. It attacks the link `optim.dp_sgd`,
not a recipe: for that see `pipeline_audit`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from repjax import gradients
from repjax import optim
from repjax import types
from repjax.models import mlp
from repjax.privacy import accounting
from repjax.privacy import auditing

CANNOT_SEE = (
  "everything that is a recipe's own: its loss, layers, batches, devices "
  '(--config audits those)',
  'layers that are not clipped: each canary has a parameter of its own',
  'sampling: every row is in every step',
  'what a better attack than guessing each canary would find',
)

_ROWS, _CLIP_NORM, _LEARNING_RATE = 128, 1.0, 0.1


def trainer(
  *, noise_multiplier: float, steps: int, num_canaries: int, seed: int
) -> Callable[[np.ndarray], np.ndarray]:
  """What `auditing.play` trains with: DP-SGD on digits, compiled once.

  The returned function draws new noise and a new network at each call.
  """
  image, label = _digits()
  model = mlp.Mlp(10, features=(8,))
  batch = {'image': image, 'label': label, 'mask': np.ones(_ROWS, np.float32)}

  def rows_loss(params, model_state, batch, rng):
    del rng
    logits = model.apply({'params': params}, batch['image'], train=True)
    loss = optax.softmax_cross_entropy_with_integer_labels(
      logits, batch['label']
    )
    return types.Losses(loss, model_state, {})

  loss_fn = auditing.with_canaries(rows_loss, scale=100 * _CLIP_NORM)

  @jax.jit
  def run(members, rng):
    rng_init, rng_noise, rng_loss = jax.random.split(rng, 3)
    params = model.init(rng_init, image[:1], train=False)['params']
    params = auditing.canary_params(params, num_canaries)
    rows = auditing.canary_rows(batch, members)
    tx = optax.chain(
      optim.dp_sgd(
        _CLIP_NORM,
        noise_multiplier,
        expected_batch_size=_ROWS,
        key=rng_noise,
      ),
      optax.sgd(_LEARNING_RATE),
    )

    def step(carry, _):
      params, state = carry
      grad_fn = gradients.GradFn(loss_fn, rows, rng_loss, {})
      updates, state = tx.update(params, state, params, grad_fn=grad_fn)
      return (optax.apply_updates(params, updates), state), None

    start = (params, tx.init(params))
    (params, _), _ = jax.lax.scan(step, start, None, length=steps)
    moved = _LEARNING_RATE * steps * _CLIP_NORM / _ROWS
    return auditing.score(params, step=moved)

  rngs = iter(range(10**9))

  def train(members):
    rng = jax.random.fold_in(jax.random.key(seed), next(rngs))
    return np.asarray(run(jnp.asarray(members), rng))

  return train


def audit(
  *,
  noise_multiplier: float,
  share: float,
  steps: int,
  num_canaries: int,
  num_trials: int,
  delta: float,
  seed: int,
) -> dict[str, float]:
  """Lower bounds over trials of runs with `share` of the claimed noise."""
  claimed = accounting.epsilon(
    noise_multiplier=noise_multiplier,
    sampling_rate=1.0,
    steps=steps,
    delta=delta,
    sampling='full',
  )
  train = trainer(
    noise_multiplier=share * noise_multiplier,
    steps=steps,
    num_canaries=num_canaries,
    seed=seed,
  )
  gaussian, general = [], []
  for trial in range(num_trials):
    members, scores = auditing.play(
      train, num_canaries=num_canaries, seed=1000 * seed + trial
    )
    gaussian.append(auditing.gaussian_lower_bound(scores, members, delta=delta))
    general.append(auditing.epsilon_lower_bound(scores, members, delta=delta))
  return {
    'share of the claimed noise': share,
    'claimed epsilon': claimed,
    'Gaussian lower bound, mean': float(np.mean(gaussian)),
    'runs it refutes': float(np.mean(np.array(gaussian) > claimed)),
    'lower bound for any mechanism, mean': float(np.mean(general)),
    'runs that one refutes': float(np.mean(np.array(general) > claimed)),
  }


def _digits():
  from sklearn import datasets

  digits = datasets.load_digits()
  image = (digits.images[:_ROWS, :, :, None] / 8 - 1).astype(np.float32)
  return image, digits.target[:_ROWS].astype(np.int32)
