"""How the stages of BEiT's config hand on what they have learnt."""

import chex
import jax
import numpy as np
import optax
import pytest

from configs import beit
from configs.parts import beit_tokenizer
from launch.lib import building
from repjax import checkpoint
from repjax import loop
from repjax import start
from repjax import types
from repjax.weights import beit_weights


def of_stage(stage, **tokenizer):
  config = beit.get_config('smoke')
  config.stage = stage
  config.tokenizer.update(tokenizer)
  return config


def started(config, seed=0):
  experiment = beit.build(config)
  state = loop.init(experiment.method, experiment.train.batch(0), seed)
  return experiment, jax.device_get(experiment.warm_start(state))


def saved(state, folder):
  store = checkpoint.Checkpoints(str(folder / 'checkpoints'))
  store.save(state.replace(step=np.int32(1)), {})
  store.close()
  return str(folder)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """(tokenizer's state, its folder, state of pre-training, its folder)."""
  folders = [tmp_path_factory.mktemp(name) for name in ('tokens', 'model')]
  _, tokens = started(of_stage('tokenizer'), seed=3)
  run = saved(tokens, folders[0])
  _, state = started(of_stage('pretrain', run=run, untrained=False), seed=4)
  return tokens, run, state, saved(state, folders[1])


def test_pre_training_takes_the_encoder_of_the_tokenizer(runs):
  tokens, _, state, _ = runs
  chex.assert_trees_all_equal(
    state.model_state[types.FROZEN]['params'], tokens.params['encoder']
  )


@pytest.mark.parametrize('from_file', [False, True])
def test_fine_tuning_starts_from_what_was_pre_trained(
  runs, from_file, tmp_path
):
  _, _, state, run = runs
  config = of_stage('probe' if from_file else 'finetune')
  config.pretrained = run
  if from_file:
    config.pretrained = str(tmp_path / 'model.safetensors')
    beit_weights.save(config.pretrained, state.params)
  experiment, tuned = started(config, seed=5)
  old, new = state.params['encoder'], start.parameters(tuned)['encoder']
  # A probe trains the head and the norm before it.
  assert ('encoder' in tuned.params) != from_file
  np.testing.assert_array_equal(
    new['embedding']['kernel'], old['embedding']['kernel']
  )
  chex.assert_trees_all_equal(new['block_0']['mlp'], old['block_0']['mlp'])
  assert tuned.step == 0
  assert experiment.train.expected_rows == 16
  assert experiment.steps == 4  # Of the stage, not of pre-training.


def test_the_tokenizer_may_see_other_images(runs):
  config = of_stage('pretrain', size=16)
  batch = beit.build(config).train.batch(0)
  assert batch['image'].shape == (16, 8, 8, 1)
  assert batch['token_image'].shape == (16, 16, 16, 1)
  # DALL-E's range of pixels.
  assert batch['token_image'].min() >= 0.1 - 1e-6
  assert batch['token_image'].max() <= 0.9 + 1e-6
  config = of_stage('tokenizer', size=16)
  assert beit.build(config).train.batch(0)['image'].shape == (16, 16, 16, 1)


def test_the_tokenizer_sees_pixels_and_not_what_is_standardised():
  config = of_stage('pretrain', size=8)  # The images' own size.
  config.augment.update(mean=(0.3,), std=(0.7,))
  batch = beit.build(config).train.batch(0)
  pixels = batch['image'] * 0.7 + 0.3
  assert pixels.min() == pytest.approx(0, abs=1e-6)
  assert pixels.max() == pytest.approx(1, abs=1e-6)
  np.testing.assert_allclose(
    batch['token_image'], 0.8 * pixels + 0.1, rtol=1e-5, atol=1e-6
  )


def test_the_tokenizers_temperature_falls_along_a_cosine(monkeypatch):
  seen = {}
  make = lambda model, tx, **own: seen.update(own)  # noqa: E731
  monkeypatch.setattr(beit_tokenizer.tokenizing, 'make', make)
  config = of_stage('tokenizer', temperature=(1.0, 0.25), kl_weight=0.5)
  config.step.compute_dtype = 'bfloat16'
  beit_tokenizer.method(config, (8, 8, 1), 100, optax.sgd(1.0))
  assert seen['kl_weight'] == 0.5
  assert seen['compute_dtype'] == 'bfloat16'
  temperatures = [float(seen['temperature'](step)) for step in (0, 50, 100)]
  assert temperatures == pytest.approx([1.0, 0.625, 0.25])


@pytest.mark.parametrize(
  ('stage', 'fields', 'message'),
  [
    ('tune', {}, r"config\.stage is one of .* 'tune'"),
    (
      'pretrain',
      {'tokenizer.untrained': False},
      r'config\.tokenizer\.run is empty',
    ),
    ('pretrain', {'patch_grid': 3}, r'config\.patch_grid=3 does not divide'),
    ('pretrain', {'masks.num_masked': 17}, 'num_masked=17'),
    ('pretrain', {'masks.kind': 'rows'}, r"config\.masks\.kind .* 'rows'"),
    (
      'pretrain',
      {'tokenizer.kind': 'dalle', 'tokenizer.run': 'x.safetensors'},
      r'config\.tokenizer\.size=0',
    ),
    ('pretrain', {'tokenizer.kind': 'vq'}, r"tokenizer\.kind .* 'vq'"),
  ],
)
def test_bad_fields_are_named(stage, fields, message):
  config = of_stage(stage)
  config.update_from_flattened_dict(fields)
  with pytest.raises(types.InputError, match=message):
    beit.build(config)


def test_a_run_of_another_stage_or_none_is_refused(runs, tmp_path):
  _, tokens, _, _ = runs
  config = of_stage('finetune')
  config.pretrained = tokens
  with pytest.raises(types.InputError, match='the pre-trained model'):
    started(config, seed=0)
  config = of_stage('pretrain', run=str(tmp_path))
  with pytest.raises(
    types.InputError, match=r'config\.tokenizer\.run=.* holds no checkpoint'
  ):
    started(config, seed=0)


@pytest.mark.parametrize(
  'numbers',
  [
    dict(temperature=(0.0, 1.0)),
    dict(temperature=(1.0, 0.0)),
    dict(temperature=(-1.0, -1.0)),
    dict(kl_weight=-1.0),
  ],
)
def test_numbers_of_a_tokenizer_are_in_range(numbers):
  (name,) = numbers
  with pytest.raises(types.InputError, match=f'config.tokenizer.{name} must'):
    beit.build(of_stage('tokenizer', **numbers))


def test_fields_that_a_stage_has_itself_are_refused():
  usual, config = beit.get_config('smoke'), of_stage('finetune')
  config.tx.learning_rate = 1e-4
  with pytest.raises(
    types.InputError, match=r'config\.stages\.finetune\.tx\.learning_rate'
  ):
    building.check_stage(config, building.overrides(config, usual))
  config.stage = 'pretrain'
  building.check_stage(config, building.overrides(config, usual))
