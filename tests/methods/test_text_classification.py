"""Classification of text, by the method that classifies images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from repjax.data.sets import listops
from repjax.methods import model_inputs
from repjax.methods import supervised
from repjax.models import text_heads


def test_a_classifier_of_text_learns_short_lists_by_heart():
  rows = listops.load(
    32, seed=0, min_length=0, max_length=8, max_depth=2, max_args=4
  )
  model = text_heads.Classifier(
    listops.VOCAB_SIZE,
    hidden_dim=16,
    mlp_dim=16,
    num_heads=2,
    num_layers=1,
    num_positions=8,
    num_classes=10,
  )
  method = supervised.make(model, optax.adam(3e-2), inputs=model_inputs.text)
  batch = {k: jnp.asarray(x) for k, x in rows.read(np.arange(32)).items()}
  batch['mask'] = jnp.ones(32).at[-1].set(0)

  @jax.jit
  def run(batch):
    def one(state, _):
      state, sums = method.update(state, batch, jax.random.key(0))
      return state, sums

    start = method.init(jax.random.key(0), batch)
    state, sums = jax.lax.scan(one, start, None, length=100)
    return sums, method.predict(state, batch)['logits'], state.params

  sums, logits, params = run(batch)
  total, weight = sums['loss']
  assert weight[0] == 31
  # Learned, and read with its padding masked.
  assert total[-1] / weight[-1] < 0.5 < 2 < total[0] / weight[0]
  apply = jax.jit(functools.partial(model.apply, train=False))
  for length in (2, 6):
    some = np.flatnonzero(batch['token_mask'].sum(1) == length)[:1]
    bare = batch['tokens'][some, :length]
    np.testing.assert_allclose(
      apply({'params': params}, bare), logits[some], atol=1e-4
    )
