"""A config.json of a network that CLIP and T5 here are not is refused."""

import functools
import json

import chex
import jax
import numpy as np
import pytest
import safetensors.numpy

from repjax.models import t5
from repjax.models import t5_block
from repjax.types import InputError
from repjax.weights import clip_weights
from repjax.weights import t5_weights


def written(folder, **fields):
  (folder / 'config.json').write_text(json.dumps(fields))
  return folder


@pytest.mark.parametrize(
  'fields',
  [
    {'model_type': 'umt5'},
    {'feed_forward_proj': 'gated-silu'},
    {'feed_forward_proj': 'gated-gelu', 'dense_act_fn': 'silu'},
    {'feed_forward_proj': 'gated-gelu', 'is_gated_act': False},
    {'dense_act_fn': 'gelu_new'},
    {'is_encoder_decoder': False},
  ],
)
def test_another_t5_is_refused(fields, tmp_path):
  name = list(fields)[-1]
  with pytest.raises(InputError, match=f'{name} must be one of'):
    t5_weights.model(written(tmp_path, **{'model_type': 't5', **fields}))


def test_the_published_t5_say_what_follows_from_their_projection(tmp_path):
  flan = dict(
    model_type='t5',
    feed_forward_proj='gated-gelu',
    dense_act_fn='gelu_new',
    is_gated_act=True,
    is_encoder_decoder=True,
  )
  assert t5_weights.model(written(tmp_path, **flan)).config.gated
  plain = t5_weights.model(written(tmp_path, model_type='t5'))
  assert (plain.config.gated, plain.config.activation) == (False, 'relu')


@pytest.mark.parametrize('name', ['', 'config.json', 'model.safetensors'])
def test_the_weights_of_a_newer_t5_tell_whether_its_head_is_tied(
  name, tmp_path
):
  newer = dict(model_type='t5', scale_decoder_outputs=False)
  path = written(tmp_path, **newer) / 'model.safetensors'
  for array, tied in (('lm_head.weight', False), ('shared.weight', True)):
    safetensors.numpy.save_file({array: np.zeros((1, 1), np.float32)}, path)
    assert t5_weights.model(tmp_path / name).tied == tied


@pytest.mark.parametrize(
  ('part', 'fields'),
  [
    ('vision_config', {'hidden_act': 'relu'}),
    ('text_config', {'hidden_act': 'gelu_new'}),
    ('vision_config', {'num_channels': 1}),
    ('text_config_dict', {'attention_dropout': 0.1}),
  ],
)
def test_another_clip_is_refused(part, fields, tmp_path):
  (name,) = fields
  with pytest.raises(InputError, match=f'{name} must be one of'):
    clip_weights.model(written(tmp_path, model_type='clip', **{part: fields}))


@pytest.mark.parametrize(
  ('text', 'end'),
  [
    ({}, 49407),
    ({'eos_token_id': 2}, 49407),
    # Tokens that were added behind those of the release end no text.
    ({'eos_token_id': 2, 'vocab_size': 49410}, 49407),
    ({'eos_token_id': 2, 'vocab_size': 99}, 98),
    ({'eos_token_id': 5, 'vocab_size': 99}, 5),
  ],
)
def test_texts_end_where_the_release_says(text, end, tmp_path):
  found = clip_weights.model(
    written(tmp_path, model_type='clip', text_config=text)
  )
  assert found.text_tower.end_token == end


def test_what_a_t5_does_not_say_is_that_of_the_release(tmp_path):
  layer = dict(hidden_dim=512, head_dim=64, mlp_dim=2048, num_heads=8)
  config = t5_block.LayerConfig(
    **layer,
    activation='relu',
    gated=False,
    dropout_rate=0.1,
    layer_norm_epsilon=1e-6,
  )
  assert t5_weights.model(written(tmp_path, model_type='t5')) == t5.T5(
    32128,
    config=config,
    num_layers=6,
    num_decoder_layers=6,
    tied=True,
    scaled=True,
    num_buckets=32,
    max_distance=128,
  )


def test_released_files_hold_more_than_is_read(tmp_path):
  config = t5_block.LayerConfig(
    hidden_dim=8,
    head_dim=4,
    mlp_dim=8,
    num_heads=2,
    activation='relu',
    gated=False,
  )
  model = t5.T5(20, config=config, num_layers=1, tied=True, scaled=True)
  row = np.zeros((1, 3), np.int32)
  init = functools.partial(model.init, train=False)
  shapes = jax.eval_shape(init, jax.random.key(0), row, source=row)['params']
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype('f4'), shapes)
  path = tmp_path / 'model.safetensors'
  t5_weights.save(path, params)
  stored = safetensors.numpy.load_file(path)
  for name in ('lm_head', 'encoder.embed_tokens', 'decoder.embed_tokens'):
    stored[f'{name}.weight'] = stored['shared.weight'].copy()
  cross = 'decoder.block.0.layer.1.EncDecAttention'
  stored[f'{cross}.relative_attention_bias.weight'] = np.ones((32, 2), 'f4')
  safetensors.numpy.save_file(stored, path)
  chex.assert_trees_all_equal(t5_weights.load(path, shapes), params)
  stored['lm_head.weight'] = stored['lm_head.weight'][:-1]  # Of its own.
  safetensors.numpy.save_file(stored, path)
  with pytest.raises(InputError, match=r"unexpected \['lm_head.weight'\]"):
    t5_weights.load(path, shapes)


def test_of_two_configs_of_a_tower_the_second_one_counts(tmp_path):
  both = dict(
    text_config={'hidden_size': 8, 'num_hidden_layers': 3},
    text_config_dict={'hidden_size': 16},
  )
  found = clip_weights.model(written(tmp_path, model_type='clip', **both))
  config = found.text_tower.config
  assert (config.hidden_dim, config.num_layers) == (16, 3)
