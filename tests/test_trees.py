"""Paths and masks of trees."""

from typing import NamedTuple

from flax import serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import interceptors
from repjax import trees
from repjax import types

TREE = {
  'encoder': {'kernel': jnp.ones((2, 3)), 'bias': jnp.zeros(3)},
  'head': [jnp.ones(4), jnp.ones(())],
}


def test_paths_name_keys_and_places_in_tree_order():
  flat = trees.flatten(TREE)
  assert list(flat) == [
    ('encoder', 'bias'),
    ('encoder', 'kernel'),
    ('head', '0'),
    ('head', '1'),
  ]
  for leaf, expected in zip(flat.values(), jax.tree.leaves(TREE), strict=True):
    assert leaf is expected


def test_a_mask_is_true_where_the_predicate_holds():
  assert trees.mask(TREE, lambda path: path[-1] == 'kernel') == {
    'encoder': {'kernel': True, 'bias': False},
    'head': [False, False],
  }


def test_a_mask_that_selects_nothing_fails_and_lists_the_paths():
  with pytest.raises(ValueError, match=r'encoder/bias, encoder/kernel, head/0'):
    trees.mask(TREE, lambda path: path[-1] == 'kernels')


def test_a_long_list_of_paths_is_cut():
  with pytest.raises(ValueError, match=r'a7, \.\.\.$'):
    trees.mask({f'a{i}': 0 for i in range(10)}, lambda path: False)


def test_size_counts_elements_of_all_leaves():
  assert trees.size(TREE) == 6 + 3 + 4 + 1
  shapes = jax.eval_shape(lambda: TREE)
  assert trees.size(shapes) == 14
  assert trees.size({}) == 0


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_the_first_leaf_that_is_not_finite_is_named(bad):
  tree = {**TREE, 'z': jnp.array([1.0, bad]), 'zz': jnp.array(bad)}
  assert trees.first_nonfinite(tree) == 'z'
  assert trees.first_nonfinite(TREE) is None
  assert trees.first_nonfinite({'step': np.int32(3)}) is None
  assert trees.first_nonfinite({'x': jnp.array([1, np.inf], 'bfloat16')}) == 'x'


def test_the_checksum_sees_every_bit_and_every_name():
  def crc(**leaves):
    return trees.crc32(leaves)

  value = np.float32([1.0, 2.0])
  assert crc(a=value, b=value) == crc(a=value.copy(), b=value.copy())
  assert crc(a=value) != crc(b=value)
  assert crc(a=value) != crc(a=np.nextafter(value, np.float32(9)))


def test_the_nearest_name_is_suggested():
  names = ('hidden_0', 'head')
  assert trees.nearest('hiden_0', names) == " Did you mean 'hidden_0'?"
  assert trees.nearest('zzz', names) == ''


class Draws(NamedTuple):
  """State of what draws random numbers."""

  key: jax.Array
  step: jax.Array


def test_one_key_for_several_states_side_by_side_is_refused():
  steps = jnp.zeros(3)
  own = jnp.arange(6, dtype=jnp.uint32).reshape((3, 2))
  trees.check_own_keys(({'a': Draws(own, steps)}, Draws(own + 1, steps)))
  # A layer may be called so, and start with equal parameters.
  trees.check_own_keys({'key': jnp.ones((3, 2))})
  trees.check_own_keys(())
  shared = own.at[2].set(own[0])
  with pytest.raises(types.InputError, match='one key'):
    trees.check_own_keys(({'a': Draws(own, steps)}, Draws(shared, steps)))


def test_single_numbers_are_not_rounded():
  tree = {'pool': {'strides': jnp.ones(2)}, 'kernel': jnp.ones(3)}
  found = trees.cast(tree, jnp.bfloat16)
  assert found['pool']['strides'].dtype == jnp.float32
  assert found['kernel'].dtype == jnp.bfloat16
  assert trees.cast(tree, jnp.float32) is tree


def test_a_network_that_stands_in_model_has_the_paths_of_its_modules():
  assert interceptors.module_paths(('head', 'norm')) == (('head', 'norm'),)
  assert ('norm',) in interceptors.module_paths(('model', 'norm'))
  assert ('model', 'norm') in interceptors.module_paths(('model', 'norm'))


def test_flax_saves_and_restores_a_table():
  table = trees.PerRow(jnp.arange(6.0).reshape(3, 2), 3)
  fresh = trees.PerRow(jnp.zeros((3, 2)), 3)
  back = serialization.from_bytes(fresh, serialization.to_bytes(table))
  assert (back.num_rows, back.spread) == (3, False)
  np.testing.assert_array_equal(back.values, table.values)
