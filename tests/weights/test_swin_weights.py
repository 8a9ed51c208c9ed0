"""Files of timm and of Swin's authors: the same leaves under other names."""

import functools

import chex
import jax
import numpy as np
import pytest
import safetensors.numpy

from repjax import types
from repjax.models import swin
from repjax.weights import swin_weights

LAYOUTS = ('huggingface', 'timm', 'microsoft')
ORDER = ('query', 'key', 'value')


def drawn(num_classes=5, depths=(1, 2, 1), **fields):
  """(model, parameters of which no two are alike)."""
  model = swin.Swin(
    num_classes,
    hidden_dim=8,
    depths=depths,
    num_heads=(1, 2, 4)[: len(depths)],
    patch_size=2,
    window=2,
    **fields,
  )
  image = np.zeros((1, 8, 8, 3), np.float32)
  init = functools.partial(model.init, train=False)
  shapes = jax.eval_shape(init, jax.random.key(0), image)['params']
  leaves, tree = jax.tree.flatten(shapes)
  rng = np.random.default_rng(0)
  leaves = [rng.normal(size=x.shape).astype(np.float32) for x in leaves]
  return model, jax.tree.unflatten(tree, leaves)


def arrays(path, params, layout):
  swin_weights.save(path, params, layout=layout)
  return safetensors.numpy.load_file(path)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_each_layout_comes_back_bit_for_bit(layout, tmp_path):
  _, params = drawn()
  swin_weights.save(tmp_path / 'model.safetensors', params, layout=layout)
  chex.assert_trees_all_equal(swin_weights.load(tmp_path, params), params)


@pytest.mark.parametrize(
  ('layout', 'merging', 'head'),
  [('timm', (1, 2), 'head.fc'), ('microsoft', (0, 1), 'head')],
)
def test_where_stages_merge_and_what_the_head_is_called(
  layout, merging, head, tmp_path
):
  _, params = drawn()
  found = arrays(tmp_path / 'a.safetensors', params, layout)
  assert {x for x in found if 'downsample.reduction' in x} == {
    f'layers.{i}.downsample.reduction.weight' for i in merging
  }
  for i, stage in enumerate(merging):
    np.testing.assert_array_equal(
      found[f'layers.{stage}.downsample.reduction.weight'],
      params[f'merge_{i}']['reduction']['kernel'].T,
    )
  np.testing.assert_array_equal(
    found[f'{head}.weight'], params['head']['kernel'].T
  )


@pytest.mark.parametrize('layout', ['timm', 'microsoft'])
def test_queries_come_first_and_values_last(layout, tmp_path):
  _, params = drawn()
  found = arrays(tmp_path / 'a.safetensors', params, layout)
  own = params['block_1_0']['attention']  # Width 16, two heads of 8.
  for i, which in enumerate(ORDER):
    rows = slice(16 * i, 16 * (i + 1))
    np.testing.assert_array_equal(
      found['layers.1.blocks.0.attn.qkv.weight'][rows],
      own[which]['kernel'].reshape(16, 16).T,
    )
    np.testing.assert_array_equal(
      found['layers.1.blocks.0.attn.qkv.bias'][rows], own[which]['bias'].ravel()
    )


@pytest.mark.parametrize('layout', ['timm', 'microsoft'])
@pytest.mark.parametrize('depths', [(2,), (1, 1)])
def test_few_stages_and_no_head(layout, depths, tmp_path):
  _, params = drawn(depths=depths)
  path = tmp_path / 'a.safetensors'
  swin_weights.save(path, params, layout=layout)
  chex.assert_trees_all_equal(swin_weights.load(path, params), params)
  bare = {name: x for name, x in params.items() if name != 'head'}
  swin_weights.save(path, bare, layout=layout)
  chex.assert_trees_all_equal(
    swin_weights.load(path, params, head='replace'), params
  )
  with pytest.raises(types.InputError, match="head='replace'"):
    swin_weights.load(path, params)


@pytest.mark.parametrize('layout', ['timm', 'microsoft'])
def test_another_task_keeps_its_own_head(layout, tmp_path):
  _, params = drawn()
  _, fresh = drawn(num_classes=3)
  path = tmp_path / 'a.safetensors'
  swin_weights.save(path, params, layout=layout)
  loaded = swin_weights.load(path, fresh, head='replace')
  chex.assert_trees_all_equal(loaded, {**params, 'head': fresh['head']})
  with pytest.raises(
    types.InputError, match=r'shapes differ: head\..*head/bias'
  ):
    swin_weights.load(path, fresh)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_numbers_that_are_no_parameters_are_left_out(layout, tmp_path):
  _, params = drawn()
  path = tmp_path / 'a.safetensors'
  found = arrays(path, params, layout)
  (table, *_) = (x for x in found if x.endswith('relative_position_bias_table'))
  attention = table.removesuffix('relative_position_bias_table')
  found[f'{attention}relative_position_index'] = np.zeros((4, 4), np.int64)
  found['layers.0.blocks.0.attn_mask'] = np.zeros((1, 4, 4), np.float32)
  if layout == 'huggingface':
    found.pop('layers.0.blocks.0.attn_mask')
  safetensors.numpy.save_file(found, path)
  chex.assert_trees_all_equal(swin_weights.load(path, params), params)


def changed(path, params, layout, change):
  found = arrays(path, params, layout)
  change(found)
  safetensors.numpy.save_file(found, path)
  return path


@pytest.mark.parametrize('layout', ['timm', 'microsoft'])
@pytest.mark.parametrize(
  ('change', 'says'),
  [
    (
      lambda x: x.update(absolute_pos_embed=np.zeros((1, 16, 8))),
      r"missing \[\]; unexpected \['absolute_pos_embed'\]",
    ),
    (
      lambda x: x.pop('layers.1.blocks.1.attn.qkv.bias'),
      r"missing \['layers.1.blocks.1.attn.qkv.bias'\]; unexpected \[\]",
    ),
    (
      lambda x: x.update({'norm.weight': np.zeros(9, np.float32)}),
      r'shapes differ: norm.weight \(9,\) for norm/scale \(32,\)',
    ),
    (
      lambda x: x.update(
        {'layers.0.blocks.0.attn.qkv.bias': np.zeros(23, np.float32)}
      ),
      r'layers.0.blocks.0.attn.qkv.bias\[value\] \(7,\)',
    ),
    (
      lambda x: x.update(
        {'layers.0.downsample.norm.bias': np.zeros(3)},
        **{'layers.2.downsample.norm.bias': np.zeros(3)},
      ),
      r'layers.I.downsample for I in \[0, 1, 2\], of the stages \[0, 1, 2\]',
    ),
  ],
)
def test_what_does_not_fit_is_named(layout, change, says, tmp_path):
  _, params = drawn()
  path = changed(tmp_path / 'a.safetensors', params, layout, change)
  with pytest.raises(types.InputError, match=says) as error:
    swin_weights.load(path, params)
  assert '\n' not in str(error.value) and str(path) in str(error.value)


def test_a_head_of_the_one_with_merging_of_the_other(tmp_path):
  _, params = drawn()

  def change(found):
    found['head.weight'] = found.pop('head.fc.weight')

  path = changed(tmp_path / 'a.safetensors', params, 'timm', change)
  with pytest.raises(
    types.InputError, match=r"\['head.fc.weight'\].*\['head.weight'\]"
  ):
    swin_weights.load(path, params)


def test_there_are_three_layouts(tmp_path):
  _, params = drawn()
  with pytest.raises(types.InputError, match="'huggingface', 'timm'"):
    swin_weights.save(tmp_path / 'a', params, layout='torch')
