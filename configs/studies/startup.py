"""What STARTUP claims, measured: labels of classes that are not there help.

A teacher of base classes labels rows of a far domain with its own classes, and
a student learns both, with self-supervision of the far rows; the paper reports
that its features are better for new classes of that domain, by 2.9 points at
one row on average over four sets (abstract; other figures not checked).

Here: base classes are 40 drawn characters, another alphabet a seed; the far
domain is `digits` with Gaussian noise, whose labels only episodes of test rows
see. Students start from one teacher, with a new head; rates are chosen as the
authors' code does, by the loss after 50 updates on held-out rows of both
domains. Logistic regression judges frozen features; the paper trains it by SGD.
'Base rows alone' is the teacher trained on for as long as a student.

Trials were seen before the thresholds (two seeds, 250 updates): STARTUP 9 to 14
points above transfer at one row and 10 to 12 at five, without self-supervision
4 and 5, and 6 to 8 below self-supervision alone; on MNIST 5 classes had hurt.

Found: self-supervision alone is best (`omniglot`: .69 at five rows, transfer
.49, STARTUP .53); beside it the teacher's labels add nothing. On `digits`,
transfer is below random features: maybe for batch statistics of clean rows.
"""

import functools

import jax
import jax.numpy as jnp
from ml_collections import config_dict
import numpy as np

from configs import presets
from configs import startup as recipe
from configs.parts import teachers
from configs.parts import two_domains
from repjax import plots
from repjax import trees
from repjax import types
from repjax.data.batches import beside
from repjax.data.images import views
from repjax.experiments import wiring
from repjax.layers import layer_inputs
from repjax.methods import few_shot
from repjax.methods import soft_labels
from repjax.methods import startup
from repjax.protocols import on_episodes
from repjax.protocols import self_training
from repjax.protocols import side_by_side

SEEDS = (0, 1, 2, 3, 4)
_SHOTS = (1, 5)
_FEW = ('without self-supervision', 'STARTUP')
_CLASSIFIER = few_shot.logistic_regression()

_NEEDS = ('base_accuracy', 'features_gain')
CLAIMS = dict(
  one_row=dict(
    says='40 base classes, 1 row: accuracy in episodes, STARTUP minus transfer',
    paper='+2.9 points on average over four far sets (abstract)',
    **dict(at_least=0.02, needs=_NEEDS),
  ),
  five_rows=dict(
    says='40 base classes, 5 rows: STARTUP minus transfer',
    paper='better (figure not checked)',
    **dict(at_least=0.02, needs=_NEEDS),
  ),
  labels_alone=dict(
    says='40 base classes, 5 rows: without self-supervision minus transfer',
    paper='better (figure not checked)',
    **dict(at_least=0.01, needs=_NEEDS),
  ),
  over_base_rows=dict(
    says='40 base classes, 5 rows: STARTUP minus base rows alone, as long',
    paper='not reported',
    **dict(at_least=0.02, needs=_NEEDS),
  ),
  over_self_supervision=dict(
    says='40 base classes, 5 rows: STARTUP minus self-supervision alone',
    paper='better (figure not checked)',
    **dict(at_least=0.0, needs=_NEEDS),
  ),
  few_classes=dict(
    says='5 base classes, 5 rows: without self-supervision minus transfer',
    paper='not reported',
    **dict(at_most=0.0, needs=_NEEDS),
  ),
  few_classes_tell_less=dict(
    says="nats that a teacher's label tells of a row: 40 base classes minus 5",
    paper='not reported',
    **dict(at_least=0.3, needs=_NEEDS),
  ),
  base_accuracy=dict(
    kind='first',
    says="the teacher's accuracy on held-out rows of its 40 classes",
    paper='a good teacher is taken for granted',
    at_least=0.8,
  ),
  features_gain=dict(
    kind='first',
    says='5 rows: accuracy of transfer over chance',
    paper='above (figure not checked)',
    at_least=0.1,
  ),
)

_TERMS = {
  'base rows alone': (1, 0, 0),
  'distillation alone': (0, 1, 0),
  'self-supervision alone': (0, 0, 1),
  'without self-supervision': (1, 1, 0),
  'without distillation': (1, 0, 1),
  'STARTUP': (1, 1, 1),
}

_STUDY = dict(
  paper=dict(study=dict(few=5, updates=50, times=4)),
  smoke=dict(study=dict(few=2, updates=4, times=1)),
)


def get_config(preset: str) -> config_dict.ConfigDict:
  """Numbers of a preset of the recipe, and of the study."""
  return presets.get_config(
    preset, presets.IMAGES, two_domains.DOMAINS, recipe.PRESETS, _STUDY
  )


def run(config: config_dict.ConfigDict, seeds=SEEDS) -> types.Report:
  """Teachers of many and of few classes, and their students, seed by seed."""
  many, few = config.data.num_base, config.study.few
  found, told, known = dict[tuple, np.ndarray](), {}, {}
  for number, names in ((many, tuple(_TERMS)), (few, _FEW)):
    settings = [_of_seed(config, number, seed) for seed in seeds]
    told[number], known[number], scores = _students(settings, names, seeds)
    found |= {(number, *key): x for key, x in scores.items()}

  def gain(number, name, shots, over='transfer'):
    return found[number, name, shots] - found[number, over, shots]

  scalars = {
    'one_row': gain(many, 'STARTUP', 1),
    'five_rows': gain(many, 'STARTUP', 5),
    'labels_alone': gain(many, 'without self-supervision', 5),
    'over_base_rows': gain(many, 'STARTUP', 5, 'base rows alone'),
    'over_self_supervision': gain(many, 'STARTUP', 5, 'self-supervision alone'),
    'few_classes': gain(few, 'without self-supervision', 5),
    'few_classes_tell_less': told[many] - told[few],
    'base_accuracy': known[many],
    'features_gain': found[many, 'transfer', 5] - 1 / config.episodes.ways,
  }
  for (num, name, shots), x in found.items():
    scalars[f'{num} base classes, {shots} rows, {name}'] = x
  return types.Report(
    scalars=scalars,
    arrays={},
    figures={f'of_{x}_base_classes': _drawn(found, x) for x in (many, few)},
  )


def _drawn(found, number):
  """Bars of all that start from teachers of so many classes."""
  groups = {}
  for (num_base, name, shots), x in found.items():
    if num_base == number:
      groups.setdefault(name.replace(' ', '\n'), {})[f'{shots} rows'] = x
  return plots.bars(groups, ylabel='accuracy in episodes of the target')


def _of_seed(config, num_base, seed):
  """The config of one seed's base classes."""
  config = config.copy_and_resolve_references()
  config.seed, config.data.num_base = seed, num_base
  return config


def _students(settings, names, seeds):
  """(information of labels [S], the teachers' accuracy, accuracy by name)."""
  config = settings[0]
  base, val, unlabelled, held_out, target = (
    [two_domains.columns(x, split) for x in settings]
    for split in two_domains.SPLITS
  )
  rows = _together(base)
  method = teachers.teacher(config, config.teaching.steps)
  fresh = side_by_side.begin(method, rows, seeds)
  taught, see = teachers.teach(config, rows, seeds), _seeing(method)
  teacher = trees.unstack(taught)
  logits = [
    [see(x, y)['logits'] for x, y in zip(teacher, part, strict=True)]
    for part in (val, unlabelled, held_out)
  ]
  right = [
    (x.argmax(-1) == y['label']).mean()
    for x, y in zip(logits[0], val, strict=True)
  ]
  soft = functools.partial(
    soft_labels.of_teacher, num_classes=config.data.num_base, **config.labels
  )
  unlabelled, held_out = (
    [
      {startup.UNLABELLED: x['image'], startup.TAUGHT: soft(y)}
      for x, y in zip(part, said, strict=True)
    ]
    for part, said in zip((unlabelled, held_out), logits[1:], strict=True)
  )
  told = [
    soft_labels.report(x[startup.TAUGHT])['information'] for x in unlabelled
  ]
  learned = _together(
    [
      beside.pairs(x, y, times=config.study.times, seed=seed)
      for x, y, seed in zip(base, unlabelled, seeds, strict=True)
    ]
  )
  judged = _together([{**x, **y} for x, y in zip(val, held_out, strict=True)])
  judge = functools.partial(_judge, config, target, seeds)
  found = judge('random features', see, fresh) | judge('transfer', see, taught)
  steps = wiring.steps_of(config, len(unlabelled[0][startup.TAUGHT]))
  for name in names:
    found |= judge(
      name, *_student(config, name, learned, judged, taught, seeds, steps)
    )
  return np.asarray(told), np.asarray(right), found


def _together(parts):
  """Columns with a leading seed axis, of as many rows a seed and column."""
  size = min(len(x) for columns in parts for x in columns.values())
  return {k: np.stack([x[k][:size] for x in parts]) for k in parts[0]}


def _student(config, name, learned, judged, taught, seeds, steps):
  """`_seeing` of a student, and states at the rate that was chosen for each."""
  temperature = config.objective.temperature
  objective = startup.Objective(*_TERMS[name], temperature=temperature)
  tx = side_by_side.swept(teachers.links(config, 1.0, steps))
  method = recipe.method(config, tx, objective)
  begin = functools.partial(self_training.begin, take=config.student.take)
  loss = startup.held_out(
    two_domains.network(config),
    views=views.random_views(**config.views),
    objective=objective,
    projection_dim=config.student.projection_dim,
  )
  loss = jax.jit(jax.vmap(loss, (0, 0, None)))
  judged = {**judged, 'mask': np.ones(judged['label'].shape, np.float32)}
  states, _ = self_training.train(
    name,
    method,
    jax.vmap(begin)(
      side_by_side.begin(method, learned, seeds), teachers.variables(taught)
    ),
    learned,
    held_out=lambda states: loss(states, judged, jax.random.key(0)),
    seeds=seeds,
    rates=config.rates,
    updates=config.study.updates,
    steps=steps,
    batch_size=config.batch_size,
    vectorize=False,
  )
  return _seeing(method), states


def _seeing(method):
  """(state, columns) -> 'logits', and 'features' that the head sees."""

  @jax.jit
  def see(state, image, mask):
    outputs, features = layer_inputs.with_input_of(
      lambda: method.predict(state, {'image': image, 'mask': mask}), 'head'
    )
    return {'features': features, 'logits': outputs['logits']}

  return lambda state, columns: jax.device_get(
    see(state, columns['image'], jnp.ones(len(columns['image'])))
  )


def _judge(config, target, seeds, name, see, states):
  """Accuracy over episodes, (name, shots) -> [S]; the same for all names."""
  features = [
    see(state, rows)['features']
    for state, rows in zip(trees.unstack(states), target, strict=True)
  ]
  return {
    (name, shots): np.asarray(
      [
        on_episodes.mean_accuracy(
          x,
          rows['label'],
          _CLASSIFIER,
          shots=shots,
          seed=seed,
          **config.episodes,
        )
        for x, rows, seed in zip(features, target, seeds, strict=True)
      ]
    )
    for shots in _SHOTS
  }
