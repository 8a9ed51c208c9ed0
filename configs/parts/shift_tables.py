"""The sets of the benchmark of fine-grained shifts, and its shifts by name."""

from typing import Any

import numpy as np

from configs import presets
from configs.parts import shift_methods
from repjax import matrix_plots
from repjax import types
from repjax.benchmarks import fine_grained_shift as shifts
from repjax.benchmarks import shift_results
from repjax.benchmarks import shift_rows
from repjax.data.images import transforms
from repjax.data.sets import attributed
from repjax.experiments import of_images


def read(config: Any) -> attributed.Splits:
  """The set that a config names."""
  data = config.data
  types.check_choice('config.data.train_split', data.train_split, ('train',))
  if data.name == 'shapes':
    for field, known in (('label', 'shape'), ('nuisance', 'colour')):
      types.check_choice(f'config.data.{field}', data[field], (known,))
    # The set is one for all seeds, as those of TFDS are.
    return attributed.drawn(
      num_held_out=data.num_held_out, seed=0, **data.drawn
    )
  return attributed.load(
    data.name,
    label=data.label,
    nuisance=data.nuisance,
    num_held_out=data.num_held_out,
    data_dir=data.dir,
  )


def conditions(config: Any) -> list[shifts.Condition]:
  """What the group `shift` of a config says."""
  shift = config.shift
  common = dict(num_common=shift.num_common or None)
  rare = dict(num_rare=shift.num_rare, rare_weight=shift.rare_weight)
  kinds = dict(
    correlated=lambda: shifts.SpuriousCorrelation(**rare, **common),
    low_data=lambda: shifts.LowData(share=shift.share, **rare, **common),
    unseen=lambda: shifts.UnseenData(share=shift.share, **common),
    uniform=lambda: shifts.Uniform(**common),
  )
  made = [presets.choose('shift.kind', shift.kind, kinds)()]
  if shift.total:
    made.append(shifts.FixedSize(shift.total, shift.rare_share))
  if shift.label_noise:
    made.append(shifts.LabelNoise(shift.label_noise, fixed=shift.fixed_noise))
  return made


def training(
  config: Any, splits: attributed.Splits
) -> tuple[of_images.Data, shift_rows.Realised]:
  """The training rows of a config's shift, and what they go through."""
  num_labels = splits.train.num_classes or 0
  plan, realised = realise(config, splits, seed=config.seed)
  data = of_images.data(config, shift_rows.training_set(splits.train, realised))
  steps = [shift_methods.transform(config), data.recipe.train]
  if plan.redrawn:
    steps.append(shift_rows.redrawn_labels(plan.noise, num_labels))
  recipe = data.recipe._replace(train=transforms.compose(*steps))
  return data._replace(recipe=recipe), realised


def realise(
  config: Any, splits: attributed.Splits, *, seed: int
) -> tuple[shift_rows.Plan, shift_rows.Realised]:
  """The table that a config asks for, and rows that have it."""
  label, group = (splits.train.column(x) for x in ('label', 'group'))
  available = shift_rows.counts(
    label, group, splits.train.num_classes or 0, splits.num_values
  )
  plan = shift_rows.make_plan(conditions(config), available, seed=seed)
  return plan, shift_rows.realise(plan, label, group, seed=seed)


def with_cells(
  config: Any, experiment: types.Experiment, splits: attributed.Splits
) -> types.Experiment:
  """The experiment that also measures the accuracy by label and nuisance."""

  def table(outputs, columns):
    return shift_results.cell_accuracy(
      outputs['logits'],
      columns['label'],
      columns['group'],
      num_labels=splits.train.num_classes or 0,
      num_values=splits.num_values,
    )

  def measure(outputs, columns):
    cells = table(outputs, columns)
    return {
      **experiment.measure(outputs, columns),
      # A pair without rows is no pair.
      'worst_cell': float(cells[~np.isnan(cells)].min()),
      **shift_results.as_numbers(cells),
    }

  def figures(split, outputs, columns):
    cells = matrix_plots.matrices(
      {'accuracy': table(outputs, columns)},
      xlabel=config.data.nuisance,
      ylabel=config.data.label,
    )
    return {**experiment.figures(split, outputs, columns), 'cells': cells}

  return experiment._replace(measure=measure, figures=figures)
