"""Attacks on all blocks of a ViT, and the refinements that read them."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import trees
from repjax import types
from repjax.attacks import fgsm
from repjax.attacks import vit_transfer
from repjax.layers import frozen
from repjax.methods import token_refinement
from repjax.models import refined_vit
from repjax.models import vit

IMAGE = jax.random.uniform(jax.random.key(0), (4, 6, 6, 2))
LABEL = jnp.array([0, 1, 2, 1])


def network(num_layers=3, **fields):
  fields = dict(pool='token', representation_dim=None) | fields
  return vit.ViT(
    3,
    patch_size=2,
    hidden_dim=8,
    mlp_dim=8,
    num_heads=2,
    num_layers=num_layers,
    head_init=nn.initializers.lecun_normal(),
    **fields,
  )


@functools.cache
def variables(model):
  made = model.init(jax.random.key(1), IMAGE, train=False)
  # Norms that do something, so that a wrong one shows.
  keys = iter(jax.random.split(jax.random.key(2), 200))
  return jax.tree.map(
    lambda x: x + 0.3 * jax.random.normal(next(keys), x.shape), made
  )


def test_each_block_is_read_by_the_last_norm_and_head():
  model = network()
  given = variables(model)
  logits = vit_transfer.logits_fn(model, given)(IMAGE)
  chex.assert_shape(logits, (4, 3, 3))
  # By hand, from what the blocks sow.
  _, sown = model.apply(given, IMAGE, train=False, mutable=['intermediates'])
  norm, head = given['params']['encoder_norm'], given['params']['head']
  for index in range(3):
    x = sown['intermediates'][f'block_{index}']['output'][0][:, 0]
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
    x = np.asarray(x) * norm['scale'][None] + norm['bias'][None]
    expected = x @ head['kernel'] + head['bias'][None]
    np.testing.assert_allclose(logits[:, index], expected, atol=1e-5)
  np.testing.assert_allclose(
    logits[:, -1], model.apply(given, IMAGE, train=False), atol=1e-5
  )


def test_the_ensemble_of_one_block_is_the_network():
  model = network(num_layers=1)
  attack = functools.partial(fgsm.mi_fgsm, epsilon=0.1, num_steps=3)
  each = [
    attack(
      vit_transfer.loss_fn(model, variables(model), LABEL, heads=heads), IMAGE
    )
    for heads in ('last', 'ensemble')
  ]
  np.testing.assert_array_equal(each[0], each[1])


@pytest.mark.parametrize('heads', ['last', 'ensemble', 'refined'])
def test_attacks_stay_in_the_ball_and_raise_the_loss(heads):
  model = frozen.train_only(
    refined_vit.RefinedViT(network()), refined_vit.of_refinement
  )
  given = model.init(jax.random.key(1), IMAGE, train=False)
  loss_fn = vit_transfer.loss_fn(model, given, LABEL, heads=heads)
  found = fgsm.mi_fgsm(loss_fn, IMAGE, epsilon=0.1)
  assert abs(np.asarray(found - IMAGE)).max() <= 0.1 + 1e-6
  assert found.min() >= 0 and found.max() <= 1
  assert (loss_fn(found) > loss_fn(IMAGE)).all()


def test_pixels_are_scaled_as_the_network_was_trained():
  model = network()
  scaled = vit_transfer.logits_fn(
    model, variables(model), mean=jnp.array([0.1, 0.2]), std=2.0
  )(IMAGE)
  by_hand = (np.asarray(IMAGE) - [0.1, 0.2]) / 2
  expected = vit_transfer.logits_fn(model, variables(model))(
    jnp.asarray(by_hand, jnp.float32)
  )
  np.testing.assert_allclose(scaled, expected, atol=1e-6)


@pytest.mark.parametrize('shared', [False, True])
def test_a_refinement_is_what_the_paper_draws(shared):
  layer = refined_vit.TokenRefinement('layer', shared)
  tokens = jax.random.normal(jax.random.key(3), (2, 10, 4))
  made = layer.init(jax.random.key(4), tokens, train=False)
  params = made['params']
  assert ('conv_1' in params) is not shared
  found = layer.apply(made, tokens, train=False)

  def conv(x, kernel):
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(
      padded[:, dy : dy + 3, dx : dx + 3] @ np.asarray(kernel[dy, dx])
      for dy in range(3)
      for dx in range(3)
    )

  def norm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(
      x.var(-1, keepdims=True) + 1e-6
    )

  second = 'conv_0' if shared else 'conv_1'
  patches = np.asarray(tokens[:, 1:]).reshape(2, 3, 3, 4)
  hidden = np.maximum(norm(conv(patches, params['conv_0']['kernel'])), 0)
  hidden = norm(conv(hidden, params[second]['kernel']))
  expected = np.maximum(hidden + patches, 0).mean((1, 2))
  token = jax.tree.map(np.asarray, params['token'])
  expected += np.asarray(tokens[:, 0]) @ token['kernel'] + token['bias']
  np.testing.assert_allclose(found, expected, atol=1e-4)


# Training.


def batch():
  return {'image': IMAGE, 'label': LABEL, 'mask': jnp.ones(4)}


def train(order, num_steps, tx=None, **fields):
  method = token_refinement.make(
    refined_vit.RefinedViT(network(), **fields),
    tx or optax.sgd(0.5),
    order=order,
    steps_per_block=2,
  )
  state = method.init(jax.random.key(5), batch())
  states, update = [state], jax.jit(method.update)
  for step in range(num_steps):
    state, sums = update(state, batch(), jax.random.key(step))
    states.append(state)
  return method, states, sums


@pytest.mark.parametrize('norm', ['batch', 'layer'])
def test_training_refines_and_leaves_the_network_alone(norm):
  method, states, _ = train('together', 8, norm=norm)
  first, last = states[0], states[-1]
  chex.assert_trees_all_equal(
    first.model_state[types.FROZEN], last.model_state[types.FROZEN]
  )
  assert set(last.params) == {'refine_0', 'refine_1'}
  before, after = (jax.jit(method.predict)(x, batch()) for x in (first, last))
  np.testing.assert_array_equal(before['logits'], after['logits'])
  np.testing.assert_array_equal(before['plain'], after['plain'])
  np.testing.assert_allclose(after['plain'][:, -1], after['logits'], atol=1e-6)

  def loss(said):
    label = jnp.broadcast_to(LABEL[:, None], (4, 2))
    return optax.softmax_cross_entropy_with_integer_labels(
      said['refined'][:, :-1], label
    ).mean()

  assert loss(after) < loss(before) - 0.1


def test_refinements_are_trained_one_after_the_other():
  # Both would move what has no gradient: it decays, or coasts on.
  tx = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.5, momentum=0.9))
  _, states, sums = train('in_turn', 5, tx)

  def moved(step, name):
    old, new = (
      [
        leaf
        for path, leaf in trees.flatten((x.params, x.opt_state)).items()
        if name in path
      ]
      for x in states[step : step + 2]
    )
    return [(x != y).any() for x, y in zip(old, new, strict=True)]

  turns = [(True, False)] * 2 + [(False, True)] * 3
  for step, expected in enumerate(turns):
    for name, moves in zip(('refine_0', 'refine_1'), expected, strict=True):
      each = moved(step, name)
      assert any(each) if moves else not any(each), (step, name)
  assert 0 <= sums['accuracy'][0] / sums['accuracy'][1] <= 1


def test_what_has_no_blocks_to_read_is_refused():
  with pytest.raises(types.InputError, match='class token'):
    refined_vit.RefinedViT(network(pool='average')).init(
      jax.random.key(0), IMAGE, train=False
    )
  with pytest.raises(types.InputError, match='num_layers'):
    token_refinement.make(
      refined_vit.RefinedViT(network(num_layers=1)), optax.sgd(0.1)
    )
  with pytest.raises(types.InputError, match='RefinedViT'):
    vit_transfer.logits_fn(network(), variables(network()), heads='refined')(
      IMAGE
    )
  with pytest.raises(types.InputError, match='heads'):
    vit_transfer.logits_fn(network(), variables(network()), heads='first')
