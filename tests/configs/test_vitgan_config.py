"""A run of ViTGAN leaves samples, measures and a generator behind."""

import functools
import json
from typing import get_args

import jax
import numpy as np
import pytest

from configs import vitgan as recipe
from configs.parts import gans
from configs.studies import vitgan as study
from repjax import loop
from repjax import run
from repjax import start
from repjax import types
from repjax.methods import diff_augment
from repjax.methods import vitgan
from repjax.metrics import generation
from repjax.protocols import judged_samples


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """(work directory, config) of a short run of convolutions, cheap to build."""
  config = recipe.get_config('smoke')
  config.network = 'conv'
  folder = tmp_path_factory.mktemp('gan')
  run.fit(recipe.build(config), config, folder)
  return folder, config


def test_samples_are_drawn_along_the_way(trained):
  folder, _ = trained
  drawn = {x.name for x in (folder / 'plots').glob('*.png')}
  assert {'samples_0000004.png', 'samples_0000008.png'} <= drawn
  assert {'test_samples.png', 'test_real.png'} <= drawn


def test_samples_are_judged_and_the_best_is_the_nearest(trained):
  folder, _ = trained
  report = json.loads((folder / 'report.json').read_text())
  names = {f'feature_{x}' for x in ('frechet', 'kernel', 'precision', 'recall')}
  assert names < set(report['result'])
  assert {'test/score', 'test/taken_for_real'} < set(report['result'])
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  found = {
    x['step']: x['feature_frechet']
    for x in map(json.loads, lines)
    if 'feature_frechet' in x
  }
  assert report['best_step'] == min(found, key=found.get)


def test_the_generator_is_read_from_the_run(trained):
  folder, config = trained
  params = start.from_run(folder, which='averaged')['params']
  generator, _ = gans.networks(config, (8, 8, 1))
  sample = jax.jit(functools.partial(vitgan.sample, generator, num=5))
  images = sample(params, jax.random.key(0))
  assert images.shape == (5, 8, 8, 1)
  assert np.isfinite(images).all()
  # It is the average, which is behind the trained one.
  last = start.from_run(folder)['params']['generator']
  assert not np.allclose(last['pixels']['kernel'], params['pixels']['kernel'])
  assert jax.tree.structure(last) == jax.tree.structure(params)


def test_published_weights_add_fid_and_kid(monkeypatch):
  seen = []

  def features(images):
    seen.append(images)
    return images.reshape((len(images), -1))[:, :5].astype(np.float64)

  monkeypatch.setattr(gans.inception_weights, 'load', lambda path: None)
  monkeypatch.setattr(
    gans.judged_samples,
    'inception',
    lambda path, image: judged_samples.Fid(features, features(image)),
  )
  config = recipe.get_config('smoke')
  config.network = 'conv'
  config.run.inception = 'weights.npz'
  made = recipe.build(config)
  state = loop.init(made.method, made.train.batch(0), 0)
  found = {
    name: measure(state) for name, measure in made.companion.measures.items()
  }
  real, fake = seen
  assert len(fake) == config.samples.judged
  assert abs(real).max() <= 1
  x, y = (features(image) for image in (real, fake))
  assert found['fid'] == pytest.approx(generation.frechet(x, y))
  assert found['kid'] == pytest.approx(generation.kernel(x, y))
  # Another generator at the same step is another.
  moved = state.extra._replace(
    params=jax.tree.map(lambda x: x + 0.1, state.extra.params)
  )
  other = made.companion.measures['fid'](state.replace(extra=moved))
  assert other != found['fid']
  for field, values in (('mean', (0.3,)), ('std', (0.25,))):
    changed = config.copy_and_resolve_references()
    changed.augment[field] = values
    with pytest.raises(types.InputError, match=r'config\.augment\.mean'):
      recipe.build(changed)


def test_samples_are_judged_at_the_size_that_they_have():
  config = recipe.get_config('smoke')
  config.update(dict(network='conv', augment=dict(size=16)))
  made = recipe.build(config)
  state = loop.init(made.method, made.train.batch(0), 0)
  assert np.isfinite(made.companion.measures['feature_frechet'](state))


def test_a_set_without_classes_has_no_judge(tmp_path):
  image = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
  np.savez(tmp_path / 'faces.npz', image=image)
  config = recipe.get_config('smoke')
  config.data.update(name='npz', dir=str(tmp_path / 'faces.npz'))
  with pytest.raises(types.InputError, match='has no classes'):
    recipe.build(config)


def test_published_weights_that_are_not_there_are_missed_at_once(tmp_path):
  config = recipe.get_config('smoke')
  config.run.inception = str(tmp_path / 'none.safetensors')
  with pytest.raises(types.InputError, match=r'none\.safetensors'):
    recipe.build(config)


def test_the_paper_s_networks_have_their_sizes():
  config = recipe.get_config('paper')
  generator, judge = gans.networks(config, (32, 32, 3))
  latent, image = np.zeros((1, 384), np.float32), np.zeros((1, 32, 32, 3))
  for model, x, shape in (
    (generator, latent, (1, 32, 32, 3)),
    (judge, image, (1,)),
  ):
    made, variables = jax.eval_shape(
      lambda model=model, x=x: model.init_with_output(
        jax.random.key(0), x, train=False
      )
    )
    assert made.shape == shape
    kernel = variables['params']['block_3']['hidden']['kernel']
    assert kernel.shape == (384, 1536)
  method = gans.method(config, (32, 32, 3))
  batch = {'image': np.zeros((4, 32, 32, 3), np.float32), 'mask': np.ones(4)}
  state = jax.eval_shape(method.init, jax.random.key(0), batch)
  after, _ = jax.eval_shape(method.update, state, batch, jax.random.key(0))
  assert jax.tree.map(np.shape, after) == jax.tree.map(np.shape, state)


@pytest.mark.parametrize('preset', ['small', 'mnist'])
def test_both_kinds_of_networks_are_of_one_size(preset):
  config = recipe.get_config(preset)
  side = 8 if preset == 'small' else 28
  sizes = []
  for config.network in ('vit', 'conv'):
    generator, judge = gans.networks(config, (side, side, 1))
    latent = np.zeros((1, generator.latent_dim), np.float32)
    image = np.zeros((1, side, side, 1), np.float32)
    params = jax.eval_shape(
      lambda a=generator, b=judge, z=latent, x=image: [
        model.init(jax.random.key(0), y, train=False)['params']
        for model, y in ((a, z), (b, x))
      ]
    )
    sizes.append(sum(x.size for x in jax.tree.leaves(params)))
  assert 0.5 < sizes[1] / sizes[0] < 2


def test_images_that_are_no_squares_are_refused():
  with pytest.raises(types.InputError, match=r'set config\.augment\.size'):
    gans.networks(recipe.get_config('small'), (8, 6, 1))


def test_an_even_number_of_seeds_for_two_cores():
  assert len(study.SEEDS) % 2 == 0


def test_the_paper_has_all_views():
  kinds = recipe.get_config('paper').views.kinds
  assert set(kinds) == set(get_args(diff_augment.Kind))


@pytest.mark.parametrize('changed', [dict(kinds=()), dict(probability=0.0)])
def test_consistency_needs_views(changed):
  config = recipe.get_config('smoke')
  config.views.update(changed)
  config.gan.update(bcr_real=10.0, bcr_fake=10.0)
  with pytest.raises(types.InputError, match='bcr_real and bcr_fake'):
    gans.method(config, (8, 8, 1))
  config.gan.update(bcr_real=0.0, bcr_fake=0.0)
  gans.method(config, (8, 8, 1))
