"""Host code: what an adapter_config.json of Hugging Face's `peft` says.

A field that is not known here may change what the file's arrays mean, so that
it is refused where it says anything.
"""

from collections.abc import Mapping
import dataclasses
import math
import os
import re
from typing import Any
from typing import Literal
from typing import NamedTuple
from typing import cast

from repjax.layers import adapters
from repjax.types import InputError
from repjax.weights import torch_layout

FILE = 'adapter_config.json'

# Which layers, of which model, on which hardware; how an adapter began that
# leaves the base as it is. The arrays of the file mean the same.
_FREE = (
  'auto_mapping',
  'base_model_name_or_path',
  'corda_config',
  'eva_config',
  'exclude_modules',
  'fan_in_fan_out',
  'inference_mode',
  'layers_pattern',
  'layers_to_transform',
  'loftq_config',
  'megatron_core',
  'modules_to_save',
  'peft_type',
  'peft_version',
  'qalora_group_size',
  'revision',
  'target_modules',
  'task_type',
)
# As peft has them.
_DEFAULTS: Mapping[str, Any] = dict(
  r=8, lora_alpha=8, lora_dropout=0.0, rank_pattern={}, alpha_pattern={}
)
_READ = ('init_lora_weights', 'use_rslora', *_DEFAULTS)
_PLAIN_STARTS = (True, False, 'gaussian', 'eva', 'orthogonal', 'mica')
# A remedy where the base cannot be known again.
_CONVERT = (
  'the start that was taken from the base cannot be computed again: save the '
  'adapter as plain LoRA (path_initial_model_for_weight_conversion in peft)'
)


class Lora(NamedTuple):
  """Settings of a file of LoRA.

  Attributes:
    rank: r of layers that no pattern names.
    alpha: The change of such a layer is scaled by alpha / r.
    rank_pattern: Regular expression of layers -> their rank.
    alpha_pattern: Regular expression of layers -> their alpha.
    root: Whether changes are scaled by alpha / sqrt(r) (`use_rslora`).
    dropout_rate: Dropout on what the change reads.
    start: What the base has lost to the adapter's first values: nothing, its
      'pissa' or its 'olora' product. See `initial`.
  """

  rank: int
  alpha: float
  rank_pattern: Mapping[str, int]
  alpha_pattern: Mapping[str, float]
  root: bool
  dropout_rate: float
  start: Literal['', 'pissa', 'olora']

  def of(self, layer: str) -> adapters.Adapter:
    """The adapter of a layer, by its name in the model of `transformers`."""
    rank = _matching(self.rank_pattern, layer, self.rank)
    alpha = _matching(self.alpha_pattern, layer, self.alpha)
    made = adapters.lora(rank, alpha=alpha, dropout_rate=self.dropout_rate)
    scale = made.scale * math.sqrt(rank) if self.root else made.scale
    # 3 alpha / 3 r is alpha / r but for the last bit.
    return dataclasses.replace(made, scale=float(f'{scale:.12g}'))


def lora(folder: str | os.PathLike) -> Lora:
  """Settings of the LoRA in a folder.

  Raises:
    InputError: It is no LoRA, or one that `adapters.lora` is not; names the
      field.
  """
  stored = read(folder, 'LORA')

  def refuse(name, why):
    raise InputError(
      f'{FILE} of {folder}: {name}={stored[name]!r} cannot be read; {why}'
    )

  for name, value in stored.items():
    known = name in _FREE or name in _READ
    if (
      not known
      and value not in (None, False, {}, [])
      and ((name, value) != ('bias', 'none'))
    ):
      refuse(name, 'adapters.lora has no such thing')
  for name, default in _DEFAULTS.items():
    if stored.get(name) is None:
      stored[name] = default
    values = stored[name]
    is_pattern = default == {}
    if is_pattern != isinstance(values, dict) or not all(
      isinstance(x, int | float) and not isinstance(x, bool)
      for x in (values.values() if is_pattern else [values])
    ):
      refuse(name, 'numbers are wanted')
  start = stored.get('init_lora_weights', True)
  start = start.lower() if isinstance(start, str) else start
  if start not in (None, *_PLAIN_STARTS, 'pissa', 'olora'):
    refuse('init_lora_weights', _CONVERT)
  return Lora(
    rank=stored['r'],
    alpha=stored['lora_alpha'],
    rank_pattern=stored['rank_pattern'],
    alpha_pattern=stored['alpha_pattern'],
    root=bool(stored.get('use_rslora')),
    dropout_rate=stored['lora_dropout'],
    start=cast(Any, start if start in ('pissa', 'olora') else ''),
  )


def read(folder: str | os.PathLike, kind: str) -> dict[str, Any]:
  """The fields of an adapter_config.json of this `peft_type`."""
  stored = torch_layout.read_json(folder, FILE)
  if stored.get('peft_type') != kind:
    raise InputError(
      f'{FILE} of {folder}: peft_type must be {kind!r}, got '
      f'{stored.get("peft_type")!r}'
    )
  return stored


def _matching(patterns, layer, default):
  """The value of the first pattern that a layer's name ends with."""
  for pattern, value in patterns.items():
    try:
      found = re.match(rf'(.*\.)?({pattern})$', layer)
    except re.error as error:
      raise InputError(
        f'{FILE}: {pattern!r} of rank_pattern or alpha_pattern is no regular '
        f'expression: {error}'
      ) from error
    if found:
      return value
  return default


def prefix_heads(folder: str | os.PathLike) -> int:
  """Number of heads of a file of prefixes.

  Raises:
    InputError: There is no such file, it says no number, or prefixes are of two
      stacks, which peft hands out otherwise.
  """
  stored = read(folder, 'PREFIX_TUNING')
  seq2seq = stored.get('task_type') == 'SEQ_2_SEQ_LM'
  stacks = stored.get('num_transformer_submodules') or (2 if seq2seq else 1)
  heads = stored.get('num_attention_heads')
  if stacks != 1 or not isinstance(heads, int) or heads < 1:
    raise InputError(
      f'{FILE} of {folder}: num_transformer_submodules={stacks}, '
      f'num_attention_heads={heads}: prefixes of one stack, of a number of '
      'heads, can be read'
    )
  return heads
