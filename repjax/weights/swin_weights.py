"""Host code: published Swin weights, read and written.

Three layouts of `.safetensors` files are known, and none needs PyTorch:

- 'huggingface': that of SwinForImageClassification. `hf_config` reads the
  config.json beside the file.
- 'timm': that of timm since 0.9, which merges patches at the beginning of a
  stage.
- 'microsoft': that of the authors, and of timm before; they merge patches at
  the end of a stage.

For the last two build `swin.variant('T', 1000)`, with `window=12` for images of
384. Nothing is loaded in part: a leaf that is missing, left over or of another
shape is an error, and is named.
"""

from collections.abc import Collection
from collections.abc import Mapping
import os
import re
from typing import Any
from typing import Literal
from typing import get_args

import numpy as np

from repjax.types import InputError
from repjax.types import PyTree
from repjax.types import check_choice
from repjax.weights import stored_config
from repjax.weights import torch_layout

Layout = Literal['huggingface', 'timm', 'microsoft']

# What the files call our leaves: regular expressions, applied in turn.
_HF_NAMES = (
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
# Of timm and of Microsoft, which differ in merging and in the head.
_TIMM_NAMES = (
  (r'^block_(\d+)_(\d+)/', r'layers.\1.blocks.\2/'),
  (r'/attention_norm/', '/norm1/'),
  (r'/attention/(query|key|value)/', '/attn.qkv/'),
  (r'/attention/out/', '/attn.proj/'),
  (r'/relative_positions/table$', '/attn.relative_position_bias_table'),
  (r'/mlp_norm/', '/norm2/'),
  (r'/mlp/hidden/', '/mlp.fc1/'),
  (r'/mlp/out/', '/mlp.fc2/'),
  (r'^embedding/', 'patch_embed.proj/'),
  (r'^embedding_norm/', 'patch_embed.norm/'),
  (r'/(kernel|scale)$', '/weight'),
  (r'/', '.'),
)
_HEADS: Mapping[Layout, str] = {
  'huggingface': 'classifier.',
  'timm': 'head.fc.',
  'microsoft': 'head.',
}
# In this order timm and Microsoft have them in one array.
_FUSED = ('query', 'key', 'value')
# Not parameters: which row of a table each pair of tokens has, and which pairs
# are apart.
_BUFFERS = ('.relative_position_index', '.attn_mask')


def stored_name(name: str, layout: Layout = 'huggingface') -> str:
  """What the files call one of our leaves, joined by '/'.

  Args:
    name: The queries, keys and values of a layer have one name in files of
      timm and of Microsoft.
    layout: Whose names.
  """
  if layout == 'huggingface':
    return torch_layout.rename(name, _HF_NAMES)
  merging = re.match(r'merge_(\d+)/', name)
  if merging:
    stage = int(merging[1]) + (layout == 'timm')
    name = f'layers.{stage}.downsample/{name[merging.end() :]}'
  name = re.sub('^head/', _HEADS[layout].replace('.', '/'), name)
  return torch_layout.rename(name, _TIMM_NAMES)


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
  # Norms behind patches and in mergings have it whatever the file says.
  stored.check('layer_norm_eps', (1e-5,))
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
      one or several files, of any layout. A file without a head, such as that
      of a SwinModel, needs head='replace'.
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
  layout, source = _read(path)
  target = torch_layout.flatten(params)
  wanted = {_place(name, layout): name for name in target}
  kept = {}
  if head == 'replace':
    kept = {name: x for name, x in target.items() if name.startswith('head/')}
    for name in kept:
      source.pop(stored_name(name, layout), None)
      wanted.pop(stored_name(name, layout))
  torch_layout.check_names(
    path,
    {_whole(place) for place in wanted},
    source,
    hint=lambda names: (
      "; head='replace' leaves out the head of the file"
      * any(name.startswith(_HEADS[layout]) for name in names)
    ),
  )
  return torch_layout.fill(path, _split(source), wanted, params, kept=kept)


def save(
  path: str | os.PathLike, params: PyTree, *, layout: Layout = 'huggingface'
) -> None:
  """Writes parameters under published names.

  `load` gives back the same bits. `transformers` loads a file of the first
  layout with the config.json of its model beside it, and timm one of the second
  into its SwinTransformer.

  Args:
    path: File to write, usually `model.safetensors`. Replaced in one step.
    params: Of a `swin.Swin`, of any floating type.
    layout: Whose names.
  """
  check_choice('layout', layout, get_args(Layout))
  torch_layout.save(
    path,
    _join(
      {
        _place(name, layout): torch_layout.to_torch(np.asarray(leaf), name)
        for name, leaf in torch_layout.flatten(params).items()
      }
    ),
  )


def _read(path) -> tuple[Layout, dict[str, np.ndarray]]:
  """Whose names a file has, and its parameters by name."""
  source = {
    name: x
    for name, x in torch_layout.read(path).items()
    if not name.endswith(_BUFFERS)
  }
  layout = _layout(path, source)
  if layout == 'huggingface':  # A bare SwinModel lacks the beginning.
    source = {
      name if name.startswith(('swin.', 'classifier.')) else f'swin.{name}': x
      for name, x in source.items()
    }
  return layout, source


def _layout(path, names: Collection[str]) -> Layout:
  """Whose names a file has: stages that merge patches tell timm's apart."""
  stages, merging = (
    {int(x[1]) for name in names if (x := re.match(pattern, name))}
    for pattern in (r'layers\.(\d+)\.', r'layers\.(\d+)\.downsample\.')
  )
  if not stages:
    return 'huggingface'
  if len(stages) == 1 and not merging:  # The head tells, if there is one.
    return 'timm' if 'head.fc.weight' in names else 'microsoft'
  if merging == stages - {0}:
    return 'timm'
  if merging == stages - {max(stages)}:
    return 'microsoft'
  raise InputError(
    f'{path} has layers.I.downsample for I in {sorted(merging)}, of the stages '
    f'{sorted(stages)}: timm has it in all but the first one, Microsoft in all '
    'but the last one.'
  )


def _place(name: str, layout: Layout) -> str:
  """Where a file has a leaf: an array, or a part of one in brackets."""
  stored = stored_name(name, layout)
  if layout == 'huggingface':
    return stored
  part = re.search(f'/attention/({"|".join(_FUSED)})/', name)
  return f'{stored}[{part[1]}]' if part else stored


def _whole(place: str) -> str:
  """The array of a place."""
  return place.partition('[')[0]


def _split(source):
  """Arrays, and those of queries, keys and values in parts."""
  found = {}
  for name, array in source.items():
    if '.attn.qkv.' not in name:
      found[name] = array
      continue
    # Unequal parts have shapes that no leaf has.
    for which, part in zip(_FUSED, np.array_split(array, 3), strict=True):
      found[f'{name}[{which}]'] = part
  return found


def _join(placed):
  """Inverse of `_split`."""
  return {
    name: placed[name]
    if name in placed
    else np.concatenate([placed[f'{name}[{which}]'] for which in _FUSED])
    for name in {_whole(place): None for place in placed}
  }
