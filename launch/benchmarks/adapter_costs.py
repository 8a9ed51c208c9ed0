"""Memory and time of training adapters against training all parameters."""

import functools
from typing import Any

from absl import logging
import numpy as np

from launch.lib import timing

# A decoder whose parameters outweigh its activations, as those of large models
# do: 25 million on 4 x 64 tokens.
_MODEL = dict(
  hidden_dim=512,
  mlp_dim=2048,
  num_heads=8,
  num_layers=6,
  num_positions=64,
)
_VOCABULARY = 10_000
_BATCH_SIZE, _LENGTH = 4, 64

_KINDS = dict(
  LoRA=dict(kind='lora', rank=8, length=0, scale=2.0, hidden_dim=0),
  MAM=dict(kind='mam', rank=128, length=30, scale=4.0, hidden_dim=0),
)


def adapters(rounds: int) -> dict[str, Any]:
  """A step of AdamW with adapters over the same step on all parameters.

  State is what training keeps: 'optimizer state' are the moments, which exist
  for adapters alone, 'all state' adds the parameters, frozen ones too.
  Temporary memory and flops are XLA's counts for the compiled step.
  """
  full = _Step(dict(kind='full', rank=0, length=0, scale=1.0, hidden_dim=0))
  result = {'parameters': full.num_parameters}
  for name, settings in _KINDS.items():
    step = _Step(settings)
    numbers = {
      'trained parameters': step.num_parameters / full.num_parameters,
      'optimizer state': step.optimizer_bytes / full.optimizer_bytes,
      'all state': step.state_bytes / full.state_bytes,
      'temporary memory': step.bare.temporary_bytes / full.bare.temporary_bytes,
      'flops': step.bare.flops / full.bare.flops,
      'time': timing.alternate(
        rounds,
        functools.partial(step.bare.run, 3),
        functools.partial(full.bare.run, 3),
      ),
    }
    logging.info('%s: %s', name, numbers)
    result.update({f'{name} over full, {k}': x for k, x in numbers.items()})
  return result


class _Step:
  """A compiled step, and the sizes of what it keeps."""

  def __init__(self, settings):
    import jax
    import optax

    from repjax import trees
    from repjax.methods import finetuning
    from repjax.methods import language_modeling
    from repjax.models import transformer

    model = finetuning.adapt(
      transformer.DecoderLM(_VOCABULARY, **_MODEL), **settings
    )
    method = language_modeling.make(model, optax.adamw(1e-3))
    tokens = np.random.default_rng(0).integers(
      0, _VOCABULARY, (_BATCH_SIZE, _LENGTH + 1), np.int32
    )
    batch = {'tokens': tokens, 'mask': np.ones(_BATCH_SIZE, np.float32)}
    self.bare = timing.Bare(method, batch)
    state = jax.eval_shape(method.init, jax.random.key(0), batch)
    self.num_parameters = trees.size(state.params)
    self.optimizer_bytes = _bytes(state.opt_state)
    self.state_bytes = _bytes(
      (state.params, state.opt_state, state.model_state)
    )


def _bytes(tree):
  import jax

  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
