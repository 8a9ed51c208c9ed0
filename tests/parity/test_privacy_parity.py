"""Clipped sums and audits against jax-privacy's on the same inputs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax.privacy import auditing
from repjax.privacy import clipping

pytestmark = pytest.mark.parity
jax_privacy = pytest.importorskip('jax_privacy')
peer = pytest.importorskip('jax_privacy.auditing')

USERS, SLOTS = 4, 3


class Network(nn.Module):
  """An embedding, a norm and a dense layer."""

  @nn.compact
  def __call__(self, ids):
    x = nn.LayerNorm(name='norm')(nn.Embed(9, 6, name='embed')(ids))
    return nn.Dense(5, name='head')(jnp.tanh(x).mean(1))


def case():
  rng = np.random.default_rng(0)
  batch = {
    'ids': jnp.asarray(rng.integers(0, 9, (USERS * SLOTS, 7))),
    'label': jnp.asarray(rng.integers(0, 5, USERS * SLOTS)),
  }
  model = Network()
  params = model.init(jax.random.key(0), batch['ids'])['params']

  def loss_fn(params, batch, rng):
    del rng
    return optax.softmax_cross_entropy_with_integer_labels(
      model.apply({'params': params}, batch['ids']), batch['label']
    )

  return loss_fn, params, batch


@pytest.mark.parametrize('slots', [1, SLOTS])
def test_clipped_sums_of_rows_and_of_users(slots):
  loss_fn, params, batch = case()
  ours = clipping.clipped_gradient(
    loss_fn, 0.3, method='ghost', rows_per_unit=slots
  )(params, batch)
  users = jax.tree.map(lambda x: x.reshape((-1, slots, *x.shape[1:])), batch)
  theirs = jax_privacy.clipped_grad(
    lambda params, user: loss_fn(params, user, None).mean(),
    l2_clip_norm=0.3,
    keep_batch_dim=False,
  )(params, users)
  assert (ours.norms > 0.3).any()
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
    ours.grads,
    theirs,
  )


@pytest.mark.parametrize(
  'count, guesses, correct', [(500, 50, 49), (1000, 400, 300), (200, 20, 20)]
)
def test_tests_of_one_run(count, guesses, correct):
  for epsilon, delta in [(0.5, 0.0), (1.0, 1e-5), (3.0, 1e-3)]:
    np.testing.assert_allclose(
      auditing._p_value(count, guesses, correct, epsilon, delta),
      peer._one_run_p_value(count, guesses, correct, epsilon, delta),
      rtol=1e-9,
    )
  epsilon = peer._epsilon_one_run_fdp(
    0.0, count, guesses, correct, significance=0.05, delta=1e-5
  )
  mu = auditing._largest(
    lambda mu: auditing._gaussian_rejects(count, guesses, correct, mu, 0.05)
  )
  np.testing.assert_allclose(
    auditing.gaussian_epsilon(mu, 1e-5), epsilon, rtol=1e-2, atol=1e-3
  )
