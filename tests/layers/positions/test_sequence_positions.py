"""Positions in sequences against complex numbers and loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax.layers.positions import sequence_positions
from repjax.types import InputError


def test_places_count_real_tokens_alone():
  mask = jnp.array([[1, 1, 1, 0], [0, 0, 1, 1], [1, 0, 1, 1], [0, 0, 0, 0]])
  places = np.asarray(sequence_positions.from_mask(mask))
  assert places[0, :3].tolist() == [0, 1, 2]
  assert places[1, 2:].tolist() == [0, 1]
  assert places[2, [0, 2, 3]].tolist() == [0, 1, 2]
  assert (places >= 0).all()


def test_sinusoids_are_those_of_the_paper():
  positions = np.array([0, 1, 7, 500])
  waves = sequence_positions.sinusoids(jnp.asarray(positions), 6)
  for row, place in enumerate(positions):
    for i in range(3):
      angle = place / 10_000 ** (2 * i / 6)
      np.testing.assert_allclose(
        waves[row, 2 * i : 2 * i + 2],
        [np.sin(angle), np.cos(angle)],
        atol=1e-4,
      )


def test_rotation_turns_pairs_as_complex_numbers():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 3, 2, 6)).astype(np.float32)
  positions = np.array([[0, 1, 2], [5, 6, 40]])
  pairs = x[..., 0::2] + 1j * x[..., 1::2]
  angle = positions[..., None] / 10_000 ** (np.arange(3) / 3)
  turned = pairs * np.exp(1j * angle)[:, :, None]
  found = sequence_positions.rotate(jnp.asarray(x), jnp.asarray(positions))
  np.testing.assert_allclose(found[..., 0::2], turned.real, atol=1e-5)
  np.testing.assert_allclose(found[..., 1::2], turned.imag, atol=1e-5)


def test_rows_may_share_their_positions():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 2, 4)))
  shared = jnp.array([0, 2, 9])
  np.testing.assert_array_equal(
    sequence_positions.rotate(x, shared),
    sequence_positions.rotate(x, jnp.tile(shared, (2, 1))),
  )


def test_products_of_rotated_vectors_depend_on_the_distance_alone():
  rng = np.random.default_rng(1)
  query, key = rng.normal(size=(2, 1, 1, 1, 8)).astype(np.float32)

  def product(i, j):
    turned = [
      sequence_positions.rotate(jnp.asarray(x), jnp.array([[at]]))
      for x, at in ((query, i), (key, j))
    ]
    return float((turned[0] * turned[1]).sum())

  assert product(3, 1) == pytest.approx(product(12, 10), abs=1e-5)
  assert abs(product(3, 1) - product(3, 2)) > 1e-3


@pytest.mark.parametrize('wide', [False, True])
def test_angles_are_float32_where_float64_is_enabled(wide):
  with jax.enable_x64(wide):
    waves = sequence_positions.sinusoids(jnp.arange(50), 6)
    jaxpr = jax.make_jaxpr(sequence_positions.rotate)(
      jnp.ones((1, 3, 1, 4), jnp.bfloat16), jnp.arange(3)[None]
    )
  assert waves.dtype == jnp.float32
  turned = {str(x.outvars[0].aval.dtype) for x in jaxpr.eqns if 'cos' in str(x)}
  assert turned == {'float32'}
  expected = sequence_positions.sinusoids(jnp.arange(50), 6)
  np.testing.assert_allclose(waves, expected, atol=1e-5)


def test_odd_widths_are_refused():
  with pytest.raises(InputError, match='even width; got 5'):
    sequence_positions.sinusoids(jnp.arange(3), 5)
