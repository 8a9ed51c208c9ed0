"""BEiT's network: what hides, what starts as the identity, what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import trees
from repjax.models import beit
from repjax.types import InputError

WIDTH = dict(hidden_dim=16, mlp_dim=24, num_heads=2, num_layers=2)


def encoder(**fields):
  return beit.Encoder(2, **(WIDTH | fields))


def images(rows=3, side=8):
  shape = (rows, side, side, 1)
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def shapes(model, *args):
  init = functools.partial(model.init, train=False)
  return jax.eval_shape(init, jax.random.key(0), *args)['params']


def initial(model):
  """Parameters as training starts from them."""
  init = functools.partial(model.init, train=False)
  return jax.jit(init)(jax.random.key(0), images())['params']


@pytest.fixture(scope='module')
def masked():
  """A model with drawn leaves, and its logits as a function."""
  model = beit.MaskedImageModel(encoder(), 7)
  hidden = jnp.zeros((3, 16))
  rng = np.random.default_rng(1)
  params = jax.tree.map(
    lambda x: rng.normal(0.0, 0.3, x.shape).astype(np.float32),
    shapes(model, images(), hidden),
  )
  return jax.jit(
    lambda image, hidden, **settings: model.apply(
      {'params': params}, image, hidden, train=False, **settings
    )
  )


def test_base_16_has_the_published_number_of_parameters():
  image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  hidden = jax.ShapeDtypeStruct((1, 196), jnp.float32)
  model = beit.MaskedImageModel(beit.variant('B/16'), 8192)
  params = shapes(model, image, hidden)
  assert params['encoder']['relative_positions']['table'].shape == (732, 12)
  # ViT-B/16 without its head has 85,798,656. No positions and no biases of
  # keys; then layer scales, the mask token, the table and another head.
  without = 85_798_656 - 197 * 768 - 12 * 768
  expected = without + 24 * 768 + 768 + 732 * 12 + 769 * 8192
  assert trees.size(params) == expected


def test_hidden_pixels_have_no_influence(masked):
  image, hidden = images(), np.zeros((3, 16))
  hidden[:, 5] = 1  # Row 1, column 1: pixels 2 and 3 on both axes.
  changed = image.copy()
  changed[:, 2:4, 2:4] += 1.0
  np.testing.assert_array_equal(masked(image, hidden), masked(changed, hidden))
  assert np.abs(masked(image, 0 * hidden) - masked(changed, 0 * hidden)).max()


def test_places_pick_logits(masked):
  image, hidden = images(), np.random.default_rng(2).integers(0, 2, (3, 16))
  places = np.array([[3, 0], [15, 15], [1, 2]])
  np.testing.assert_allclose(
    masked(image, hidden, places=places),
    np.take_along_axis(
      np.asarray(masked(image, hidden)), places[..., None], axis=1
    ),
    atol=1e-5,
  )


@pytest.mark.parametrize('layer_scale', [1e-5, 0.1])
def test_blocks_start_near_the_identity_by_the_layer_scale(layer_scale):
  model = encoder(layer_scale=layer_scale)
  apply = functools.partial(model.apply, train=False, mutable=['intermediates'])
  _, sown = jax.jit(apply)({'params': initial(model)}, images())
  first, second = (
    sown['intermediates'][f'block_{i}']['output'][0] for i in range(2)
  )
  # Branches at the start are of order 0.01 and less.
  moved = jnp.abs(second - first).max()
  assert 0 < moved < 0.1 * layer_scale


def test_layer_scale_0_has_no_parameters_and_tables_are_where_they_belong():
  plain = shapes(encoder(layer_scale=0.0, relative='none'), images())
  assert set(plain['block_0']) == {
    'attention', 'attention_norm', 'mlp', 'mlp_norm',
  }  # fmt: skip
  assert set(plain) == {'cls', 'embedding', 'block_0', 'block_1'}
  own = shapes(encoder(relative='per_layer'), images())
  assert 'relative_positions' in own['block_1']
  assert 'relative_positions' not in own
  assert 'bias' not in own['block_0']['attention']['key']
  assert 'bias' in own['block_0']['attention']['query']


def test_output_kernels_start_smaller_in_deeper_blocks():
  params = initial(encoder(hidden_dim=64, mlp_dim=64))
  for block, factor in (('block_0', 2**-0.5), ('block_1', 0.5)):
    for branch, name in (('attention', 'query'), ('mlp', 'hidden')):
      inner = params[block][branch][name]['kernel'].std()
      outer = params[block][branch]['out']['kernel'].std()
      np.testing.assert_allclose(outer / inner, factor, rtol=0.1)
    # Truncated at one sigma.
    assert jnp.abs(params[block]['mlp']['hidden']['kernel']).max() <= 0.02


def test_the_pool_is_the_mean_of_patches_or_the_class_token():
  apply = jax.jit(functools.partial(encoder().apply, train=False))
  first = initial(beit.Classifier(encoder(), 3, head_scale=1.0))
  params = first['encoder']
  encoded = np.asarray(apply({'params': params}, images()))
  for pool, vector in (
    ('average', encoded[:, 1:].mean(1)),
    ('token', encoded[:, 0]),
  ):
    model = beit.Classifier(encoder(), 3, pool=pool, head_scale=1.0)
    # Of the class token the norm has another name.
    names = shapes(model, images())
    made = {name: first.get(name, first['pool_norm']) for name in names}
    centred = vector - vector.mean(-1, keepdims=True)
    normal = centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(
      jax.jit(functools.partial(model.apply, train=False))(
        {'params': made}, images()
      ),
      normal @ np.asarray(made['head']['kernel']),
      atol=1e-4,
    )


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(num_heads=3), 'hidden_dim must be a multiple'),
    (dict(relative='both'), "relative must be one of .* 'both'"),
    (dict(gelu='relu'), 'gelu must be one of'),
    (dict(drop_path_rate=1.0), r'drop_path_rate must be in \[0, 1\)'),
  ],
)
def test_bad_fields_are_one_clear_error(fields, message):
  with pytest.raises(InputError, match=message):
    shapes(encoder(**fields), images())


def test_images_and_masks_that_do_not_fit_are_refused():
  with pytest.raises(InputError, match='patch_size must divide the image'):
    shapes(encoder(), images(side=9))
  with pytest.raises(InputError, match='hidden must be'):
    shapes(beit.MaskedImageModel(encoder(), 7), images(), jnp.ones((3, 9)))
  with pytest.raises(InputError, match="no BEiT is called 'H/14'"):
    beit.variant('H/14')
  with pytest.raises(InputError, match='pool must be one of'):
    shapes(beit.Classifier(encoder(), 3, pool='mean'), images())


@pytest.mark.parametrize(
  'fields',
  [
    dict(relative='shared'),
    dict(relative='per_layer'),
    dict(relative='none', position='learned'),
  ],
)
def test_as_many_patches_in_another_grid_are_refused(fields):
  """A table has as many rows for 2 x 4 patches as for 4 x 2."""
  wide, tall = (np.zeros((1, 2 * a, 2 * b, 3)) for a, b in ((2, 4), (4, 2)))
  for model, image in ((encoder(**fields), wide), (encoder(**fields), tall)):
    with pytest.raises(InputError, match='positions are of a square'):
      jax.eval_shape(
        functools.partial(model.init, train=False), jax.random.key(0), image
      )
  model = encoder(grid=(2, 4), **fields)
  variables = {'params': shapes(model, wide)}
  apply = functools.partial(model.apply, train=False)
  jax.eval_shape(apply, variables, wide)
  with pytest.raises(InputError, match=r'4 x 2 .* are of 2 x 4'):
    jax.eval_shape(apply, variables, tall)
