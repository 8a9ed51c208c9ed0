"""Host code: published Swin weights, read and written.

Files are Hugging Face's `model.safetensors` of SwinForImageClassification;
PyTorch is not needed. `hf_config` reads the config.json beside the file.
Nothing is loaded in part: a leaf that is missing, left over or of another shape
is an error, and is named.
"""

import os
from typing import Any
from typing import Literal

import numpy as np

from repjax.types import InputError
from repjax.types import PyTree
from repjax.weights import stored_config
from repjax.weights import torch_layout

# What the files call our leaves: regular expressions, applied in turn.
_NAMES = (
  (r'^block_(\d+)_(\d+)/', r'swin.encoder.layers.\1.blocks.\2/'),
  (r'^merge_(\d+)/', r'swin.encoder.layers.\1.downsample/'),
  (r'/attention_norm/', '/layernorm_before/'),
  (r'/attention/(query|key|value)/', r'/attention.self.\1/'),
  (r'/attention/out/', '/attention.output.dense/'),
  (
    r'/relative_positions/table$',
    '/attention.self.relative_position_bias_table',
  ),
  (r'/mlp_norm/', '/layernorm_after/'),
  (r'/mlp/hidden/', '/intermediate.dense/'),
  (r'/mlp/out/', '/output.dense/'),
  (r'^embedding/', 'swin.embeddings.patch_embeddings.projection/'),
  (r'^embedding_norm/', 'swin.embeddings.norm/'),
  (r'^norm/', 'swin.layernorm/'),
  (r'^head/', 'classifier/'),
  (r'/(kernel|scale)$', '/weight'),
  (r'/', '.'),
)
# Not parameters: which row of a table each pair of tokens has.
_INDEX = '.relative_position_index'


def stored_name(name: str) -> str:
  """What the files call one of our leaves, joined by '/'."""
  return torch_layout.rename(name, _NAMES)


def hf_config(path: str | os.PathLike) -> dict[str, Any]:
  """Keyword arguments of `swin.Swin` from a Hugging Face config.json.

  Args:
    path: The folder of the model, or a file in it.

  Returns:
    Fields for `swin.Swin(**hf_config(path))`.

  Raises:
    InputError: There is no config.json, or `swin.Swin` cannot be what it says.
  """
  stored = stored_config.Stored(path)
  stored.check('model_type', ('swin',))
  stored.check('qkv_bias', (True,))
  stored.check('use_absolute_embeddings', (False,))
  gelu = stored.check('hidden_act', tuple(stored_config.GELU))
  return dict(
    num_classes=stored.num_classes(),
    hidden_dim=stored('embed_dim', 96),
    depths=tuple(stored('depths', [2, 2, 6, 2])),
    num_heads=tuple(stored('num_heads', [3, 6, 12, 24])),
    patch_size=stored('patch_size', 4),
    window=stored('window_size', 7),
    mlp_ratio=stored('mlp_ratio', 4.0),
    dropout_rate=stored('hidden_dropout_prob', 0.0),
    attention_dropout_rate=stored('attention_probs_dropout_prob', 0.0),
    drop_path_rate=stored('drop_path_rate', 0.1),
    gelu=stored_config.GELU[gelu],
    layer_norm_epsilon=stored('layer_norm_eps', 1e-5),
  )


def load(
  path: str | os.PathLike,
  params: PyTree,
  *,
  head: Literal['keep', 'replace'] = 'keep',
) -> PyTree:
  """Fills the parameters of a `swin.Swin` from a file.

  Args:
    path: A `.safetensors` file, or a folder that holds `model.safetensors`, in
      one or several files. That of a SwinModel, which has no head, needs
      head='replace'.
    params: `model.init(...)['params']`: what is wanted. With head='keep' the
      shapes, `jax.eval_shape(model.init, ...)['params']`, are enough.
    head: 'keep' takes the head of the file; 'replace' keeps that of `params`,
      for another task.

  Returns:
    A tree like `params`, with its dtypes.

  Raises:
    InputError: The file cannot be read, or does not fit.
  """
  if head not in ('keep', 'replace'):
    raise InputError(f"head must be 'keep' or 'replace', got {head!r}")
  source = {
    name if name.startswith(('swin.', 'classifier.')) else f'swin.{name}': x
    for name, x in torch_layout.read(path).items()
    if not name.endswith(_INDEX)
  }
  target = torch_layout.flatten(params)
  wanted = {stored_name(name): name for name in target}
  kept = {}
  if head == 'replace':
    kept = {name: x for name, x in target.items() if name.startswith('head/')}
    for name in kept:
      source.pop(stored_name(name), None)
      wanted.pop(stored_name(name))
  torch_layout.check_names(
    path,
    wanted,
    source,
    hint=lambda names: (
      "; head='replace' leaves out the head of the file"
      * any(name.startswith('classifier.') for name in names)
    ),
  )
  return torch_layout.fill(path, source, wanted, params, kept=kept)


def save(path: str | os.PathLike, params: PyTree) -> None:
  """Writes parameters under the names of SwinForImageClassification.

  `load` gives back the same bits, and `transformers` loads the file with the
  config.json of its model beside it.

  Args:
    path: File to write, usually `model.safetensors`. Replaced in one step.
    params: Of a `swin.Swin`, of any floating type.
  """
  torch_layout.save(
    path,
    {
      stored_name(name): torch_layout.to_torch(np.asarray(leaf), name)
      for name, leaf in torch_layout.flatten(params).items()
    },
  )
