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
mnist: the same of MNIST.
omniglot, cifar10: 100 of 156 characters, or five of ten classes, by a network
  that ends as the authors' does: norm, relu, mean over the image.
"""

from ml_collections import config_dict
import numpy as np
import optax

from configs import presets
from repjax import types
from repjax.data.reading import prepared
from repjax.data.reading import source
from repjax.data.sets import tasks
from repjax.experiments import of_images
from repjax.methods import supervised
from repjax.models import conv_net
from repjax.models import mlp
from repjax.models import resnet

_CONVOLUTIONS = dict(
  network='conv_net',
  tx=dict(learning_rate=0.1),
  step=dict(l2=5e-4),
  episodes=dict(count=200),
  calibration=dict(num_drawn=750),
)

PRESETS = dict(
  paper=dict(
    batch_size=128,
    eval_batch_size=1000,
    epochs=200.0,
    # side: pixels to which images are resized before all else; 0 for none.
    data=dict(name='cifar100', eval_splits=('test',), num_base=64, side=0),
    augment=dict(padding=4, flip=True, cutout=0, **presets.CIFAR10),
    network='wide_resnet',
    wide_resnet=dict(depth=28, widen=10),
    mlp=dict(features=(128, 64)),
    conv_net=dict(channels=(16, 32, 64)),
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
    episodes=dict(count=300),
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
  omniglot=dict(
    on='small',
    # In TFDS, 'small1' has some of the same characters.
    data=dict(
      name='omniglot',
      train_split='small2[:75%]',
      eval_splits=('small2[75%:]',),
      num_base=100,
      side=28,
    ),
    augment=dict(mean=(0.92,), std=(0.27,)),
    run=dict(best='small2[75%:]/accuracy'),
    **_CONVOLUTIONS,
  ),
  cifar10=dict(
    on='small',
    data=dict(name='cifar10', train_split='train[:10000]'),
    augment=presets.CIFAR10,
    **_CONVOLUTIONS,
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
  train = read(config, config.data.train_split)
  base, novel = classes(config, train.column('label'), config.seed)

  def load(split):
    asked = novel if split.startswith('novel:') else base
    rows = read(config, split.removeprefix('novel:'))
    if split.startswith(f'{prepared.INPUTS}:'):  # Whose labels nobody knows.
      rows = rows.with_columns(label=np.full(len(rows), base[0], np.int32))
    return tasks.of_classes(rows, asked, relabel=asked is base)

  data = of_images.data(config, load(config.data.train_split))
  return of_images.classifier(
    config, data, method(config, data.steps, optimizer), sources=load
  )


def read(config, split: str) -> source.Source:
  """Rows of all classes, at one size."""
  rows, side = of_images.load(config, split), config.data.side
  return tasks.resized(rows, side, 1) if side else rows


def classes(config, labels: np.ndarray, seed: int):
  """Base classes and novel ones of those that have rows, drawn by the seed."""
  present = np.unique(labels)
  types.check_range(
    f'[{config.calibration.neighbours}, {len(present) - config.episodes.ways}]',
    **{'config.data.num_base': config.data.num_base},
  )
  order = np.random.default_rng([seed, len(present)]).permutation(present)
  return np.split(order, [config.data.num_base])


def method(config, steps: int, optimizer=optax.sgd) -> types.Method:
  """The network and its optimizer; features are what its head sees."""
  kinds = dict(
    mlp=mlp.Mlp, conv_net=conv_net.ConvNet, wide_resnet=resnet.WideResNet
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
