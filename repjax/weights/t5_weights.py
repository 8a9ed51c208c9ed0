"""Host code: published T5 weights (1.0, 1.1, FLAN-T5), read and written.

    model = t5_weights.model(folder)
    shapes = jax.eval_shape(functools.partial(model.init, train=False), ...)
    params = t5_weights.load(folder, shapes['params'])

Files are Hugging Face's `model.safetensors` with their config.json; PyTorch is
not needed. Nothing is loaded in part: a leaf that is missing, left over or of
another shape is an error, and is named.
"""

import os
import pathlib

import numpy as np

from repjax.models import t5
from repjax.models import t5_block
from repjax.types import InputError
from repjax.types import PyTree
from repjax.weights import stored_config
from repjax.weights import torch_layout

# What the files call our leaves: regular expressions, applied in turn.
_NAMES = (
  (r'^token_embedding/embedding$', 'shared.weight'),
  (r'^head/kernel$', 'lm_head.weight'),
  (
    r'^(encoder|decoder)/distances/embedding$',
    r'\1.block.0.layer.0.SelfAttention.relative_attention_bias.weight',
  ),
  (r'^(encoder|decoder)/norm/', r'\1.final_layer_norm/'),
  (r'^(encoder|decoder)/block_(\d+)/', r'\1.block.\2/'),
  (r'/attention/', '/layer.0.SelfAttention/'),
  (r'/attention_norm/', '/layer.0.layer_norm/'),
  (r'/cross_attention/', '/layer.1.EncDecAttention/'),
  (r'/cross_attention_norm/', '/layer.1.layer_norm/'),
  (r'^(encoder.*)/mlp/', r'\1/layer.1.DenseReluDense/'),
  (r'^(decoder.*)/mlp/', r'\1/layer.2.DenseReluDense/'),
  (r'^(encoder.*)/mlp_norm/', r'\1/layer.1.layer_norm/'),
  (r'^(decoder.*)/mlp_norm/', r'\1/layer.2.layer_norm/'),
  (r'Attention/(q|k|v)[a-z]+/', r'Attention/\1/'),
  (r'Attention/out/', 'Attention/o/'),
  (r'DenseReluDense/gate/', 'DenseReluDense/wi_1/'),
  (r'DenseReluDense/out/', 'DenseReluDense/wo/'),
  (r'/(kernel|scale)$', '/weight'),
  (r'/', '.'),
)
# The embedding again, as each stack holds it.
_COPIES = ('encoder.embed_tokens.weight', 'decoder.embed_tokens.weight')
# Released files hold a table of distances for attention to the encoder, which
# no version of the network reads.
_UNUSED = (
  'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight',
)
# feed_forward_proj -> our activation, theirs, and whether MLPs are gated.
_PROJECTIONS = {
  'relu': ('relu', 'relu', False),
  'gated-gelu': ('gelu_tanh', 'gelu_new', True),
}


def stored_name(name: str, *, gated: bool) -> str:
  """What the files call one of our leaves, joined by '/'."""
  hidden = 'wi_0' if gated else 'wi'
  return torch_layout.rename(
    name, ((r'/mlp/hidden/', f'/mlp/{hidden}/'), *_NAMES)
  )


def model(path: str | os.PathLike) -> t5.T5:
  """The network of a Hugging Face config.json.

  Args:
    path: The folder of the model, or a file in it.

  Raises:
    InputError: There is no config.json, or `t5.T5` cannot be what it says.
  """
  stored = stored_config.Stored(path)
  stored.check('model_type', ('t5',))
  kind = stored.check('feed_forward_proj', tuple(_PROJECTIONS))
  activation, theirs, gated = _PROJECTIONS[kind]
  # These follow from it, but for a file that says something else.
  stored.check('dense_act_fn', (theirs,))
  stored.check('is_gated_act', (gated,))
  stored.check('is_encoder_decoder', (True,))
  tied = stored('tie_word_embeddings', True)
  scaled = stored('scale_decoder_outputs', tied)
  if 'scale_decoder_outputs' in stored:
    # Newer files call every head a tied one; what they hold tells.
    place = pathlib.Path(path).expanduser()
    weights = place.parent if place.name == 'config.json' else place
    tied = 'lm_head.weight' not in torch_layout.read(weights)
  layers = stored('num_layers', 6)
  return t5.T5(
    stored('vocab_size', 32128),
    config=t5_block.LayerConfig(
      hidden_dim=stored('d_model', 512),
      head_dim=stored('d_kv', 64),
      mlp_dim=stored('d_ff', 2048),
      num_heads=stored('num_heads', 8),
      activation=activation,
      gated=gated,
      dropout_rate=stored('dropout_rate', 0.1),
      layer_norm_epsilon=stored('layer_norm_epsilon', 1e-6),
    ),
    num_layers=layers,
    num_decoder_layers=stored('num_decoder_layers', layers),
    tied=tied,
    scaled=scaled,
    num_buckets=stored('relative_attention_num_buckets', 32),
    max_distance=stored('relative_attention_max_distance', 128),
  )


def load(path: str | os.PathLike, params: PyTree) -> PyTree:
  """Fills the parameters of a `t5.T5` from a file.

  Args:
    path: A `.safetensors` file, or a folder that holds `model.safetensors`, in
      one or several files.
    params: `model.init(...)['params']`: what is wanted, or its shapes.

  Returns:
    A tree like `params`, with its dtypes.

  Raises:
    InputError: The file cannot be read, or does not fit.
  """
  source = {
    name: x
    for name, x in torch_layout.read(path).items()
    if name not in (*_COPIES, *_UNUSED)
  }
  target = torch_layout.flatten(params)
  _check_places(target)
  gated = _is_gated(target)
  if 'head/kernel' not in target and 'lm_head.weight' in source:
    # Files of version 1.0 may hold the embedding under this name, too.
    shared = source.get('shared.weight')
    if shared is not None and np.array_equal(source['lm_head.weight'], shared):
      source.pop('lm_head.weight')
  wanted = {stored_name(name, gated=gated): name for name in target}
  torch_layout.check_names(path, wanted, source)
  return torch_layout.fill(
    path, source, wanted, params, convert=torch_layout.from_torch
  )


def save(path: str | os.PathLike, params: PyTree) -> None:
  """Writes parameters under the names of T5ForConditionalGeneration.

  `load` gives back the same bits, and `transformers` loads the file with the
  config.json of its model beside it.

  Args:
    path: File to write, usually `model.safetensors`. Replaced in one step.
    params: Of a `t5.T5`, of any floating type.

  Raises:
    InputError: The model has learned places, which T5 has not.
  """
  leaves = torch_layout.flatten(params)
  _check_places(leaves)
  gated = _is_gated(leaves)
  torch_layout.save(
    path,
    {
      stored_name(name, gated=gated): torch_layout.to_torch(
        np.asarray(leaf), name
      )
      for name, leaf in leaves.items()
    },
  )


def _check_places(leaves):
  if any(x.startswith('position_embedding/') for x in leaves):
    raise InputError(
      'published T5 has no learned places: make the model with num_positions=0'
    )


def _is_gated(leaves):
  return any('/mlp/gate/' in name for name in leaves)
