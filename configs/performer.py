"""Performer (Choromanski et al., ICLR 2021): softmax attention in linear time.

    python -m launch.reproduce --papers=performer

measures the claims (`configs/studies/performer.py`): 1.14 times the bits per
byte of exact attention; without any attention it is 1.31 times.
https://arxiv.org/abs/2009.14794

paper: proteins of a FASTA file (TrEMBL), data.path=...; data.kind='text' or
  'pixels' with data.name=pg19 or downsampled_imagenet/64x64 are the paper's
  other two tasks.
small: byte language model on `python_topics`.
tiny_shakespeare: byte language model on that set, in fewer steps.
learned_positions: that of `small`, with positions as the paper has them and
  random features that are redrawn.
"""

from ml_collections import config_dict
import optax

from configs import presets
from configs.parts import attention
from configs.parts import language
from repjax import types

PRESETS = dict(
  paper=dict(
    batch_size=64,
    eval_batch_size=64,
    epochs=10.0,
    data=dict(
      kind='proteins', length=1024, train_stride=1024, eval_stride=1024
    ),
    # 36 layers of 8 heads, as in the paper's section on proteins.
    model=dict(
      hidden_dim=512,
      mlp_dim=1024,
      num_heads=8,
      num_layers=36,
      position='learned',
      dropout_rate=0.1,
    ),
    # kind: 'favor', 'exact' or 'rfa'.
    attention=dict(kind='favor', num_features=256, redraw_every=1000),
    tx=dict(learning_rate=1e-3, weight_decay=0.1, warmup=0.01, clip=0.5),
    run=dict(best='validation/bits_per_byte', best_mode='min'),
  ),
  small=dict(min_steps=500, model=dict(position='rotary')),
  smoke=dict(attention=dict(num_features=16, redraw_every=3)),
  tiny_shakespeare=dict(
    on='small', min_steps=200, data=dict(name='tiny_shakespeare')
  ),
  learned_positions=dict(
    on='small',
    min_steps=600,
    data=dict(length=128, eval_stride=128),
    model=dict(position='learned'),
    attention=dict(redraw_every=100),
  ),
)


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset."""
  return presets.get_config(preset, *language.STREAM, PRESETS)


def build(
  config: config_dict.ConfigDict, optimizer: types.Optimizer = optax.adamw
) -> types.Experiment:
  """One training run."""
  fn = attention.attention_fn(config.attention, causal=True)
  return language.build(config, fn, optimizer)
