"""Anomaly Transformer (Xu et al., ICLR 2022): how far a point looks tells.

    python -m launch.reproduce --papers=anomaly_transformer

measures the claims (`configs/studies/anomaly_transformer.py`): F1 after point
adjustment, high for everybody, and AUROC below chance. --preset=smap and msl do
on spacecraft, --data_dir with <channel>.npz, nab on series of the TFDS set,
each learned from its first rows. https://arxiv.org/abs/2110.02642

    python -m launch.train --config=configs/anomaly_transformer.py:small
        --workdir=/tmp/mine --config.data.file=mine.csv

learns the first share of your own series, and its threshold by the next one.

paper: the authors' settings for SMAP, on channels of it. Their temperature, 50,
  multiplies the sum over three layers, which is 1 / 150 here.
gpu: the same, by the name of presets for accelerators.
small: planted anomalies, windows of 50 points, two narrow layers.
"""

from ml_collections import config_dict
import optax

from configs import presets
from repjax import types
from repjax.experiments import anomaly_data
from repjax.experiments import of_anomalies
from repjax.layers import association
from repjax.methods import anomaly_transformer
from repjax.models import anomaly_transformer as models

PRESETS = dict(
  paper=dict(
    batch_size=256,
    eval_batch_size=256,
    epochs=3.0,
    min_steps=0,
    # Your own CSV (file), or name: 'planted', 'smap_msl', 'nab' (channels).
    data=dict(
      file='',
      columns='',
      time_column='',
      label_column='',
      gaps='refuse',
      shares=(0.6, 0.1, 0.3),
      name='smap_msl',
      channels=('A-1', 'E-1', 'P-1'),
      eval_splits=('test',),
    ),
    planted=dict(num_test=15_000, num_collective=4),
    window=dict(length=100, stride=1, eval_stride=100),
    model=dict(
      **dict(hidden_dim=512, num_heads=8, num_layers=3, mlp_dim=512),
      remat=False,
    ),
    scaling=association.PUBLISHED._asdict(),
    # The rate is multiplied by `decay` after every epoch but the first.
    tx=dict(learning_rate=1e-4, decay=0.5),
    anomaly=dict(weight=3.0, temperature=1 / 150),
    alarms=dict(rate=0.01),  # Share of validation points above the threshold.
    # fitted: the series.json of another run, whose splits and scales count.
    run=dict(best='', fitted=''),
  ),
  small=dict(
    batch_size=16,
    eval_batch_size=64,
    epochs=0.0,
    min_steps=500,
    data=dict(name='planted'),
    window=dict(length=50, stride=5, eval_stride=25),
    model=dict(hidden_dim=32, num_heads=4, num_layers=2, mlp_dim=64),
    tx=dict(learning_rate=3e-3, decay=1.0),
    anomaly=dict(temperature=1 / 100),
    run=dict(log_every=100, eval_every=200, save_every=200),
  ),
  gpu=dict(on='paper'),
  smap=dict(on='small', data=dict(name='smap_msl')),
  msl=dict(on='smap', data=dict(channels=('C-1', 'M-1'))),
  nab=dict(on='smap', data=dict(name='nab', channels=('realKnownCause',))),
  smoke=dict(
    min_steps=8,
    planted=dict(num_test=2_400, num_collective=1),
    window=dict(length=40, stride=20, eval_stride=20),
    model=dict(hidden_dim=16, num_heads=2, num_layers=1, mlp_dim=16),
  ),
)


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset: paper, small, smoke, or another of `PRESETS`."""
  return presets.get_config(preset, presets.RUN, PRESETS)


def build(
  config: config_dict.ConfigDict, optimizer: types.Optimizer = optax.adam
) -> types.Experiment:
  """One training run."""
  data = anomaly_data.read(config)
  train = anomaly_data.training_windows(data, **config.window)
  made = method(config, len(train), optimizer)
  return of_anomalies.detector(config, data, train, made)


def method(
  config, num_windows: int, optimizer: types.Optimizer = optax.adam
) -> types.Method:
  """The network, its optimizer and its game."""
  tx = config.tx
  types.check_range('(0, 1]', **{'config.tx.decay': tx.decay})
  epoch = -(-num_windows // config.batch_size)
  # In the authors' code, too, the second epoch has the first one's rate.
  rate = optax.exponential_decay(
    tx.learning_rate, epoch, tx.decay, transition_begin=epoch, staircase=True
  )
  return anomaly_transformer.make(
    network(config), optimizer(rate), **config.anomaly, **config.step
  )


def network(config) -> models.AnomalyTransformer:
  """The network alone."""
  return models.AnomalyTransformer(
    scaling=association.Scaling(**config.scaling), **config.model
  )
