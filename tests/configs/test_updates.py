"""What a recipe's group `tx` says is what its optimizer does."""

import importlib
import inspect
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import diffstride
from configs import vitgan
from configs.parts import beit_stages
from configs.parts import gans
from repjax import types

_RATE, _DECAY, _MOMENTUM = 0.0123, 0.0456, 0.123
_RECIPES = {
  path.stem: importlib.import_module(f'configs.{path.stem}')
  for path in sorted(pathlib.Path('configs').glob('*.py'))
}
_RECIPES = {
  name: recipe
  for name, recipe in _RECIPES.items()
  if hasattr(recipe, 'build') and 'tx' in recipe.get_config('smoke')
}


@pytest.mark.parametrize('name', _RECIPES)
def test_a_recipe_hands_on_the_numbers_of_its_updates(name):
  recipe = _RECIPES[name]
  config = recipe.get_config('smoke')
  own = dict(
    learning_rate=_RATE, weight_decay=_DECAY, momentum=_MOMENTUM, nesterov=True
  )
  config.tx.update({k: x for k, x in own.items() if k in config.tx})
  seen = []

  def optimizer(learning_rate, **settings):
    seen.append((learning_rate, settings))
    return optax.sgd(learning_rate)

  recipe.build(config, optimizer)
  rate, settings = seen[0]
  if callable(rate):
    rate = max(float(rate(step)) for step in range(200))
  assert rate == pytest.approx(_RATE)
  for field in ('momentum', 'nesterov'):
    if field in config.tx:
      assert settings[field] == own[field]
  # Where the last link is not AdamW, a link in front of it decays.
  adamw = inspect.signature(recipe.build).parameters['optimizer'].default
  if 'weight_decay' in config.tx and adamw is optax.adamw:
    assert settings['weight_decay'] == _DECAY
  if 'mask' in settings:
    mask = settings['mask'](_PARAMS)
    assert mask['layer'] == dict(kernel=True, bias=False, scale=False)


_PARAMS = dict(
  layer=dict(kernel=jnp.ones((2, 2)), bias=jnp.ones((2, 2)), scale=jnp.ones(2))
)


def _decaying(rate, *, weight_decay, mask):
  """An optimizer that does nothing but decay, and pass on the gradient."""
  decay = optax.add_decayed_weights(weight_decay, mask)
  return optax.chain(decay, optax.scale_by_learning_rate(rate))


def _beit(**tx):
  """(chain of BEiT's updates, parameters) of two layers."""
  config = _RECIPES['beit'].get_config('smoke')
  config.tx.update(learning_rate=_RATE, warmup=0.0, end=1.0, **tx)
  config.model.num_layers = 2
  config.stage = 'finetune'
  chain = beit_stages.adamw(config, 10, _decaying)
  model = beit_stages.classifier(config, 3, (8, 8, 1))
  image = jnp.zeros((1, 8, 8, 1))
  params = jax.eval_shape(
    lambda rng: model.init(rng, image, train=False)['params'],
    jax.random.key(0),
  )
  return chain, jax.tree.map(lambda x: np.ones(x.shape, np.float32), params)


def test_beits_lower_layers_decay_less_and_its_biases_do_not():
  chain, params = _beit(weight_decay=_DECAY, layer_decay=0.5)
  zeros = jax.tree.map(np.zeros_like, params)
  updates = _update(chain, zeros, params)
  moved = jax.tree.map(lambda x: float(np.min(x)), jax.device_get(updates))
  full = -_RATE * _DECAY
  assert moved['head']['kernel'] == pytest.approx(full)
  for name, factor in (('block_1', 0.5), ('block_0', 0.25)):
    block = moved['encoder'][name]['mlp']
    kernels = [x['kernel'] for x in block.values()]
    assert kernels == pytest.approx([factor * full] * len(kernels))
    assert all(x.get('bias', 0.0) == 0 for x in block.values())
  embedding = moved['encoder']['embedding']
  assert embedding['kernel'] == pytest.approx(0.125 * full)
  assert embedding['bias'] == moved['encoder']['cls'] == 0
  assert moved['head']['bias'] == moved['pool_norm']['scale'] == 0


@pytest.mark.parametrize(('clip', 'norm'), [(3.0, 3.0), (0.0, 100.0)])
def test_beit_clips_where_it_says_so(clip, norm):
  chain, params = _beit(weight_decay=0.0, layer_decay=1.0, clip=clip)
  norm_of_ones = _norm(params)
  grads = jax.tree.map(lambda x: 100 * x / norm_of_ones, params)
  updates = _update(chain, grads, params)
  assert float(_norm(updates)) == pytest.approx(_RATE * norm, rel=1e-5)


def _update(chain, grads, params):
  """The first update of a chain."""
  return jax.jit(lambda *x: chain.update(x[0], chain.init(x[1]), x[1])[0])(
    grads, params
  )


def _norm(tree):
  return np.sqrt(sum(np.square(x).sum() for x in jax.tree.leaves(tree)))


def test_beits_fine_tuning_is_not_clipped_by_its_authors():
  config = _RECIPES['beit'].get_config('paper')
  assert config.tx.clip == 3.0
  assert config.stages.finetune.tx.clip == 0.0


def test_diffstrides_strides_do_not_decay(monkeypatch):
  seen = []
  make = lambda model, tx, **settings: seen.append(tx)  # noqa: E731
  monkeypatch.setattr(diffstride.mixup, 'make', make)
  config = diffstride.get_config('smoke')
  config.tx.update(learning_rate=_RATE, weight_decay=_DECAY, momentum=0.0)
  config.stride_cost = 0.0
  diffstride.method(config, 3, 10)
  (chain,) = seen
  params = dict(
    conv=dict(kernel=jnp.ones((2, 2)), bias=jnp.ones(2)),
    pool={'strides': jnp.full(2, 2.0)},
  )
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates = _update(chain, zeros, params)
  np.testing.assert_allclose(updates['conv']['kernel'], -_RATE * _DECAY)
  np.testing.assert_array_equal(updates['conv']['bias'], 0)
  np.testing.assert_array_equal(updates['pool']['strides'], 0)
  ones = jax.tree.map(jnp.ones_like, params)
  updates = _update(chain, ones, params)
  np.testing.assert_allclose(updates['conv']['bias'], -_RATE)
  np.testing.assert_allclose(updates['pool']['strides'], -_RATE, rtol=1e-5)


def test_vitgan_changes_as_many_images_as_its_config_says(monkeypatch):
  seen = {}
  make = lambda *args, augment, **settings: seen.update(augment=augment)  # noqa: E731
  monkeypatch.setattr(gans.vitgan, 'make', make)
  config = vitgan.get_config('smoke')
  images = jnp.linspace(-1, 1, 64).reshape(1, 8, 8, 1).repeat(400, 0)
  config.views.kinds = ('colour',)
  config.views.probability = 0.0
  gans.method(config, (8, 8, 1))
  assert seen['augment'] is None
  for probability in (0.1, 0.3):
    config.views.probability = probability
    gans.method(config, (8, 8, 1))
    changed = seen['augment'](images, jax.random.split(jax.random.key(0), 400))
    share = float((changed != images).any((1, 2, 3)).mean())
    assert share == pytest.approx(probability, abs=0.08)


def test_fields_of_another_kind_of_recipe_are_refused():
  config = vitgan.get_config('smoke')
  config.tx.b1 = 1.0
  with pytest.raises(types.InputError, match='b1'):
    gans.method(config, (8, 8, 1))
