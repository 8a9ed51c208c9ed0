"""BEiT's files: exact round trips, fine-tuning from them, loud refusals."""

import functools
import json

import chex
import jax
import numpy as np
import pytest
import safetensors.numpy

from repjax.layers.positions import grid_positions
from repjax.layers.positions import relative_positions
from repjax.models import beit
from repjax.types import InputError
from repjax.weights import beit_weights

WIDTH = dict(hidden_dim=8, mlp_dim=12, num_heads=2, num_layers=2)
SHARED = 'beit.encoder.relative_position_bias.relative_position_bias_table'


def draw(model, side=8, seed=0):
  image = np.zeros((1, side, side, 3), np.float32)
  args = (image,)
  if isinstance(model, beit.MaskedImageModel):
    args = (image, np.zeros((1, (side // 2) ** 2)))
  init = functools.partial(model.init, train=False)
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float32),
    jax.eval_shape(init, jax.random.key(0), *args)['params'],
  )


def masked_model(**fields):
  return beit.MaskedImageModel(beit.Encoder(2, **(WIDTH | fields)), 5)


def classifier(relative='per_layer', **fields):
  return beit.Classifier(beit.Encoder(2, relative=relative, **WIDTH), 3)


@pytest.fixture
def file(tmp_path):
  path = tmp_path / 'model.safetensors'
  beit_weights.save(path, draw(masked_model()))
  return path


def edit(path, fn):
  arrays = safetensors.numpy.load_file(path)
  fn(arrays)
  safetensors.numpy.save_file(arrays, path)


@pytest.mark.parametrize(
  'model',
  [
    masked_model(),
    masked_model(position='learned', layer_scale=0.0, relative='none'),
    classifier(),
  ],
  ids=['masked', 'plain', 'classes'],
)
def test_a_file_gives_back_the_same_bits(model, tmp_path):
  params = draw(model)
  path = tmp_path / 'model.safetensors'
  beit_weights.save(path, params)
  chex.assert_trees_all_equal(
    beit_weights.load(path, draw(model, seed=1)), params
  )


def test_names_are_those_of_the_published_files(file):
  names = set(safetensors.numpy.load_file(file))
  layer = 'beit.encoder.layer.1.'
  assert {
    SHARED,
    'beit.embeddings.cls_token',
    'beit.embeddings.mask_token',
    'beit.embeddings.patch_embeddings.projection.weight',
    f'{layer}attention.attention.query.bias',
    f'{layer}attention.output.dense.weight',
    f'{layer}lambda_1',
    f'{layer}lambda_2',
    f'{layer}layernorm_before.weight',
    'layernorm.weight',
    'lm_head.bias',
  } <= names
  assert f'{layer}attention.attention.key.bias' not in names


@pytest.mark.parametrize('from_file', [True, False])
def test_fine_tuning_takes_the_encoder_and_copies_the_table(file, from_file):
  pretrained, params = draw(masked_model()), draw(classifier(), seed=1)
  if from_file:
    loaded = beit_weights.load(file, params, head='replace')
  else:
    loaded = beit_weights.transfer(pretrained, params)
  for name in ('head', 'pool_norm'):
    chex.assert_trees_all_equal(loaded[name], params[name])
  old, new = pretrained['encoder'], loaded['encoder']
  table = old['relative_positions']['table']
  for i in range(2):
    block = dict(new[f'block_{i}'])
    np.testing.assert_array_equal(
      block.pop('relative_positions')['table'], table
    )
    chex.assert_trees_all_equal(block, old[f'block_{i}'])
  assert 'mask_token' not in new
  np.testing.assert_array_equal(new['cls'], old['cls'])


@pytest.mark.parametrize('method', ['geometric', 'bilinear'])
def test_tables_follow_the_image_size(file, method):
  params = draw(masked_model(), side=12)
  loaded = beit_weights.load(file, params, resize=method)
  table = draw(masked_model())['encoder']['relative_positions']['table']
  np.testing.assert_array_equal(
    loaded['encoder']['relative_positions']['table'],
    relative_positions.resize(table, (4, 4), (6, 6), method=method),
  )


def test_tables_of_as_many_distances_follow_their_grids():
  # Of 3 * 5 and of 5 * 3 distances, and three that are of no grid.
  table = np.random.default_rng(0).normal(size=(18, 2)).astype(np.float32)

  def fit(old_grid, new_grid):
    return beit_weights._fit_table(table, 18, 'bilinear', old_grid, new_grid)

  expected = relative_positions.resize(table, (2, 3), (3, 2), method='bilinear')
  assert np.abs(expected - table).max() > 0.1
  np.testing.assert_array_equal(fit((2, 3), (3, 2)), expected)
  for grid in (None, (2, 3)):
    assert fit(grid, grid) is table
  for grids, field in (((None, (3, 2)), 'old'), (((2, 3), None), 'new')):
    with pytest.raises(InputError, match=f'load with {field}_grid='):
      fit(*grids)


def test_indices_in_old_files_are_checked_and_dropped(file):
  name = SHARED.replace('bias_table', 'index')
  index = relative_positions.index((4, 4)).astype(np.int64)
  edit(file, lambda arrays: arrays.update({name: index}))
  params = draw(masked_model())
  chex.assert_trees_all_equal(beit_weights.load(file, params), params)
  edit(file, lambda arrays: arrays.update({name: index.T.copy()}))
  with pytest.raises(InputError, match='in another way'):
    beit_weights.load(file, params)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda x: x.pop('layernorm.bias'), r"missing \['layernorm.bias'\]"),
    (
      lambda x: x.update(extra=np.zeros(2)),
      r"missing \[\]; unexpected \['extra'\]",
    ),
    (
      lambda x: x.update({'lm_head.bias': np.zeros(9, np.float32)}),
      r'lm_head.bias \(9,\) for head/bias \(5,\)',
    ),
    (
      lambda x: x.update({SHARED: np.zeros((11, 2), np.float32)}),
      'not of a square grid',
    ),
  ],
)
def test_leaves_that_do_not_fit_are_named(file, change, message):
  edit(file, change)
  with pytest.raises(InputError, match=message):
    beit_weights.load(file, draw(masked_model()))


def test_a_pre_trained_file_as_it_is_fits_no_classifier(file):
  with pytest.raises(InputError, match=r"unexpected .*mask_token.*'replace'"):
    beit_weights.load(file, draw(classifier()))
  with pytest.raises(InputError, match="head must be 'keep' or 'replace'"):
    beit_weights.load(file, draw(classifier()), head='new')


def test_positions_that_the_network_has_not_are_named(file):
  target = draw(classifier(relative='none'))
  with pytest.raises(InputError, match=r'unexpected .*relative_position_bias'):
    beit_weights.load(file, target, head='replace')


def test_a_config_makes_the_model_or_says_why_not(tmp_path):
  stored = dict(
    architectures=['BeitForImageClassification'],
    model_type='beit',
    hidden_size=8,
    use_relative_position_bias=True,
    id2label={'0': 'a', '1': 'b', '2': 'c'},
  )
  path = tmp_path / 'config.json'
  path.write_text(json.dumps(stored))
  model = beit_weights.model(tmp_path)
  assert isinstance(model, beit.Classifier)
  assert (model.num_classes, model.encoder.relative) == (3, 'per_layer')
  assert model.encoder.layer_norm_epsilon == 1e-12
  for field, value in (
    ('model_type', 'vit'),
    ('architectures', ['BeitForSemanticSegmentation']),
    ('hidden_act', 'relu'),
  ):
    path.write_text(json.dumps({**stored, field: value}))
    with pytest.raises(InputError, match=f'{field} must be one of'):
      beit_weights.model(tmp_path)
  path.write_text(json.dumps({**stored, 'architectures': {'a': 1}}))
  with pytest.raises(InputError, match='architectures must be like'):
    beit_weights.model(tmp_path)
  path.write_text(
    json.dumps({**stored, 'use_shared_relative_position_bias': True})
  )
  with pytest.raises(InputError, match='not supported'):
    beit_weights.model(tmp_path)


def test_absolute_positions_are_resized_bicubically(tmp_path):
  model = masked_model(position='learned', relative='none')
  params, path = draw(model), tmp_path / 'a.safetensors'
  beit_weights.save(path, params)
  loaded = beit_weights.load(path, draw(model, side=12))
  expected = grid_positions.resize_grid(
    params['encoder']['positions']['embedding'],
    *((4, 4), (6, 6)),
    num_prefix_tokens=1,
    method='bicubic',
  )
  found = loaded['encoder']['positions']['embedding']
  np.testing.assert_array_equal(found, expected)
