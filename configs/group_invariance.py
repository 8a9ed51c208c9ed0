"""PGI (Ahmed et al., ICLR 2021): predictions that are the same in all groups.

    python -m launch.reproduce --papers=group_invariance

measures the claims (`configs/studies/group_invariance.py`): in colours of other
classes, PGI is right more often than training with balanced groups, and that
more often than plain training, with true groups; whether with inferred ones,
too, is undecided. A run of this recipe has the true groups;
--config.method=erm and others compare.
https://openreview.net/forum?id=b9PoimzZFJ

paper: coloured MNIST with the authors' network and numbers.
small: coloured `digits`, with a quarter of the channels.
mnist: 6,000 rows of MNIST, with the network of `small`.
"""

from ml_collections import config_dict
import optax

from configs import presets
from configs.parts import group_methods
from repjax import optim
from repjax import types
from repjax.data.reading import source
from repjax.data.sets import coloured_digits
from repjax.experiments import of_images
from repjax.methods import grouped
from repjax.methods import reweighting
from repjax.models import conv_net

_GREY = ('train_split', 'test_split')
_SPLITS = ('validation_systematic', 'systematic')

PRESETS = dict(
  paper=dict(
    batch_size=512,
    eval_batch_size=1000,
    epochs=30.0,
    data=dict(
      name='mnist', test_split='test', eval_splits=(*_SPLITS, 'in_distribution')
    ),
    colours=dict(bias_rate=0.8, num_validation=9000, copies=1),
    augment=dict(mean=(0.5,), std=(0.5,)),
    net=dict(channels=(64, 128, 256)),
    method='pgi',  # Others: configs/parts/group_methods.py.
    # Epochs before groups are inferred, and in which penalties then rise;
    # `other_weight` is that of all but PGI (the authors do not say theirs).
    groups=dict(
      after=1.0, ramp=5.0, weight=50.0, other_weight=10.0, dro_step=0.01
    ),
    # The rate is divided by ten at these parts of the run.
    tx=dict(
      learning_rate=0.1,
      momentum=0.9,
      weight_decay=1e-4,
      drop_at=(0.3, 0.6, 0.8),
    ),
    inference=dict(steps=100, learning_rate=1e-4, batch_size=512),
    run=dict(best='validation_systematic/accuracy'),
  ),
  small=dict(
    batch_size=250,
    epochs=60.0,
    data=dict(name='digits'),
    colours=dict(num_validation=300, copies=4),
    net=dict(channels=(16, 32, 64)),
    groups=dict(after=5.0, ramp=25.0, weight=30.0, dro_step=1.0),
  ),
  mnist=dict(
    on='small',
    batch_size=500,
    epochs=30.0,
    data=dict(
      name='mnist', train_split='train[:8000]', test_split='test[:4000]'
    ),
    colours=dict(num_validation=1200, copies=1),
    groups=dict(after=1.0, ramp=5.0),
  ),
  smoke=dict(
    batch_size=64,
    epochs=0.5,
    colours=dict(copies=1),
    net=dict(channels=(4, 4, 4)),
    groups=dict(after=0.1, ramp=0.1),
    inference=dict(steps=2),
  ),
)


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset: paper, small, mnist or smoke."""
  return presets.get_config(preset, presets.IMAGES, PRESETS)


def build(
  config: config_dict.ConfigDict, optimizer: types.Optimizer = optax.sgd
) -> types.Experiment:
  """One run, with the true groups."""
  train = load(config, 'train')
  if config.method != 'erm':  # All others learn from both groups.
    grouped.check(
      *(train.column(x) for x in ('label', 'group')),
      num_classes=9,
      num_groups=2,
    )
  if config.method == 'reweight':
    weight = reweighting.row_weights(train.column('group'), 2)
    train = train.with_columns(weight=weight)
  data = of_images.data(config, train)
  made = method(config, len(data.train), data.steps, optimizer)
  return of_images.classifier(
    config, data, made, sources=lambda split: load(config, split)
  )


def load(config, split: str, *, seed: int | None = None) -> source.Source:
  """Rows of a split of the coloured digits."""
  grey = (of_images.load(config, config.data[x]) for x in _GREY)
  seed = config.seed if seed is None else seed
  return coloured_digits.load(*grey, split, seed=seed, **config.colours)


def method(
  config, num_rows: int, steps: int, optimizer: types.Optimizer = optax.sgd
) -> types.Method:
  """The network, its optimizer and its loss, for so many rows and updates."""
  tx = config.tx
  factors = (0.1,) * len(tx.drop_at)
  rate = optim.drops(
    tx.learning_rate, steps=steps, at=tx.drop_at, factors=factors
  )
  return group_methods.method(
    config.method,
    conv_net.ConvNet(9, **config.net),
    optimizer(rate, momentum=tx.momentum),
    num_classes=9,
    epoch=num_rows / config.batch_size,
    weight_decay=tx.weight_decay,
    **config.groups,
    **config.step,
  )
