"""Intrinsic dimension of images (Pope et al., ICLR 2021), and rows to learn.

    python -m launch.reproduce --papers=intrinsic_dimension

measures the claims (`configs/studies/intrinsic_dimension.py`): estimates grow
with the latent dimension of a random decoder's images, and so do the rows that
a classifier of them needs. https://arxiv.org/abs/2104.08894

A run trains that classifier: of two classes of a decoder (images='decoded'), or
of the set `data.name` (images='set'), from num_rows of its rows.

paper: a ResNet of 18 layers (theirs is not pre-activated) on a real set.
small: an MLP on decoded images of 16 x 16; mnist, cifar10 and omniglot are the
  same, and the study measures that set's dimension in place of that of digits.
"""

from ml_collections import config_dict
import numpy as np
import optax

from configs import presets
from repjax import types
from repjax.data.images import transforms
from repjax.data.reading import source
from repjax.data.sets import decoded_images
from repjax.experiments import of_images
from repjax.methods import supervised
from repjax.models import mlp
from repjax.models import resnet

PRESETS = dict(
  paper=dict(
    batch_size=32,
    eval_batch_size=500,
    epochs=10.0,
    min_steps=1000,
    data=dict(name='cifar10', eval_splits=('test',)),
    images='set',
    num_rows=2000,
    decoder=dict(latent_dim=16, gain=1.5, gap=0.5),
    size=32,
    # Of pixels in [0, 1]; one number, since sets differ in channels.
    augment=dict(mean=(0.5,), std=(0.25,)),
    network='resnet',
    resnet=dict(stage_sizes=(2, 2, 2, 2), width=64),
    mlp=dict(features=(128,)),
    tx=dict(learning_rate=1e-3),
    run=dict(best='test/accuracy'),
  ),
  small=dict(
    batch_size=64,
    min_steps=600,
    images='decoded',
    size=16,
    num_rows=256,
    network='mlp',
  ),
  mnist=dict(on='small', data=dict(name='mnist')),
  cifar10=dict(on='small', data=dict(name='cifar10')),
  omniglot=dict(on='small', data=dict(name='omniglot')),
  smoke=dict(min_steps=8, num_rows=64),
)


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset: paper, small, smoke, mnist, cifar10 or omniglot."""
  return presets.get_config(preset, presets.IMAGES, PRESETS)


def build(
  config: config_dict.ConfigDict, optimizer: types.Optimizer = optax.adam
) -> types.Experiment:
  """One training run."""
  train = rows(config, config.data.train_split)
  data = of_images.data(config, train)
  if config.images == 'decoded':
    data = data._replace(recipe=scaled(config))
  return of_images.classifier(
    config,
    data,
    method(config, train.num_classes, optimizer),
    sources=lambda split: rows(config, split),
  )


def rows(config, split: str) -> source.Source:
  """Rows of a split; of training, the first `num_rows` of a random order."""
  types.check_choice('config.images', config.images, ('decoded', 'set'))
  is_train = split == config.data.train_split
  if config.images == 'decoded':
    field = 'train_split' if is_train else 'eval_splits'
    types.check_choice(f'config.data.{field}', split, ('train', 'test'))
    made = decoded_images.decoder(seed=config.seed, **config.decoder)
    seed, count = [config.seed, int(split == 'test')], config.num_rows
    count = count if is_train else 2000
    return decoded_images.draw(made, count, size=config.size, seed=seed)
  whole = of_images.load(config, split)
  if not is_train:
    return whole
  limits = f'[1, {len(whole)}]'  # What the split has.
  types.check_range(limits, **{'config.num_rows': config.num_rows})
  order = np.random.default_rng(config.seed).permutation(len(whole))
  return whole.select(order[: config.num_rows])


def scaled(config) -> transforms.Recipe:
  """What decoded images, floats in [0, 1] already, go through."""
  (mean,), (std,) = config.augment.mean, config.augment.std
  scale = transforms.on_images(lambda image, draws: (image - mean) / std)
  return transforms.Recipe(scale, scale, None, None, (config.size,) * 2 + (1,))


def method(config, num_classes: int, optimizer=optax.adam) -> types.Method:
  """The network and its optimizer."""
  kinds = dict(mlp=mlp.Mlp, resnet=resnet.PreActResNet)
  network = presets.choose('network', config.network, kinds)
  return supervised.make(
    network(num_classes, **config[config.network]),
    optimizer(config.tx.learning_rate),
    **config.step,
  )
