"""How the study of private fine-tuning trains a published text model."""

from collections.abc import Sequence
import math
from typing import Any

import numpy as np
import optax

from configs.parts import private
from configs.parts import text_models
from repjax import plots
from repjax.methods import finetuning
from repjax.methods import model_inputs
from repjax.methods import supervised
from repjax.models import text_heads
from repjax.protocols import finetuned_text
from repjax.protocols import private_text
from repjax.protocols import side_by_side


def claims(
  *, beyond_head: float, over_head: float, cost: float
) -> dict[str, dict[str, Any]]:
  """Claims of LoRA and of all parameters; first what they take for granted.

  Args:
    beyond_head: What all parameters must be ahead of the head without noise.
    over_head: What private training must be ahead of that of the head.
    cost: What it may be behind training without noise.
  """
  first = 'sentiment_beyond_head'
  found: dict[str, dict[str, Any]] = {
    first: dict(
      kind='first',
      says='SST-2 without noise: test accuracy, all parameters of MiniLM '
      'trained minus the head alone',
      paper='what is to be learned is not in the features already',
      at_least=beyond_head,
    )
  }
  for arm, trained in (('LoRA', 'LoRA'), ('full', 'all parameters')):
    found[f'sentiment_{arm}_over_head'] = dict(
      says=f'SST-2 at epsilon 8: test accuracy of MiniLM, {trained} trained '
      'minus the head alone',
      paper='private fine-tuning is worth its noise (abstract, no figure '
      'copied)',
      at_least=over_head,
      needs=(first,),
    )
    found[f'sentiment_{arm}_cost'] = dict(
      says='SST-2, equal epochs: test accuracy of MiniLM, all parameters '
      'trained without noise in small batches minus '
      f'{trained} trained at epsilon 8',
      paper='pretrained models lose little by privacy (abstract, no figure '
      'copied)',
      at_most=cost,
      needs=(first,),
    )
  return found


def measure(
  config: Any, seeds: Sequence[int]
) -> tuple[dict[str, Any], dict[str, Any]]:
  """(scalars, figures) of each arm, privately, and without noise and clipping.

  Args:
    config: With the recipe's groups, whose numbers the private arms have, and
      the study's group `sentiment`.
    seeds: S seeds; the first one chooses each arm's rate, on rows held out.
  """
  group = config.study.sentiment
  tokenizer = text_models.tokenizer(config)
  load = text_models.sentences(config, tokenizer)
  train = load(config.data.train_split)
  rows = finetuned_text.hold_out(
    train.columns(),
    load(config.data.eval_splits[0]).columns(),
    num_rows=group.num_held_out,
  )
  base = text_models.model(
    config,
    text_heads.Classifier,
    tokenizer.vocab_size,
    num_classes=train.num_classes,
  )
  pretrained = text_models.load(config, base)
  noisy = f'epsilon {config.dp.epsilon:g}'
  arms = {}
  for arm, settings in group.private.items():
    arms[f'{noisy}, {arm}'] = _private(
      config, base, pretrained, rows, seeds, f'{noisy}, {arm}', settings
    )
  for arm, settings in group.plain.items():
    arms[f'no noise, {arm}'] = _plain(
      config, base, pretrained, rows, seeds, f'no noise, {arm}', settings
    )
  scores = {name: score for name, (_, score) in arms.items()}
  head, plain = scores[f'{noisy}, head'], scores['no noise, full']
  scalars = {'sentiment_beyond_head': plain - scores['no noise, head']}
  for arm in set(group.private) - {'head'}:
    learned = scores[f'{noisy}, {arm}']
    scalars[f'sentiment_{arm}_over_head'] = learned - head
    scalars[f'sentiment_{arm}_cost'] = plain - learned
  for name, (validation, score) in arms.items():
    scalars[f'sentiment, {name}: test accuracy'] = score
    for rate, held_out in validation.items():
      scalars[f'sentiment, {name}: held-out accuracy at rate {rate:g}'] = (
        held_out
      )
  drawn = plots.bars(
    {
      name.replace(', ', '\n'): {'test accuracy': score}
      for name, score in scores.items()
    },
    ylabel='test accuracy',
  )
  return scalars, {'sentiment': drawn}


def _private(config, base, pretrained, rows, seeds, name, settings):
  """({rate: held-out accuracy [1]}, test accuracy [S])."""
  plan = private.plan_of(config, len(rows.train['label']))
  finetune = private_text.trainer(
    name,
    base,
    pretrained,
    rows,
    plan=plan,
    tx=private.updates(config, plan, optax.adamw, rate=1.0),
    adapter=settings.adapter,
    points=1,
    # Weights a run make products slow on CPUs, and long to compile.
    vectorize=False,
  )
  found = finetune(seeds[:1], settings.rates)
  rate = private_text.best_rate(found)
  scores = [found[rate].score]
  if seeds[1:]:
    scores.append(finetune(seeds[1:], (rate,))[rate].score)
  return {x: y.held_out for x, y in found.items()}, np.concatenate(scores)


def _plain(config, base, pretrained, rows, seeds, name, settings):
  """The same without noise and clipping, in small batches at equal epochs."""
  model = finetuning.adapt(base, **settings.adapter)
  size = config.study.sentiment.plain_batch_size
  steps = math.ceil(config.epochs * len(rows.train['label']) / size)

  def accuracy(outputs, columns):
    return side_by_side.accuracy(outputs, columns).item()

  tuned = finetuned_text.tune(
    name,
    model,
    lambda tx: supervised.make(model, tx, inputs=model_inputs.text),
    lambda: optax.adamw(
      optax.linear_schedule(1.0, 0.0, steps),
      weight_decay=config.tx.weight_decay,
    ),
    rows,
    pretrained,
    seeds=seeds,
    rates=settings.rates,
    batch_size=size,
    steps=steps,
    score=accuracy,
    points=1,
    num_choosing=1,
  )
  validation = dict(zip(settings.rates, tuned.validation, strict=True))
  return validation, tuned.score
