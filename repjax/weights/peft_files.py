"""Host code: adapters in the files of Hugging Face's `peft`, read and written.

A folder has `adapter_model.safetensors` and `adapter_config.json`. LoRA and
prefix tuning have such files; `peft` has no bottleneck adapters (0.21).

    names = functools.partial(text_weights.stored_name, family='bert')
    peft_files.save_lora(folder, model, variables['params'], names=names)

`names` is `vit_weights.stored_name`, or `text_weights.stored_name` of a family:
what the model of `transformers` calls our leaves and layers.

`peft` hands a prefix to GPT-2 as if it were text read before, so the text's
positions begin at l. The same logits come from `transformer.DecoderLM` with
`position_offset` greater by l and `num_positions` smaller by l; the array of
positions is the same one.
"""

from collections.abc import Callable
import math
import os
import pathlib
import re
from typing import Any

from flax import core
from flax import traverse_util
import jax.numpy as jnp
import numpy as np

from repjax import files
from repjax import trees
from repjax.layers import adapters
from repjax.types import InputError
from repjax.types import PyTree
from repjax.weights import torch_layout

_FILE, _CONFIG = 'adapter_model.safetensors', 'adapter_config.json'
_PREFIX = 'base_model.model.'
Names = Callable[[str], str]


def lora_settings(folder: str | os.PathLike) -> adapters.Adapter:
  """The adapter that a file of LoRA was trained as.

  Raises:
    InputError: It is no LoRA, or one that `adapters.lora` is not.
  """
  stored = _read_config(folder, 'LORA')
  for name, plain in (
    ('use_dora', False),
    ('bias', 'none'),
    ('lora_bias', False),
    ('rank_pattern', {}),
    ('alpha_pattern', {}),
  ):
    if stored.get(name, plain) not in (plain, None):
      raise InputError(
        f'{_CONFIG} of {folder}: {name} must be {plain!r}; got {stored[name]!r}'
      )
  rank, alpha = stored['r'], stored['lora_alpha']
  if stored.get('use_rslora'):  # alpha / sqrt(r).
    alpha *= math.sqrt(rank)
  return adapters.lora(
    rank, alpha=alpha, dropout_rate=stored.get('lora_dropout', 0.0)
  )


def load_lora(
  folder: str | os.PathLike,
  model: adapters.Adapted,
  params: PyTree,
  *,
  names: Names,
) -> dict[str, Any]:
  """Fills the 'params' of a model with LoRA from a file of `peft`.

  Where GPT-2 has one matrix for queries, keys and values, all three get the
  file's A and their part of B.

  Args:
    folder: Folder of the adapter.
    model: With `lora_settings(folder)` at the layers that the file has.
    params: 'params' of `model`, or their shapes.
    names: Our name of a leaf or layer -> its name in `transformers`.

  Raises:
    InputError: The file cannot be read, or does not fit.
  """
  settings = lora_settings(folder)
  found = {
    name.removeprefix(_PREFIX): array
    for name, array in torch_layout.read(folder, _FILE).items()
  }
  found = _split_fused(found)
  target = traverse_util.flatten_dict(core.unfreeze(params))
  arrays, loaded = {}, {}
  for path, leaf in target.items():
    owner = model.plan.owner(path)
    if owner is None:
      name, array = names('/'.join(path)), None
      array = found.get(name)
      if array is not None:
        array = torch_layout.from_torch(array, '/'.join(path), leaf.shape)
    else:
      layer, adapter = owner
      if adapter.name != 'lora' or adapter.scale != settings.scale:
        raise InputError(
          f'{folder} holds lora with scale {settings.scale}; layer '
          f'{"/".join(layer)!r} has {adapter.name} with {adapter.scale}: build '
          'it with peft_files.lora_settings'
        )
      name = _lora_name(names, layer, path[-2])
      array = found.get(name)
      if array is not None:
        array = _from_peft(array, path[-2], leaf.shape)
    arrays[name] = path
    if array is not None:
      loaded[path] = jnp.asarray(array, leaf.dtype)
  extra: dict[tuple[str, ...], Any] = {
    (name,): found[name] for name in found.keys() - arrays.keys()
  }
  trees.check_leaves({**loaded, **extra}, target, what=f'leaves of {folder}')
  return traverse_util.unflatten_dict(loaded)


def save_lora(
  folder: str | os.PathLike,
  model: adapters.Adapted,
  params: PyTree,
  *,
  names: Names,
  task_type: str | None = None,
) -> None:
  """Writes a model's LoRA so that `peft` loads it.

  What `train` selects is written as `modules_to_save`. GPT-2's one matrix for
  queries, keys and values gets a block matrix, of three times the rank; it must
  have adapters at all three.

  Args:
    folder: Made if it is not there.
    model: The adapted model, whose adapters are all of LoRA.
    params: 'params' of `model`.
    names: Our name of a leaf or layer -> its name in `transformers`.
    task_type: Such as 'SEQ_CLS'; `peft` wants it where it wraps a model itself.

  Raises:
    InputError: There is another adapter, or LoRA of several settings.
  """
  leaves = traverse_util.flatten_dict(core.unfreeze(params))
  arrays, kept, settings = {}, set(), set()
  for path, leaf in leaves.items():
    owner, array = model.plan.owner(path), np.asarray(leaf)
    if owner is None:
      name = names('/'.join(path))
      arrays[name] = torch_layout.to_torch(array, '/'.join(path))
      kept.add(name.rpartition('.')[0])
      continue
    layer, adapter = owner
    if adapter.name != 'lora':
      raise InputError(f'save_lora: {"/".join(layer)!r} has a {adapter.name}')
    settings.add(adapter)
    arrays[_lora_name(names, layer, path[-2])] = _to_peft(
      array, path[-2], conv=leaves[(*path[:-2], 'down', 'kernel')].ndim == 4
    )
  if len(settings) != 1:
    raise InputError(
      f'save_lora writes LoRA of one rank and scale; got {list(settings)}'
    )
  (adapter,) = settings
  arrays, fused = _join_fused(arrays)
  targets = {name.partition('.lora_')[0] for name in arrays if '.lora_' in name}
  alpha = adapter.scale * adapter.size
  config = {
    'peft_type': 'LORA',
    'task_type': task_type,
    'r': adapter.size,
    'lora_alpha': alpha,
    'lora_dropout': adapter.dropout_rate,
    'target_modules': sorted(targets),
    'modules_to_save': sorted(kept) or None,
    'bias': 'none',
    'fan_in_fan_out': bool(fused),
    # What the rank of a fused layer is; the scale alpha / r stays.
    'rank_pattern': {re.escape(name): 3 * adapter.size for name in fused},
    'alpha_pattern': {re.escape(name): 3 * alpha for name in fused},
    'inference_mode': True,
  }
  _write(folder, config, arrays)


def load_prefix(folder: str | os.PathLike, params: PyTree) -> dict[str, Any]:
  """Fills the 'params' of a model with prefixes from a file of `peft`.

  Args:
    folder: Folder of the adapter.
    params: 'params' of a model whose adapters are all prefixes, without a
      reparametrization, one for each attention of one stack; or their shapes.

  Raises:
    InputError: The file cannot be read, or does not fit.
  """
  stored = _read_config(folder, 'PREFIX_TUNING')
  rows = torch_layout.read(folder, _FILE).get('prompt_embeddings')
  leaves = traverse_util.flatten_dict(core.unfreeze(params))
  layers = _prefix_layers(leaves)
  if rows is None:
    raise InputError(f'{folder} holds no prompt_embeddings')
  heads = stored['num_attention_heads']
  wide = rows.shape[-1] // (2 * len(layers) * heads)
  shape = (rows.shape[0], len(layers), 2, heads, wide)
  if math.prod(shape) != rows.size:
    raise InputError(
      f'{folder} has rows of {rows.shape[-1]} numbers, which are no keys and '
      f'values of {len(layers)} attentions with {heads} heads'
    )
  rows = rows.reshape(shape)
  loaded = {
    (*layer, name): jnp.asarray(rows[:, i, which], leaves[(*layer, name)].dtype)
    for i, layer in enumerate(layers)
    for which, name in enumerate(('key', 'value'))
  }
  trees.check_leaves(loaded, leaves, what=f'prefixes of {folder}')
  return traverse_util.unflatten_dict(loaded)


def save_prefix(
  folder: str | os.PathLike, params: PyTree, *, task_type: str
) -> None:
  """Writes the prefixes of one stack so that `peft` loads them.

  Args:
    folder: Made if it is not there.
    params: 'params' of a model whose adapters are all prefixes, one for each
      attention of one stack; `adapters.collapse` a reparametrization first.
    task_type: 'CAUSAL_LM' or another of `peft`'s.
  """
  leaves = traverse_util.flatten_dict(core.unfreeze(params))
  layers = _prefix_layers(leaves)
  rows = np.stack(
    [
      np.stack([leaves[(*layer, name)] for name in ('key', 'value')], 1)
      for layer in layers
    ],
    1,
  )  # [l, layers, 2, H, D].
  length, _, _, heads, wide = rows.shape
  config = {
    'peft_type': 'PREFIX_TUNING',
    'task_type': task_type,
    'num_virtual_tokens': length,
    'num_layers': len(layers),
    'num_attention_heads': heads,
    'num_transformer_submodules': 1,
    'token_dim': heads * wide,
    'encoder_hidden_size': heads * wide,
    'prefix_projection': False,
    'inference_mode': True,
  }
  _write(folder, config, {'prompt_embeddings': rows.reshape(length, -1)})


def _prefix_layers(leaves):
  """Paths of the prefixes, from the first layer on."""
  layers = {path[:-1] for path in leaves}
  if any(path[-2:] not in _PAIRS for path in leaves):
    raise InputError(
      'files of peft have plain prefixes and nothing else; the parameters are '
      f'{sorted("/".join(path) for path in leaves)}'
    )

  def place(path):
    return [int(part) for part in re.findall(r'\d+', '/'.join(path))]

  return sorted(layers, key=place)


_PAIRS = (('prefix', 'key'), ('prefix', 'value'))


def _lora_name(names, layer, part):
  layer = names('/'.join(layer) + '/').rstrip('.')
  return f'{layer}.lora_{"A" if part == "down" else "B"}.weight'


def _to_peft(array, part, *, conv):
  """[..., r] -> [r, in] and [r, ...] -> [out, r]; more axes in convolutions."""
  if part == 'down':
    if conv:
      return np.ascontiguousarray(array.transpose(3, 2, 0, 1))
    return np.ascontiguousarray(array.reshape(-1, array.shape[-1]).T)
  array = np.ascontiguousarray(array.reshape(array.shape[0], -1).T)
  return array[..., None, None] if conv else array


def _from_peft(array, part, shape):
  """Inverse of `_to_peft`, where sizes fit."""
  if part == 'down':
    array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
  else:
    array = array.reshape(array.shape[:2]).T
  whole = (math.prod(shape[:-1]), shape[-1])
  if part == 'up':
    whole = (shape[0], math.prod(shape[1:]))
  return array.reshape(shape) if array.shape == whole else array


_FUSED = r'(.*\.attn\.)c_attn(\.lora_[AB]\.weight)'
_PARTS = ('query', 'key', 'value')


def _split_fused(arrays):
  split = {}
  for name, array in arrays.items():
    fused = re.fullmatch(_FUSED, name)
    if fused is None:
      split[name] = array
      continue
    parts = [array] * 3 if 'lora_A' in name else np.split(array, 3)
    for which, part in zip(_PARTS, parts, strict=True):
      split[f'{fused[1]}{which}{fused[2]}'] = part
  return split


def _join_fused(arrays):
  """(arrays with one block matrix a fused layer, names of these layers)."""
  joined, fused = {}, []
  for name, array in arrays.items():
    found = re.fullmatch(
      r'(.*\.attn\.)(query|key|value)(\.lora_[AB]\.weight)', name
    )
    if found is None:
      joined[name] = array
      continue
    stem, end = found[1], found[3]
    missing = [w for w in _PARTS if f'{stem}{w}{end}' not in arrays]
    if missing:
      raise InputError(
        f'GPT-2 has one matrix for queries, keys and values: {stem}c_attn '
        f'needs LoRA at {missing}, too'
      )
    parts = [arrays[f'{stem}{which}{end}'] for which in _PARTS]
    if 'lora_A' in end:
      joined[f'{stem}c_attn{end}'] = np.concatenate(parts)
      fused.append(f'{stem}c_attn')
    else:
      rank = parts[0].shape[1]
      blocks = [
        np.pad(part, ((0, 0), (i * rank, (2 - i) * rank)))
        for i, part in enumerate(parts)
      ]
      joined[f'{stem}c_attn{end}'] = np.concatenate(blocks)
  return joined, sorted(set(fused))


def _read_config(folder, kind):
  stored = torch_layout.read_json(folder, _CONFIG)
  if stored.get('peft_type') != kind:
    raise InputError(
      f'{_CONFIG} of {folder}: peft_type must be {kind!r}, got '
      f'{stored.get("peft_type")!r}'
    )
  return stored


def _write(folder, config, arrays):
  folder = pathlib.Path(folder).expanduser()
  folder.mkdir(parents=True, exist_ok=True)
  if config['peft_type'] == 'LORA':
    arrays = {f'{_PREFIX}{name}': array for name, array in arrays.items()}
  torch_layout.save(folder / _FILE, arrays)
  files.write_json(folder / _CONFIG, config)
