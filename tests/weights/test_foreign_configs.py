"""A config.json of a network that CLIP and T5 here are not is refused."""

import json

import pytest

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
