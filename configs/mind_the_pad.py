"""Mind the Pad (Alsallakh et al., ICLR 2021): padding on one side alone.

    python -m launch.reproduce --papers=mind_the_pad

measures that kernels grow lopsided where strides consume padding on one side.
--config.padding pads otherwise. https://openreview.net/forum?id=m1CD7tPubNy

paper: ResNet-50 on ImageNet at 225 pixels; --config.augment.size=224 is uneven.
small: five convolutions on drawn gratings of 32 pixels (33 are even).
gpu: a PreAct ResNet-18 on CIFAR-10, enlarged to 40 pixels (41 are even).
"""

import functools

import flax.linen as nn
from ml_collections import config_dict
import optax

from configs import presets
from repjax import optim
from repjax import types
from repjax.data.sets import gratings
from repjax.data.sets import tasks
from repjax.experiments import of_images
from repjax.layers import padding
from repjax.methods import supervised
from repjax.models import resnet
from repjax.models import strided_conv_net

PRESETS = dict(
  paper=dict(
    **dict(batch_size=256, eval_batch_size=256, epochs=90.0),
    # side: to which all images are resized first; 0 for none.
    data=dict(name='imagenet2012', eval_splits=('validation',), side=0),
    gratings=dict(rows=4000, test_rows=500),
    augment=dict(
      **dict(size=225, flip=True),
      **dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    ),
    network='resnet',
    resnet=dict(stage_sizes=(3, 4, 6, 3)),
    preact_resnet=dict(stage_sizes=(2, 2, 2, 2), width=64),
    strided=dict(padding='both', channels=(16, 16, 32, 32, 64)),
    padding='',  # How convolutions pad; '' leaves them as they are.
    tx=dict(kind='sgd', learning_rate=0.1, warmup=0.05, end=0.0),
    **dict(step=dict(l2=1e-4), run=dict(best='')),
  ),
  gpu=dict(
    on='paper',
    **dict(epochs=30.0, network='preact_resnet', step=dict(l2=5e-4)),
    data=dict(name='cifar10', eval_splits=('test',), side=40),
    augment=dict(size=0, **presets.CIFAR10),
    preact_resnet=dict(remat=False),
  ),
  small=dict(
    **dict(batch_size=32, eval_batch_size=500, epochs=0.0, min_steps=600),
    data=dict(name='gratings', eval_splits=('test',), side=32),
    # What the network sees has mean 1, unlike the zeros of padding.
    augment=dict(size=0, flip=False, mean=(0.0,), std=(0.5,)),
    **dict(network='strided', step=dict(l2=5e-4)),
    tx=dict(kind='adam', learning_rate=3e-3, warmup=0.0, end=1.0),
    run=dict(log_every=50, eval_every=100, save_every=100),
  ),
  smoke=dict(
    **dict(batch_size=16, min_steps=8, data=dict(side=16)),
    gratings=dict(rows=64, test_rows=16),
    strided=dict(channels=(4, 4, 8, 8, 8)),
  ),
)


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset: paper, gpu, small or smoke."""
  return presets.get_config(preset, presets.IMAGES, PRESETS)


def build(
  config: config_dict.ConfigDict, optimizer: types.Optimizer | None = None
) -> types.Experiment:
  """One training run."""
  data = of_images.data(config, load(config, config.data.train_split))
  made = method(config, data.train.num_classes, data.steps, optimizer)
  sources = functools.partial(load, config)
  return of_images.classifier(config, data, made, sources=sources)


def load(config, split: str):
  """The source of a split: gratings are drawn, other sets read and resized."""
  side = config.data.side
  types.check_range('[0, inf)', **{'config.data.side': side})
  if config.data.name != 'gratings':
    rows = of_images.load(config, split)
    return tasks.resized(rows, side, 3) if side else rows
  sizes = dict(train=config.gratings.rows, test=config.gratings.test_rows)
  field = 'train_split' if split == config.data.train_split else 'eval_splits'
  num_rows = presets.choose(f'data.{field}', split, sizes)
  seed = list(sizes).index(split)
  return gratings.draw(num_rows, seed=seed, side=side, split=split)


def network(config, num_classes: int) -> nn.Module:
  """The network, with the padding that the config names."""
  kinds = dict(resnet=resnet.ResNet, preact_resnet=resnet.PreActResNet)
  kinds |= dict(strided=strided_conv_net.StridedConvNet)
  kind = presets.choose('network', config.network, kinds)
  net = kind(num_classes=num_classes, **config[config.network])
  return padding.Padded(net, config.padding) if config.padding else net


def method(config, num_classes: int, steps: int, optimizer=None):
  """The network, its optimizer and its loss."""
  tx = config.tx
  sgd = functools.partial(optax.sgd, momentum=0.9, nesterov=True)
  named = presets.choose('tx.kind', tx.kind, dict(sgd=sgd, adam=optax.adam))
  shape = dict(steps=steps, warmup=tx.warmup, end=tx.end)
  links = (optimizer or named)(optim.warmup_cosine(tx.learning_rate, **shape))
  return supervised.make(network(config, num_classes), links, **config.step)
