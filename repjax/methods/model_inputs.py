"""Device code: what models are called with, and the three ways of a call.

A batch names its columns as `types.INPUTS` does; which of them are the
arguments of a model is said by one `Inputs`.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from repjax import types
from repjax.methods import step as steps

# Batch -> (positional, named) arguments of the model, but for `train`.
Inputs = Callable[[types.Batch], tuple[tuple[Any, ...], dict[str, Any]]]


def image(batch: types.Batch):
  """'image' [B, H, W, C], and which rows are real."""
  return (batch['image'],), {'mask': batch['mask']}


def series(batch: types.Batch):
  """'series' [B, L, C], and which rows are real."""
  return (batch['series'],), {'mask': batch['mask']}


def features(batch: types.Batch):
  """'features' [B, D], and which rows are real."""
  return (batch['features'],), {'mask': batch['mask']}


def text(batch: types.Batch):
  """'tokens' [B, L], and which of them are real: optional 'token_mask'.

  Also the segments of rows of two texts: optional 'token_types' [B, L].
  """
  kwargs = {'mask': batch.get('token_mask')}
  if 'token_types' in batch:
    kwargs['token_types'] = batch['token_types']
  return (batch['tokens'],), kwargs


def masked_text(batch: types.Batch):
  """'inputs' [B, L], tokens of which some are hidden, else as `text`."""
  return (batch['inputs'],), text(batch)[1]


def text_before(batch: types.Batch):
  """All 'tokens' [B, L] that another one comes after."""
  return (batch['tokens'][:, :-1],), {}


def pair(batch: types.Batch):
  """As `text_before`, with 'source' [B, S] and optional 'source_mask'."""
  args, _ = text_before(batch)
  return args, {
    'source': batch['source'],
    'source_mask': batch.get('source_mask'),
  }


def packed_pair(batch: types.Batch):
  """As `pair`, with the segments that several texts of a row are told by."""
  args, kwargs = pair(batch)
  if 'segments' not in batch:
    return args, kwargs
  return args, {
    **kwargs,
    'segments': batch['segments'][:, :-1],
    'source_segments': batch['source_segments'],
  }


def packed_text(batch: types.Batch):
  """As `text_before`, with optional 'segments' of several texts of a row."""
  args, _ = text_before(batch)
  if 'segments' not in batch:
    return args, {}
  return args, {'segments': batch['segments'][:, :-1]}


def init(
  model: nn.Module, inputs: Inputs, rng: jax.Array, batch: types.Batch
) -> types.PyTree:
  """The model's fresh variables."""
  args, kwargs = inputs(batch)
  from repjax.methods import call_signature  # Where a run begins, once.

  call_signature.check(model, ('train', *kwargs))
  return model.init({'params': rng}, *args, train=False, **kwargs)


def forward(
  model: nn.Module,
  inputs: Inputs,
  variables: types.PyTree,
  batch: types.Batch,
  rng: jax.Array,
) -> tuple[Any, types.PyTree]:
  """The forward pass in training: (outputs, new collections)."""
  model_state, _ = steps.pop_params(variables)
  args, kwargs = inputs(batch)
  outputs, updates = model.apply(
    variables,
    *args,
    train=True,
    rngs={'dropout': rng},
    mutable=list(model_state),
    **kwargs,
  )
  return outputs, {**model_state, **updates}


def evaluate(
  model: nn.Module,
  inputs: Inputs,
  variables: types.PyTree,
  batch: types.Batch,
) -> Any:
  """The forward pass in evaluation."""
  args, kwargs = inputs(batch)
  return model.apply(variables, *args, train=False, **kwargs)
