"""Host code: settings of published text models, from their config.json."""

import os
from typing import Any
from typing import Literal
from typing import NamedTuple
from typing import get_args

from repjax.weights import stored_config

Family = Literal['bert', 'roberta', 'gpt2', 'bart']


class Config(NamedTuple):
  """What a config.json says.

  Attributes:
    family: How `text_weights` reads the model's files.
    fields: Keyword arguments of the family's models. What a file does not say
      (classes of a new head) is missing.
  """

  family: Family
  fields: dict[str, Any]


def read(path: str | os.PathLike) -> Config:
  """What the config.json of a model says; see `Config`.

  Args:
    path: The folder of the model, or a file in it.

  Raises:
    InputError: There is no config.json, or no model here is what it says.
  """
  stored = stored_config.Stored(path)
  family: Any = stored('model_type', '')
  if family not in get_args(Family):
    stored.refuse(
      f'model_type must be one of {get_args(Family)}, got {family!r}'
    )
  return Config(family, _READERS[family](stored))


def _activation(stored, name, default):
  kinds = {
    **{kind: f'gelu_{form}' for kind, form in stored_config.GELU.items()},
    'relu': 'relu',
  }
  return kinds[stored.check(name, (default, *sorted(kinds)))]


def _encoder_fields(stored, offset):
  stored.check('position_embedding_type', ('absolute',))
  stored.check('is_decoder', (False,))
  stored.check('tie_word_embeddings', (True,))
  return dict(
    vocab_size=stored('vocab_size', 30_522),
    hidden_dim=stored('hidden_size', 768),
    mlp_dim=stored('intermediate_size', 3072),
    num_heads=stored('num_attention_heads', 12),
    num_layers=stored('num_hidden_layers', 12),
    num_positions=stored('max_position_embeddings', 512) - offset,
    position_offset=offset,
    num_token_types=stored('type_vocab_size', 2),
    norm='post',
    embedding_norm=True,
    activation=_activation(stored, 'hidden_act', 'gelu'),
    layer_norm_epsilon=stored('layer_norm_eps', 1e-12),
    dropout_rate=stored('hidden_dropout_prob', 0.1),
    attention_dropout_rate=stored('attention_probs_dropout_prob', 0.1),
  )


def _roberta_fields(stored):
  stored.check('pad_token_id', (1,))  # Positions begin after it.
  if 'RobertaForMaskedLM' in (stored('architectures', None) or ()):
    # The head of masked tokens has it whatever the layers have.
    stored.check('hidden_act', ('gelu',))
  return _encoder_fields(stored, 2)


def _gpt2_fields(stored):
  for name, value in (
    ('scale_attn_weights', True),
    ('scale_attn_by_inverse_layer_idx', False),
    ('add_cross_attention', False),
  ):
    stored.check(name, (value,))
  width = stored('n_embd', 768)
  rate = stored('resid_pdrop', 0.1)
  stored.check('embd_pdrop', (rate,))
  return dict(
    vocab_size=stored('vocab_size', 50_257),
    hidden_dim=width,
    mlp_dim=stored('n_inner', 4 * width),
    num_heads=stored('n_head', 12),
    num_layers=stored('n_layer', 12),
    num_positions=stored('n_positions', 1024),
    activation=_activation(stored, 'activation_function', 'gelu_new'),
    layer_norm_epsilon=stored('layer_norm_epsilon', 1e-5),
    dropout_rate=rate,
    attention_dropout_rate=stored('attn_pdrop', 0.1),
    tied=stored('tie_word_embeddings', True),
  )


def _bart_fields(stored):
  heads = stored('encoder_attention_heads', 16)
  mlp_dim = stored('encoder_ffn_dim', 4096)
  stored.check('decoder_attention_heads', (heads,))
  stored.check('decoder_ffn_dim', (mlp_dim,))
  stored.check('tie_word_embeddings', (True,))
  # `labelled_text.pairs` begins what is written with </s>.
  stored.check('decoder_start_token_id', (2,))
  return dict(
    vocab_size=stored('vocab_size', 50_265),
    hidden_dim=stored('d_model', 1024),
    mlp_dim=mlp_dim,
    num_heads=heads,
    num_layers=stored('encoder_layers', 12),
    num_decoder_layers=stored('decoder_layers', 12),
    num_positions=stored('max_position_embeddings', 1024),
    position_offset=2,
    norm='post',
    embedding_norm=True,
    scale_embedding=stored('scale_embedding', False),
    activation=_activation(stored, 'activation_function', 'gelu'),
    layer_norm_epsilon=1e-5,
    dropout_rate=stored('dropout', 0.1),
    attention_dropout_rate=stored('attention_dropout', 0.0),
    activation_dropout_rate=stored('activation_dropout', 0.0),
  )


_READERS = {
  'bert': lambda stored: _encoder_fields(stored, 0),
  'roberta': _roberta_fields,
  'gpt2': _gpt2_fields,
  'bart': _bart_fields,
}
