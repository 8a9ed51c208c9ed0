"""Generators and discriminators of ViTGAN, and convolutional ones."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import types
from repjax.layers import patches
from repjax.models import conv_gan
from repjax.models import vit_discriminator
from repjax.models import vit_generator

GENERATOR = vit_generator.VitGenerator(
  8,
  1,
  2,
  5,
  hidden_dim=8,
  mlp_dim=12,
  num_heads=2,
  num_layers=1,
  mapping_layers=1,
)
DISCRIMINATOR = vit_discriminator.VitDiscriminator(
  2, hidden_dim=8, mlp_dim=12, num_heads=2, num_layers=1
)
RNG = np.random.default_rng(0)
LATENT = RNG.normal(size=(3, 5)).astype(np.float32)
IMAGE = RNG.normal(size=(3, 8, 8, 1)).astype(np.float32)


@functools.cache
def variables(model):
  x = LATENT if hasattr(model, 'latent_dim') else IMAGE
  return jax.jit(lambda: model.init(jax.random.key(0), x, train=False))()


@functools.partial(jax.jit, static_argnums=0)
def apply(model, state, x):
  return model.apply(state, x, train=False)


def test_overlapping_windows_are_those_of_a_loop():
  image = RNG.normal(size=(2, 8, 12, 3)).astype(np.float32)
  for border, mode in (('zero', 'constant'), ('reflect', 'reflect')):
    made = np.asarray(
      jax.jit(
        lambda image, border=border: patches.extract_overlapping(
          image, 4, overlap=2, border=border
        )
      )(image)
    )
    assert made.shape == (2, 2, 3, 8 * 8 * 3)
    padded = np.pad(image, ((0, 0), (2, 2), (2, 2), (0, 0)), mode=mode)
    for i, j in np.ndindex(2, 3):
      window = padded[:, 4 * i : 4 * i + 8, 4 * j : 4 * j + 8]
      np.testing.assert_array_equal(made[:, i, j], window.reshape((2, -1)))


def test_windows_without_overlap_are_patches_and_patches_make_the_image():
  plain = patches.extract(IMAGE, 2)
  np.testing.assert_array_equal(
    patches.extract_overlapping(IMAGE, 2, overlap=0),
    plain.reshape((3, 4, 4, 4)),
  )
  np.testing.assert_array_equal(patches.join(plain), IMAGE)


def test_the_paper_sees_64_windows_of_192_numbers():
  made = jax.eval_shape(
    lambda x: patches.extract_overlapping(x, 4, overlap=2),
    jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32),
  )
  assert made.shape == (1, 8, 8, 192)


def test_the_latent_enters_through_the_norms_alone():
  params = variables(GENERATOR)['params']

  def blind(path, x):
    names = [k.key for k in path]
    return np.zeros_like(x) if {'gamma', 'beta'} & set(names) else x

  off = jax.tree_util.tree_map_with_path(blind, params)
  made = np.asarray(apply(GENERATOR, {'params': off}, LATENT))
  np.testing.assert_allclose(made, np.broadcast_to(made[:1], made.shape))
  assert made[0].std() > 0
  made = np.asarray(apply(GENERATOR, {'params': params}, LATENT))
  assert np.abs(made[0] - made[1]).max() > 1e-2
  # A latent is a direction.
  twice = apply(GENERATOR, {'params': params}, 2 * LATENT)
  np.testing.assert_allclose(twice, made, atol=1e-4)


@pytest.mark.parametrize('pixels', ['implicit', 'linear'])
def test_a_generator_makes_images(pixels):
  model = GENERATOR.clone(pixels=pixels)
  made = apply(model, variables(model), LATENT)
  assert made.shape == (3, 8, 8, 1)
  assert made.dtype == jnp.float32
  assert np.asarray(made).std() > 0.1


def test_a_discriminator_judges_rows_by_themselves():
  model = DISCRIMINATOR
  state = variables(model)
  scores = np.asarray(apply(model, state, IMAGE))
  assert scores.shape == (3,)
  one = [apply(model, state, x[None])[0] for x in IMAGE]
  np.testing.assert_allclose(scores, one, atol=1e-5)
  assert scores.std() > 1e-3
  # Every kernel has a spectral norm: the embedding, 2 x (3 + 1 + 2), the head.
  kernels = [x for x in jax.tree.leaves(state['spectral']) if x.ndim == 1]
  assert len(kernels) == 1 + (3 + 2) + 2
  without = model.clone(norm='none')
  without = jax.eval_shape(
    lambda: without.init(jax.random.key(0), IMAGE, train=False)
  )
  assert set(without) == {'params'}


def test_convolutions_do_not_see_other_rows():
  generator = conv_gan.ConvGenerator(8, 1, 5, channels=(6, 4))
  judge = conv_gan.ConvDiscriminator(channels=(4, 6), hidden_dim=7)
  made = np.asarray(apply(generator, variables(generator), LATENT))
  assert made.shape == (3, 8, 8, 1)
  one = apply(generator, variables(generator), LATENT[:1])
  np.testing.assert_allclose(made[:1], one, atol=1e-5)
  state = variables(judge)
  scores = np.asarray(apply(judge, state, made))
  assert scores.shape == (3,)
  one = apply(judge, state, made[:1])
  np.testing.assert_allclose(scores[:1], one, atol=1e-5)


@pytest.mark.parametrize(
  ('model', 'says'),
  [
    (GENERATOR.clone(patch_size=3), 'patch_size must divide the image'),
    (GENERATOR.clone(latent_dim=0), 'latent_dim must be in [1, inf)'),
    (GENERATOR.clone(channels=0), 'channels must be in [1, inf)'),
    (GENERATOR.clone(num_heads=3), 'multiple of num_heads'),
    (GENERATOR.clone(pixels='conv'), 'pixels must be one of'),
    (DISCRIMINATOR.clone(patch_size=3), 'patch_size must divide the image'),
    (DISCRIMINATOR.clone(overlap=-1), 'overlap must be in [0, inf)'),
    (
      DISCRIMINATOR.clone(overlap=8, border='reflect'),
      'must be less than the sides of the image',
    ),
    (conv_gan.ConvGenerator(6, 1, 5, channels=(4, 4, 4)), 'multiples of 4'),
    (conv_gan.ConvDiscriminator(channels=(4,) * 5), 'multiples of 16'),
  ],
)
def test_bad_sizes_are_refused_in_one_line(model, says):
  x = LATENT if hasattr(model, 'latent_dim') else IMAGE
  with pytest.raises(types.InputError, match=re.escape(says)):
    model.init(jax.random.key(0), x, train=False)
