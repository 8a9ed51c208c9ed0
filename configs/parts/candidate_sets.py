"""Images with sets of candidate labels: sets, views, networks, experiments."""

import flax.linen as nn
import numpy as np
import optax

from configs import presets
from repjax import parallel
from repjax import plots
from repjax import types
from repjax.data import candidates
from repjax.data.batches import in_order
from repjax.data.images import augmix
from repjax.data.images import randaugment
from repjax.data.images import transforms
from repjax.data.images import views
from repjax.data.reading import source as sources
from repjax.experiments import of_images
from repjax.methods import disambiguation
from repjax.methods import key_queue
from repjax.methods import logistic_regression
from repjax.methods import partial_labels
from repjax.methods import pico
from repjax.methods import supervised
from repjax.methods import two_views
from repjax.models import mlp
from repjax.models import resnet

# The split on which the state's targets are judged: training rows, no images.
TARGETS = 'targets'

ALGORITHMS = ('pico', *partial_labels.KINDS, 'supervised')


def read(config) -> of_images.Data:
  """The training rows with sets, and what they go through.

  Args:
    config: With what `of_images.read` reads, and data.candidates, data.rate,
      data.noise and views.
  """
  train = of_images.load(config, config.data.train_split)
  found = sets(config, train, config.seed)
  data = of_images.data(
    config,
    candidates.attached(train, found, noisy=config.data.noise > 0),
  )
  return data._replace(recipe=_with_strong(config, data.recipe))


def sets(config, train: sources.Source, seed: int) -> np.ndarray:
  """Candidates of each training row, bool [N, C].

  'uniform': any other class at `data.rate`; 'next': the one after the label;
  'hierarchical': those with its coarse label, as CIFAR-100 has them;
  'instances': as a logistic regression on the pixels takes it for them, `rate`
  on average; 'given': the column 'candidates' of the set.

  Raises:
    InputError: If the set has no classes, or lacks a column.
  """
  data, num_classes = config.data, train.num_classes
  if data.candidates == 'given':
    return train.column(candidates.COLUMN)
  if num_classes is None:
    raise types.InputError(
      f'{train.name} has no classes: give a --config.data.name that has.'
    )
  label = train.column('label')
  kinds = dict(
    uniform=lambda: candidates.uniform(num_classes, data.rate)[label],
    next=lambda: candidates.by_distance(num_classes, (data.rate,))[label],
    hierarchical=lambda: _hierarchical(train, data.rate)[label],
    instances=lambda: candidates.of_instances(
      label, _pixels_say(train, label), data.rate
    ),
  )
  rates = presets.choose('data.candidates', data.candidates, kinds)()
  return candidates.draw(label, rates, seed=seed, noise=data.noise)


def _hierarchical(train, rate):
  label, coarse = train.column('label'), train.column('coarse_label')
  groups = np.zeros(train.num_classes, np.int32)
  groups[label] = coarse
  return candidates.within(groups, rate)


def _pixels_say(train, label):
  """Probabilities of a logistic regression, of the rows that it has learned."""
  pixels = train.column('image').reshape(len(train), -1).astype(np.float32)
  pixels = pixels / 255
  fit = logistic_regression.fit(pixels, label, num_classes=train.num_classes)
  scores = np.asarray(fit.logits(pixels), np.float64)
  scores = np.exp(scores - scores.max(1, keepdims=True))
  return scores / scores.sum(1, keepdims=True)


def two_of(config) -> two_views.TwoViews:
  """Two random views of an image, and of what the host made of it."""
  of = config.views
  crop = dict(area=of.area, flip=of.flip)
  jitter = dict(brightness=of.jitter, contrast=of.jitter, saturation=of.jitter)
  none = dict(brightness=0.0, contrast=0.0, saturation=0.0)
  return two_views.of_images(
    views.random_views(**crop, **jitter),
    views.random_views(**crop, **(none if of.strong_layers else jitter)),
    noise=of.noise,
  )


def _with_strong(config, recipe):
  """The recipe with a column 'strong', RandAugment's view, if asked for."""
  of = config.views
  if not of.strong_layers:
    return recipe
  augment = randaugment.rand_augment(of.strong_layers, of.strong_magnitude)

  def apply(columns, draws):
    strong = augment.apply({'image': columns['image']}, draws)['image']
    return {**columns, 'strong': strong}

  made = transforms.Transform(augment.num_draws, apply)
  scaled = augmix.on_views(recipe.train, views=('strong',))
  return recipe._replace(train=transforms.compose(made, scaled))


def network(config, num_classes: int) -> nn.Module:
  """The backbone, whose last layer is `head`."""
  kinds = dict(mlp=mlp.Mlp, preact_resnet=resnet.PreActResNet)
  kind = presets.choose('network', config.network, kinds)
  return kind(num_classes, **config[config.network])


def algorithm(
  config, data: of_images.Data, tx: optax.GradientTransformation
) -> types.Method:
  """What `config.algorithm` names, on a network of its own.

  All see the same random views; PiCO's key network sees a second one.
  """
  num_rows, num_classes = len(data.train), data.train.num_classes
  types.check_choice('config.algorithm', config.algorithm, ALGORITHMS)
  model, views = network(config, num_classes), two_of(config)
  if config.algorithm != 'pico':
    step = dict(
      **config.step, transform=lambda batch, rng: views(batch, rng)[0]
    )
    if config.algorithm == 'supervised':
      return supervised.make(model, tx, **step)
    return partial_labels.make(
      model,
      tx,
      kind=config.algorithm,
      num_rows=num_rows,
      num_classes=num_classes,
      leverage=config.leverage,
      **step,
    )
  key_queue.check(config.pico.queue_size, config.batch_size)
  of, epoch = config.targets, num_rows / config.batch_size
  return pico.make(
    model,
    tx,
    num_rows=num_rows,
    num_classes=num_classes,
    views=views,
    warmup_steps=round(of.warmup * epoch),
    target_momentum=disambiguation.falling_momentum(
      of.start,
      of.end,
      steps=data.steps,
      steps_per_epoch=max(round(epoch), 1),
    ),
    **config.pico,
    **config.step,
  )


def experiment(
  config, data: of_images.Data, method: types.Method
) -> types.Experiment:
  """Training on sets; on the split 'targets' what became of them is judged."""
  splits = tuple(config.data.eval_splits)
  of_rows = config.copy_and_resolve_references()
  of_rows.data.eval_splits = tuple(x for x in splits if x != TARGETS)
  made = of_images.classifier(of_rows, data, method)
  if TARGETS not in splits or config.algorithm != 'pico':
    return made  # Others have no targets to judge.
  columns = ('label', candidates.COLUMN)
  rows = sources.from_arrays(
    data.train.name,
    {name: data.train.column(name) for name in columns},
    num_classes=data.train.num_classes,
    split=TARGETS,
  )

  def evals(split):
    if split != TARGETS:
      return made.evals(split)
    return in_order.eval_batches(
      rows, batch_size=parallel.round_up(config.eval_batch_size)
    )

  def figures(split, outputs, columns):
    if split != TARGETS:
      return made.figures(split, outputs, columns)
    # As logits, whose softmax they are.
    return plots.of_classes(
      np.log(np.maximum(outputs['pseudo_target'], 1e-12)), columns['label']
    )

  return made._replace(
    evals=evals, eval_splits=splits, measure=measure, figures=figures
  )


def measure(outputs, columns) -> dict[str, float]:
  """Of predictions what `of_images` measures; of targets two numbers.

  'confidence', a row's largest target on average, which needs no label and by
  which a checkpoint is chosen; and 'disambiguation', how often that is right.
  """
  if 'pseudo_target' not in outputs:
    return of_images.measure(outputs, columns)
  targets = outputs['pseudo_target']
  return {
    'confidence': float(targets.max(-1).mean()),
    'disambiguation': float((targets.argmax(-1) == columns['label']).mean()),
  }
