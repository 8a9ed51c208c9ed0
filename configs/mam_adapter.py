"""MAM adapters (He et al., ICLR 2022): a small share of parameters suffices.

The paper sees prefixes, adapters and LoRA as one formula with other choices,
mixes the best ones (a short prefix for attention, a large scaled parallel
bottleneck for the MLPs) and reports that the mix is as good as fine-tuning all
parameters on summaries, translation and classification with a few percent of
them ('Towards a Unified View of Parameter-Efficient Transfer Learning').

paper: summaries of XSum with BART-large's geometry, weights=FOLDER with the
  published weights. The authors search by beams of 6; here texts are written
  greedily.
paper_classification: sentiment of SST-2 (GLUE) with RoBERTa-base's geometry.
small: embedded data, 3 seeds of fine-tuning, one pretrained model for all.
  Chapters of `python_topics` told from 48 characters, by an encoder that has
  learned to fill gaps in the other chapters; and a synthetic language, the
  words of one and the rules of another, written by an encoder-decoder that has
  learned to translate into both, from 80 rows. At equal budgets MAM must not be
  behind a prefix, an adapter or LoRA, and at most one point (of accuracy, of
  BLEU) behind the training of all parameters; each at the best of the same
  rates.
  Settings come from pilots of another seed, by the score of all parameters and
  that of pretraining: an encoder of two layers learned in 600 steps only how
  often tokens occur, the largest chapter has half of all pieces, and from 1,000
  rows nearly all translations were right (99.5 BLEU).
  Other classes: `launch.reproduce --set=study.parts=classification,
  data.name=glue/sst2,data.eval_splits=validation`.
small_generation: one run on the synthetic language; data.name=e2e_nlg and
  data.target=... learn from a TFDS set with two columns of text.

On classes MAM is ahead of adapters (1.8 points), LoRA (4.4) and prefixes (9.6),
but 13.8 points behind the training of all parameters: even training rows are
learned less well. On the new language it is behind all of them: LoRA (21 BLEU),
adapters and prefixes (3 each) and the training of all parameters (34),
perhaps since what changes is the order of known words, and most of MAM's
parameters stand beside MLPs, not in attention.
Best rates lie inside the grids but for the lowest ones: of all parameters (on
classes 0.001 was worse in a pilot, on the new language the second is 0.6
behind) and of MAM on the new language (the first three differ by 1.3); and for
the highest one of prefixes there.

Composes with adapter.kind (see `finetuning.adapt`), sam.rho and attention.kind
('favor': a Performer); configs/dp_finetuning.py has adapter.kind, too.
"""

from ml_collections import config_dict
import numpy as np
import optax

from configs import performer
from configs.parts import text_models
from configs.parts import text_tasks
from repjax import optim
from repjax import plots
from repjax import types
from repjax.experiments import of_tokens
from repjax.experiments import wiring
from repjax.methods import finetuning
from repjax.methods import language_modeling
from repjax.methods import supervised
from repjax.metrics import written_text
from repjax.models import text_heads
from repjax.models import transformer
from repjax.protocols import finetuned_text
from repjax.protocols import pretraining

_PAPER = dict(
  seed=0,
  batch_size=64,
  eval_batch_size=64,
  epochs=0.0,
  min_steps=100_000,
  # kind: 'sentences' (a text and its class), 'pairs' (a text and what is made
  # of it, by an encoder-decoder) or 'completions' (the same by a decoder).
  data=dict(
    kind='pairs',
    name='xsum',
    dir='',
    train_split='train',
    eval_splits=('validation', 'test'),
    num_workers=0,
    column='document',
    target='summary',
    length=512,
    target_length=64,
    # A tokenizer.json; '' is that of the weights or, without any, learns
    # `vocab_size` subwords from the training texts.
    tokenizer='',
    vocab_size=32_000,
  ),
  # A folder of Hugging Face: config.json, model.safetensors, tokenizer.json.
  # Its geometry then stands in for `model`. '' pretrains for pretraining.steps.
  weights='',
  adapter=dict(kind='mam', rank=512, length=30, scale=4.0, hidden_dim=800),
  # kind: 'exact', or 'favor' for that of the encoder.
  attention=dict(kind='exact', num_features=64, redraw_every=1000),
  sam=dict(rho=0.0),
  tx=dict(learning_rate=5e-5, weight_decay=0.01, warmup=0.0, clip=0.1),
  pretraining=dict(steps=0, batch_size=64, learning_rate=3e-3),
  step=dict(
    label_smoothing=0.1,
    microbatches=1,
    compute_dtype='bfloat16',
    ema_decay=0.0,
  ),
  run=dict(
    log_every=100,
    eval_every=10_000,
    save_every=1000,
    keep=2,
    best='validation/rougeL',
    best_mode='max',
  ),
)

_CLASSIFICATION = dict(
  batch_size=32,
  epochs=10.0,
  min_steps=0,
  data=dict(
    kind='sentences',
    name='glue/sst2',
    eval_splits=('validation',),
    column='sentence',
    target='',
  ),
  adapter=dict(rank=16, length=16, scale=2.0, hidden_dim=0),
  tx=dict(learning_rate=1e-4, weight_decay=0.1, warmup=0.06, clip=1.0),
  step=dict(label_smoothing=0.0),
  run=dict(best='validation/accuracy'),
)

_SMALL = dict(
  batch_size=32,
  eval_batch_size=256,
  epochs=0.0,
  min_steps=500,
  data=dict(
    name='python_topics', eval_splits=('test',), length=28, vocab_size=600
  ),
  adapter=dict(rank=31, length=8),
  tx=dict(learning_rate=4e-3, weight_decay=0.0, warmup=0.1),
  pretraining=dict(steps=4000),
  step=dict(compute_dtype='float32'),
  run=dict(log_every=50, eval_every=100, save_every=100, best='test/accuracy'),
  model=dict(hidden_dim=64, mlp_dim=256, num_heads=4, num_layers=1),
  # See `labelled_text.topic_pieces`.
  topics=dict(num_classes=8, size=48, skip=1),
  # Equal budgets, about 6 % of the parameters.
  arms=dict(
    full=dict(kind='full', rank=0, length=0, scale=1.0, hidden_dim=0),
    prefix=dict(kind='prefix', rank=0, length=40, scale=1.0, hidden_dim=0),
    adapter=dict(kind='adapter', rank=39, length=0, scale=1.0, hidden_dim=0),
    LoRA=dict(kind='lora', rank=20, length=0, scale=2.0, hidden_dim=0),
    MAM=dict(kind='mam', rank=31, length=8, scale=2.0, hidden_dim=0),
  ),
  study=dict(
    parts=('classification', 'generation'),
    rates=(4e-3, 1.6e-2, 6.4e-2, 0.256),
    # Training rows that choose the rate.
    num_validation=300,
  ),
)

# See `relatives.read`.
_RELATIVES = dict(
  tree='((a:0.1,b:0.1):0.3,(c:0.1,d:0.1):0.3)',
  words='a',
  rules='d',
  max_adjectives=1,
  num_public_rows=4000,
  num_rows=180,
  num_test_rows=200,
)

# What the synthetic language changes in the fields above.
_GENERATION = dict(
  batch_size=16,
  eval_batch_size=200,
  min_steps=250,
  data=dict(kind='pairs', name='relatives'),
  pretraining=dict(steps=800),
  adapter=dict(rank=23, length=4, scale=4.0),
  arms=dict(
    prefix=dict(length=20),
    adapter=dict(rank=29),
    LoRA=dict(rank=10),
    MAM=dict(rank=23, length=4, scale=4.0),
  ),
  study=dict(rates=(1e-3, 4e-3, 1.6e-2, 6.4e-2), num_validation=100),
  run=dict(best='test/bleu'),
)

_TINY_ARMS = dict(
  prefix=dict(length=2),
  adapter=dict(rank=2),
  LoRA=dict(rank=2),
  MAM=dict(rank=2, length=2),
)
_SMOKE = dict(
  batch_size=16,
  eval_batch_size=32,
  min_steps=8,
  data=dict(length=12),
  adapter=dict(rank=3, length=2),
  pretraining=dict(steps=2, batch_size=8),
  run=dict(log_every=4, eval_every=4, save_every=4),
  seeds=(0, 1),
  model=dict(hidden_dim=16, mlp_dim=16, num_heads=2, num_layers=1),
  arms=_TINY_ARMS,
  study=dict(rates=(1e-3,), num_validation=20),
  relatives=dict(num_public_rows=64, num_rows=64, num_test_rows=32),
  generation=dict(
    model=dict(hidden_dim=16, mlp_dim=16),
    adapter=dict(rank=3),
    pretraining=dict(steps=2),
    arms=_TINY_ARMS,
    study=dict(rates=(1e-3, 4e-3), num_validation=20),
    min_steps=8,
  ),
)


def _claims():
  """The thresholds; they stood here before the first run of the study."""
  claims = {}
  for part, unit, size in (
    ('classification', 'test accuracy', 0.01),
    ('generation', 'test BLEU', 1.0),
  ):
    for arm, name in (
      ('prefix', 'a prefix'),
      ('adapter', 'adapters'),
      ('LoRA', 'LoRA'),
    ):
      claims[f'{part}_over_{arm}'] = dict(
        says=f'{part}, equal budgets: {unit}, MAM minus {name}',
        paper='MAM is the best of them (abstract, no figure copied)',
        at_least=0.0,
      )
    claims[f'{part}_behind_full'] = dict(
      says=f'{part}: {unit}, all parameters trained minus MAM',
      paper='comparable to fine-tuning all parameters (abstract)',
      at_most=size,
    )
  return claims


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset: paper, small or smoke; see above."""
  presets = ('paper', 'paper_classification', 'small', 'small_generation')
  if preset not in (*presets, 'smoke', 'smoke_generation'):
    raise ValueError(
      'presets are paper, small and smoke, and paper_classification, '
      f'small_generation and smoke_generation; got {preset!r}'
    )
  config = config_dict.ConfigDict(_PAPER)
  config.claims = _claims()
  config.seeds = (0, 1, 2)
  if preset == 'paper':
    # The large BART: twice the base model's layers.
    large = dict(hidden_dim=1024, mlp_dim=4096, num_heads=16, num_layers=12)
    config.model = {**transformer.BART, **large}
  else:
    config.update(_CLASSIFICATION)
    config.model = dict(transformer.ROBERTA)
  if preset.startswith('paper'):
    return config
  config.model = {}
  config.update(_SMALL)
  config.relatives = _RELATIVES
  config.generation = _GENERATION
  if preset.startswith('smoke'):
    config.update(_SMOKE)
  return _generation(config) if preset.endswith('_generation') else config


def _generation(config):
  """The config with what its group `generation` changes."""
  changed = config_dict.ConfigDict(config.to_dict())
  changed.update(config.generation.to_dict())
  return changed


def _model(config, task: text_tasks.Task):
  """The model without adapters."""
  data = config.data
  kind, fields, positions = {
    'sentences': (
      text_heads.Classifier,
      # A pooler is learned in pretraining, or not worth having.
      {} if config.weights else dict(pool='mean', pooler=False),
      data.length,
    ),
    'pairs': (
      transformer.EncoderDecoder,
      {},
      max(x.shape[1] for x in _row(task).values()),
    ),
    'completions': (
      transformer.DecoderLM,
      {},
      data.length + 1 + data.target_length,
    ),
  }[data.kind]
  if data.kind == 'sentences':
    fields['num_classes'] = task.num_classes
  if not config.weights and 'num_positions' not in config.model:
    fields['num_positions'] = positions
  if config.attention.kind != 'exact':
    fields['attention_fn'] = performer.attention_fn(
      config.attention, causal=data.kind == 'completions'
    )
  return text_models.model(config, kind, task.tokenizer.vocab_size, **fields)


def _row(task):
  return {k: x for k, x in task.train.read([0]).items() if x.ndim == 2}


def _method(config, task: text_tasks.Task, model, tx) -> types.Method:
  if config.data.kind == 'sentences':
    return supervised.make(
      model, tx, inputs=supervised.text_inputs, **config.step
    )
  pairs = config.data.kind == 'pairs'
  longest = config.data.target_length
  if pairs:
    longest = _row(task)['tokens'].shape[1] - 1
  return finetuning.writer(
    model,
    tx,
    objective='translation' if pairs else 'causal',
    max_new_tokens=longest,
    end_id=text_models.end_id(task.tokenizer),
    **config.step,
  )


def _tx(config, steps, learning_rate):
  """Warm-up, then linear decay, as in the authors' code."""
  tx, warmup = config.tx, round(config.tx.warmup * steps)
  rate = optax.linear_schedule(learning_rate, 0.0, max(1, steps - warmup))
  if warmup:
    rise = optax.linear_schedule(0.0, learning_rate, warmup)
    rate = optax.join_schedules([rise, rate], [warmup])
  return optax.chain(
    optim.sam(config.sam.rho) if config.sam.rho else optax.identity(),
    optax.clip_by_global_norm(tx.clip),
    optax.adamw(rate, weight_decay=tx.weight_decay),
  )


def _pretrained(config, task: text_tasks.Task):
  """Parameters that fine-tuning starts from."""
  group = config.pretraining
  if config.data.kind == 'sentences':
    encoder = dict(config.model, num_positions=config.data.length)
    method = pretraining.masked_language_model(
      task.tokenizer.vocab_size,
      encoder,
      steps=group.steps,
      learning_rate=group.learning_rate,
    )
  else:
    method = language_modeling.make(
      _model(config, task),
      optax.adamw(
        optim.warmup_cosine(group.learning_rate, steps=group.steps, warmup=0.1)
      ),
      objective='translation',
    )
  params = pretraining.run(
    method,
    task.public,
    steps=group.steps,
    batch_size=group.batch_size,
    seed=config.seed,
  )
  if config.data.kind == 'sentences':
    return {name: params[name] for name in ('token_embedding', 'encoder')}
  return params


def build(config: config_dict.ConfigDict) -> types.Experiment:
  """One training run."""
  task = text_tasks.read(config)
  steps = wiring.num_steps(
    len(task.train),
    batch_size=config.batch_size,
    epochs=config.epochs,
    min_steps=config.min_steps,
  )
  model = _model(config, task)
  adapted = finetuning.adapt(model, **config.adapter)
  method = _method(
    config, task, adapted, _tx(config, steps, config.tx.learning_rate)
  )
  warm_start = text_models.warm_start(config, model, adapted)
  if not config.weights:
    if task.public is None and config.adapter.kind != 'full':
      raise types.InputError(
        f'config.adapter.kind={config.adapter.kind} adapts a pretrained model: '
        'name one by config.weights, or train all of one by '
        'config.adapter.kind=full.'
      )
    if task.public is not None:

      def warm_start(state):
        first = _pretrained(config, task)
        return finetuning.with_pretrained(
          adapted, state, lambda own: {**own, **first}
        )

  shared = dict(
    batches=wiring.shuffled(config, task.train),
    sources=task.sources,
    steps=steps,
  )
  if config.data.kind == 'sentences':
    made = of_tokens.classifier(config, method, **shared)
  else:
    made = of_tokens.predictor(
      config,
      method,
      show=lambda ids: task.tokenizer.decode(ids) + ' ',
      **shared,
    )

  def measure(outputs, columns):
    return {
      **made.measure(outputs, columns),
      **_quality(config, task, outputs, columns),
    }

  return made._replace(measure=measure, warm_start=warm_start)


def _quality(config, task, outputs, columns) -> dict[str, float]:
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


def run(config: config_dict.ConfigDict, report) -> types.Report:
  """Fine-tunes in five ways on classes and on a new language, all seeds."""
  del report  # Nothing is written but what is returned.
  parts = {
    'classification': (config, 'accuracy', 'test accuracy'),
    'generation': (_generation(config), 'bleu', 'test BLEU'),
  }
  scalars, figures = {}, {}
  for part in config.study.parts:
    changed, measure, label = parts[part]
    tuned, others = _compare(changed, measure)
    score = {arm: x.score for arm, x in tuned.items()}
    for arm in ('prefix', 'adapter', 'LoRA'):
      scalars[f'{part}_over_{arm}'] = score['MAM'] - score[arm]
    scalars[f'{part}_behind_full'] = score['full'] - score['MAM']
    for arm, x in tuned.items():
      every = np.ones(len(config.seeds))
      scalars[f'{part}, {arm}: {label}'] = x.score
      scalars[f'{part}, {arm}: trained parameters, %'] = x.percent * every
      scalars[f'{part}, {arm}: learning rate'] = x.rate * every
      for rate, values in zip(changed.study.rates, x.validation, strict=True):
        scalars[f'{part}, {arm}: validation at rate {rate:g}'] = values
      for name, values in others[arm].items():
        scalars[f'{part}, {arm}: {name}'] = values
    figures[part] = plots.points(
      {
        arm: (np.full(len(x.score), x.percent), x.score)
        for arm, x in tuned.items()
      },
      xlabel='trained parameters, % of the model',
      ylabel=label,
    )
    figures[f'{part}_curves'] = plots.seed_curves(
      {arm: x.curve for arm, x in tuned.items()}, ylabel=label
    )
  return types.Report(scalars=scalars, arrays={}, figures=figures)


def _compare(config, measure):
  """Arm -> `finetuned_text.Tuned`, and arm -> further measures."""
  task = text_tasks.read(config)
  steps = wiring.num_steps(
    len(task.train),
    batch_size=config.batch_size,
    epochs=config.epochs,
    min_steps=config.min_steps,
  )
  pretrained = _pretrained(config, task)
  rows = finetuned_text.hold_out(
    task.train.columns(),
    task.sources(config.data.eval_splits[0]).columns(),
    num_rows=config.study.num_validation,
  )
  base = _model(config, task)
  tuned, others = {}, {}
  for arm, settings in config.arms.items():
    model = finetuning.adapt(base, **settings)
    tuned[arm] = finetuned_text.tune(
      f'{config.data.name}, {arm}',
      model,
      lambda tx, model=model: _method(config, task, model, tx),
      lambda: _tx(config, steps, 1.0),
      rows,
      pretrained,
      seeds=config.seeds,
      rates=config.study.rates,
      batch_size=config.batch_size,
      steps=steps,
      score=lambda outputs, columns: _quality(config, task, outputs, columns)[
        measure
      ],
    )
    by_seed = [
      _quality(
        config,
        task,
        {name: x[i] for name, x in tuned[arm].outputs.items()},
        rows.test,
      )
      for i in range(len(config.seeds))
    ]
    others[arm] = {
      name: [x[name] for x in by_seed] for name in by_seed[0] if name != measure
    }
  return tuned, others
