"""Teachers of base classes, and what they say of rows of another domain."""

from collections.abc import Callable
import dataclasses
import functools

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs.parts import two_domains
from repjax import files
from repjax import report
from repjax import start
from repjax import trees
from repjax import types
from repjax.data.batches import beside
from repjax.data.batches import in_order
from repjax.data.reading import source as sources
from repjax.experiments import of_images
from repjax.experiments import wiring
from repjax.methods import lp_ft
from repjax.methods import soft_labels
from repjax.methods import startup
from repjax.methods import step
from repjax.methods import supervised
from repjax.metrics import averages
from repjax.protocols import seed_loop
from repjax.protocols import side_by_side

# What draws base classes, and numbers them.
_OF_CLASSES = ('seed', 'data.base', 'data.base_split', 'data.num_base')


def links(
  config, rate: float, steps: int, optimizer: types.Optimizer = optax.sgd
) -> optax.GradientTransformation:
  """Momentum and weight decay, and a rate that falls as a cosine."""
  return optax.chain(
    optax.add_decayed_weights(config.tx.weight_decay),
    optimizer(
      optax.cosine_decay_schedule(rate, max(steps, 1)),
      momentum=config.tx.momentum,
    ),
  )


def teacher(
  config, steps: int, optimizer: types.Optimizer = optax.sgd, **settings
) -> types.Method:
  """The classifier of base classes, with settings of `supervised.make`."""
  types.check_range(
    '(0, inf)',
    **{'config.teaching.learning_rate': config.teaching.learning_rate},
  )
  tx = links(config, config.teaching.learning_rate, steps, optimizer)
  return supervised.make(two_domains.network(config), tx, **settings)


def run(config, optimizer: types.Optimizer = optax.sgd) -> types.Experiment:
  """One run of a teacher."""
  rows = two_domains.load(config, 'base')
  steps = wiring.num_steps(
    len(rows),
    batch_size=config.batch_size,
    epochs=config.teaching.epochs,
    min_steps=config.teaching.steps,
  )
  return of_images.classifier(
    config,
    of_images.Data(rows, two_domains.recipe(config, rows), steps),
    teacher(config, steps, optimizer, **config.step),
    sources=functools.partial(two_domains.load, config),
  )


def teach(config, base, seeds) -> types.TrainState:
  """Teachers, one a seed, after `config.teaching.steps`.

  Args:
    config: With the groups `teaching`, `tx` and that of the network.
    base: Base rows of each seed, name -> [S, N, ...].
    seeds: S seeds.

  Returns:
    Their states, with a leading seed axis.
  """
  steps = config.teaching.steps
  method = teacher(config, steps, **config.step)
  order = seed_loop.epochs(
    base['label'].shape[1], seeds, steps=steps, batch_size=config.batch_size
  )
  started = side_by_side.begin(method, base, seeds)
  [(_, states, _)] = seed_loop.fit(
    method,
    started,
    base,
    order,
    seeds=seeds,
    every=steps,
    vectorize=False,
  )
  return states


def variables(state: types.TrainState) -> types.PyTree:
  """What `self_training.begin` takes of a teacher."""
  return step.variables(state)


def taught(config) -> Callable[[], types.PyTree]:
  """A function that gives a teacher's variables: a run's, or trained there.

  Raises:
    InputError: If the config names no run and says not how to train one.
  """
  if config.teacher:
    found = start.from_run(
      config.teacher, field='config.teacher', which='predicted'
    )
    _check(config, found)
    return lambda: found
  if config.teaching.steps < 1:
    raise types.InputError(
      'config.teacher is empty, and config.teaching.steps='
      f'{config.teaching.steps} trains none here: train one with '
      '--config.stage=teacher and name its --workdir, or take --preset=small.'
    )

  @functools.cache
  def trained():
    base = {
      name: x[None] for name, x in two_domains.columns(config, 'base').items()
    }
    (state,) = trees.unstack(teach(config, base, (config.seed,)))
    return variables(state)

  return trained


def _check_classes(config, what):
  """Raises InputError where a run has learned other base classes."""
  said = files.path_of(config.teacher) / 'config.json'
  if not said.exists():  # A file of weights tells none.
    return
  theirs = report.flat(files.read_json(said, 'config')['config'])
  own = report.flat(config.to_dict())
  for name in _OF_CLASSES:
    if name in theirs and theirs[name] != own[name]:
      raise types.InputError(
        f'{what} was trained with config.{name}={theirs[name]}, and this run '
        f'has {own[name]}, so that its classes are others: give a teacher of '
        'these.'
      )


def _check(config, found):
  """Raises InputError unless these variables fit the config's network."""
  what = f'config.teacher={config.teacher}'
  _check_classes(config, what)
  size, channels = config.augment.size, len(config.augment.mean)
  image = jnp.zeros((1, size, size, channels))
  wanted = jax.eval_shape(
    lambda: two_domains.network(config).init(
      jax.random.key(0), image, train=False
    )
  )
  params = found['params']
  given = np.shape(params['head']['bias']) if 'head' in params else ()
  if given != wanted['params']['head']['bias'].shape:
    raise types.InputError(
      f'{what} has a head of shape {given}, and the base set '
      f'config.data.num_base={config.data.num_base} classes: give a teacher of '
      'these.'
    )
  # Statistics of norms, too; a run may keep more beside them.
  for name, collection in wanted.items():
    trees.check_leaves(
      trees.flatten(found.get(name, {})),
      trees.flatten(collection),
      what=f'{what}, {name}',
    )


def labelled(
  config, teacher_of: Callable[[], types.PyTree], rows: sources.Source
) -> sources.Source:
  """Rows with what a teacher says of them, which is asked for once.

  Args:
    config: With the group `labels`, arguments of `soft_labels.of_teacher`.
    teacher_of: Gives its variables, when the first row is read.
    rows: Of the target.
  """

  @functools.cache
  def said():
    known, model = teacher_of(), two_domains.network(config)
    state = types.TrainState(
      step=jnp.zeros((), jnp.int32),
      params=known['params'],
      opt_state=(),
      model_state={k: x for k, x in known.items() if k != 'params'},
      extra=(),
    )
    batches = in_order.eval_batches(
      rows,
      batch_size=min(config.eval_batch_size, len(rows)),
      transform=two_domains.recipe(config, rows).evaluate,
      process_index=0,
      process_count=1,
    )
    # Each process by itself, whenever its first row is read.
    predict = jax.jit(lp_ft.features(model))
    logits = [
      jax.device_get(predict(state, batch)['logits']) for batch in batches
    ]
    soft = soft_labels.of_teacher(
      np.concatenate(logits)[: len(rows)],
      num_classes=config.data.num_base,
      **config.labels,
    )
    told = soft_labels.report(soft)
    logging.info("the teacher's labels: %s", averages.summary(told))
    return soft

  if config.data.num_workers:  # Processes get what is known already.
    return rows.with_columns(**{startup.TAUGHT: said()})
  return dataclasses.replace(rows, reader=_Later(rows, startup.TAUGHT, said))


def beside_base(
  config, base: in_order.TrainBatches, rows: sources.Source
) -> beside.BesideBatches:
  """Batches of base rows, each beside a row that the teacher has labelled."""
  scaled = two_domains.recipe(config, rows).evaluate
  # Another seed than that of the base rows: 2^32 is no seed of a config.
  target = in_order.train_batches(
    rows,
    batch_size=config.batch_size,
    seed=config.seed + 2**32,
    transform=scaled,
    num_workers=config.data.num_workers,
  )
  columns = {'image': startup.UNLABELLED, startup.TAUGHT: startup.TAUGHT}
  return beside.beside(base, target, columns)


@dataclasses.dataclass(frozen=True)
class _Later:
  rows: sources.Source
  name: str
  values: Callable[[], np.ndarray]

  def __call__(self, indices):
    return {**self.rows.read(indices), self.name: self.values()[indices]}
