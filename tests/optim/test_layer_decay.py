"""Rates of layers against PyTorch's rule of groups, written out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import optim
from repjax import trees
from repjax.models import beit

LAYERS = 3


def network(head, **fields):
  encoder = beit.Encoder(
    2, hidden_dim=8, mlp_dim=4, num_heads=2, num_layers=LAYERS, **fields
  )
  image = jnp.zeros((1, 4, 4, 1))
  if head == 'tokens':
    model, args = beit.MaskedImageModel(encoder, 5), (image, jnp.ones((1, 4)))
  else:
    model, args = beit.Classifier(encoder, 3), (image,)
  made = jax.eval_shape(
    lambda: model.init(jax.random.key(0), *args, train=False)
  )
  return jax.tree.map(lambda x: jnp.ones(x.shape), made['params'])


@pytest.mark.parametrize(
  ('head', 'relative'), [('tokens', 'shared'), ('classes', 'per_layer')]
)
def test_every_parameter_is_in_the_layer_of_the_authors(head, relative):
  params = network(head, relative=relative, position='learned')
  layer_of = functools.partial(beit.layer_of, num_layers=LAYERS)
  tx = optim.layer_decay(0.5, layer_of, num_layers=LAYERS)
  scaled, _ = tx.update(params, tx.init(params))
  by_scale = {}
  for path, leaf in trees.flatten(scaled).items():
    (value,) = np.unique(leaf)
    top = '/'.join(path[: 2 if path[0] == 'encoder' else 1])
    by_scale.setdefault(float(value), set()).add(top)
  first = {'encoder/cls', 'encoder/embedding', 'encoder/positions'}
  last = {'head'}
  if head == 'tokens':
    first.add('encoder/mask_token')
    last |= {'norm', 'encoder/relative_positions'}
  else:
    last.add('pool_norm')
  assert by_scale == {
    0.0625: first,
    0.125: {'encoder/block_0'},
    0.25: {'encoder/block_1'},
    0.5: {'encoder/block_2'},
    1.0: last,
  }


def test_weights_decay_and_vectors_biases_and_the_class_token_do_not():
  params = network('tokens')
  flat = trees.flatten(optim.weight_decay_mask(params))
  decays = {path for path, decays in flat.items() if decays}
  leaves = {path[-1] for path in decays}
  # The authors decay the mask token and the table of relative positions.
  assert leaves == {'kernel', 'table', 'mask_token'}
  assert {path for path in flat if path[-1] == 'kernel'} <= decays
  assert ('encoder', 'block_0', 'attention', 'query', 'bias') in flat
  spared = optim.weight_decay_mask(
    params, exempt=('bias', 'cls', 'relative_positions')
  )
  assert not spared['encoder']['relative_positions']['table']


def test_behind_adamw_it_is_a_rate_of_each_group():
  params = {'a': jnp.array([[1.0, -2.0]]), 'b': jnp.array([[3.0]])}
  grads = {'a': jnp.array([[0.3, 0.1]]), 'b': jnp.array([[-0.2]])}
  settings = dict(weight_decay=0.1, mask=optim.weight_decay_mask)
  tx = optax.chain(
    optax.adamw(0.1, **settings),
    optim.layer_decay(0.5, lambda path: int(path[0] == 'b'), num_layers=1),
  )
  updates, _ = tx.update(grads, tx.init(params), params)
  for name, rate in (('a', 0.1 * 0.25), ('b', 0.1 * 0.5)):
    alone = optax.adamw(rate, **settings)
    part, grad = {name: params[name]}, {name: grads[name]}
    expected, _ = alone.update(grad, alone.init(part), part)
    np.testing.assert_allclose(updates[name], expected[name], rtol=1e-6)


def test_settings_out_of_range_are_refused():
  for decay, layers in ((0.0, 1), (1.1, 1), (0.5, 0)):
    with pytest.raises(ValueError, match='decay'):
      optim.layer_decay(decay, lambda path: 0, num_layers=layers)
  tx = optim.layer_decay(0.5, lambda path: 4, num_layers=2)
  with pytest.raises(ValueError, match=r'a is in layer 4, .*\[0, 3\]'):
    tx.update({'a': jnp.ones(1)}, tx.init({}))


def test_scales_do_not_decay_under_a_scan():
  params = {
    'blocks': {'norm': {'scale': np.ones((6, 8))}, 'w': np.ones((6, 8))}
  }
  found = optim.weight_decay_mask(params)
  assert found == {'blocks': {'norm': {'scale': False}, 'w': True}}


def test_learned_places_do_not_decay():
  decays = optim.weight_decay_mask(network('tokens', position='learned'))
  assert decays['encoder']['positions'] == {'embedding': False}
