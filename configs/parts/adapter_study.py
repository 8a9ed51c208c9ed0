"""How the study of adapters compares its arms on one task."""

from collections.abc import Mapping
from collections.abc import Sequence
import functools
from typing import Any

import numpy as np

from configs.parts import text_finetuning
from configs.parts import text_tasks
from repjax import plots
from repjax.experiments import wiring
from repjax.methods import finetuning
from repjax.protocols import finetuned_text

# Arms with which MAM is compared; 'full' and 'scratch' train all parameters.
OTHERS = ('prefix', 'adapter', 'LoRA')


def claims(
  part: str,
  score: str,
  *,
  gain: float,
  behind: float,
  over: Mapping[str, Mapping[str, float]],
  needs: tuple[str, ...] = (),
) -> dict[str, dict[str, Any]]:
  """Claims of one task: first what they take for granted, then the paper's.

  Args:
    part: The task, as `measure` has it.
    score: What is compared, in words.
    gain: What pretraining must be worth at least.
    behind: How far MAM may be behind the training of all parameters.
    over: Arm -> {'at_least': what MAM must be ahead of it}.
    needs: Further preconditions.
  """
  first = f'{part}_pretraining_gain'
  found: dict[str, dict[str, Any]] = {
    first: dict(
      kind='first',
      says=f'{part}: {score}, all parameters trained from the pretrained ones '
      'minus from random ones',
      paper='models know the language that tasks are about',
      at_least=gain,
    ),
    f'{part}_behind_full': dict(
      says=f'{part}: {score}, all parameters trained minus MAM',
      paper='comparable to fine-tuning all parameters (abstract)',
      at_most=behind,
      needs=(first, *needs),
    ),
  }
  names = dict(prefix='a prefix', adapter='adapters', LoRA='LoRA')
  for arm, threshold in over.items():
    found[f'{part}_over_{arm}'] = dict(
      says=f'{part}, equal budgets: {score}, MAM minus {names[arm]}',
      paper='MAM is the best of them (abstract, no figure copied)',
      **threshold,
      needs=(first, *needs),
    )
  return found


def measure(
  part: str,
  config: Any,
  task: text_tasks.Task,
  *,
  by: str,
  seeds: Sequence[int],
) -> tuple[dict[str, Any], dict[str, Any]]:
  """(scalars, figures) of all arms on one task.

  Args:
    part: What names of scalars and figures begin with.
    config: Of the recipe, with the study's groups `arms` and `study`.
    task: What is learned.
    by: The measure that chooses rates and is reported.
    seeds: S seeds.
  """
  label = {'accuracy': 'test accuracy', 'bleu': 'test BLEU'}[by]
  tuned, others = _compare(config, task, by, seeds)
  score = {arm: x.score for arm, x in tuned.items()}
  scalars = {f'{part}_over_{x}': score['MAM'] - score[x] for x in OTHERS}
  scalars[f'{part}_behind_full'] = score['full'] - score['MAM']
  scalars[f'{part}_pretraining_gain'] = score['full'] - score['scratch']
  if 'head' in score:
    scalars[f'{part}_beyond_head'] = score['full'] - score['head']
  for arm, x in tuned.items():
    every = np.ones(len(seeds))
    scalars[f'{part}, {arm}: {label}'] = x.score
    scalars[f'{part}, {arm}: trained parameters, %'] = x.percent * every
    scalars[f'{part}, {arm}: learning rate'] = x.rate * every
    for rate, values in zip(rates_of(config, arm), x.validation, strict=True):
      scalars[f'{part}, {arm}: validation at rate {rate:g}'] = values
    for name, values in others[arm].items():
      scalars[f'{part}, {arm}: {name}'] = values
  figures = {
    part: plots.bars(
      {
        f'{arm}\n{x.percent:.3g} %': {'%: trained parameters': x.score}
        for arm, x in tuned.items()
      },
      ylabel=label,
    )
  }
  if config.study.points > 1:
    figures[f'{part}_curves'] = plots.seed_curves(
      {arm: x.curve for arm, x in tuned.items()}, ylabel=label
    )
  return scalars, figures


def rates_of(config: Any, arm: str) -> tuple[float, ...]:
  """Learning rates of an arm."""
  whole = config.arms[arm].kind in ('full', 'layers')
  return (whole and config.study.full_rates) or config.study.rates


def _compare(config, task, by, seeds):
  """Arm -> `finetuned_text.Tuned`, and arm -> further measures."""
  group = config.study
  steps = wiring.steps_of(config, len(task.train))
  pretrained = text_finetuning.pretrained(config, task)
  test = task.sources(config.data.eval_splits[0]).columns()
  if group.num_validation:
    rows = finetuned_text.hold_out(
      task.train.columns(), test, num_rows=group.num_validation
    )
  else:
    rows = finetuned_text.Rows(
      task.train.columns(), task.sources('validation').columns(), test
    )
  base = text_finetuning.model(config, task)
  measures = functools.partial(text_finetuning.quality, config, task)
  tuned, others = {}, {}
  for arm, settings in config.arms.items():
    model = finetuning.adapt(base, **settings)
    tuned[arm] = finetuned_text.tune(
      f'{config.data.name}, {arm}',
      model,
      functools.partial(text_finetuning.method, config, task, model),
      functools.partial(text_finetuning.links, config, steps, 1.0),
      rows,
      (lambda own: own) if arm == 'scratch' else pretrained,
      seeds=seeds,
      rates=rates_of(config, arm),
      batch_size=config.batch_size,
      steps=steps,
      score=lambda outputs, columns: measures(outputs, columns)[by],
      points=group.points,
      num_choosing=group.num_choosing or None,
    )
    by_seed = [
      measures(
        {name: x[i] for name, x in tuned[arm].outputs.items()}, rows.test
      )
      for i in range(len(seeds))
    ]
    others[arm] = {
      name: [x[name] for x in by_seed] for name in by_seed[0] if name != by
    }
  return tuned, others
