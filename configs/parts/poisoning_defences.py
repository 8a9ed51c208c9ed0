"""What is left of a backdoor behind three defences, run by run."""

from collections.abc import Sequence

import jax
import numpy as np

from configs.parts import poisoned_pairs
from configs.parts import poisoned_runs
from repjax import types
from repjax.analysis import neighbour_agreement
from repjax.attacks import contrastive_poisoning
from repjax.attacks import patch_inversion
from repjax.protocols import side_by_side


def measured(
  shared: poisoned_runs.Setting,
  states: types.TrainState,
  runs: Sequence[poisoned_runs.Run],
  clean: types.TrainState,
) -> dict[str, np.ndarray]:
  """Success that each defence leaves, and what it costs, [R] each.

  Args:
    shared: What the runs share; config.study says how strong defences are.
    states: Of the poisoned models.
    runs: Theirs.
    clean: Of models without poison, of the same seeds.
  """
  before, _ = poisoned_runs.attacked(shared, states, runs)
  base = np.maximum(before, 1e-9)
  more = {
    name: _trained_on(shared, name, weight, states, runs)
    for name, weight in (
      ('CLIP', 0.0),
      ('CleanCLIP', shared.config.study.in_modal),
    )
  }
  kept, caught = zip(*(_agreeing(shared, x.poison) for x in runs), strict=True)
  again = poisoned_runs.train('filtered', shared, runs, kept=kept)
  filtered, _ = poisoned_runs.attacked(shared, again.states, runs)
  wanted = [poisoned_runs.wanted_by(shared, x.seed) for x in runs]
  of_run = np.arange(len(runs)), wanted
  found = {
    'clean_clip': more['CleanCLIP'][0] / base,
    'clean_clip_over_plain': more['CleanCLIP'][0] - more['CLIP'][0],
    'filtered': filtered / base,
    'inverted': _suspicion(shared, states)[of_run],
    'inverted_clean': _suspicion(shared, clean)[of_run],
    'filtered: accuracy': again.score,
    'filtered: poison caught': np.array(caught),
  }
  for name, (success, accuracy) in more.items():
    found[f'more training, {name}: success'] = success
    found[f'more training, {name}: accuracy'] = accuracy
  return found


def _trained_on(shared, name, weight, states, runs):
  """(success, accuracy) after more training on clean rows alone."""
  of, config = shared.config.study, shared.config.copy_and_resolve_references()
  config.clip.in_modal = weight
  kept = []
  for seed, poison in runs:
    rows = np.setdiff1d(np.arange(len(shared.pairs.clean)), poison.replaced)
    rng = np.random.default_rng([seed, 3])
    kept.append(rng.permutation(rows)[: of.clean_rows])
  steps = max(1, round(of.clean_epochs * of.clean_rows / config.batch_size))
  method = poisoned_pairs.method(config, shared.pairs, steps)
  fresh = side_by_side.begin(
    method, {}, [x.seed for x in runs], shared=shared.clean
  )
  again = poisoned_runs.train(
    name,
    shared,
    runs,
    method=method,
    states=fresh.replace(params=states.params),
    steps=steps,
    kept=kept,
  )
  return poisoned_runs.attacked(shared, again.states, runs)[0], again.score


def _agreeing(shared, poison):
  """(rows of the poisoned set that stay, share of the poison that does not)."""
  of, clean = shared.config.study, shared.pairs.clean
  total = len(clean)
  rows = contrastive_poisoning.rows_of(total, poison)
  columns = {
    name: np.concatenate([clean.column(name), x])[rows]
    for name, x in poison.columns.items()
  }
  agreement = neighbour_agreement.agreement(
    columns['image'].reshape(len(rows), -1) / 255.0,
    neighbour_agreement.bags(
      columns['tokens'],
      columns['token_mask'],
      size=shared.pairs.tokenizer.vocab_size,
    ),
    neighbours=of.neighbours,
  )
  out = np.argsort(agreement)[: round(of.left_out * len(rows))]
  caught = (rows[out] >= total).sum() / max(poison.size, 1)
  return np.setdiff1d(np.arange(len(rows)), out), caught


def _suspicion(shared, states):
  """Anomaly of each class's smallest patch, [R, C]."""
  of = shared.config.study.inversion
  image = shared.test['image'][: of.images]
  low, high = image.min(), image.max()

  def search(state):
    def logits(image):
      batch = {'image': image, 'mask': np.ones(len(image), np.float32)}
      return shared.method.predict(state, batch)['logits']

    return patch_inversion.invert(
      logits,
      image,
      num_classes=len(shared.pairs.names),
      low=float(low),
      high=float(high),
      steps=of.steps,
      weight=of.weight,
    ).size

  return np.stack(
    [patch_inversion.anomaly(x) for x in jax.vmap(search)(states)]
  )
