"""What is counted of described units: planted ones, and those of a classifier.

Hernandez et al., ICLR 2022. https://arxiv.org/abs/2201.11114
"""

import jax
import numpy as np

from configs.parts import described_units as parts
from configs.parts import milan_subjects as subjects
from configs.parts import planted_captions
from repjax.analysis import exemplars
from repjax.analysis import milan
from repjax.analysis import unit_edits
from repjax.analysis import unit_pages
from repjax.data.sets import planted_units
from repjax.data.sets import scenes

# lambda.
STRENGTHS = (0.0, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0)


def of_captions(config, describer, units, seen_by, seed):
  """Numbers of descriptions of planted units, and those of each lambda."""
  model = parts.model(config, units.tokenizer.vocab_size)

  def found(features):
    return milan.search(
      model,
      describer,
      features,
      length=config.units.length - 1,
      width=config.describing.width,
    )

  def said(beams, strength):
    return milan.choose(beams, units.tokenizer, strength=strength)

  def share(beams, concept, strength):
    words = [x.text for x in said(beams, strength)]
    return parts.names_all(words, concept, units.names).mean()

  # A row a caption; all captions of a unit have its features.
  count = len(units.heldout['tokens']) // config.planted.annotators
  held = {k: x[:count] for k, x in units.heldout.items()}
  beams = found(held['features'])
  sweep = []
  for strength in STRENGTHS:
    words = [x.text for x in said(beams, strength)]
    names = np.array([planted_units.named(x, units.names) for x in words])
    sweep.append(
      (
        (names == held['concept']).all(1).mean(),
        np.mean([planted_units.is_grammatical(x, units.names) for x in words]),
        (names == -1).all(1).mean(),
        np.mean([x.prior for x in said(beams, strength)]),
      )
    )
  seen, of_seen, anything = planted_captions.fresh(config, seen_by, units, seed)
  again = found(seen)
  half = len(anything) // 2
  level = milan.null_level(found(anything[:half]))

  def known(beams):
    return np.mean([x.evidence >= level for x in said(beams, 0.2)])

  at = {x: np.array(sweep[i]) for i, x in enumerate(STRENGTHS)}
  return {
    'names_all_gain': at[0.2][0] - at[0.0][0],
    'captioner_good': share(again, of_seen, 0.5),
    'too_large_hurts': at[0.2][1] - at[1.0][1],
    'rarer_words': at[0.0][3] - at[0.2][3],
    'told_from_nothing': known(beams) - known(found(anything[half:])),
    **{f'names all, lambda = {x:g}': at[x][0] for x in STRENGTHS},
    **{f'grammatical, lambda = {x:g}': at[x][1] for x in STRENGTHS},
  }, sweep


def of_inks(config, seen_by, describe, seed):
  """Numbers of the units that answer to an ink, and their page."""
  if config.data.name != 'scenes':
    return {}, {}
  count = config.planted.train_images
  shown = scenes.draw(count, seed=[seed, 12])
  detector = subjects.InkDetector()
  found = exemplars.collect(
    subjects.ink_maps,
    detector.init(jax.random.key(0), shown.image[:1] / 255),
    subjects.batches(shown.image.astype(np.float32) / 255, 250),
    ('inks',),
    k=config.units.k,
  )['inks']
  features, masks = subjects.features_of(config, seen_by, shown.image, found)
  truth = subjects.shown_inks(shown)
  truth = np.stack([x[rows] for x, rows in zip(truth, found.row, strict=True)])
  overlap = (masks & truth).sum((2, 3)) / (masks | truth).sum((2, 3))
  said = describe(features)
  named = [planted_units.named(x.text, shown.names)[0] for x in said]
  texts = [
    f'{ink}: {x.words}' for ink, x in zip(scenes.INKS, said, strict=True)
  ]
  page = unit_pages.page(shown.image[found.row], masks, texts)
  return {
    'planted_precision': truth.any((2, 3)).mean(),
    'planted_overlap': overlap.mean(),
    'planted units whose description names the ink': np.mean(
      np.array(named) == np.arange(len(named))
    ),
  }, {'planted_units': page}


def units_called(
  config, seen_by, describe, predict, state, train: subjects.Marked, word: str
):
  """Units of a classifier's layers whose description has a word.

  Args:
    config: Of the study.
    seen_by: The encoder.
    describe: Features of exemplars -> descriptions.
    predict: Of the classifier.
    state: Its state.
    train: Images that exemplars are taken from.
    word: That is looked for.

  Returns:
    (units, width of each layer, layer -> page of such units and of others).
  """
  chosen = config.subject
  found = exemplars.collect(
    predict,
    state,
    subjects.batches(subjects.rows_of(config, train)['image'], 250),
    chosen.layers,
    k=config.units.k,
    positions=chosen.positions,
  )
  widths = {layer: len(x.row) for layer, x in found.items()}
  units, pages = [], {}
  for layer, x in found.items():
    features, masks = subjects.features_of(config, seen_by, train.image, x)
    active = np.flatnonzero(x.is_active)
    if not len(active):
      continue  # Nothing to describe.
    said = [
      y._replace(unit=int(unit))
      for unit, y in zip(active, describe(features[active]), strict=True)
    ]
    named = milan.mentioning(said, word)
    units += [(layer, y.unit) for y in named]
    shown = (*named[:8], *said[:8])
    rows = [y.unit for y in shown]
    pages[f'units_{layer}'.replace('/', '_')] = unit_pages.page(
      train.image[x.row[rows]],
      masks[rows],
      [f'{y.unit}: {y.words}' for y in shown],
    )
  return units, widths, pages


def of_letters(config, seen_by, describe, predict, states, seed):
  """Numbers of the classifier without its letter units, curve, and page."""
  chosen = config.subject
  clean, state = states
  train, valid, test = (
    subjects.marked_part(config, x, seed, tells=True)
    for x in ('train', 'valid', 'test')
  )
  units, widths, pages = units_called(
    config, seen_by, describe, predict, state, train, 'letters'
  )
  valid, test = (subjects.rows_of(config, x) for x in (valid, test))
  everything = [(layer, i) for layer, n in widths.items() for i in range(n)]
  order = unit_edits.least_useful_first(predict, state, valid, units, widths)
  sorted_all = unit_edits.least_useful_first(
    predict, state, valid, everything, widths
  )
  others = [x for x in everything if x not in units]
  rng = np.random.default_rng([seed, 9])
  draws = [
    [others[j] for j in rng.permutation(len(others))[: len(units)]]
    for _ in range(chosen.draws)
  ]

  def left(state, *removed):
    choices = [unit_edits.chosen(x, widths) for x in removed]
    return unit_edits.accuracy_without(
      predict,
      state,
      test,
      {k: np.stack([x[k] for x in choices]) for k in widths},
    )

  curve = left(state, *(order[:n] for n in range(len(order) + 1)))
  whole = left(clean, [])[0]
  random = left(state, *draws).mean()
  return (
    {
      'clean_accuracy': whole,
      'letters_hurt': whole - curve[0],
      'recovered': curve[-1] - curve[0],
      'above_random': curve[-1] - random,
      'accuracy with letters learned': curve[0],
      'accuracy without letter units': curve[-1],
      'accuracy without random units': random,
      'accuracy without the least useful of all units': left(
        state, sorted_all[: len(units)]
      )[0],
      'letters_named': len(units) / len(everything),
    },
    curve,
    pages,
  )
