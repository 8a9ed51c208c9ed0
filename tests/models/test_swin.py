"""Swin: windows by loops, any size, cost linear in patches, sizes by name."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import types
from repjax.layers import windows
from repjax.models import swin
from repjax.weights import swin_weights


def small(**fields):
  fields = dict(window=3, depths=(2, 2)) | fields
  return swin.Swin(
    5, hidden_dim=8, num_heads=(2, 4)[: len(fields['depths'])], **fields
  )


def image(height, width, rows=2):
  rng = np.random.default_rng(0)
  return rng.normal(size=(rows, height, width, 3)).astype(np.float32)


@functools.cache
def variables(model):
  """Random leaves, without compiling an init."""
  rng = np.random.default_rng(model.num_classes)
  shapes = jax.eval_shape(
    functools.partial(model.init, train=False),
    *(jax.random.key(0), image(24, 24)),
  )

  def draw(path, x):
    center = float(path[-1].key == 'scale')
    return rng.normal(center, 0.2, x.shape).astype(x.dtype)

  return jax.tree_util.tree_map_with_path(draw, shapes)


apply = jax.jit(
  lambda model, *args, **settings: model.apply(*args, **settings),
  static_argnums=0,
  static_argnames=('train', 'method'),
)


@pytest.mark.parametrize('window', [1, 2, 3])
def test_windows_are_cut_row_by_row_and_joined_again(window):
  x = jnp.arange(2 * 6 * 12 * 3.0).reshape(2, 6, 12, 3)
  cut = windows.divide(x, window)
  number = 0
  for top in range(0, 6, window):
    for left in range(0, 12, window):
      part = x[:, top : top + window, left : left + window]
      np.testing.assert_array_equal(cut[:, number], part.reshape(2, -1, 3))
      number += 1
  np.testing.assert_array_equal(windows.join(cut, (6, 12)), x)


@pytest.mark.parametrize(('window', 'shift'), [(2, 1), (3, 1), (4, 2)])
def test_strangers_are_tokens_from_opposite_edges(window, shift):
  shape = (2 * window, 3 * window)
  place = np.stack(np.indices(shape), -1)
  rolled = np.roll(place, (-shift, -shift), (0, 1))
  cut = np.asarray(windows.divide(jnp.asarray(rolled)[None], window))[0]
  apart = windows.strangers(shape, window, shift)
  for mine, found in zip(cut, apart, strict=True):
    # Neighbours in a window were no farther apart than its side.
    far = abs(mine[:, None] - mine[None]).max(-1) >= window
    np.testing.assert_array_equal(found, far)
  assert windows.strangers(shape, window, 0) is None


def test_offsets_have_the_same_rows_of_the_table_in_smaller_windows():
  place = np.indices((3, 3)).reshape(2, -1)
  for i in range(9):
    for j in range(9):
      down, across = place[:, i] - place[:, j]
      expected = (down + 4) * 9 + across + 4
      assert windows.index(3, 5)[i, j] == expected
  with pytest.raises(types.InputError, match='windows of 4'):
    windows.index(4, 3)


def test_a_block_without_shift_is_attention_in_each_window_alone():
  model = small(depths=(1,))
  given = variables(model)
  x = image(24, 24)  # Six rows of patches: two windows.
  changed = x.copy()
  changed[:, 12:, 12:] += 1.0
  before, after = (
    np.asarray(apply(model, given, y, train=False, method='encode'))
    for y in (x, changed)
  )
  moved = abs(before - after).max((0, 3)) > 0
  expected = np.zeros((6, 6), bool)
  expected[3:, 3:] = True
  np.testing.assert_array_equal(moved, expected)


def test_shifted_windows_reach_over_edges_of_windows_and_not_of_the_map():
  model = small(depths=(2,))
  given = variables(model)
  x = image(24, 24)
  changed = x.copy()
  changed[:, :4, :4] += 1.0  # The first patch.
  before, after = (
    np.asarray(apply(model, given, y, train=False, method='encode'))
    for y in (x, changed)
  )
  moved = abs(before - after).max((0, 3)) > 0
  assert moved[3, 3] or moved[2, 3]
  # A roll alone would have brought the last patch beside the first.
  assert not moved[5].any() and not moved[:, 5].any()


def test_four_tokens_become_one_down_before_across_as_published():
  x = np.random.default_rng(5).normal(size=(2, 4, 6, 3)).astype(np.float32)
  kernel = np.eye(12, 6, dtype=np.float32)  # The first two tokens come out.
  norm = dict(scale=jnp.ones(12), bias=jnp.zeros(12))
  params = dict(norm=norm, reduction=dict(kernel=kernel))
  merged = swin.PatchMerging().apply({'params': params}, x)
  # The four in the order of the published code.
  four = np.concatenate(
    [x[:, i::2, j::2] for i, j in ((0, 0), (1, 0), (0, 1), (1, 1))], -1
  )
  normal = (four - four.mean(-1, keepdims=True)) / four.std(-1, keepdims=True)
  np.testing.assert_allclose(merged, normal[..., :6], atol=1e-4)


@pytest.mark.parametrize(
  ('size', 'rows'), [((24, 24), (3, 3)), ((25, 31), (4, 4)), ((8, 40), (1, 5))]
)
def test_any_size_will_do(size, rows):
  model = small()
  maps = apply(
    model, variables(model), image(*size), train=False, method='encode'
  )
  chex.assert_shape(maps, (2, *rows, 16))
  logits = apply(model, variables(model), image(*size), train=False)
  chex.assert_shape(logits, (2, 5))
  assert np.isfinite(logits).all()


def test_the_cost_is_linear_in_the_number_of_patches():
  model = small(depths=(2,), window=4)

  def flops(side):
    compiled = (
      jax.jit(functools.partial(model.apply, train=False))
      .lower(
        variables(model),
        jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32),
      )
      .compile()
    )
    return compiled.cost_analysis()['flops']

  exponent = np.log(flops(256) / flops(64)) / np.log(16)
  assert abs(exponent - 1) < 0.05


def test_stochastic_depth_drops_branches_of_whole_images():
  model = small(drop_path_rate=0.9, depths=(2,))
  x = image(24, 24, rows=1).repeat(40, 0)
  seen = apply(
    model, variables(model), x, train=True, rngs={'dropout': jax.random.key(3)}
  )
  # The last block's two branches are there or not.
  assert 2 <= len(np.unique(np.asarray(seen).round(5), axis=0)) <= 4


def test_weights_come_back_bit_for_bit(tmp_path):
  model = small()
  params = variables(model)['params']
  swin_weights.save(tmp_path / 'model.safetensors', params)
  chex.assert_trees_all_equal(swin_weights.load(tmp_path, params), params)
  other = swin.Swin(3, hidden_dim=8, num_heads=(2, 4), window=3, depths=(2, 2))
  fresh = variables(other)['params']
  with pytest.raises(types.InputError, match='head'):
    swin_weights.load(tmp_path, fresh)
  loaded = swin_weights.load(tmp_path, fresh, head='replace')
  chex.assert_trees_all_equal(loaded['head'], fresh['head'])
  chex.assert_trees_all_equal(loaded['block_1_1'], params['block_1_1'])


def test_what_no_swin_is_is_refused(tmp_path):
  with pytest.raises(types.InputError, match=r"'T'"):
    swin.variant('t', 10)
  with pytest.raises(types.InputError, match='one number a stage'):
    small(depths=(2, 2, 2)).init(jax.random.key(0), image(24, 24), train=False)
  (tmp_path / 'config.json').write_text(
    '{"model_type": "swin", "use_absolute_embeddings": true}'
  )
  with pytest.raises(types.InputError, match='use_absolute_embeddings'):
    swin_weights.hf_config(tmp_path)
  assert swin.variant('T', 10).depths == (2, 2, 6, 2)


def test_a_ratio_that_gives_no_whole_width_is_cut_as_published_ones_are():
  model = swin.Swin(
    5, hidden_dim=24, num_heads=(2, 4), window=3, depths=(2, 2), mlp_ratio=2.7
  )
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), image(24, 24), train=False)
  )['params']
  widths = {
    leaf.shape[-1]
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes['block_0_0'])
    if 'mlp' in jax.tree_util.keystr(path).lower()
  }
  assert 64 in widths and 65 not in widths


def test_all_kernels_but_the_patches_begin_as_published():
  init = jax.jit(functools.partial(small(depths=(1, 1)).init, train=False))
  params = init(jax.random.key(2), image(24, 24))['params']
  spread = {
    jax.tree_util.keystr(path, simple=True, separator='/'): np.std(x)
    for path, x in jax.tree_util.tree_leaves_with_path(params)
    if x.size >= 32 and 'kernel' in str(path)
  }
  assert 'merge_0/reduction/kernel' in spread
  assert spread.pop('embedding/kernel') > 0.1
  for name, x in spread.items():
    assert 0.013 < x < 0.027, name
