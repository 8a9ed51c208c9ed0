"""Host code: published CLIP weights, read and written.

    model = clip_weights.model(folder)
    shapes = jax.eval_shape(functools.partial(model.init, train=False), ...)
    params = clip_weights.load(folder, shapes['params'])

Files are safetensors: Hugging Face's CLIPModel, or OpenAI's names, which
open_clip has, too. OpenAI's own .pt files are pickled programs, which nothing
here opens; their weights are published as safetensors. PyTorch is not needed.
Nothing is loaded in part: a leaf that is missing, left over or of another shape
is an error, and is named.
"""

import os
import re
from typing import Any
from typing import Literal

import numpy as np

from repjax import types
from repjax.layers import patches
from repjax.layers.positions import grid_positions
from repjax.models import clip
from repjax.types import InputError
from repjax.types import PyTree
from repjax.weights import stored_config
from repjax.weights import torch_layout

# What Hugging Face's files call our leaves: regular expressions, in turn.
_NAMES = (
  (r'^(image|text)_projection/kernel$', r'\1_projection/weight'),
  (r'^image_projection/', 'visual_projection/'),
  (r'^image_tower/embedding/', 'vision_model.embeddings.patch_embedding/'),
  (r'^image_tower/cls$', 'vision_model.embeddings.class_embedding'),
  (
    r'^image_tower/positions/embedding$',
    'vision_model.embeddings.position_embedding.weight',
  ),
  (r'^image_tower/embedding_norm/', 'vision_model.pre_layrnorm/'),
  (r'^image_tower/norm/', 'vision_model.post_layernorm/'),
  (r'^image_tower/block_', 'vision_model.encoder.layers.'),
  (
    r'^text_tower/token_embedding/embedding$',
    'text_model.embeddings.token_embedding.weight',
  ),
  (
    r'^text_tower/positions$',
    'text_model.embeddings.position_embedding.weight',
  ),
  (r'^text_tower/norm/', 'text_model.final_layer_norm/'),
  (r'^text_tower/block_', 'text_model.encoder.layers.'),
  (r'/attention/(query|key|value)/', r'/self_attn.\1_proj/'),
  (r'\.(q|k|v)[a-z]*_proj/', r'.\1_proj/'),
  (r'/attention/out/', '/self_attn.out_proj/'),
  (r'/attention_norm/', '/layer_norm1/'),
  (r'/mlp_norm/', '/layer_norm2/'),
  (r'/mlp/hidden/', '/mlp.fc1/'),
  (r'/mlp/out/', '/mlp.fc2/'),
  (r'/(kernel|scale)$', '/weight'),
  (r'/', '.'),
)
# What OpenAI calls arrays, and what Hugging Face does: how names begin, and
# what stands within.
_OPENAI_BEGINS = (
  ('visual.conv1.', 'vision_model.embeddings.patch_embedding.'),
  ('visual.class_embedding', 'vision_model.embeddings.class_embedding'),
  (
    'visual.positional_embedding',
    'vision_model.embeddings.position_embedding.weight',
  ),
  ('visual.ln_pre.', 'vision_model.pre_layrnorm.'),
  ('visual.ln_post.', 'vision_model.post_layernorm.'),
  ('visual.proj', 'visual_projection.weight'),
  ('visual.transformer.resblocks.', 'vision_model.encoder.layers.'),
  ('transformer.resblocks.', 'text_model.encoder.layers.'),
  ('token_embedding.', 'text_model.embeddings.token_embedding.'),
  ('positional_embedding', 'text_model.embeddings.position_embedding.weight'),
  ('ln_final.', 'text_model.final_layer_norm.'),
  ('text_projection', 'text_projection.weight'),
)
_OPENAI_WITHIN = (
  ('.attn.', '.self_attn.'),
  ('.ln_1.', '.layer_norm1.'),
  ('.ln_2.', '.layer_norm2.'),
  ('.mlp.c_fc.', '.mlp.fc1.'),
  ('.mlp.c_proj.', '.mlp.fc2.'),
)
# These are multiplied from the right.
_OPENAI_TRANSPOSED = ('visual.proj', 'text_projection')
_RULES = {
  'from OpenAI': [
    *((f'^{re.escape(a)}', b) for a, b in _OPENAI_BEGINS),
    *((re.escape(a), b) for a, b in _OPENAI_WITHIN),
  ],
  'to OpenAI': [
    *((f'^{re.escape(b)}', a) for a, b in _OPENAI_BEGINS),
    *((re.escape(b), a) for a, b in _OPENAI_WITHIN),
  ],
}
# No parameters: numbers of positions, and OpenAI's sizes.
_IGNORED = (
  'text_model.embeddings.position_ids',
  'vision_model.embeddings.position_ids',
  'input_resolution',
  'context_length',
  'vocab_size',
  'attn_mask',
)
_ACTIVATIONS = {'quick_gelu': 'gelu_quick', 'gelu': 'gelu_exact'}
# What configs of the first release say of the end of a text, where its id is
# the largest one; tokens that were added later have larger ones.
_LEGACY_END, _VOCAB_SIZE = 2, 49408


def stored_name(name: str) -> str:
  """What Hugging Face's files call one of our leaves, joined by '/'."""
  return torch_layout.rename(name, _NAMES)


def model(path: str | os.PathLike) -> clip.Clip:
  """The network of a Hugging Face config.json.

  Args:
    path: The folder of the model, or a file in it.

  Raises:
    InputError: There is no config.json, or `clip.Clip` cannot be what it says.
  """
  whole = stored_config.Stored(path)
  whole.check('model_type', ('clip',))
  # Files of the first releases have both, of which the second one counts.
  vision = whole.part('vision_config', 'vision_config_dict')
  text = whole.part('text_config', 'text_config_dict')
  end = text('eos_token_id', 49407)
  vocab_size = text('vocab_size', _VOCAB_SIZE)
  grid = patches.grid_shape(vision('image_size', 224), vision.patch_size(32))
  vision.check('num_channels', (3,))
  return clip.Clip(
    features=whole('projection_dim', 512),
    image_tower=clip.VisionTower(
      _tower(vision, hidden=768, mlp=3072, heads=12),
      patch_size=vision.patch_size(32),
      grid=grid,
    ),
    text_tower=clip.TextTower(
      _tower(text, hidden=512, mlp=2048, heads=8),
      vocab_size=vocab_size,
      num_positions=text('max_position_embeddings', 77),
      end_token=min(vocab_size, _VOCAB_SIZE) - 1 if end == _LEGACY_END else end,
    ),
  )


def load(
  path: str | os.PathLike,
  params: PyTree,
  *,
  resize: grid_positions.ResizeMethod = 'bicubic',
  old_grid: grid_positions.Grid | None = None,
  new_grid: grid_positions.Grid | None = None,
) -> PyTree:
  """Fills the parameters of a `clip.Clip` of the published towers from a file.

  Args:
    path: A `.safetensors` file, or a folder that holds `model.safetensors`, in
      one or several files.
    params: `model.init(...)['params']`: what is wanted, or its shapes.
    resize: How the position grid becomes that of another image size; see
      `grid_positions.resize_grid`.
    old_grid: (rows, columns) of patches in the file; None if square.
    new_grid: (rows, columns) of patches in the model; None if square.

  Returns:
    A tree like `params`, with its dtypes.

  Raises:
    InputError: The file cannot be read, or does not fit.
  """
  source = torch_layout.read(path)
  if 'visual.proj' in source:
    source = _from_openai(source, path)
  source = {name: x for name, x in source.items() if name not in _IGNORED}
  wanted = {stored_name(name): name for name in torch_layout.flatten(params)}
  torch_layout.check_names(path, wanted, source)

  def convert(array, name, shape):
    if name == 'image_tower/positions/embedding':
      return grid_positions.fit_grid(
        array[None],
        shape[1],
        num_prefix_tokens=1,
        method=resize,
        old_grid=old_grid,
        new_grid=new_grid,
      )
    return torch_layout.from_torch(array, name, shape)

  return torch_layout.fill(path, source, wanted, params, convert=convert)


def save(
  path: str | os.PathLike,
  params: PyTree,
  *,
  layout: Literal['huggingface', 'openai'] = 'huggingface',
) -> None:
  """Writes parameters under the names of Hugging Face's CLIPModel, or OpenAI's.

  `load` gives back the same bits. `transformers` loads a file of the first kind
  with the config.json of its model beside it, open_clip one of the second.

  Args:
    path: File to write, usually `model.safetensors`. Replaced in one step.
    params: Of a `clip.Clip` of the published towers, of any floating type.
    layout: Whose names.

  Raises:
    InputError: They are of other towers, or of SigLIP's loss.
  """
  types.check_choice('layout', layout, ('huggingface', 'openai'))
  leaves = torch_layout.flatten(params)
  if 'image_tower/cls' not in leaves or 'text_tower/positions' not in leaves:
    raise InputError(
      'CLIPModel has a VisionTower and a TextTower (models/clip): parameters '
      'of other towers have no published form'
    )
  if 'logit_bias' in leaves:
    raise InputError(
      'CLIPModel has no bias of its logits: train with initial_bias=None'
    )
  stored = {
    stored_name(name): _to_torch(np.asarray(leaf), name)
    for name, leaf in leaves.items()
  }
  torch_layout.save(
    path, stored if layout == 'huggingface' else _to_openai(stored)
  )


def _to_torch(array, name):
  if name == 'image_tower/positions/embedding':
    return array[0]
  if not array.ndim:  # NumPy would give it an axis.
    return array
  return torch_layout.to_torch(array, name)


def _tower(stored, *, hidden, mlp, heads):
  stored.check('attention_dropout', (0.0, 0))
  activation = stored.check('hidden_act', tuple(_ACTIVATIONS))
  return clip.TowerConfig(
    hidden_dim=stored('hidden_size', hidden),
    mlp_dim=stored('intermediate_size', mlp),
    num_heads=stored('num_attention_heads', heads),
    num_layers=stored('num_hidden_layers', 12),
    activation=_ACTIVATIONS[activation],
    layer_norm_epsilon=stored('layer_norm_eps', 1e-5),
  )


def _from_openai(source, path):
  """Arrays under Hugging Face's names."""
  found: dict[str, Any] = {}
  for name, array in source.items():
    if name in _IGNORED:
      continue
    new = torch_layout.rename(name, _RULES['from OpenAI'])
    head, _, kind = new.rpartition('.in_proj_')
    if head:  # Queries, keys and values in one.
      if len(array) % 3:
        raise InputError(f'{path}: {name} is not of three equal parts')
      for letter, part in zip('qkv', np.split(array, 3), strict=True):
        found[f'{head}.{letter}_proj.{kind}'] = part
    else:
      found[new] = array.T if name in _OPENAI_TRANSPOSED else array
  return found


def _to_openai(source):
  """Arrays of Hugging Face's names under OpenAI's."""
  found: dict[str, np.ndarray] = {}
  for name, array in source.items():
    new = torch_layout.rename(name, _RULES['to OpenAI'])
    head, projection, kind = new.partition('.q_proj.')
    if projection:
      found[f'{head}.in_proj_{kind}'] = np.concatenate(
        [source[name.replace('.q_proj.', f'.{x}_proj.')] for x in 'qkv']
      )
    elif '.k_proj.' not in name and '.v_proj.' not in name:
      transposed = new in _OPENAI_TRANSPOSED
      found[new] = np.ascontiguousarray(array.T) if transposed else array
  return found
