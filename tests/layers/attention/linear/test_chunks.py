"""Cutting sequences into chunks and putting them together."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax.layers.attention.linear import chunks


@pytest.mark.parametrize('length', [1, 7, 8, 9, 197])
@pytest.mark.parametrize('chunk_size', [1, 4, 8, 1000])
def test_chunks_are_nearly_full_and_join_to_the_sequence(length, chunk_size):
  size = chunks.chunk_length(length, chunk_size)
  num_chunks = -(-length // size)
  assert size <= chunk_size
  assert num_chunks == -(-length // chunk_size)
  assert num_chunks * size - length < num_chunks
  x = np.arange(2 * length * 3 * 2).reshape(2, length, 3, 2)
  cut = chunks.split(x, size)
  assert cut.shape == (num_chunks, 2, 3, size, 2)
  np.testing.assert_array_equal(cut[0, 1, 2, 0], x[1, 0, 2])
  np.testing.assert_array_equal(chunks.join(cut, length), x)


def test_what_is_masked_or_fills_up_is_zero_and_not_real():
  key = np.ones((2, 5, 3, 4), np.float32)
  key[0, 1] = np.nan
  mask = np.ones((2, 5), bool)
  mask[0, 1] = False
  logs = np.where(mask[..., None], np.ones((2, 5, 3)), np.nan)
  cut = jax.jit(functools.partial(chunks.cut, 3))(
    key,
    key,
    key,
    mask=mask,
    segments=np.zeros(5, np.int32),
    log_weight=logs,
    log_decay=logs,
  )
  cut = jax.device_get(cut)
  real = np.array([[[1, 0, 1], [1, 1, 0]], [[1, 1, 1], [1, 1, 0]]])
  np.testing.assert_array_equal(cut.real[:, :, 0], real.swapaxes(0, 1))
  np.testing.assert_array_equal(cut.key[..., 0, :, 0], cut.real[:, :, 0])
  np.testing.assert_array_equal(cut.log_decay[:, :, 1], cut.real[:, :, 0])
  np.testing.assert_array_equal(cut.segments[1, :, 0], [[0, 0, -1], [0, 0, -1]])


def test_chunks_of_nothing_are_refused():
  with pytest.raises(ValueError, match='chunk_size'):
    chunks.chunk_length(5, 0)


def test_features_are_made_again_only_where_there_are_several_chunks():
  rng = np.random.default_rng(0)

  def total(x):
    def body(carry, chunk):
      return carry + jnp.sin(chunk).sum(), jnp.cos(chunk)

    carry, out = chunks.scan(body, jnp.zeros(()), x)
    return carry * out.sum(), out

  for num_chunks in (1, 3):
    x = rng.normal(size=(num_chunks, 4)).astype(np.float32)
    grad = jax.grad(lambda x: total(x)[0])
    again = 'checkpoint' in str(jax.make_jaxpr(grad)(x)) or 'remat' in str(
      jax.make_jaxpr(grad)(x)
    )
    assert again == (num_chunks > 1)
    np.testing.assert_allclose(jax.jit(total)(x)[1], np.cos(x), rtol=1e-5)
    expected = np.cos(x) * np.cos(x).sum() - np.sin(x).sum() * np.sin(x)
    np.testing.assert_allclose(jax.jit(grad)(x), expected, rtol=1e-4, atol=1e-5)
