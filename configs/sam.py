"""SAM (Foret et al., ICLR 2021): minimize the worst loss nearby.

    python -m launch.reproduce --papers=sam

measures the claims (`configs/studies/sam.py`): about 20 points more test
accuracy under 40 % label noise on `digits`. https://arxiv.org/abs/2010.01412

paper: WRN-28-10 on CIFAR-10, basic augmentation (table 1).
small: an MLP on `digits` with 40 % of the training labels drawn anew. rho = 0.5
  comes from a pilot on other splits of the same digits.
"""

import math

from absl import logging
from ml_collections import config_dict
import optax

from configs import presets
from repjax import optim
from repjax import types
from repjax.data import noise
from repjax.experiments import of_images
from repjax.methods import supervised
from repjax.models import mlp
from repjax.models import resnet

PRESETS = dict(
  paper=dict(
    batch_size=256,
    eval_batch_size=1000,
    epochs=200.0,
    data=dict(name='cifar10', eval_splits=('test',), label_noise=0.0),
    augment=dict(padding=4, flip=True, cutout=0, **presets.CIFAR10),
    network='wide_resnet',
    wide_resnet=dict(depth=28, widen=10),
    mlp=dict(features=(128, 128)),
    tx=dict(
      learning_rate=0.1, momentum=0.9, nesterov=True, warmup=0.0, clip=5.0
    ),
    sam=dict(rho=0.05, adaptive=False, sync=False, groups=1),
    # The authors put the penalty into the loss, so that SAM climbs on it, too.
    step=dict(l2=5e-4),
    run=dict(best='test/accuracy'),
  ),
  small=dict(
    batch_size=48,
    eval_batch_size=360,
    epochs=60.0,
    data=dict(label_noise=0.4),
    augment=dict(padding=0, flip=False, mean=(0.3,), std=(0.37,)),
    network='mlp',
    tx=dict(learning_rate=0.05, nesterov=False, clip=0.0),
    sam=dict(rho=0.5, sync=True),
    step=dict(l2=0.0),
    run=dict(log_every=200, eval_every=600, save_every=600),
  ),
  smoke=dict(epochs=0.5),
)


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset: paper, small or smoke."""
  return presets.get_config(preset, presets.IMAGES, PRESETS)


def build(
  config: config_dict.ConfigDict, optimizer: types.Optimizer = optax.sgd
) -> types.Experiment:
  """One training run."""
  data = of_images.read(config)
  if config.data.label_noise:
    noisy = noise.with_label_noise(
      data.train, rate=config.data.label_noise, seed=config.seed
    )
    data = data._replace(train=noisy)
    logging.info(
      '%.0f %% of the training labels are drawn at random: training accuracy '
      'counts them, test accuracy has none',
      100 * config.data.label_noise,
    )
  made = method(config, data.train.num_classes, data.steps, optimizer)
  return of_images.classifier(config, data, made, multiple=config.sam.groups)


def method(
  config, num_classes: int, steps: int, optimizer=optax.sgd
) -> types.Method:
  """The network, its optimizer and its loss."""
  kinds = dict(mlp=mlp.Mlp, wide_resnet=resnet.WideResNet)
  network = presets.choose('network', config.network, kinds)
  tx = config.tx
  rate = optim.warmup_cosine(tx.learning_rate, steps=steps, warmup=tx.warmup)
  return supervised.make(
    network(num_classes=num_classes, **config[config.network]),
    optax.chain(
      optim.sam(**config.sam),
      optax.clip_by_global_norm(tx.clip or math.inf),
      optimizer(rate, momentum=tx.momentum, nesterov=tx.nesterov),
    ),
    **config.step,
  )
