"""Host code: published Vision Transformer weights, read and written.

Two families of files are known, and neither needs PyTorch or TensorFlow:

- `.npz` of the authors (vision_transformer, AugReg) and of big_vision. Build
  `vit.ViT` with its defaults (tanh gelu, epsilon 1e-6).
- Hugging Face `model.safetensors` of ViTForImageClassification or ViTModel, or
  of IJepaForImageClassification, which is the ViT without a class token that
  averages its patches. These use the exact gelu and epsilon 1e-12: build
  `vit.ViT` from `hf_config`.

Nearly all of them want images in [-1, 1]. Nothing is loaded in part: a leaf
that is missing, left over or of another shape is an error, and is named.
"""

import functools
import math
import os
import pathlib
import re
from typing import Any
from typing import Literal
import zipfile

from absl import logging
import jax.numpy as jnp
import numpy as np

from repjax import files
from repjax.layers.positions import grid_positions
from repjax.models import vit
from repjax.types import InputError
from repjax.types import PyTree
from repjax.weights import stored_config
from repjax.weights import torch_layout

# What the files call our leaves: regular expressions, applied in turn. A name
# is the path in the tree, joined by '/'.
_NPZ_NAMES = (
  (r'^block_(\d+)/', r'Transformer/encoderblock_\1/'),
  (r'/attention_norm/', '/LayerNorm_0/'),
  (r'/attention/', '/MultiHeadDotProductAttention_1/'),
  (r'/mlp_norm/', '/LayerNorm_2/'),
  (r'/mlp/hidden/', '/MlpBlock_3/Dense_0/'),
  (r'/mlp/out/', '/MlpBlock_3/Dense_1/'),
  (r'^positions/embedding$', 'Transformer/posembed_input/pos_embedding'),
  (r'^encoder_norm/', 'Transformer/encoder_norm/'),
)
_HF_NAMES = (
  (r'^block_(\d+)/', r'vit.encoder.layer.\1/'),
  (r'/attention_norm/', '/layernorm_before/'),
  (r'/attention/(query|key|value)/', r'/attention.attention.\1/'),
  (r'/attention/out/', '/attention.output.dense/'),
  (r'/mlp_norm/', '/layernorm_after/'),
  (r'/mlp/hidden/', '/intermediate.dense/'),
  (r'/mlp/out/', '/output.dense/'),
  (r'^cls$', 'vit.embeddings.cls_token'),
  (r'^positions/embedding$', 'vit.embeddings.position_embeddings'),
  (r'^embedding/', 'vit.embeddings.patch_embeddings.projection/'),
  (r'^encoder_norm/', 'vit.layernorm/'),
  (r'^pre_logits/', 'vit.pooler.dense/'),
  (r'^head/', 'classifier/'),
  (r'/(kernel|scale)$', '/weight'),
  (r'/', '.'),
)
# Other spellings of the authors' names. Their suffixes count the layers of all
# kinds, as linen's forerunner did; linen's, in big_vision, count each kind.
_NPZ_SPELLINGS = (
  (r'/MultiHeadDotProductAttention_0/', '/MultiHeadDotProductAttention_1/'),
  (r'/LayerNorm_1/', '/LayerNorm_2/'),
  (r'/MlpBlock_0/', '/MlpBlock_3/'),
  (r'^(Transformer/)?pos_embedding$', _NPZ_NAMES[6][1]),
)
_HEAD = ('head/kernel', 'head/bias', 'pre_logits/kernel', 'pre_logits/bias')


def load_vit(
  path: str | os.PathLike,
  params: PyTree,
  *,
  head: Literal['keep', 'replace'] = 'keep',
  resize: grid_positions.ResizeMethod = 'zoom',
  old_grid: grid_positions.Grid | None = None,
  new_grid: grid_positions.Grid | None = None,
) -> PyTree:
  """Fills the parameters of a `vit.ViT` from a file.

  Args:
    path: An `.npz` file, a `.safetensors` file, or a folder that holds
      `model.safetensors`, in one or several files.
    params: `model.init(...)['params']`: what is wanted. With head='keep' the
      shapes, `jax.eval_shape(model.init, ...)['params']`, are enough.
    head: 'keep' takes the head of the file. 'replace' keeps the one of
      `params`, for another task; a `pre_logits` layer of the file is then used
      if the model has one (`representation_dim`), and dropped if not.
    resize: How the position grid becomes that of another image size; see
      `grid_positions.resize_grid`.
    old_grid: (rows, columns) of patches in the file; None if square.
    new_grid: (rows, columns) of patches in the model; None if square.

  Returns:
    A tree like `params`, with its dtypes.

  Raises:
    InputError: The file cannot be read, or does not fit.
  """
  if head not in ('keep', 'replace'):
    raise InputError(f"head must be 'keep' or 'replace', got {head!r}")
  path = pathlib.Path(path).expanduser()
  is_torch = path.is_dir() or path.suffix in ('.safetensors', '.json')
  file_name, read = (
    (stored_name, _read_hf) if is_torch else (_npz_name, _read_npz)
  )
  try:
    source = read(path)
  except InputError:
    raise
  except Exception as error:  # A damaged file makes its reader raise anything.
    raise InputError(
      f'cannot read weights from {path}: {error or type(error).__name__}'
    ) from error

  target = torch_layout.flatten(params)
  loaded = {}
  if head == 'replace':
    loaded = {name: target[name] for name in target if name.startswith('head/')}
  wanted = {file_name(name): name for name in target if name not in loaded}
  if head == 'replace':
    for name in {file_name(name) for name in _HEAD} - wanted.keys():
      source.pop(name, None)
  heads = {file_name(name) for name in _HEAD}
  hint = (
    "; head='replace' leaves out the head of the file, representation_dim "
    'says whether the model has a pre_logits (pooler) layer'
  )
  torch_layout.check_names(
    path, wanted, source, hint=lambda names: hint * bool(names & heads)
  )

  def convert(array, name, shape):
    if is_torch:
      array = torch_layout.from_torch(array, name, shape)
    if name == 'positions/embedding' and array.ndim == 3:
      array = grid_positions.fit_grid(
        array,
        shape[1],
        num_prefix_tokens=int('cls' in target),
        method=resize,
        old_grid=old_grid,
        new_grid=new_grid,
      )
    return array

  def classes(names):
    some = any(name.startswith('head/') for name in names)
    return "; for another number of classes load with head='replace'" * some

  return torch_layout.fill(
    path, source, wanted, params, kept=loaded, convert=convert, hint=classes
  )


def save_npz(path: str | os.PathLike, params: PyTree) -> None:
  """Writes the parameters of a `vit.ViT` under the authors' names.

  These are the names of the published files, which vision_transformer,
  big_vision and timm read. `load_vit` gives back the same bits.

  Args:
    path: File to write, usually `*.npz`. Replaced in one step.
    params: Parameters, of any floating type.
  """
  arrays: dict[str, Any] = {
    _npz_name(name): np.asarray(leaf)
    for name, leaf in torch_layout.flatten(params).items()
  }
  with files.replacing(path) as partial, partial.open('wb') as file:
    np.savez(file, **arrays)


def save_safetensors(path: str | os.PathLike, params: PyTree) -> None:
  """Writes the parameters of a `vit.ViT` as ViTForImageClassification has them.

  Those of a model without a class token (pool='average') are written as
  IJepaForImageClassification has them. `load_vit` gives back the same bits.
  PyTorch gives the same logits if the config.json beside the file has the
  model's gelu and epsilon.

  Args:
    path: File to write, usually `model.safetensors`. Replaced in one step.
    params: Parameters, of any floating type.

  Raises:
    InputError: There is no such model in Hugging Face's class.
  """
  leaves = torch_layout.flatten(params)
  averages = 'cls' not in leaves
  if 'positions/embedding' not in leaves:
    raise InputError(
      'ViTForImageClassification has learned positions: save_safetensors needs '
      "position='learned'"
    )
  if 'pre_logits/kernel' in leaves:
    raise InputError(
      'ViTForImageClassification has no layer before the head: '
      'save_safetensors needs representation_dim=None'
    )
  arrays = {
    stored_name(name, averages=averages): torch_layout.to_torch(
      np.asarray(leaf), name
    )
    for name, leaf in leaves.items()
  }
  torch_layout.save(path, arrays)


def hf_config(path: str | os.PathLike) -> dict[str, Any]:
  """Keyword arguments of `vit.ViT` from a Hugging Face config.json.

  Args:
    path: The folder of the model, or a file in it.

  Returns:
    Fields for `vit.ViT(**hf_config(path))`.

  Raises:
    InputError: There is no config.json, or `vit.ViT` cannot be what it says.
  """
  stored = stored_config.Stored(path)
  kind = stored.check('model_type', ('vit', 'ijepa'))
  stored.check('qkv_bias', (True,))
  gelu = stored.check('hidden_act', tuple(stored_config.GELU))
  return dict(
    num_classes=stored.num_classes(),
    patch_size=stored.patch_size(),
    hidden_dim=stored('hidden_size', 768),
    mlp_dim=stored('intermediate_size', 3072),
    num_heads=stored('num_attention_heads', 12),
    num_layers=stored('num_hidden_layers', 12),
    dropout_rate=stored('hidden_dropout_prob', 0.0),
    attention_dropout_rate=stored('attention_probs_dropout_prob', 0.0),
    gelu=stored_config.GELU[gelu],
    layer_norm_epsilon=stored('layer_norm_eps', 1e-12),
    **(dict(pool='average') if kind == 'ijepa' else {}),
  )


def as_stored(path: str | os.PathLike, model: vit.ViT) -> vit.ViT:
  """A network with what the config.json beside published weights says of it.

  That is the form of GELU and the epsilon of norms, which shapes of weights do
  not tell. Neither do they tell heads, whose number must be that of the file.

  Args:
    path: Of `load_vit`; without a config.json of Hugging Face's it says
      nothing, and the network stays as it is.
    model: What the weights are for.

  Raises:
    InputError: The weights are not there, or have another number of heads.
  """
  place = pathlib.Path(path).expanduser()
  if place.suffix == '.npz':  # The authors', as is the network.
    return model
  index = place.with_name(f'{place.name}.index.json')
  if not (place.exists() or index.exists()):
    raise InputError(
      f'{path} is not there, which tells GELU and epsilon: say where it is.'
    )
  beside = (place if place.is_dir() else place.parent) / 'config.json'
  if not beside.is_file() or 'model_type' not in stored_config.Stored(path):
    return model  # Of a run, or of another library.
  said = hf_config(path)
  if said['num_heads'] != model.num_heads:
    raise InputError(
      f'{beside} has {said["num_heads"]} heads, the network num_heads='
      f'{model.num_heads}: set config.model.num_heads.'
    )
  names = 'gelu', 'layer_norm_epsilon'
  return model.clone(**{name: said[name] for name in names})


_npz_name = functools.partial(torch_layout.rename, rules=_NPZ_NAMES)


def stored_name(name: str, *, averages: bool = False) -> str:
  """What Hugging Face's files call one of our leaves, or one of our layers.

  Args:
    name: Layers are named with a slash at the end: 'block_0/mlp/out/'.
    averages: Whether the model averages its patches, as IJepa's does.
  """
  stored = torch_layout.rename(name, _HF_NAMES)
  return re.sub(r'^vit\.', 'ijepa.', stored) if averages else stored


def _read_npz(path):
  """Leaves under the authors' names, whichever of the layouts the file has."""
  with open(path, 'rb') as raw:
    if not zipfile.is_zipfile(raw):
      raise ValueError('it is no .npz file')
    raw.seek(0)
    # NumPy leaves a damaged file open that it has opened itself.
    with np.load(raw, allow_pickle=False) as file:
      # NumPy has no bfloat16 and keeps its two bytes.
      stored = {
        name: array.view(jnp.bfloat16) if array.dtype == 'V2' else array
        for name, array in file.items()
      }
  for prefix in ('opt/target/', 'params/'):
    if any(name.startswith(prefix) for name in stored):
      state = {
        name
        for name in stored
        if re.match('(opt|extra|step|state)(/|$)', name)
        and not name.startswith(prefix)
      }
      logging.info('%s: left out the training state %s', path, state)
      stored = {
        name.removeprefix(prefix): array
        for name, array in stored.items()
        if name not in state
      }
  if 'pos_embedding' in stored and 'cls' in stored:
    rows = stored['pos_embedding']
    if _is_square(rows.shape[1]):  # big_vision: the class token has no row.
      stored['pos_embedding'] = np.pad(rows, ((0, 0), (1, 0), (0, 0)))
  leaves = {}
  stem = 'Transformer/encoderblock/'
  for name, array in stored.items():
    layers = {torch_layout.rename(name, _NPZ_SPELLINGS): array}
    if name.startswith(stem):  # All layers in one, as `nn.scan` makes them.
      rest = torch_layout.rename('/' + name.removeprefix(stem), _NPZ_SPELLINGS)
      layers = {f'{stem[:-1]}_{i}{rest}': row for i, row in enumerate(array)}
    if layers.keys() & leaves.keys():
      raise InputError(f'{path} holds {name} and another spelling of it')
    leaves |= layers
  return leaves


def _read_hf(path):
  """Leaves under the names of ViTForImageClassification."""
  leaves = torch_layout.read(path)
  if 'embeddings.position_embeddings' in leaves:  # A bare ViTModel.
    return {f'vit.{name}': array for name, array in leaves.items()}
  return {re.sub(r'^ijepa\.', 'vit.', name): x for name, x in leaves.items()}


def _is_square(number):
  return number > 0 and math.isqrt(number) ** 2 == number
