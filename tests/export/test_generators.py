"""Generators as programs: the images of the network, of any latents."""

import functools
import json

import jax
import numpy as np
import pytest

from configs import vitgan as recipe
from configs.parts import gans
from repjax import types
from repjax.export import generators
from repjax.export import networks
from repjax.export import program
from repjax.methods import vitgan

flatbuffers = pytest.importorskip('flatbuffers')

SCALE = generators.pixels((0.5,), (0.5,))


def run(kind):
  """(config, method, state whose average is not what it is of, batch)."""
  config = recipe.get_config('smoke')
  config.network = kind
  method = gans.method(config, (8, 8, 1))
  batch = {
    'image': np.zeros((4, 8, 8, 1), np.float32),
    'mask': np.ones(4, np.float32),
  }
  state = jax.jit(method.init)(jax.random.key(0), batch)
  averaged = jax.tree.map(lambda x: 0.5 * x, state.params['generator'])
  return config, method, state.replace(extra=vitgan.GanState(averaged)), batch


@pytest.mark.parametrize(
  ('kind', 'name'), [('vit', 'VitGenerator'), ('conv', 'ConvGenerator')]
)
def test_images_are_those_that_the_method_samples(kind, name, tmp_path):
  config, method, state, batch = run(kind)
  network = networks.of(method, state, batch, name=name)
  signature = generators.write(tmp_path, network, SCALE)
  assert signature.inputs == {
    'latent': {'dtype': 'float32', 'shape': ['rows', 4]}
  }
  assert signature.outputs == {
    'image': {'dtype': 'float32', 'shape': ['rows', 8, 8, 1]}
  }
  said = json.loads((tmp_path / program.SIGNATURE).read_text())
  assert said['pixels'] == {'black': [-1.0], 'white': [1.0]}
  make = program.load(tmp_path)
  generator, _ = gans.networks(config, (8, 8, 1))
  sample = jax.jit(
    functools.partial(vitgan.sample, generator), static_argnames='num'
  )
  for num in (1, 5):
    rng = jax.random.key(num)
    expected = sample(state.extra.params, rng, num=num)
    latent = jax.random.normal(rng, (num, 4))  # As `sample` draws them.
    found = make({'latent': latent})['image']
    # Two programs, which some processors round differently; pixels are within
    # [-1, 1].
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
  others = make({'latent': latent[::-1]})['image']
  np.testing.assert_allclose(others, expected[::-1], rtol=0, atol=1e-5)
  assert np.abs(others[0] - found[0]).max() > 1e-3
  trained = sample(state.params['generator'], rng, num=num)
  assert np.abs(trained - found).max() > 1e-3


def test_latents_of_another_kind_are_one_line(tmp_path):
  _, method, state, batch = run('conv')
  network = networks.of(method, state, batch, name='ConvGenerator')
  generators.write(tmp_path, network, SCALE)
  make = program.load(tmp_path)
  latent = np.zeros((3, 4), np.float32)
  for given, says in (
    (
      {'latent': latent[:, :3]},
      r"takes latent of float32 \['rows', 4\], got.*3",
    ),
    ({'latent': latent[0]}, r'got float32 \[4\]'),
    ({'latent': latent[:0]}, r'got float32 \[0, 4\]'),
    ({'latent': latent.astype(int)}, r'got int'),
    ({'latents': latent}, r"takes \['latent'\], got \['latents'\]"),
    ({}, r'got \[\]'),
  ):
    with pytest.raises(types.InputError, match=says) as error:
      make(given)
    assert '\n' not in str(error.value)
  generators.write(tmp_path, network, SCALE, rows=2)
  make = program.load(tmp_path)
  assert make({'latent': latent[:2]})['image'].shape == (2, 8, 8, 1)
  with pytest.raises(types.InputError, match=r'\[2, 4\], got float32 \[3, 4\]'):
    make({'latent': latent})


def test_what_makes_no_images_is_refused(tmp_path):
  _, method, state, batch = run('conv')
  network = networks.of(method, state, batch, name='ConvDiscriminator')
  with pytest.raises(types.InputError, match='ConvDiscriminator is no generat'):
    generators.write(tmp_path, network, SCALE)
  assert not list(tmp_path.iterdir())


def test_black_and_white_of_each_channel():
  black, white = generators.pixels((0.0, 0.5), (1.0, 0.25))
  assert black == [0.0, -2.0] and white == [1.0, 2.0]
