"""Views of both kinds are those of their settings, each with its own key."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from repjax import parallel
from repjax.data.images import views
from repjax.methods import multi_crop


def test_views_are_those_of_their_settings_and_keys():
  image = np.random.default_rng(0).uniform(size=(3, 12, 12, 3))
  image = jnp.asarray(image, jnp.float32)
  colours = dict(flip=False, brightness=0.1, contrast=0.2, saturation=0.3)
  areas = (0.6, 0.9), (0.1, 0.2)
  crops = multi_crop.MultiCrop(
    **dict(size=8, local_size=4, num_local=2),
    **dict(area=areas[0], local_area=areas[1]),
    **colours,
  )
  key = jax.random.key(0)
  row_rngs = jax.jit(functools.partial(parallel.row_rngs, num_rows=3))
  for found, area, size, numbers in zip(
    jax.jit(crops)(image, key), areas, (8, 4), ((0, 1), (2, 3)), strict=True
  ):
    make = jax.jit(views.random_views(area=area, size=size, **colours))
    for place, number in enumerate(numbers):
      rngs = row_rngs(jax.random.fold_in(key, number))
      np.testing.assert_allclose(
        np.asarray(found)[:, place], make(image, rngs), atol=1e-6
      )
