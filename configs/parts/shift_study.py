"""Arms of the study of fine-grained shifts: a method on all its cells."""

import functools
from typing import Any
from typing import NamedTuple

from absl import logging
import numpy as np

from configs.parts import shift_methods
from configs.parts import shift_pretraining
from repjax.benchmarks import shift_results
from repjax.benchmarks import shift_training
from repjax.data.images import transforms
from repjax.protocols import side_by_side

# Arms that are ERM: from another start, and with batch norms, which is what
# BN-Adapt is compared with.
PRETRAINED, BATCH_NORM = 'pretrained', 'batch_norm'


class Arms(NamedTuple):
  """What all arms share.

  Attributes:
    cells: Training rows of K shifts and S seeds.
    recipe: How images are scaled.
    held_out: Rows of the validation, and behind them those of the test.
    num_labels: C.
    num_values: A.
    num_valid: Rows of the validation.
  """

  cells: shift_training.Cells
  recipe: transforms.Recipe
  held_out: shift_training.Columns
  num_labels: int
  num_values: int
  num_valid: int


class Arm(NamedTuple):
  """What came of one method, at the weight that is best for each shift.

  Attributes:
    valid: Validation accuracy, mean over seeds, [K].
    test: Test accuracy, [K, S].
    tables: The same by label and value, [K, S, C, A].
    weights: The chosen one of each shift, [K]; () of methods without any.
  """

  valid: np.ndarray
  test: np.ndarray
  tables: np.ndarray
  weights: tuple[float, ...] = ()


def with_best_rate(config: Any, arms: Arms) -> tuple[Any, Arm]:
  """The config with the learning rate that is best for ERM, and ERM at it.

  By mean validation accuracy over all shifts and seeds.
  """
  found = []
  for rate in config.study.rates:
    config = config.copy_and_resolve_references()
    config.tx.learning_rate = rate
    found.append(arm(config, 'erm', arms))
    logging.info('erm at rate %g: %.4f', rate, found[-1].valid.mean())
  best = int(np.argmax([x.valid.mean() for x in found]))
  config.tx.learning_rate = config.study.rates[best]
  return config, found[best]


def arm(config: Any, method: str, arms: Arms) -> Arm:
  """Trains a method at all weights and keeps the best one of each shift."""
  return measured(config, method, trained_logits(config, method, arms), arms)


def measured(config: Any, method: str, found: np.ndarray, arms: Arms) -> Arm:
  """What came of logits [weights, K * S, N, C], at the best weights."""
  num_seeds = len(set(arms.cells.seeds))
  num_shifts = len(arms.cells.seeds) // num_seeds
  # [weights, K, S, N, C]
  logits = found.reshape(len(found), num_shifts, num_seeds, *found.shape[2:])
  label, group = arms.held_out['label'], arms.held_out['group']
  right = logits.argmax(-1) == label
  scores = right[..., : arms.num_valid].mean(-1)  # [weights, K, S]
  best = scores.mean(-1).argmax(0)  # [K]
  chosen: tuple[float, ...] = ()
  if len(found) > 1:
    chosen = tuple(config.study.weights[i] for i in best)
    logging.info('%s: weights by validation %s', method, chosen)
  places = best, np.arange(num_shifts)
  test = slice(arms.num_valid, None)
  made = Arm(
    valid=scores[places].mean(-1),
    test=right[places][..., test].mean(-1),
    tables=shift_results.cell_accuracy(
      logits[places][..., test, :],
      label[test],
      group[test],
      num_labels=arms.num_labels,
      num_values=arms.num_values,
    ),
    weights=chosen,
  )
  logging.info('%s: test %s', method, made.test.mean(-1).round(3).tolist())
  return made


def trained_logits(config: Any, name: str, arms: Arms) -> np.ndarray:
  """Logits of the held-out rows at each weight, [weights, K * S, N, C]."""
  random = name in shift_methods.AUGMENTATIONS
  config = config.copy_and_resolve_references()
  config.method = 'erm' if name == PRETRAINED else name
  cells = shift_training.augmented(
    arms.cells,
    transforms.compose(shift_methods.transform(config), arms.recipe.evaluate),
    copies=config.study.copies if random else 1,
    seed=0,
  )
  make = _maker(config, arms)
  if name == 'jtt':
    return _twice(config, make, cells, arms.held_out)[None]
  network = None
  if name == PRETRAINED:
    network = shift_pretraining.networks(
      config, arms.cells, arms.recipe.evaluate
    )
  if name not in shift_methods.PENALTIES:
    return shift_training.train(
      name, make(config), cells, arms.held_out, network=network
    ).outputs['logits'][None]
  # What a domain is to DANN, training rows say: cells with the same ones are
  # trained together, and those of other methods all at once.
  counts = _value_counts(arms)
  present = counts > 0 if name == 'dann' else np.ones_like(counts)
  _, kinds = np.unique(present, axis=0, return_inverse=True)
  kinds = kinds.ravel()
  parts = [np.flatnonzero(kinds == x) for x in range(kinds.max() + 1)]
  logits = []
  for weight in config.study.weights:
    config[name].weight = weight
    found = [
      shift_training.train(
        f'{name} {weight:g}',
        make(config, group_counts=counts[part].sum(0)),
        cells.some(part),
        arms.held_out,
      ).outputs['logits']
      for part in parts
    ]
    logits.append(np.concatenate(found)[np.argsort(np.concatenate(parts))])
  return np.stack(logits)


def adapted(config: Any, arms: Arms) -> dict[str, Arm]:
  """ERM with batch norms, and the same networks adapted to each value.

  Statistics are those of all held-out rows of a value, whose labels are not
  read.
  """
  config = config.copy_and_resolve_references()
  if config.network == 'convnet':  # Residual networks have norms already.
    config.convnet.normalize = True
  cells = shift_training.augmented(
    arms.cells, arms.recipe.evaluate, copies=1, seed=0
  )
  config.method = 'erm'
  make = _maker(config, arms)
  trained = shift_training.train(BATCH_NORM, make(config), cells, arms.held_out)
  config.method = 'bn_adapt'
  predict = side_by_side.predict_fn(make(config))
  found = {
    BATCH_NORM: trained.outputs,
    'bn_adapt': predict(trained.states, arms.held_out),
  }
  return {
    name: measured(config, name, outputs['logits'][None], arms)
    for name, outputs in found.items()
  }


def _maker(config, arms):
  return functools.partial(
    shift_methods.make,
    num_labels=arms.num_labels,
    group_counts=_value_counts(arms).sum(0),
    steps=config.min_steps,
  )


def _value_counts(arms):
  """Training rows of each cell by the nuisance's value, [K * S, A]."""
  group = arms.cells.columns['group']
  return np.stack(
    [np.bincount(group[x], minlength=arms.num_values) for x in arms.cells.rows]
  )


def _twice(config, make, cells, held_out):
  """JTT: the first training is half as long, as in the authors' code."""
  method = make(config)
  half = cells._replace(order=cells.order[:, : cells.order.shape[1] // 2])
  first = shift_training.train('jtt, first', method, half, held_out)
  outputs = side_by_side.predict_fn(method)(first.states, cells.columns)
  again = shift_training.upweighted(
    cells, outputs['logits'], config.jtt.upweight
  )
  second = shift_training.train('jtt, second', method, again, held_out)
  return second.outputs['logits']


def named_shifts(config: Any) -> dict[str, Any]:
  """Name -> config whose group `shift` is that shift; the first is none."""
  study = config.study
  kinds = {'uniform': dict(kind='uniform')}
  for number in study.num_rare:
    kinds[f'correlated, {number}'] = dict(kind='correlated', num_rare=number)
  kinds |= {
    'low data': dict(kind='low_data', num_rare=study.num_rare_low),
    'unseen': dict(kind='unseen'),
    'noisy': dict(
      kind='correlated',
      num_rare=study.num_rare[-1],
      label_noise=study.label_noise,
    ),
    'few rows': dict(
      kind='correlated', total=study.total, rare_share=study.rare_share
    ),
  }
  made = {}
  for name, fields in kinds.items():
    made[name] = config.copy_and_resolve_references()
    made[name].shift.update(fields)
  return made
