"""Directional feature interactions (Masoomi et al., ICLR 2022): redundancy.

    python -m launch.reproduce --papers=shapley

measures the claims (`configs/studies/shapley.py`). What is trained here is the
network on a table that is then explained; the explanation is a few lines on any
run of any recipe (README, 'Why did it say so?').
https://arxiv.org/abs/2304.07670

paper: the network of the authors' code on Divorce, 54 answers, plain SGD.
small: an MLP on the table of breast cancers that comes with scikit-learn.
planted: ten bits of which it is known what is redundant given what.
compas: ProPublica's COMPAS records, of which two columns repeat others.
divorce: the table of `paper`, trained as in `small`.
incomes: a generated table with the columns of a census, numbers and words.
adult: such a table of your own, a CSV file with a line of names and the label
  in the column `income`: --data_dir=adult.csv.
"""

from ml_collections import config_dict
import optax

from configs import presets
from repjax import optim
from repjax import plots
from repjax import types
from repjax.data.reading import prepared
from repjax.data.sets import tables
from repjax.experiments import of_images
from repjax.experiments import wiring
from repjax.methods import model_inputs
from repjax.methods import supervised
from repjax.models import mlp

PRESETS = dict(
  paper=dict(
    batch_size=120,  # The authors take all rows of training at once.
    eval_batch_size=200,
    epochs=30.0,
    min_steps=0,
    # standardise: columns by mean and deviation of the training rows.
    data=dict(name='divorce', eval_splits=('test',), standardise=False),
    mlp=dict(features=(50, 50)),
    tx=dict(learning_rate=0.1, momentum=0.0, drop=0.1, drop_at=(2 / 3,)),
    run=dict(best='test/accuracy'),
  ),
  small=dict(
    batch_size=64,
    epochs=0.0,
    min_steps=600,
    data=dict(name='breast_cancer', standardise=True),
    mlp=dict(features=(32, 32)),
    tx=dict(learning_rate=0.05, momentum=0.9),
    step=dict(l2=1e-3),
    run=dict(log_every=200, eval_every=200, save_every=300),
  ),
  planted=dict(on='small', data=dict(name='planted', standardise=False)),
  compas=dict(on='small', data=dict(name='compas')),
  divorce=dict(on='small', data=dict(name='divorce')),
  incomes=dict(on='small', data=dict(name='incomes')),
  adult=dict(on='small', data=dict(name='csv:label=income')),
  smoke=dict(min_steps=8),
)


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset; the module says which there are."""
  return presets.get_config(preset, presets.RUN, PRESETS)


def build(
  config: config_dict.ConfigDict, optimizer: types.Optimizer = optax.sgd
) -> types.Experiment:
  """One training run."""
  table, scale = read(config)
  train = rows(config, table, scale, config.data.train_split)
  steps = wiring.steps_of(config, len(train))
  return wiring.of_sources(
    config,
    method(config, train.num_classes, steps, optimizer),
    batches=wiring.shuffled(config, train),
    sources=lambda split: rows(config, table, scale, split),
    steps=steps,
    measure=of_images.measure,
    figures=lambda rows, outputs, columns: plots.of_classes(
      outputs['logits'], columns['label']
    ),
  )


def read(config) -> tuple[tables.Table, tables.Scale]:
  """The whole table, and what its columns are brought to."""
  table = tables.load(config.data.name, data_dir=config.data.dir)
  if config.data.standardise:
    return table, tables.scale(tables.split(table, 'train'))
  return table, tables.Scale(0.0, 1.0)


def rows(config, table: tables.Table, scale: tables.Scale, split: str):
  """Rows of a split, train or test."""
  if split.partition(':')[0] in (prepared.INPUTS, prepared.LABELLED):
    raise types.InputError(
      'What this recipe trains reads the splits train and test of its table, '
      'and no other files: put new rows into test.csv, beside train.csv.'
    )
  field = 'train_split' if split == config.data.train_split else 'eval_splits'
  types.check_choice(f'config.data.{field}', split, ('train', 'test'))
  part = tables.split(table, split)
  return tables.as_source(part, scale, name=config.data.name)


def method(
  config, num_classes: int, steps: int, optimizer=optax.sgd
) -> types.Method:
  """The network that is explained, and its optimizer."""
  tx = config.tx
  factors = (tx.drop,) * len(tx.drop_at)
  rate = optim.drops(
    tx.learning_rate, steps=steps, at=tx.drop_at, factors=factors
  )
  return supervised.make(
    mlp.Mlp(num_classes, **config.mlp),
    optimizer(rate, momentum=tx.momentum),
    inputs=model_inputs.features,
    **config.step,
  )
