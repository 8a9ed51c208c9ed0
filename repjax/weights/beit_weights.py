"""Host code: published BEiT weights, read, written and carried over.

Files are Hugging Face's `model.safetensors` of BeitForMaskedImageModeling and
BeitForImageClassification; PyTorch is not needed. Build the model by `model`,
which reads the config.json beside the file. Nothing is loaded in part: a leaf
that is missing, left over or of another shape is an error, and is named.
"""

import math
import os
import re
from typing import Literal

from absl import logging
import jax.numpy as jnp
import numpy as np

from repjax.layers.positions import grid_positions
from repjax.layers.positions import relative_positions
from repjax.models import beit
from repjax.types import InputError
from repjax.types import PyTree
from repjax.weights import stored_config
from repjax.weights import torch_layout

# What the files call our leaves: regular expressions, applied in turn.
_NAMES = (
  (r'^encoder/block_(\d+)/', r'beit.encoder.layer.\1/'),
  (r'/attention_norm/', '/layernorm_before/'),
  (r'/attention/(query|key|value)/', r'/attention.attention.\1/'),
  (r'/attention/out/', '/attention.output.dense/'),
  (r'/mlp_norm/', '/layernorm_after/'),
  (r'/mlp/hidden/', '/intermediate.dense/'),
  (r'/mlp/out/', '/output.dense/'),
  (r'/attention_scale$', '/lambda_1'),
  (r'/mlp_scale$', '/lambda_2'),
  (
    r'^(beit\.encoder\.layer\.\d+)/relative_positions/',
    r'\1.attention.attention.relative_position_bias/',
  ),
  (
    r'^encoder/relative_positions/',
    'beit.encoder.relative_position_bias/',
  ),
  (r'/table$', '/relative_position_bias_table'),
  (r'^encoder/cls$', 'beit.embeddings.cls_token'),
  (r'^encoder/mask_token$', 'beit.embeddings.mask_token'),
  (r'^encoder/positions/embedding$', 'beit.embeddings.position_embeddings'),
  (r'^encoder/embedding/', 'beit.embeddings.patch_embeddings.projection/'),
  (r'^encoder_norm/', 'beit.layernorm/'),
  (r'^pool_norm/', 'beit.pooler.layernorm/'),
  (r'^norm/', 'layernorm/'),
  (r'/(kernel|scale)$', '/weight'),
  (r'/', '.'),
)
_HEADS = {'MaskedImageModel': 'lm_head', 'Classifier': 'classifier'}
# What fine-tuning has no use for, or has a new one of.
_REPLACED = (
  r'(lm_head|classifier|layernorm|beit\.layernorm|beit\.pooler\.layernorm)\..*'
)
_MASK_TOKEN = 'beit.embeddings.mask_token'
_SHARED = 'beit.encoder.relative_position_bias.relative_position_bias_table'
# Not parameters: which row of the table each pair of tokens has.
_INDEX = '.relative_position_index'


def stored_name(name: str) -> str:
  """What the files call one of our leaves, but for heads, joined by '/'."""
  return torch_layout.rename(name, _NAMES)


def model(
  path: str | os.PathLike,
) -> beit.MaskedImageModel | beit.Classifier:
  """The model that a Hugging Face config.json describes.

  Args:
    path: The folder of the model, or a file in it.

  Raises:
    InputError: There is no config.json, or it describes something else.
  """
  stored = stored_config.Stored(path)
  kinds = ('BeitForMaskedImageModeling', 'BeitForImageClassification')
  kind = (stored('architectures', ['']) or [''])[0]
  if kind not in kinds:
    stored.refuse(f'architectures must be one of {kinds}, got {kind!r}')
  stored.check('model_type', ('beit',))
  gelu = stored.check('hidden_act', tuple(stored_config.GELU))
  shared = stored('use_shared_relative_position_bias', False)
  own = stored('use_relative_position_bias', False)
  masked, mean = kind == kinds[0], stored('use_mean_pooling', True)
  if (shared and own) or (masked and not mean):
    stored.refuse(
      'both shared and own tables of relative positions, or masked image '
      'modeling without use_mean_pooling, are not supported'
    )
  encoder = beit.Encoder(
    stored.patch_size(),
    hidden_dim=stored('hidden_size', 768),
    mlp_dim=stored('intermediate_size', 3072),
    num_heads=stored('num_attention_heads', 12),
    num_layers=stored('num_hidden_layers', 12),
    relative='shared' if shared else 'per_layer' if own else 'none',
    position='learned'
    if stored('use_absolute_position_embeddings', False)
    else 'none',
    layer_scale=max(stored('layer_scale_init_value', 0.1), 0),
    dropout_rate=stored('hidden_dropout_prob', 0.0),
    attention_dropout_rate=stored('attention_probs_dropout_prob', 0.0),
    drop_path_rate=stored('drop_path_rate', 0.1),
    gelu=stored_config.GELU[gelu],
    layer_norm_epsilon=stored('layer_norm_eps', 1e-12),
  )
  if masked:
    return beit.MaskedImageModel(encoder, stored('vocab_size', 8192))
  return beit.Classifier(
    encoder, stored.num_classes(), pool='average' if mean else 'token'
  )


def load(
  path: str | os.PathLike,
  params: PyTree,
  *,
  head: Literal['keep', 'replace'] = 'keep',
  resize: relative_positions.ResizeMethod = 'geometric',
  old_grid: grid_positions.Grid | None = None,
  new_grid: grid_positions.Grid | None = None,
) -> PyTree:
  """Fills the parameters of a `MaskedImageModel` or `Classifier` from a file.

  Args:
    path: A `.safetensors` file, or a folder that holds `model.safetensors`, in
      one or several files.
    params: `model.init(...)['params']`: what is wanted. With head='keep' the
      shapes, `jax.eval_shape(model.init, ...)['params']`, are enough.
    head: 'keep' takes the head of the file. 'replace' keeps the one of
      `params` and the norm before it, for another task; from a pre-trained file
      it leaves out the mask token where the model has none, and gives each
      layer a copy of the table of relative positions that they shared.
    resize: How these tables become those of another image size; see
      `relative_positions.resize`. Absolute positions are resized bicubically,
      as both the authors and transformers do.
    old_grid: (rows, columns) of patches in the file; None if square.
    new_grid: (rows, columns) of patches in the model; None if square.

  Returns:
    A tree like `params`, with its dtypes.

  Raises:
    InputError: The file cannot be read, or does not fit.
  """
  source = torch_layout.read(path)
  _drop_indices(path, source, old_grid)
  return _fit(path, source, params, head, resize, old_grid, new_grid)


def transfer(
  pretrained: PyTree,
  params: PyTree,
  *,
  resize: relative_positions.ResizeMethod = 'geometric',
  old_grid: grid_positions.Grid | None = None,
  new_grid: grid_positions.Grid | None = None,
) -> PyTree:
  """What pre-training has learnt, for another head: `load` without a file.

  Args:
    pretrained: Parameters of a `MaskedImageModel` or `Classifier`.
    params: Parameters of the model to start, whose head stays as it is.
    resize: How tables of relative positions become those of another image size;
      see `relative_positions.resize`.
    old_grid: (rows, columns) of patches of `pretrained`; None if square.
    new_grid: (rows, columns) of patches of the model to start; None if square.

  Raises:
    InputError: They do not fit.
  """
  source = _stored(pretrained)
  where = 'the pre-trained model'
  return _fit(where, source, params, 'replace', resize, old_grid, new_grid)


def save(path: str | os.PathLike, params: PyTree) -> None:
  """Writes parameters under the names of Hugging Face's files.

  `load` gives back the same bits, and `transformers` loads the file with the
  config.json of its model beside it.

  Args:
    path: File to write, usually `model.safetensors`. Replaced in one step.
    params: Those of a `MaskedImageModel` or `Classifier`, of any floating type.
  """
  torch_layout.save(path, _stored(params))


def _names(params):
  """Our leaves' names -> those of the files."""
  kind = 'MaskedImageModel' if 'norm' in params else 'Classifier'
  rules = ((r'^head/', f'{_HEADS[kind]}/'), *_NAMES)
  return {
    name: torch_layout.rename(name, rules)
    for name in torch_layout.flatten(params)
  }


def _stored(params):
  names = _names(params)
  return {
    names[name]: torch_layout.to_torch(np.asarray(leaf), name)
    for name, leaf in torch_layout.flatten(params).items()
  }


def _fit(path, source, params, head, resize, old_grid, new_grid):
  """Leaves of `source`, by their names in files, as a tree like `params`."""
  if head not in ('keep', 'replace'):
    raise InputError(f"head must be 'keep' or 'replace', got {head!r}")
  target = torch_layout.flatten(params)
  wanted = {stored: name for name, stored in _names(params).items()}
  source, loaded = dict(source), {}
  if head == 'replace':
    for stored, name in list(wanted.items()):
      if re.fullmatch(_REPLACED, stored):
        loaded[name] = target[wanted.pop(stored)]
    left_out = [x for x in source if re.fullmatch(_REPLACED, x)]
    if _MASK_TOKEN not in wanted and _MASK_TOKEN in source:
      left_out.append(_MASK_TOKEN)
    logging.info('%s: left out %s', path, sorted(left_out))
    source = {name: x for name, x in source.items() if name not in left_out}
    tables = [x for x in wanted if x.endswith('.relative_position_bias_table')]
    # A network without such tables is told what it leaves over.
    if tables and _SHARED in source and _SHARED not in tables:
      shared = source.pop(_SHARED)
      source |= {name: shared for name in tables}
  hint = (
    "; head='replace' starts another task from it: it leaves out heads and the "
    'mask token, and hands a shared table to the layers'
  )
  torch_layout.check_names(
    path, wanted, source, hint=lambda _: hint * (head == 'keep')
  )

  def convert(array, name, shape):
    array = torch_layout.from_torch(array, name, shape)
    if name.endswith('/table') and array.ndim == 2:
      return _fit_table(array, shape[0], resize, old_grid, new_grid)
    if name.endswith('/positions/embedding') and array.ndim == 3:
      return grid_positions.fit_grid(
        array,
        shape[1],
        num_prefix_tokens=1,
        method='bicubic',
        old_grid=old_grid,
        new_grid=new_grid,
      )
    return array

  return torch_layout.fill(
    path, source, wanted, params, kept=loaded, convert=convert
  )


def _drop_indices(path, source, grid):
  """Takes the indices of relative positions out of a file, if they are ours."""
  for name in [name for name in source if name.endswith(_INDEX)]:
    found = source.pop(name)
    expected = relative_positions.index(
      grid or grid_positions.square(found.shape[0] - 1, 'old_grid')
    )
    if not np.array_equal(found, expected):
      raise InputError(
        f'{path}: {name} orders relative positions in another way'
      )


def _fit_table(table, num_rows, method, old_grid, new_grid):
  if table.shape[0] == num_rows and old_grid == new_grid:
    return table
  old_grid = old_grid or _square_of_table(table.shape[0], 'old_grid')
  new_grid = new_grid or _square_of_table(num_rows, 'new_grid')
  logging.info('Relative positions: %s -> %s by %s', old_grid, new_grid, method)
  return relative_positions.resize(
    jnp.asarray(table), old_grid, new_grid, method=method
  )


def _square_of_table(num_rows, field):
  side = (math.isqrt(max(num_rows - 3, 0)) + 1) // 2
  if not side or relative_positions.num_distances((side, side)) != num_rows:
    raise InputError(
      f'a table of {num_rows} relative positions is not of a square grid: load '
      f'with {field}='
    )
  return side, side
