"""Sample efficiency of convolutions (Li et al., ICLR 2021): rows for a task.

    python -m launch.reproduce --papers=sample_efficiency

measures the claims (`configs/studies/sample_efficiency.py`): at 64 dimensions a
convolution learns from 32 rows what a fully connected network does not from
512. https://arxiv.org/abs/2010.08515

paper: which of two colours of a Gaussian image of 32 x 32 is longer (figure 1);
  network: 'image_conv' or 'fully_connected'.
small: which half of 64 Gaussian numbers is longer, from 32 rows; network:
  'pooled_conv' or 'fully_connected'.
"""

import functools
import math

from ml_collections import config_dict
import optax

from configs import presets
from repjax import plots
from repjax import types
from repjax.data.reading import source
from repjax.data.sets import norm_tasks
from repjax.experiments import of_images
from repjax.experiments import wiring
from repjax.methods import model_inputs
from repjax.methods import supervised
from repjax.models import quadratic

PRESETS = dict(
  paper=dict(
    batch_size=64,
    eval_batch_size=500,
    epochs=1.0,
    min_steps=2000,
    # kind: 'channels' (of images of a side) or 'halves' (of dim numbers).
    data=dict(kind='channels', side=32, dim=64, eval_splits=('test',)),
    num_rows=dict(train=10_000, validation=2000, test=2000),
    network='image_conv',
    image_conv=dict(taps=3, channels=10),
    pooled_conv=dict(taps=3, channels=1, padding='circular'),
    fully_connected=dict(width=3072),
    tx=dict(learning_rate=0.1, momentum=0.9, clip=1.0),
    run=dict(best='test/accuracy'),
  ),
  small=dict(
    batch_size=32,
    min_steps=1000,
    data=dict(kind='halves'),
    num_rows=dict(train=32),
    network='pooled_conv',
    fully_connected=dict(width=128),
  ),
  smoke=dict(
    min_steps=4, data=dict(dim=16), num_rows=dict(validation=64, test=64)
  ),
)


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset: paper, small or smoke."""
  return presets.get_config(preset, presets.RUN, PRESETS)


def build(
  config: config_dict.ConfigDict, optimizer: types.Optimizer = optax.sgd
) -> types.Experiment:
  """One training run."""
  train = rows(config, config.data.train_split)
  steps = wiring.steps_of(config, len(train))
  return wiring.of_sources(
    config,
    method(config, steps, optimizer),
    batches=wiring.shuffled(config, train),
    sources=lambda split: rows(config, split),
    steps=steps,
    measure=of_images.measure,
    figures=lambda rows, outputs, columns: plots.of_classes(
      outputs['logits'], columns['label']
    ),
  )


def rows(config, split: str) -> source.Source:
  """Rows of a split: train, validation or test."""
  data, splits = config.data, ('train', 'validation', 'test')
  field = 'train_split' if split == data.train_split else 'eval_splits'
  types.check_choice(f'config.data.{field}', split, splits)
  count, seed = config.num_rows[split], [config.seed, splits.index(split)]
  kinds = dict(
    halves=lambda: norm_tasks.halves(count, dim=data.dim, seed=seed),
    channels=lambda: norm_tasks.channels(count, side=data.side, seed=seed),
  )
  return presets.choose('data.kind', data.kind, kinds)()


def method(config, steps: int, optimizer=optax.sgd) -> types.Method:
  """The network of `config.network`; its rate ends at 0, along a cosine."""
  kinds = dict(
    fully_connected=quadratic.FullyConnected,
    pooled_conv=quadratic.PooledConv,
    image_conv=functools.partial(quadratic.ImageConv, side=config.data.side),
  )
  network = presets.choose('network', config.network, kinds)
  seen = dict(pooled_conv='halves', image_conv='channels')
  suited = seen.get(config.network, config.data.kind)
  if config.data.kind != suited:
    raise types.InputError(
      f'config.network={config.network} is for config.data.kind={suited}, and '
      f'not for {config.data.kind}, whose parts it would not tell apart.'
    )
  tx = config.tx
  rate = optax.cosine_decay_schedule(tx.learning_rate, steps)
  return supervised.make(
    network(num_outputs=2, **config[config.network]),
    optax.chain(
      optax.clip_by_global_norm(tx.clip or math.inf),
      optimizer(rate, momentum=tx.momentum),
    ),
    inputs=model_inputs.features,
    **config.step,
  )
