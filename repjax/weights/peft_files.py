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
from repjax import types
from repjax.layers import adapters
from repjax.layers import frozen
from repjax.types import InputError
from repjax.types import PyTree
from repjax.weights import peft_config
from repjax.weights import peft_layout
from repjax.weights import torch_layout

Names = Callable[[str], str]


def lora_settings(folder: str | os.PathLike) -> adapters.Adapter:
  """The adapter that a file of LoRA was trained as.

  Raises:
    InputError: It is no LoRA, one that `adapters.lora` is not, or its layers
      have several; then see `lora_rules`.
  """
  kinds = set(peft_layout.read(folder).layers.values())
  if len(kinds) != 1:
    raise InputError(
      f'{folder} holds LoRA of {len(kinds)} ranks or scales: build the model '
      'with peft_files.lora_rules'
    )
  return kinds.pop()


def lora_rules(
  folder: str | os.PathLike, params: PyTree, *, names: Names
) -> dict[Any, adapters.Adapter]:
  """Rules of `adapters.adapt`: the layers of a file, each with its adapter.

  Args:
    folder: Folder of the adapter.
    params: 'params' of the model without adapters, or their shapes.
    names: Our name of a leaf or layer -> its name in `transformers`.

  Raises:
    InputError: The file cannot be read, or has other layers.
  """
  stored = peft_layout.read(folder).layers
  layers = {
    names('/'.join(path[:-1]) + '/').rstrip('.'): '/'.join(path[:-1])
    for path in traverse_util.flatten_dict(core.unfreeze(params))
    if path[-1] == 'kernel'
  }
  strange = sorted(stored.keys() - layers.keys())
  if strange:
    raise InputError(f'{folder} has LoRA at {strange}, which the model has not')
  found: dict[adapters.Adapter, list[str]] = {}
  for name, adapter in stored.items():
    found.setdefault(adapter, []).append(re.escape(layers[name]))
  return {'|'.join(rule): adapter for adapter, rule in found.items()}


def load_lora(
  folder: str | os.PathLike,
  model: adapters.Adapted,
  variables: PyTree,
  *,
  names: Names,
) -> dict[str, Any]:
  """Variables of a model with the LoRA of a file of `peft`.

  Where GPT-2 has one matrix for queries, keys and values, all three get the
  file's A and their part of B. With `init_lora_weights` 'pissa' or 'olora' the
  adapter began as a part of the base, which that lost, and loses here too.

  Args:
    folder: Folder of the adapter.
    model: With `lora_settings(folder)` or `lora_rules(folder, ...)` at the
      layers that the file has.
    variables: Of `model`, with the base as it is published. Shapes are enough
      for what is not read.
    names: Our name of a leaf or layer -> its name in `transformers`.

  Raises:
    InputError: The file cannot be read, or does not fit.
  """
  stored = peft_layout.read(folder)
  variables = core.unfreeze(variables)
  target = traverse_util.flatten_dict(variables['params'])
  arrays, loaded, layers = {}, {}, {}
  for path, leaf in target.items():
    owner = model.plan.owner(path)
    if owner is None:
      name, array = names('/'.join(path)), None
      array = stored.arrays.get(name)
      if array is not None:
        array = torch_layout.from_torch(array, '/'.join(path), leaf.shape)
    else:
      layer, adapter = owner
      name = _lora_name(names, layer, path[-2])
      stem = name.partition('.lora_')[0]
      layers[stem] = layer
      _check(folder, layer, adapter, stored.layers.get(stem))
      array = stored.arrays.get(name)
      if array is not None:
        array = peft_layout.from_peft(array, path[-2], leaf.shape)
    arrays[name] = path
    if array is not None:
      loaded[path] = jnp.asarray(array, leaf.dtype)
  extra: dict[tuple[str, ...], Any] = {
    (name,): stored.arrays[name]
    for name in stored.arrays.keys() - arrays.keys()
  }
  trees.check_leaves({**loaded, **extra}, target, what=f'leaves of {folder}')
  if stored.start:
    loaded |= _without_start(stored, layers, frozen.joined(variables))
  for collection in {'params', types.FROZEN} & variables.keys():
    leaves = traverse_util.flatten_dict(variables[collection])
    variables[collection] = traverse_util.unflatten_dict(
      {path: loaded.get(path, x) for path, x in leaves.items()}
    )
  return variables


def _check(folder, layer, adapter, stored):
  """Raises an InputError if a layer has another adapter than in a file."""
  if adapter.name != 'lora' or (
    stored is not None
    and not math.isclose(adapter.scale, stored.scale, rel_tol=1e-6)
  ):
    raise InputError(
      f'{folder} holds lora with scale {stored and stored.scale}; layer '
      f'{"/".join(layer)!r} has {adapter.name} with {adapter.scale}: build '
      'it with peft_files.lora_rules or lora_settings'
    )


def _without_start(stored, layers, params):
  """Kernels of the base without what their adapters began as."""
  leaves, changed = traverse_util.flatten_dict(params), {}
  for name, adapter in stored.whole.items():
    paths = [(*layers[x], 'kernel') for x in peft_layout.parts(name)]
    kernels = [
      torch_layout.to_torch(np.asarray(leaves[x]), '/'.join(x)) for x in paths
    ]
    whole = np.concatenate(kernels)
    rest = whole - peft_layout.initial(stored.start, name, adapter, whole)
    for path, kernel in zip(paths, np.split(rest, len(paths)), strict=True):
      leaf = leaves[path]
      kernel = torch_layout.from_torch(kernel, '/'.join(path), leaf.shape)
      changed[path] = jnp.asarray(kernel, leaf.dtype)
  return changed


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
    arrays[_lora_name(names, layer, path[-2])] = peft_layout.to_peft(
      array, path[-2], conv=leaves[(*path[:-2], 'down', 'kernel')].ndim == 4
    )
  if len(settings) != 1:
    raise InputError(
      f'save_lora writes LoRA of one rank and scale; got {list(settings)}'
    )
  (adapter,) = settings
  arrays, fused = peft_layout.join(arrays)
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
  heads = peft_config.prefix_heads(folder)
  arrays = torch_layout.read(folder, peft_layout.FILE)
  rows = arrays.pop('prompt_embeddings', None)
  leaves = traverse_util.flatten_dict(core.unfreeze(params))
  layers = _prefix_layers(leaves)
  if rows is None:
    raise InputError(f'{folder} holds no prompt_embeddings')
  if arrays:
    raise InputError(f'{folder} holds {sorted(arrays)} beside its prefixes')
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


def _write(folder, config, arrays):
  folder = pathlib.Path(folder).expanduser()
  folder.mkdir(parents=True, exist_ok=True)
  if config['peft_type'] == 'LORA':
    arrays = {
      f'{peft_layout.PREFIX}{name}': array for name, array in arrays.items()
    }
  torch_layout.save(folder / peft_layout.FILE, arrays)
  files.write_json(folder / peft_config.FILE, config)
