"""How text models are fine-tuned on a task of `text_tasks`, to the measures."""

from collections.abc import Callable
import functools
import math

import flax.linen as nn
import numpy as np
import optax

from configs.parts import text_models
from configs.parts import text_tasks
from repjax import optim
from repjax import start
from repjax import types
from repjax.experiments import kept_tokens
from repjax.experiments import of_tokens
from repjax.experiments import wiring
from repjax.layers import adapters
from repjax.methods import finetuning
from repjax.methods import language_modeling
from repjax.methods import model_inputs
from repjax.methods import supervised
from repjax.metrics import written_text
from repjax.models import text_heads
from repjax.models import transformer


def model(config, task: text_tasks.Task) -> nn.Module:
  """The model that `config.data.kind` needs, without adapters."""
  data, fields = config.data, {}
  if data.kind == 'sentences':
    kind, positions = text_heads.Classifier, data.length
    fields['num_classes'] = task.num_classes
    if not config.weights:
      # A pooler is learned in pretraining, or not worth having.
      fields.update(pool='mean', pooler=False)
  elif data.kind == 'pairs':
    kind = transformer.EncoderDecoder
    positions = max(x.shape[1] for x in _row(task).values())
  else:
    kind = transformer.DecoderLM
    positions = data.length + 1 + data.target_length
  if not config.weights and 'num_positions' not in config.model:
    fields['num_positions'] = positions
  if config.attention.kind != 'exact':
    from configs.parts import attention  # Exact attention loads no other.

    fields['attention_fn'] = attention.attention_fn(
      config.attention, causal=data.kind == 'completions'
    )
    if config.attention.kind == 'flash' and data.kind == 'pairs':
      for name, causal in (('decoder', True), ('cross', False)):
        fields[f'{name}_attention_fn'] = attention.attention_fn(
          config.attention, causal=causal
        )
  return text_models.model(config, kind, task.tokenizer.vocab_size, **fields)


def _row(task):
  return {k: x for k, x in task.train.read([0]).items() if x.ndim == 2}


def method(
  config,
  task: text_tasks.Task,
  adapted: nn.Module,
  tx: optax.GradientTransformation,
) -> types.Method:
  """What trains `finetuning.adapt` of the model."""
  if config.data.kind == 'sentences':
    return supervised.make(adapted, tx, inputs=model_inputs.text, **config.step)
  pairs = config.data.kind == 'pairs'
  longest = config.data.target_length
  if pairs:
    longest = _row(task)['tokens'].shape[1] - 1
  return finetuning.writer(
    adapted,
    tx,
    objective='translation' if pairs else 'causal',
    max_new_tokens=longest,
    end_id=text_models.end_id(task.tokenizer),
    **config.step,
  )


def pretrained(
  config, task: text_tasks.Task
) -> Callable[[types.PyTree], types.PyTree]:
  """Fills the parameters of `model` with what fine-tuning starts from.

  Published weights, or else what is learned here on the public rows.
  """
  if config.weights:
    return text_models.load(config, model(config, task))
  if task.public is None:
    return lambda own: own
  params = _learned(config, task)
  return lambda own: {**own, **params}


def _learned(config, task):
  from repjax.protocols import pretraining

  group = config.pretraining
  learn = functools.partial(
    pretraining.run,
    rows=task.public,
    steps=group.steps,
    batch_size=group.batch_size,
    seed=config.seed,
  )
  if config.data.kind == 'sentences':
    params = learn(
      pretraining.masked_language_model(
        task.tokenizer.vocab_size,
        dict(config.model, num_positions=config.data.length),
        steps=group.steps,
        learning_rate=group.learning_rate,
      )
    )
    return {name: params[name] for name in ('token_embedding', 'encoder')}
  rate = optim.warmup_cosine(group.learning_rate, steps=group.steps, warmup=0.1)
  return learn(
    language_modeling.make(
      model(config, task), optax.adamw(rate), objective='translation'
    )
  )


def links(
  config,
  steps: int,
  learning_rate: float,
  optimizer: types.Optimizer = optax.adamw,
) -> optax.GradientTransformation:
  """Warm-up, then linear decay, as in the authors' code."""
  tx, warmup = config.tx, round(config.tx.warmup * steps)
  rate = optax.linear_schedule(learning_rate, 0.0, max(1, steps - warmup))
  if warmup:
    rise = optax.linear_schedule(0.0, learning_rate, warmup)
    rate = optax.join_schedules([rise, rate], [warmup])
  return optax.chain(
    optim.sam(config.sam.rho) if config.sam.rho else optax.identity(),
    optax.clip_by_global_norm(tx.clip or math.inf),
    optimizer(rate, weight_decay=tx.weight_decay),
  )


def experiment(
  config,
  task: text_tasks.Task,
  adapted: nn.Module,
  tx: optax.GradientTransformation,
  *,
  steps: int,
) -> types.Experiment:
  """One training run.

  Args:
    config: Of the recipe.
    task: What is learned.
    adapted: What is trained, `finetuning.adapt` of `model`.
    tx: Optax chain.
    steps: Number of updates.
  """
  shared = dict(
    config=config,
    method=method(config, task, adapted, tx),
    batches=wiring.shuffled(config, task.train),
    sources=task.sources,
    steps=steps,
  )
  if config.data.kind == 'sentences':
    made = of_tokens.classifier(**shared)
  else:
    made = of_tokens.predictor(
      **shared, show=lambda ids: task.tokenizer.decode(ids) + ' '
    )

  def measure(outputs, columns):
    return {
      **made.measure(outputs, columns),
      **quality(config, task, outputs, columns),
    }

  def warm_start(state):
    return start.fill(
      state, pretrained(config, task), keep=adapters.added(adapted)
    )

  def tables(split, outputs, columns):
    del split  # It is told by the columns.
    if 'written' not in outputs:
      return {}
    read = functools.partial(
      written_text.text_of,
      decode=task.tokenizer.decode,
      end_id=text_models.end_id(task.tokenizer),
    )
    texts = map(read, outputs['written'])
    lines = zip(columns['index'], texts, strict=True)
    return {'texts': (['row', 'text'], lines)}

  return made._replace(
    measure=measure,
    warm_start=warm_start,
    tables=tables,
    companion=kept_tokens.companion(task.subwords),
  )


def quality(
  config,
  task: text_tasks.Task,
  outputs: dict[str, np.ndarray],
  columns: dict[str, np.ndarray],
) -> dict[str, float]:
  """What papers report, by the libraries."""
  if config.data.kind == 'sentences':
    return written_text.classification(
      outputs['logits'].argmax(-1),
      columns['label'],
      num_classes=task.num_classes,
    )
  written, references = written_text.texts(
    outputs,
    decode=task.tokenizer.decode,
    end_id=text_models.end_id(task.tokenizer),
  )
  # Synthetic words are no English to be taken apart.
  tokenize = 'none' if config.data.name == 'relatives' else '13a'
  return {
    'bleu': written_text.bleu(written, references, tokenize=tokenize),
    **written_text.rouge(written, references),
  }
