"""Distribution Calibration (Yang et al., ICLR 2021): features drawn for few.

    python -m launch.reproduce --papers=distribution_calibration

learns base classes and measures the claims on episodes of the others
(`configs/studies/distribution_calibration.py`). `launch.train` trains the
network on the base classes, and `launch.evaluate --episodes=5x1` judges its
features. https://arxiv.org/abs/2101.06395

paper: WRN-28-10 on 64 classes of CIFAR-100, in place of miniImageNet, which
  TFDS does not have; the authors' features come from S2M2's training, for which
  there is no recipe here. 10,000 episodes.
small: an MLP on five classes of `digits`, and episodes of the other five.
mnist, cifar10: the same of those sets, on CIFAR-10 with a small AlexNet.
"""

from ml_collections import config_dict
import numpy as np
import optax

from configs import presets
from repjax import types
from repjax.data.sets import tasks
from repjax.experiments import of_images
from repjax.methods import supervised
from repjax.models import alexnet
from repjax.models import mlp
from repjax.models import resnet

_NO_DROPOUT = dict(dropout_rates=(0.0, 0.0, 0.0), dense_dropout_rate=0.0)

PRESETS = dict(
  paper=dict(
    batch_size=128,
    eval_batch_size=1000,
    epochs=200.0,
    data=dict(name='cifar100', eval_splits=('test',), num_base=64),
    augment=dict(padding=4, flip=True, cutout=0, **presets.CIFAR10),
    network='wide_resnet',
    wide_resnet=dict(depth=28, widen=10),
    mlp=dict(features=(128, 64)),
    alexnet=dict(channels=(16, 32, 64), features=(64,), **_NO_DROPOUT),
    tx=dict(learning_rate=0.1, momentum=0.9),
    step=dict(l2=5e-4),
    episodes=dict(ways=5, queries=15, count=10_000),
    # As published for miniImageNet.
    calibration=dict(
      power=0.5, neighbours=2, alpha=0.21, num_drawn=750, shrinkage=0.0
    ),
    run=dict(best='test/accuracy'),
  ),
  small=dict(
    batch_size=64,
    eval_batch_size=360,
    epochs=0.0,
    min_steps=600,
    data=dict(num_base=5),
    augment=dict(padding=0, flip=False, mean=(0.3,), std=(0.37,)),
    network='mlp',
    tx=dict(learning_rate=0.05),
    step=dict(l2=1e-4),
    episodes=dict(count=600),
    calibration=dict(num_drawn=200),
    run=dict(log_every=200, eval_every=600, save_every=600),
  ),
  mnist=dict(
    on='small',
    eval_batch_size=1000,
    min_steps=2000,
    data=dict(name='mnist'),
    augment=dict(mean=(0.1307,), std=(0.3081,)),
  ),
  cifar10=dict(
    on='small',
    eval_batch_size=1000,
    min_steps=1500,
    data=dict(name='cifar10'),
    augment=presets.CIFAR10,
    network='alexnet',
  ),
  smoke=dict(
    min_steps=8, episodes=dict(count=5), calibration=dict(num_drawn=10)
  ),
)


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset: paper, small or smoke."""
  return presets.get_config(preset, presets.IMAGES, PRESETS)


def build(
  config: config_dict.ConfigDict, optimizer: types.Optimizer = optax.sgd
) -> types.Experiment:
  """One run on the base classes; all splits keep to them but 'novel:SPLIT'."""
  num_classes = of_images.load(config, config.data.train_split).num_classes
  base, novel = classes(config, num_classes, config.seed)

  def load(split):
    asked = novel if split.startswith('novel:') else base
    rows = of_images.load(config, split.removeprefix('novel:'))
    return tasks.of_classes(rows, asked, relabel=asked is base)

  data = of_images.data(config, load(config.data.train_split))
  return of_images.classifier(
    config, data, method(config, data.steps, optimizer), sources=load
  )


def classes(config, num_classes: int, seed: int):
  """Base classes and novel ones, drawn by the seed."""
  types.check_range(
    f'[2, {num_classes - 2}]', **{'config.data.num_base': config.data.num_base}
  )
  order = np.random.default_rng([seed, num_classes]).permutation(num_classes)
  return np.split(order, [config.data.num_base])


def method(config, steps: int, optimizer=optax.sgd) -> types.Method:
  """The network and its optimizer; features are what its head sees."""
  kinds = dict(
    mlp=mlp.Mlp, alexnet=alexnet.AlexNet, wide_resnet=resnet.WideResNet
  )
  network = presets.choose('network', config.network, kinds)
  tx = config.tx
  return supervised.make(
    network(num_classes=config.data.num_base, **config[config.network]),
    optimizer(
      optax.cosine_decay_schedule(tx.learning_rate, steps), momentum=tx.momentum
    ),
    **config.step,
  )
