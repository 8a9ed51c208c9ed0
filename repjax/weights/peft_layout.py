"""Host code: arrays of LoRA as files of Hugging Face's `peft` have them."""

import dataclasses
import math
import os
import re
from typing import NamedTuple

import numpy as np

from repjax.layers import adapters
from repjax.types import InputError
from repjax.weights import peft_config
from repjax.weights import torch_layout

FILE = 'adapter_model.safetensors'
PREFIX = 'base_model.model.'
# GPT-2 has one matrix for queries, keys and values.
_FUSED = r'(.*\.attn\.)c_attn'
_PART = r'(.*\.attn\.)(query|key|value)'
_PARTS = ('query', 'key', 'value')
# Layers of GPT-2 whose matrices are [in, out].
_CONV1D = r'.*\.(c_attn|c_proj|c_fc)'


class Stored(NamedTuple):
  """A file of LoRA.

  Attributes:
    start: What the base lost to the first values; see `peft_config.Lora`.
    layers: Name of a layer -> its adapter; a fused layer is three.
    arrays: Name -> array, of the layers' A and B and of what was trained
      beside them.
    whole: Name of a layer as the file has it, fused or not -> its adapter.
  """

  start: str
  layers: dict[str, adapters.Adapter]
  arrays: dict[str, np.ndarray]
  whole: dict[str, adapters.Adapter]


def read(folder: str | os.PathLike) -> Stored:
  """Reads the LoRA in a folder; names are those of `transformers`.

  Raises:
    InputError: It cannot be read, or is not what its settings say.
  """
  settings = peft_config.lora(folder)
  arrays = {
    name.removeprefix(PREFIX): array
    for name, array in torch_layout.read(folder, FILE).items()
  }
  stored = Stored(settings.start, {}, {}, {})
  down, up = '.lora_A.weight', '.lora_B.weight'
  for name, array in arrays.items():
    layer = name.removesuffix(down)
    if name.removesuffix(up) + down in arrays and name.endswith(up):
      continue  # Goes with its A.
    if layer == name:
      stored.arrays[name] = array
      continue
    if layer + up not in arrays:
      raise InputError(f'{folder} has {name} without {layer}{up}')
    adapter = settings.of(layer)
    if len(array) != adapter.size:
      raise InputError(
        f'{folder}: {name} has rank {len(array)}, and its {peft_config.FILE} '
        f'says {adapter.size}'
      )
    stored.whole[layer] = adapter
    for part, its, a, b in _split(
      layer, adapter, array, arrays[layer + up], settings.rank
    ):
      stored.layers[part] = its
      stored.arrays.update({part + down: a, part + up: b})
  return stored


def parts(layer: str) -> list[str]:
  """Names of our layers that make one layer of a file."""
  fused = re.fullmatch(_FUSED, layer)
  return [layer] if fused is None else [fused[1] + which for which in _PARTS]


def _split(layer, adapter, down, up, rank):
  """(layer, adapter, A, B) of each layer that a layer of a file is."""
  names = parts(layer)
  if len(names) == 1:
    return [(layer, adapter, down, up)]
  ups = np.split(up, 3)
  if adapter.size == 3 * rank:  # As `join` may have made it.
    blocks = [np.split(x, 3, axis=1) for x in ups]
    if not any(
      blocks[i][j].any() for i in range(3) for j in range(3) if i != j
    ):
      adapter = dataclasses.replace(adapter, size=rank)
      return [
        (name, adapter, a, blocks[i][i])
        for i, (name, a) in enumerate(
          zip(names, np.split(down, 3), strict=True)
        )
      ]
  return [(name, adapter, down, x) for name, x in zip(names, ups, strict=True)]


def join(
  arrays: dict[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], list[str]]:
  """(arrays with one block matrix a fused layer, names of these layers)."""
  joined, fused = {}, []
  for name, array in arrays.items():
    found = re.fullmatch(rf'{_PART}(\.lora_[AB]\.weight)', name)
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
    three = [arrays[f'{stem}{which}{end}'] for which in _PARTS]
    if 'lora_A' in end:
      joined[f'{stem}c_attn{end}'] = np.concatenate(three)
      fused.append(f'{stem}c_attn')
    else:
      rank = three[0].shape[1]
      blocks = [
        np.pad(part, ((0, 0), (i * rank, (2 - i) * rank)))
        for i, part in enumerate(three)
      ]
      joined[f'{stem}c_attn{end}'] = np.concatenate(blocks)
  return joined, sorted(set(fused))


def initial(
  start: str, layer: str, adapter: adapters.Adapter, weight: np.ndarray
) -> np.ndarray:
  """What the first values of an adapter have taken out of a base's weight.

  `peft` computes it again whenever it loads such an adapter.

  Args:
    start: 'pissa' (Meng et al., 2024, https://arxiv.org/abs/2404.02948): the r
      largest parts of the weight's singular value decomposition. 'olora'
      (Büyükakyüz, 2024, https://arxiv.org/abs/2406.01775): s Q R, of the first
      r columns of Q and rows of R.
    layer: Its name.
    adapter: Its rank and scale.
    weight: Of the layer before training, [out, in].

  Raises:
    InputError: `peft` does not do this to such a layer.
  """
  if weight.ndim != 2 or (start == 'olora' and re.fullmatch(_CONV1D, layer)):
    raise InputError(
      f'init_lora_weights={start!r} is not known of layers like {layer}'
    )
  rank, exact = adapter.size, weight.astype(np.float64)
  if start == 'pissa':
    left, values, right = np.linalg.svd(exact, full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ right[:rank]
  left, right = np.linalg.qr(exact)
  return adapter.scale * (left[:, :rank] @ right[:rank])


def to_peft(array: np.ndarray, part: str, *, conv: bool) -> np.ndarray:
  """[..., r] -> [r, in] and [r, ...] -> [out, r]; more axes in convolutions."""
  if part == 'down':
    if conv:
      return np.ascontiguousarray(array.transpose(3, 2, 0, 1))
    return np.ascontiguousarray(array.reshape(-1, array.shape[-1]).T)
  array = np.ascontiguousarray(array.reshape(array.shape[0], -1).T)
  return array[..., None, None] if conv else array


def from_peft(
  array: np.ndarray, part: str, shape: tuple[int, ...]
) -> np.ndarray:
  """Inverse of `to_peft`, where sizes fit."""
  if part == 'down':
    array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
  else:
    array = array.reshape(array.shape[:2]).T
  whole = (math.prod(shape[:-1]), shape[-1])
  if part == 'up':
    whole = (shape[0], math.prod(shape[1:]))
  return array.reshape(shape) if array.shape == whole else array
