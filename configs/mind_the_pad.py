"""Mind the Pad (Alsallakh et al., ICLR 2021): padding on one side alone.

    python -m launch.reproduce --papers=mind_the_pad

measures the claims (`configs/studies/mind_the_pad.py`): kernels that grow
lopsided where a stride consumes padding on one side alone, and do not where
images have a 2^n + 1 pixels. `repjax.analysis.padding.pad_audit` tells of any
network, and --config.padding=MODE pads all its convolutions in another way.
https://openreview.net/forum?id=m1CD7tPubNy

paper: ResNet-50 on ImageNet at 225 pixels; --config.augment.size=224 is uneven.
small: five convolutions on drawn gratings of 32 pixels (33 are even).
gpu: a PreAct ResNet-18 on CIFAR-10, enlarged to 41 pixels; 40 are uneven.
"""

import flax.linen as nn
from ml_collections import config_dict
import optax

from configs import presets
from repjax import optim
from repjax import types
from repjax.data.reading import source
from repjax.data.sets import gratings
from repjax.experiments import of_images
from repjax.layers import padding
from repjax.methods import supervised
from repjax.models import resnet
from repjax.models import strided_conv_net

PRESETS = dict(
  paper=dict(
    batch_size=256,
    eval_batch_size=256,
    epochs=90.0,
    # side, num_rows, num_test_rows: of images that are drawn ('gratings').
    data=dict(
      name='imagenet2012',
      eval_splits=('validation',),
      **dict(side=32, num_rows=0, num_test_rows=0),
    ),
    augment=dict(
      size=225,
      flip=True,
      mean=(0.485, 0.456, 0.406),
      std=(0.229, 0.224, 0.225),
    ),
    network='resnet',
    resnet=dict(stage_sizes=(3, 4, 6, 3)),
    preact_resnet=dict(stage_sizes=(2, 2, 2, 2), width=64),
    strided=dict(
      channels=(16, 16, 32, 32, 32), strides=(1, 2, 1, 2, 2), padding='both'
    ),
    # How convolutions pad; '' leaves them as they are.
    padding='',
    tx=dict(learning_rate=0.1, momentum=0.9, warmup=0.05),
    step=dict(l2=1e-4),
    run=dict(best='validation/accuracy'),
  ),
  gpu=dict(
    on='paper',
    epochs=30.0,
    data=dict(name='cifar10', eval_splits=('test',)),
    augment=dict(size=41, **presets.CIFAR10),
    network='preact_resnet',
    step=dict(l2=5e-4),
    run=dict(best='test/accuracy'),
  ),
  small=dict(
    batch_size=64,
    eval_batch_size=500,
    epochs=0.0,
    min_steps=300,
    data=dict(
      name='gratings', eval_splits=('test',), num_rows=4000, num_test_rows=500
    ),
    # The mean of what the network sees is 1: zeros of padding are unlike it.
    augment=dict(size=0, flip=False, mean=(0.0,), std=(0.5,)),
    network='strided',
    tx=dict(learning_rate=0.05, warmup=0.0),
    step=dict(l2=5e-4),
    run=dict(log_every=50, eval_every=100, save_every=100, best=''),
  ),
  smoke=dict(
    batch_size=16,
    min_steps=8,
    data=dict(num_rows=64, num_test_rows=16, side=16),
    strided=dict(channels=(4, 4, 8, 8, 8)),
  ),
)


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset: paper, gpu, small or smoke."""
  return presets.get_config(preset, presets.IMAGES, PRESETS)


def build(
  config: config_dict.ConfigDict, optimizer: types.Optimizer = optax.sgd
) -> types.Experiment:
  """One training run."""
  data = of_images.data(config, load(config, config.data.train_split))
  made = method(config, data.train.num_classes, data.steps, optimizer)
  return of_images.classifier(
    config, data, made, sources=lambda split: load(config, split)
  )


def load(config, split: str) -> source.Source:
  """Rows of a split: gratings are drawn, other sets are read."""
  data = config.data
  if data.name != 'gratings':
    return of_images.load(config, split)
  sizes = dict(train=data.num_rows, test=data.num_test_rows)
  return gratings.draw(
    presets.choose('data.eval_splits', split, sizes),
    seed=list(sizes).index(split),
    side=data.side,
    split=split,
  )


def network(config, num_classes: int) -> nn.Module:
  """The network, with the padding that the config names."""
  kinds = dict(
    resnet=resnet.ResNet,
    preact_resnet=resnet.PreActResNet,
    strided=strided_conv_net.StridedConvNet,
  )
  made = presets.choose('network', config.network, kinds)
  net = made(num_classes=num_classes, **config[config.network])
  return padding.Padded(net, config.padding) if config.padding else net


def method(
  config, num_classes: int, steps: int, optimizer: types.Optimizer = optax.sgd
) -> types.Method:
  """The network, its optimizer and its loss."""
  tx = config.tx
  rate = optim.warmup_cosine(tx.learning_rate, steps=steps, warmup=tx.warmup)
  return supervised.make(
    network(config, num_classes),
    optimizer(rate, momentum=tx.momentum, nesterov=True),
    **config.step,
  )
