"""Tent (Wang et al., ICLR 2021): norms adapt to a test stream without labels.

    python -m launch.reproduce --papers=tent

measures the claims (`configs/studies/tent.py`): on `digits`, 15 points less
error by statistics of the batch, one more by Tent. A run of `launch.train` is
of the network that is adapted; then, over all 15 common corruptions,

    python -m launch.adapt --workdir=WORKDIR --corruption=common

https://arxiv.org/abs/2006.10726

paper: WRN-28-10 on CIFAR-10, as the network of the authors' public code;
  streams are CIFAR-10's test rows with our corruptions.
small: a small residual network on 30 % of `digits`, of 16 x 16 pixels.
mnist: the same on 10,000 images of MNIST; 1,500 of its test rows stream by.
gpu: WRN-16-4 on CIFAR-10, 30 epochs.
"""

import functools

from ml_collections import config_dict
import optax

from configs import presets
from repjax import optim
from repjax import types
from repjax.data.reading import source
from repjax.data.sets import tasks
from repjax.experiments import of_images
from repjax.methods import supervised
from repjax.models import resnet

PRESETS = dict(
  paper=dict(
    batch_size=128,
    eval_batch_size=1000,
    epochs=200.0,
    # side: pixels to which images are resized before all else; 0 for none.
    data=dict(name='cifar10', eval_splits=('test',), side=0),
    augment=dict(padding=4, flip=True, **presets.CIFAR10),
    network='wide_resnet',
    wide_resnet=dict(depth=28, widen=10),
    preact_resnet=dict(stage_sizes=(1, 1, 1), width=8),
    tx=dict(learning_rate=0.1, momentum=0.9, warmup=0.0),
    step=dict(l2=5e-4),
    run=dict(best='test/accuracy'),
  ),
  small=dict(
    batch_size=48,
    eval_batch_size=360,
    epochs=33.0,
    data=dict(
      train_split='train[:30%]', eval_splits=('train[30%:]+test',), side=16
    ),
    augment=dict(padding=0, flip=False, mean=(0.3,), std=(0.37,)),
    network='preact_resnet',
    tx=dict(learning_rate=0.1),
    run=dict(log_every=100, eval_every=300, save_every=300, best=''),
  ),
  mnist=dict(
    on='small',
    batch_size=100,
    eval_batch_size=1000,
    epochs=3.0,
    data=dict(
      name='mnist', train_split='train[:10000]', eval_splits=('test',), side=0
    ),
    augment=dict(mean=(0.13,), std=(0.31,)),
  ),
  gpu=dict(
    **dict(on='paper', epochs=30.0),
    wide_resnet=dict(depth=16, widen=4, remat=False),
  ),
  smoke=dict(
    epochs=0.5, preact_resnet=dict(stage_sizes=(1,)), data=dict(side=0)
  ),
)


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset: paper, small, mnist, gpu or smoke."""
  return presets.get_config(preset, presets.IMAGES, PRESETS)


def build(
  config: config_dict.ConfigDict, optimizer: types.Optimizer = optax.sgd
) -> types.Experiment:
  """One run, of the network that will be adapted."""
  data = of_images.data(config, load(config, config.data.train_split))
  made = method(config, data.train.num_classes, data.steps, optimizer)
  return of_images.classifier(
    config, data, made, sources=functools.partial(load, config)
  )


def load(config, split: str) -> source.Source:
  """Rows of a split, of the side that the config says."""
  types.check_range('[0, 1024]', **{'config.data.side': config.data.side})
  rows = of_images.load(config, split)
  if not config.data.side:
    return rows
  rows.check_images()
  return tasks.resized(rows, config.data.side, rows.num_channels or 1)


def method(
  config, num_classes: int, steps: int, optimizer: types.Optimizer = optax.sgd
) -> types.Method:
  """The network with its norms, its optimizer and its loss."""
  kinds = dict(wide_resnet=resnet.WideResNet, preact_resnet=resnet.PreActResNet)
  network = presets.choose('network', config.network, kinds)
  tx = config.tx
  rate = optim.warmup_cosine(tx.learning_rate, steps=steps, warmup=tx.warmup)
  return supervised.make(
    network(num_classes=num_classes, **config[config.network]),
    optimizer(rate, momentum=tx.momentum, nesterov=True),
    **config.step,
  )
