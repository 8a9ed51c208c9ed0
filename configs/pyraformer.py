"""Pyraformer (Liu et al., ICLR 2022): forecasts by attention over a pyramid.

    python -m launch.reproduce --papers=pyraformer

measures the claims (`configs/studies/pyraformer.py`).
https://openreview.net/forum?id=0EXmFzUn5I

paper: ETTh1, 168 hours ahead, the authors' settings; --data_dir is the folder
  of ETTh1.csv. Hours on two cores, where products of dense layers alone take
  40 minutes; minutes on a GPU (a guess).
ettm1: the same on ETTm1, 96 of its quarter hours ahead.
gpu: that of ETTh1, by the name of presets for accelerators.
small: a small network on sines of two periods, 168 hours ahead.
etth1: that network on ETTh1.
A file of one's own: --config.data.file=my.csv, and perhaps
  --config.data.columns=load,temperature.
"""

from ml_collections import config_dict
import optax

from configs import presets
from configs.parts import forecasts
from repjax import types

PRESETS = dict(
  paper=dict(
    batch_size=32,
    eval_batch_size=256,
    epochs=5.0,
    min_steps=0,
    squared_weight=0.0,  # Beside the likelihood of output='gaussian'.
    network='pyraformer',  # Or 'linear', of trend and rest.
    model=dict(
      children=(4, 4, 4),
      adjacent=3,
      leftover='last_parent',
      predictor='all_at_once',
      output='mean',
      hidden_dim=512,
      mlp_dim=512,
      num_heads=6,
      head_dim=128,
      num_layers=4,
      remat=False,
      bottleneck=128,
      dropout_rate=0.05,
    ),
    linear=dict(window=25),
    # kind: 'pyramid', or between all nodes 'exact', 'performer' or 'rfa'.
    attention=dict(kind='pyramid', num_features=64),
    # The rate is multiplied by `drop` after each of `drops` parts of the run.
    tx=dict(learning_rate=1e-4, drop=0.1, drops=5),
  ),
  small=dict(
    batch_size=8,
    epochs=0.0,
    min_steps=300,
    model=dict(
      hidden_dim=32,
      mlp_dim=64,
      num_heads=4,
      head_dim=8,
      num_layers=2,
      bottleneck=16,
      dropout_rate=0.0,
    ),
    tx=dict(learning_rate=3e-3, drop=0.3),
    run=dict(log_every=100, eval_every=100, save_every=100),
  ),
  ettm1=dict(
    on='paper',
    data=dict(
      file='ETTm1.csv', split='ett_minutes', length=384, horizon=96, period=96
    ),
    model=dict(
      **dict(children=(5, 5, 5), hidden_dim=256, head_dim=64, bottleneck=64),
      dropout_rate=0.2,
    ),
  ),
  gpu=dict(on='paper'),
  etth1=dict(
    on='small',
    batch_size=16,
    min_steps=250,
    model=dict(dropout_rate=0.1),
  ),
  smoke=dict(
    batch_size=16,
    min_steps=8,
    model=dict(children=(4, 2), hidden_dim=8, mlp_dim=8, head_dim=2),
  ),
)


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset."""
  return presets.get_config(preset, presets.RUN, forecasts.SERIES, PRESETS)


def build(
  config: config_dict.ConfigDict, optimizer: types.Optimizer = optax.adam
) -> types.Experiment:
  """One training run."""
  return forecasts.build(config, optimizer)
