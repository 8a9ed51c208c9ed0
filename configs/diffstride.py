"""DiffStride (Riad et al., ICLR 2022): strides that are learnt.

    python -m launch.reproduce --papers=diffstride

measures the claims, from strides that start too large. In a run of this recipe
crops are fixed, so that strides fall no further than by `stride.room`; the
study crops anew as they move. --config.stride.kind=strided and =spectral
compare. https://arxiv.org/abs/2202.01653

paper: PreAct ResNet-18 on CIFAR-10 as the authors' code has it, with mixup, but
  without a pooling of stride 1 behind the stem.
small: one block a stage, on digits of 8 x 8 that lie anywhere on 20 x 20.
cifar10: that network on 10,000 rows of CIFAR-10.
gpu: half of the widths of `paper`, 30 epochs; not run here.
"""

from ml_collections import config_dict
import optax

from configs import presets
from repjax import optim
from repjax import types
from repjax.data.reading import source
from repjax.data.sets import placed_digits
from repjax.experiments import of_images
from repjax.layers import downsampling
from repjax.methods import learnt_strides
from repjax.methods import mixup
from repjax.models import resnet

PRESETS = dict(
  paper=dict(
    batch_size=128,
    eval_batch_size=1000,
    epochs=200.0,  # The authors count a pair that is mixed as one image: 400.
    data=dict(name='cifar10', eval_splits=('test',)),
    placing=dict(size=0, copies=1, clutter=0),  # 0: images as they are.
    augment=presets.CIFAR10,
    net=dict(stage_sizes=(2, 2, 2, 2), width=64),
    # Of the stages behind the first; the poor ones are (3., 2., 3.).
    stride=dict(
      strides=(2.0,) * 3, kind='diffstride', smoothness=4.0, room=1.25
    ),
    tx=dict(learning_rate=0.01, momentum=0.9, weight_decay=1e-3),
    stride_cost=0.0,  # lambda of the price on places.
    # At steps 400, 18,000 and 32,000 of 78,125.
    drop=dict(at=(0.00512, 0.2304, 0.4096), factors=(10.0, 0.1, 0.1)),
    mixup=dict(alpha=0.2, per='example'),
    run=dict(best='test/accuracy'),
  ),
  small=dict(
    batch_size=32,
    epochs=0.0,
    min_steps=600,
    placing=dict(size=20, copies=4, clutter=2),
    augment=dict(mean=(0.1,), std=(0.25,)),
    net=dict(stage_sizes=(1, 1, 1), width=8),
    stride=dict(strides=(3.0, 3.0), smoothness=2.0),
    tx=dict(learning_rate=0.1, weight_decay=1e-4),
    drop=dict(at=(0.5, 0.8), factors=(0.3, 0.3)),
    mixup=dict(alpha=0.0),
  ),
  cifar10=dict(
    on='small',
    min_steps=1000,
    data=dict(
      name='cifar10', train_split='train[:10000]', eval_splits=('test[:2000]',)
    ),
    placing=dict(size=0, copies=1, clutter=0),
    augment=presets.CIFAR10,
    stride=dict(smoothness=4.0),
  ),
  gpu=dict(on='paper', epochs=30.0, net=dict(width=32, remat=False)),
  smoke=dict(min_steps=6, placing=dict(size=12, copies=1)),
)


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset: paper, small, cifar10, gpu or smoke."""
  return presets.get_config(preset, presets.IMAGES, PRESETS)


def build(
  config: config_dict.ConfigDict, optimizer: types.Optimizer = optax.sgd
) -> types.Experiment:
  """One training run."""
  data = of_images.data(config, load(config, config.data.train_split))
  made = method(config, data.train.num_classes, data.steps, optimizer)
  made = learnt_strides.reporting(made)
  return of_images.classifier(
    config, data, made, sources=lambda x: load(config, x), multiple=2
  )


def load(config: config_dict.ConfigDict, split: str) -> source.Source:
  """Rows of a split, where `placing` says so on larger grounds."""
  seed = 0 if split == config.data.train_split else 1
  return placed_digits.place(
    of_images.load(config, split), seed=seed, **config.placing
  )


def network(config, num_classes: int, **stride) -> resnet.PreActResNet:
  """The network; `stride` stands in for fields of that name."""
  stride = downsampling.Downsampling(**{**config.stride, **stride})
  return resnet.PreActResNet(num_classes, stride=stride, **config.net)


def method(
  config, num_classes: int, steps: int, optimizer=optax.sgd, **stride
) -> types.Method:
  """The network, and an optimizer with a group for its strides."""
  tx = config.tx
  rate = optim.drops(tx.learning_rate, steps=steps, **config.drop)
  own = optimizer(rate, momentum=tx.momentum)
  decay = optax.add_decayed_weights(tx.weight_decay, optim.weight_decay_mask)
  return mixup.make(
    network(config, num_classes, **stride),
    optax.chain(
      optim.stride_cost(config.stride_cost),
      optim.stride_group(optax.chain(decay, own), own),
    ),
    num_classes=num_classes,
    **config.mixup,
    **config.step,
  )
