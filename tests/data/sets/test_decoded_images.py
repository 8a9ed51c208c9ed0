"""Images of a decoder depend on their latent numbers, and on nothing else."""

import numpy as np
import pytest

from repjax import types
from repjax.data.sets import decoded_images


def test_pixels_are_those_of_a_loop():
  made = decoded_images.decoder(2, seed=0, hidden=6, num_waves=3)
  z = np.array([[0.3, -1.2]])
  image = decoded_images.decode(made, z, np.array([1]), size=4)
  assert image.shape == (1, 4, 4, 1)
  g = np.tanh(made.hidden @ np.tanh(made.inputs @ z[0] + made.offsets[1]))
  frequencies, phases = made.waves
  for i, j in ((0, 0), (1, 3)):
    place = np.array([(i + 0.5) / 4, (j + 0.5) / 4])
    waves = np.cos(2 * np.pi * frequencies @ place + phases)
    logit = 2**0.5 * (made.outputs.T @ waves) @ g
    assert image[0, i, j, 0] == pytest.approx(1 / (1 + np.exp(-logit)))


def test_images_have_as_many_dimensions_as_latent_numbers():
  made = decoded_images.decoder(3, seed=0)
  z, label = np.random.default_rng(1).standard_normal((1, 3)), np.array([0])

  def image(z):
    return decoded_images.decode(made, z, label, size=12).ravel()

  step = 1e-2
  slopes = np.stack(
    [image(z + step * e) - image(z - step * e) for e in np.eye(3)]
  )
  values = np.linalg.svd(slopes / (2 * step), compute_uv=False)
  assert values[-1] > 0.05 * values[0] > 0


def test_more_pixels_are_the_same_picture():
  made = decoded_images.decoder(4, seed=0)
  z = np.random.default_rng(1).standard_normal((20, 4))
  small, large = (
    decoded_images.decode(made, z, np.zeros(20, int), size=size)
    for size in (8, 24)
  )
  # The middle one of 3 x 3 pixels lies where the large one lies.
  np.testing.assert_allclose(large[:, 1::3, 1::3], small, atol=1e-6)


def test_decoders_of_all_dimensions_share_what_is_behind_the_first_layer():
  one, other = (decoded_images.decoder(d, seed=3) for d in (2, 9))
  np.testing.assert_array_equal(one.hidden, other.hidden)
  np.testing.assert_array_equal(one.outputs, other.outputs)
  np.testing.assert_allclose(
    one.inputs * 2**0.5, other.inputs[:, :2] * 9**0.5, rtol=1e-12
  )


def test_rows_have_both_classes_and_their_seed():
  made = decoded_images.decoder(2, seed=0)
  one, same, other = (
    decoded_images.draw(made, 10, size=5, seed=seed).columns()
    for seed in (0, 0, 1)
  )
  assert one['label'].sum() == 5
  np.testing.assert_array_equal(one['image'], same['image'])
  assert not np.array_equal(one['image'], other['image'])


@pytest.mark.parametrize(
  'kwargs', [dict(latent_dim=0), dict(latent_dim=129), dict(gain=0.0)]
)
def test_bad_decoders_are_refused(kwargs):
  with pytest.raises(types.InputError):
    decoded_images.decoder(**{'latent_dim': 2, 'seed': 0, **kwargs})
