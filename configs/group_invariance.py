"""PGI (Ahmed et al., ICLR 2021): predictions that are the same in all groups.

    python -m launch.reproduce --papers=group_invariance

measures the claims (`configs/studies/group_invariance.py`): in colours of other
classes, PGI is right more often than training with balanced groups, and that
more often than plain training, with true groups and with inferred ones. A run
of this recipe has the true groups; --config.method=erm and others compare.
https://openreview.net/forum?id=b9PoimzZFJ

paper: coloured MNIST with the authors' network and numbers.
small: coloured `digits`, with a quarter of the channels.
mnist: 6,000 rows of MNIST, with the network of `small`.
"""

from ml_collections import config_dict
import optax

from configs import presets
from repjax import types
from repjax.data.reading import source
from repjax.data.sets import coloured_digits
from repjax.experiments import of_images
from repjax.methods import class_conditional
from repjax.methods import erm
from repjax.methods import group_dro
from repjax.methods import group_invariance
from repjax.methods import irm
from repjax.methods import reweighting
from repjax.methods import vrex
from repjax.models import conv_net

PRESETS = dict(
  paper=dict(
    batch_size=512,
    eval_batch_size=1000,
    epochs=30.0,
    data=dict(
      name='mnist',
      train_split='train',
      test_split='test',
      eval_splits=('validation_systematic', 'systematic', 'in_distribution'),
    ),
    colours=dict(
      bias_rate=0.8, min_distance=2500.0, num_validation=9000, copies=1
    ),
    augment=dict(mean=(0.5,), std=(0.5,)),
    net=dict(channels=(64, 128, 256)),
    # 'pgi', 'erm', 'balanced' (groups), 'reweight', 'irm', 'vrex', 'group_dro',
    # and class by class 'cirm', 'cvrex', 'cdro', 'cmmd'.
    method='pgi',
    # Epochs of plain training, after which groups are inferred.
    reference_epochs=1.0,
    # Of PGI's penalty, after `ramp_epochs` further ones, and of the others'
    # (the authors do not say theirs); steps of 'group_dro' and 'cdro'.
    weight=50.0,
    other_weight=10.0,
    ramp_epochs=5.0,
    dro_step=0.01,
    # The rate is divided by ten at these parts of the run.
    tx=dict(
      learning_rate=0.1,
      momentum=0.9,
      weight_decay=1e-4,
      drop=0.1,
      drop_at=(0.3, 0.6, 0.8),
    ),
    inference=dict(
      steps=100, learning_rate=1e-4, batch_size=512, temperature=10.0
    ),
    run=dict(best='validation_systematic/accuracy'),
  ),
  small=dict(
    batch_size=250,
    eval_batch_size=360,
    epochs=60.0,
    data=dict(name='digits'),
    colours=dict(num_validation=300, copies=4),
    net=dict(channels=(16, 32, 64)),
    reference_epochs=5.0,
    weight=30.0,
    ramp_epochs=25.0,
    dro_step=1.0,
  ),
  mnist=dict(
    on='small',
    batch_size=500,
    eval_batch_size=1000,
    epochs=30.0,
    data=dict(
      name='mnist', train_split='train[:8000]', test_split='test[:4000]'
    ),
    colours=dict(num_validation=1200, copies=1),
    reference_epochs=1.0,
    ramp_epochs=5.0,
  ),
  smoke=dict(
    batch_size=64,
    epochs=0.5,
    colours=dict(copies=1),
    net=dict(channels=(4, 4, 4)),
    reference_epochs=0.1,
    ramp_epochs=0.1,
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
  if config.method == 'reweight':
    train = train.with_columns(
      weight=reweighting.row_weights(train.column('group'), 2)
    )
  data = of_images.data(config, train)
  made = method(config, len(data.train), data.steps, optimizer)
  return of_images.classifier(
    config, data, made, sources=lambda split: load(config, split)
  )


def load(config, split: str, *, seed: int | None = None) -> source.Source:
  """Rows of a split of the coloured digits."""
  grey = (
    source.load(config.data.name, name, data_dir=config.data.dir)
    for name in (config.data.train_split, config.data.test_split)
  )
  seed = config.seed if seed is None else seed
  return coloured_digits.load(*grey, split, seed=seed, **config.colours)


def steps_of(config, num_rows: int, epochs: float) -> int:
  """Number of updates of so many passes over the training rows."""
  return max(1, round(epochs * num_rows / config.batch_size))


def method(
  config, num_rows: int, steps: int, optimizer: types.Optimizer = optax.sgd
) -> types.Method:
  """The network, its optimizer and its loss.

  Args:
    config: Of a preset.
    num_rows: Number of training rows.
    steps: Number of updates.
    optimizer: Ends the optax chain.
  """
  tx = config.tx
  rate = optax.piecewise_constant_schedule(
    tx.learning_rate, {round(at * steps): tx.drop for at in tx.drop_at}
  )
  chain = optax.chain(
    optax.add_decayed_weights(tx.weight_decay),
    optimizer(rate, momentum=tx.momentum),
  )
  weight = group_invariance.ramp(
    config.weight if config.method == 'pgi' else config.other_weight,
    start=steps_of(config, num_rows, config.reference_epochs),
    steps=steps_of(config, num_rows, config.ramp_epochs),
  )
  groups = dict(num_groups=2)
  classes = dict(num_classes=9)
  # IRM's and V-REx' sums are divided by the weight, as in the authors' code.
  scaled = dict(weight=weight, rescale=True)
  kinds = dict(
    pgi=(group_invariance.make, dict(**classes, weight=weight)),
    erm=(erm.make, {}),
    # Rows of `reweight` bring their weights with them.
    reweight=(erm.make, {}),
    balanced=(erm.make, dict(**groups, balance='groups')),
    irm=(irm.make, dict(**groups, **scaled, form='vector')),
    vrex=(vrex.make, dict(**groups, **scaled)),
    group_dro=(group_dro.make, dict(**groups, step_size=config.dro_step)),
    cirm=(class_conditional.make, dict(**classes, **scaled, form='irm')),
    cvrex=(class_conditional.make, dict(**classes, **scaled, form='vrex')),
    cmmd=(class_conditional.make, dict(**classes, weight=weight, form='mmd')),
    cdro=(class_conditional.dro, dict(**classes, step_size=config.dro_step)),
  )
  make, settings = presets.choose('method', config.method, kinds)
  return make(
    conv_net.ConvNet(9, **config.net), chain, **settings, **config.step
  )
