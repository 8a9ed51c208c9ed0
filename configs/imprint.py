"""Robbing the Fed (Fowl et al., ICLR 2022): a gradient that holds its inputs.

    python -m launch.reproduce --papers=imprint

measures the claims (`configs/studies/imprint.py`): images of `digits` read from
what federated users send, and what stops that. https://arxiv.org/abs/2110.13057

A run trains what a malicious server ships: a classifier behind an imprint
(`layers/imprint.py`), whose bins lie where public knowledge says. Its users'
sum is one batch here; `protocols/rounds.py` has rounds of many users, and
`attacks/imprint.py` reads their gradients.

paper: ImageNet before a ResNet-18, 64 images, 128 bins of a cosine wave, with
  the connection that the authors' code has as its default.
small: an MLP on `digits`; bins of 400 public rows, along a random direction.
gpu: 64 images of CIFAR-10 before a PreAct ResNet-18; not run yet.
"""

import functools

from ml_collections import config_dict
import optax

from configs import presets
from configs.parts import imprints
from repjax import types
from repjax.experiments import of_images

PRESETS = dict(
  paper=dict(
    batch_size=64,
    eval_batch_size=256,
    epochs=1.0,
    data=dict(name='imagenet2012', eval_splits=('validation',), num_workers=8),
    augment=dict(
      size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    ),
    network='resnet',
    resnet=dict(stage_sizes=(2, 2, 2, 2), block='basic', norm='batch'),
    preact_resnet=dict(stage_sizes=(2, 2, 2, 2), norm='group'),
    mlp=dict(features=(64,)),
    # bins: 'normal' or 'laplace' (inputs are standardised, and nothing else is
    # known), or a split of public rows, such as 'train[:400]'.
    imprint=dict(
      num_bins=128,
      bins='laplace',
      direction='fourier',
      mode=32,
      kind='cumulative',
      connection='linear',
      gain=1.0,
    ),
    tx=dict(learning_rate=1e-3),
    run=dict(best='validation/accuracy'),
  ),
  small=dict(
    eval_batch_size=355,
    epochs=5.0,
    data=dict(train_split='train[400:]', eval_splits=('test',), num_workers=0),
    augment=dict(size=0, mean=(0.3,), std=(0.37,)),
    network='mlp',
    imprint=dict(
      num_bins=256,
      bins='train[:400]',
      direction='randn',
      connection='addition',
    ),
    tx=dict(learning_rate=0.1),
    run=dict(log_every=20, eval_every=40, save_every=40, best='test/accuracy'),
  ),
  smoke=dict(batch_size=16, epochs=0.2, imprint=dict(num_bins=32)),
  gpu=dict(
    on='small',
    eval_batch_size=1000,
    data=dict(name='cifar10', train_split='train[10000:]'),
    augment=dict(presets.CIFAR10),
    network='preact_resnet',
    preact_resnet=dict(remat=False),
    imprint=dict(bins='train[:10000]'),
  ),
)


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset: paper, small, smoke or gpu."""
  return presets.get_config(preset, presets.IMAGES, PRESETS)


def build(
  config: config_dict.ConfigDict, optimizer: types.Optimizer = optax.sgd
) -> types.Experiment:
  """One training run of the malicious model."""
  data = of_images.read(config)
  trap = imprints.trap(config, data)
  model = imprints.network(config, data.train.num_classes, trap)
  method = imprints.method(model, optimizer(config.tx.learning_rate), config)
  return of_images.classifier(
    config,
    data,
    method,
    warm_start=functools.partial(imprints.planted, config, trap),
  )
