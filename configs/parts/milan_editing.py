"""Units that read letters, named in words and taken out: MILAN's editing.

Hernandez et al., ICLR 2022, section 6. https://arxiv.org/abs/2201.11114
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs.parts import milan_measures as measures
from configs.parts import milan_subjects as subjects
from configs.parts import milan_training as training
from repjax import plots
from repjax import types
from repjax.analysis import unit_edits
from repjax.layers import layer_outputs

_NEEDS = ('clean_accuracy', 'letters_hurt', 'letters_named')

CLAIMS = dict(
  words_tell=dict(
    says='editing: chance that of a unit described as letters and one of its '
    'layer that is not, the first answers more to letters',
    paper='not reported',
    at_least=0.6,
    needs=('letters_named',),
  ),
  above_least_useful=dict(
    says='editing: accuracy without the units described as letters, minus '
    'without as many of all units that validation rows need least',
    paper='+4.9 points against less than 1',
    at_least=0.0,
    needs=_NEEDS,
  ),
  below_truth=dict(
    says='editing: accuracy without as many units of each layer that answer '
    'most to letters, minus without those described as letters',
    paper='not reported',
  ),
  bare_cost=dict(
    says='editing: accuracy on images without letters that is lost with the '
    'units described as letters',
    paper='not reported',
  ),
)

_ARMS = (
  'letters learned',
  'without letter units',
  'without random units',
  'without the least useful',
  'without those that answer to letters',
)

# The last two layers of maps, in more units of which letters are named where
# nine of ten training images have the letter of their class.
PRESET: Mapping[str, Any] = dict(
  on='small',
  subject=dict(layers=('norm_1', 'norm_2'), marks=0.9),
  editing=dict(word='letters'),
)

# The last layer alone, in networks that nobody has seen: `each` of a seed.
LAST_LAYER: Mapping[str, Any] = dict(
  on='editing',
  subject=dict(layers=('norm_2',)),
  fresh=dict(first=5300, each=2),
)


def run(config, seeds: Sequence[int]) -> types.Report:
  """Describes units of classifiers that read letters, and takes them out."""
  if 'fresh' in config:
    seeds = [
      config.fresh.first + config.fresh.each * seed + i
      for seed in seeds
      for i in range(config.fresh.each)
    ]
  made = training.everything(config, seeds)
  numbers, curves, figures = [], {}, {}
  for i, seed in enumerate(seeds):
    subject = made.subject(config, i)
    found, curve, pages = of_edits(config, made.encoder, *subject, seed)
    numbers.append(found)
    curves[f'seed {seed}'] = (np.arange(len(curve)), curve)
    figures = figures or pages
  scalars = {k: np.array([x[k] for x in numbers]) for k in numbers[0]}
  return types.Report(
    scalars=scalars,
    arrays={},
    figures={
      **figures,
      'removed': plots.lines(
        curves,
        xlabel='units described as letters that are out, least useful first',
        ylabel='accuracy, any letter in the corner',
      ),
      'arms': plots.bars(
        {'any letter': {x: scalars[f'accuracy, {x}'] for x in _ARMS}},
        ylabel='accuracy',
      ),
    },
  )


def of_edits(config, seen_by, describe, predict, states, seed):
  """Numbers of one classifier with units out, the curve, and pages of units.

  Args:
    config: Of the study.
    seen_by: The encoder.
    describe: Features of exemplars -> descriptions.
    predict: Of both classifiers.
    states: Of that trained with any letter, and with the letter of the class.
    seed: Of the images.
  """
  clean, state = states
  train, valid, test = (
    subjects.marked_part(config, x, seed, tells=True)
    for x in ('train', 'valid', 'test')
  )
  units, widths, pages = measures.units_called(
    config, seen_by, describe, predict, state, train, config.editing.word
  )
  valid, test = (subjects.rows_of(config, x) for x in (valid, test))
  bare = subjects.labelled(config, 'test', 3 * seed + 2, len(test['label']))
  bare = subjects.rows_of(config, bare)
  answer = answers(config, predict, state, tuple(widths), seed)
  rng = np.random.default_rng([seed, 9])

  def left(state, rows, *removed):
    choices = [unit_edits.chosen(x, widths) for x in removed]
    stacked = {k: np.stack([x[k] for x in choices]) for k in widths}
    return unit_edits.accuracy_without(predict, state, rows, stacked)

  def as_many(ordered):
    """Of each layer, as many units as are called letters."""
    counts = {k: sum(x == k for x, _ in units) for k in widths}
    return [(k, int(i)) for k, n in counts.items() for i in ordered(k)[:n]]

  def others(layer):
    free = [i for i in range(widths[layer]) if (layer, i) not in units]
    return rng.permutation(free)

  order, least = (
    unit_edits.least_useful_first(predict, state, valid, x, widths)
    for x in (units, [(k, i) for k, n in widths.items() for i in range(n)])
  )
  random = [as_many(others) for _ in range(config.subject.draws)]
  truth = as_many(lambda layer: np.argsort(-answer[layer]))
  curve = left(state, test, *(order[:n] for n in range(len(order) + 1)))
  whole = left(clean, test, [])[0]
  edited, by_chance = curve[-1], left(state, test, *random).mean()
  useless, by_answer = left(state, test, least[: len(units)], truth)
  on_bare = left(state, bare, [], units)
  return (
    {
      'clean_accuracy': whole,
      'letters_hurt': whole - curve[0],
      'letters_named': len(units) / sum(widths.values()),
      'recovered': edited - curve[0],
      'above_random': edited - by_chance,
      'words_tell': told(answer, units),
      'above_least_useful': edited - useless,
      'below_truth': by_answer - edited,
      'bare_cost': on_bare[0] - on_bare[1],
      **{
        f'accuracy, {name}': x
        for name, x in zip(
          _ARMS, (curve[0], edited, by_chance, useless, by_answer), strict=True
        )
      },
      'no letter: accuracy': on_bare[0],
      'no letter: accuracy without letter units': on_bare[1],
    },
    curve,
    pages,
  )


def answers(
  config, predict, state, layers: Sequence[str], seed: int
) -> dict[str, np.ndarray]:
  """How much more units give where a letter is written, [C] a layer.

  In standard deviations over validation images as they are without one; what
  a unit gives an image is the mean of its map, what is below 0 being 0.

  Args:
    config: Of the study.
    predict: Of the classifier.
    state: Its state.
    layers: Of maps.
    seed: Of the images.
  """
  count = config.subject.valid_rows
  bare = subjects.labelled(config, 'valid', 3 * seed + 1, count)
  lettered = subjects.marked(
    bare,
    rate=1.0,
    is_right=False,
    num_classes=subjects.num_classes(config),
    seed=3 * seed + 1,
  )

  def given(images):
    batch = subjects.rows_of(config, images)
    batch['mask'] = np.ones(len(batch['label']), np.float32)
    _, maps = layer_outputs.with_outputs_of(
      lambda: predict(state, batch), layers
    )
    return {k: np.asarray(_means(x)) for k, x in maps.items()}

  without, having = given(bare), given(lettered)
  return {
    k: (having[k] - x).mean(0) / np.maximum(x.std(0), 1e-6)
    for k, x in without.items()
  }


@jax.jit
def _means(maps):
  return jnp.maximum(maps, 0).mean((1, 2))


def told(answer: Mapping[str, np.ndarray], units) -> float:
  """Chance that a named unit answers more than another one of its layer.

  The area under the curve of Mann and Whitney, over all pairs within layers;
  1/2 where there are none.

  Args:
    answer: Layer -> how much each unit answers, [C].
    units: (layer, number) of those that are named.
  """
  wins = []
  for layer, x in answer.items():
    named = np.isin(np.arange(len(x)), [i for k, i in units if k == layer])
    gap = x[named][:, None] - x[~named]
    wins.append(((gap > 0) + (gap == 0) / 2).ravel())
  pairs = np.concatenate(wins)
  return float(pairs.mean()) if pairs.size else 0.5
