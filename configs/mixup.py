"""Mixup (Zhang et al., ICLR 2018 and 2021): train on mixed pairs of images.

    python -m launch.reproduce --papers=mixup

measures the claims (`configs/studies/mixup.py`): on 3,000 images of CIFAR-10
(--preset=cifar10) five points more test accuracy and a calibration error .33
lower; on 300 images of `digits` no gain that five seeds could show.
https://arxiv.org/abs/1710.09412, and for 2021 https://arxiv.org/abs/2010.04819

paper: PreAct ResNet-18 on CIFAR-10, alpha 1 (ICLR 2018, table 2).
small: an MLP on `digits`, alpha 0.2, a weight of its own for every pair.
cifar10: a small convolutional network on CIFAR-10, alpha 1.
"""

from ml_collections import config_dict
import optax

from configs import presets
from repjax import optim
from repjax import types
from repjax.experiments import of_images
from repjax.methods import mixup
from repjax.models import alexnet
from repjax.models import mlp
from repjax.models import resnet

_NO_DROPOUT = dict(dropout_rates=(0.0, 0.0, 0.0), dense_dropout_rate=0.0)

PRESETS = dict(
  paper=dict(
    batch_size=128,
    eval_batch_size=1000,
    epochs=200.0,
    data=dict(name='cifar10', eval_splits=('test',)),
    augment=dict(padding=4, flip=True, cutout=0, **presets.CIFAR10),
    network='preact_resnet',
    preact_resnet=dict(stage_sizes=(2, 2, 2, 2), remat=False),
    mlp=dict(features=(256, 256)),
    alexnet=dict(channels=(16, 32, 64), features=(256,), **_NO_DROPOUT),
    # The rate is divided by ten after half and after three quarters of the run.
    tx=dict(learning_rate=0.1, momentum=0.9, drop=0.1, drop_at=(0.5, 0.75)),
    mixup=dict(alpha=1.0, kind='mixup', per='batch'),
    step=dict(l2=1e-4),
    run=dict(best='test/accuracy'),
  ),
  small=dict(
    batch_size=48,
    eval_batch_size=360,
    epochs=0.0,
    min_steps=1500,
    augment=dict(padding=0, flip=False, mean=(0.0,), std=(1.0,)),
    network='mlp',
    tx=dict(learning_rate=0.05),
    mixup=dict(alpha=0.2, per='example'),
    step=dict(l2=0.0),
    run=dict(log_every=200, eval_every=500, save_every=500),
  ),
  cifar10=dict(
    on='small',
    batch_size=100,
    eval_batch_size=1000,
    data=dict(name='cifar10'),
    augment=presets.CIFAR10,
    network='alexnet',
    tx=dict(learning_rate=0.03),
    mixup=dict(alpha=1.0, per='batch'),
  ),
  smoke=dict(min_steps=8),
)


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset: paper, small or smoke."""
  return presets.get_config(preset, presets.IMAGES, PRESETS)


def build(
  config: config_dict.ConfigDict, optimizer: types.Optimizer = optax.sgd
) -> types.Experiment:
  """One training run."""
  data = of_images.read(config)
  made = method(config, data.train.num_classes, data.steps, optimizer)
  # Mixup mixes neighbours.
  return of_images.classifier(config, data, made, multiple=2)


def method(
  config, num_classes: int, steps: int, optimizer: types.Optimizer = optax.sgd
) -> types.Method:
  """The network, its optimizer and its loss."""
  kinds = dict(
    mlp=mlp.Mlp, preact_resnet=resnet.PreActResNet, alexnet=alexnet.AlexNet
  )
  network = presets.choose('network', config.network, kinds)
  tx = config.tx
  factors = (tx.drop,) * len(tx.drop_at)
  rate = optim.drops(
    tx.learning_rate, steps=steps, at=tx.drop_at, factors=factors
  )
  return mixup.make(
    network(num_classes=num_classes, **config[config.network]),
    optimizer(rate, momentum=tx.momentum),
    num_classes=num_classes,
    **config.mixup,
    **config.step,
  )
