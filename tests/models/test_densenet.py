"""DenseNets have the published sizes; layers see all maps before them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import trees
from repjax import types
from repjax.models import densenet

IMAGE = jnp.asarray(
  np.random.default_rng(0).normal(size=(5, 32, 32, 3)).astype(np.float32)
)
SMALL = densenet.DenseNet(3, stage_sizes=(2, 1), growth=4, width=8)


def shapes(model, size=224):
  image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  init = functools.partial(model.init, train=False)
  return jax.eval_shape(init, jax.random.key(0), image)


@pytest.mark.parametrize(
  ('model', 'expected'),
  [
    # Those of the published weights for ImageNet.
    (densenet.DenseNet(1000), 7_978_856),
    (densenet.DenseNet(1000, (6, 12, 32, 32)), 14_149_480),
    (densenet.DenseNet(1000, (6, 12, 48, 32)), 20_013_928),
  ],
)
def test_networks_have_the_published_numbers_of_parameters(model, expected):
  assert trees.size(shapes(model)['params']) == expected


def test_widths_are_those_of_table_1():
  params = shapes(densenet.DenseNet(2))['params']
  for stage, (width, layers) in enumerate(
    ((64, 6), (128, 12), (256, 24), (512, 16))
  ):
    for index in range(layers):
      layer = params[f'stage_{stage}_layer_{index}']
      assert layer['conv_0']['kernel'].shape == (1, 1, width + 32 * index, 128)
      assert layer['conv_1']['kernel'].shape == (3, 3, 128, 32)
  assert params['head']['kernel'].shape == (1024, 2)


def test_a_layer_is_the_formula():
  layer = densenet.DenseLayer(2)
  x = IMAGE[:, :4, :4]
  init, apply = (
    jax.jit(functools.partial(f, train=False))
    for f in (layer.init, layer.apply)
  )
  variables = init(jax.random.key(1), x)
  params = variables['params']

  def act(x):  # Running statistics are 0 and 1 at the start.
    return np.maximum(np.asarray(x) / np.sqrt(1 + 1e-5), 0)

  inner = act(act(x) @ np.asarray(params['conv_0']['kernel'])[0, 0])
  padded = np.pad(inner, ((0, 0), (1, 1), (1, 1), (0, 0)))
  kernel = np.asarray(params['conv_1']['kernel'])
  expected = sum(
    padded[:, i : i + 4, j : j + 4] @ kernel[i, j]
    for i in range(3)
    for j in range(3)
  )
  actual = apply(variables, x)
  np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_padding_changes_neither_logits_nor_statistics():
  variables = jax.jit(functools.partial(SMALL.init, train=False))(
    jax.random.key(0), IMAGE
  )
  mask = jnp.array([1.0, 1, 1, 0, 0])
  apply = jax.jit(
    functools.partial(SMALL.apply, train=True, mutable=['batch_stats'])
  )
  clean = apply(variables, IMAGE, mask=mask)
  dirty = apply(variables, IMAGE.at[3:].set(1e6), mask=mask)
  clean, dirty, variables = jax.device_get((clean, dirty, variables))
  np.testing.assert_array_equal(clean[0][:3], dirty[0][:3])
  for a, b in zip(*map(jax.tree.leaves, (clean[1], dirty[1])), strict=True):
    np.testing.assert_array_equal(a, b)
  moved = jax.tree.map(
    lambda a, b: float(abs(a - b).max()),
    dict(clean[1]['batch_stats']),
    dict(variables['batch_stats']),
  )
  assert min(jax.tree.leaves(moved)) > 0


def test_a_growth_of_nothing_is_refused():
  with pytest.raises(types.InputError, match='growth must be in'):
    shapes(densenet.DenseNet(2, growth=0), 32)


@pytest.mark.parity
def test_densenet_equals_the_implementation_of_torchvision():
  torch = pytest.importorskip('torch')
  torchvision = pytest.importorskip('torchvision')
  sizes = (3, 2, 2, 1)
  theirs = torchvision.models.densenet.DenseNet(
    growth_rate=8, block_config=sizes, num_init_features=16, num_classes=5
  ).eval()
  model = densenet.DenseNet(5, sizes, growth=8, width=16)
  variables = model.init(jax.random.key(0), IMAGE, train=False)

  def theirs_name(path):
    *where, leaf = path
    leaf = dict(
      kernel='weight', scale='weight', mean='running_mean', var='running_var'
    ).get(leaf, leaf)
    first = where[0]
    if first == 'head':
      return f'classifier.{leaf}'
    if first.startswith('stage'):
      _, stage, _, index = first.split('_')
      part = where[1].replace('_0', '1').replace('_1', '2')
      block = f'denseblock{int(stage) + 1}.denselayer{int(index) + 1}'
      return f'features.{block}.{part}.{leaf}'
    if first.startswith('transition'):
      part = 'norm' if first.endswith('norm') else 'conv'
      return f'features.transition{first.split("_")[1]}.{part}.{leaf}'
    names = dict(stem='conv0', stem_norm='norm0', norm='norm5')
    return f'features.{names[first]}.{leaf}'

  state = theirs.state_dict()
  rng = np.random.default_rng(0)
  drawn = {}
  for kind, collection in variables.items():
    leaves = {
      path: rng.uniform(0.5, 1.5, x.shape).astype(np.float32)
      if path[-1] in ('scale', 'var')
      else rng.normal(0, 0.2, x.shape).astype(np.float32)
      for path, x in trees.flatten(collection).items()
    }
    drawn[kind] = trees.map_with_path(
      lambda path, _, leaves=leaves: leaves[path], collection
    )
    for path, value in leaves.items():
      order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(value.ndim, (0,))
      state[theirs_name(path)].copy_(torch.tensor(value.transpose(order)))
  with torch.no_grad():
    pixels = torch.tensor(np.asarray(IMAGE).transpose(0, 3, 1, 2))
    expected = theirs(pixels).numpy()
  actual = model.apply(drawn, IMAGE, train=False)
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_images_of_which_nothing_would_be_left_are_refused():
  model = densenet.DenseNet(3, growth=4, stage_sizes=(1, 1, 1, 1), width=8)
  with pytest.raises(types.InputError, match='28 x 28 pixels are too small'):
    shapes(model, 28)
  shapes(model, 33)
