"""DP fine-tuning (Li et al., ICLR 2022): pretrained models learn privately.

The paper fine-tunes pretrained transformers by DP-Adam on Poisson-sampled
batches of more than 1,000 rows with a high learning rate, and reports, at equal
privacy, more accuracy than with the small batches and rates that are usual
without privacy, and more with larger pretrained models than with smaller ones
('Large Language Models Can Be Strong Differentially Private Learners').

paper: sentiment of SST-2 with an encoder of RoBERTa-base's size, epsilon 3.
  weights=FOLDER starts from published ones; without it trains from scratch. The
  authors' text-infilling form of the task is not here.
paper_generation: E2E restaurant descriptions with a decoder of GPT-2's size.
small: 3 seeds. Images: a linear model on oriented gradients of `digits` (or of
  `mnist`, where it must reach 95 %) at (3, 1e-5)-differential privacy. Text:
  whether 48 characters of `python_topics` are of its largest chapter, at
  epsilon 8, by LoRA in encoders that were pretrained on other chapters: large
  batches must beat small ones at the best of the same rates, and the larger
  encoder must not lose more than a point against the smaller one. (All
  parameters, adapter.kind=full, learn nothing from 4,000 rows: their noise is
  larger than their gradient.)

Two claims on text do not hold. Large batches at a high rate are 5.5 points
ahead of small ones at a usual rate, as in the paper, but a point behind small
ones at their own best rate, which is high, too: 20 epochs are 85 large steps
here. And the larger encoder is 4 points behind: it has four times the trained
parameters, so more noise, and pretraining on 140,000 characters has taught it
less (6 % of hidden tokens right, the smaller one 11 %). Rates were swept up to
0.01 first, then up to 0.3.
"""

import functools

import jax
from ml_collections import config_dict
import optax

from configs.parts import text_models
from repjax import plots
from repjax import types
from repjax.data.images import oriented_gradients
from repjax.data.images import transforms
from repjax.data.reading import source
from repjax.experiments import of_images
from repjax.experiments import of_tokens
from repjax.experiments import private
from repjax.experiments import wiring
from repjax.methods import finetuning
from repjax.methods import language_modeling
from repjax.methods import supervised
from repjax.models import mlp
from repjax.models import text_heads
from repjax.models import transformer
from repjax.protocols import private_text
from repjax.protocols import side_by_side

_PAPER = dict(
  seed=0,
  batch_size=1000,
  eval_batch_size=256,
  epochs=3.0,
  min_steps=0,
  # kind: 'sentences' (a text and its class), 'completions' (a prompt and what
  # follows) or 'images'.
  data=dict(
    kind='sentences',
    name='glue/sst2',
    dir='',
    train_split='train',
    eval_splits=('validation',),
    num_workers=0,
    column='sentence',
    target='',
    length=256,
    # A tokenizer.json that `tokens.Subwords.save` wrote, learned from public
    # text; '' reads bytes, or is that of the weights.
    tokenizer='',
  ),
  # A folder of Hugging Face: config.json, model.safetensors, tokenizer.json.
  # Its geometry then stands in for `model`. '' trains from scratch.
  weights='',
  # delta 0 is 1 / (2 n). sampling_rate 0 is batch_size / n. user_column says
  # whose a row is: batches and n are then of users, each with up to
  # rows_per_user rows, which are clipped and protected together.
  dp=dict(
    epsilon=3.0,
    delta=0.0,
    clip_norm=0.1,
    sampling_rate=0.0,
    key_file='',
    accountant='pld',
    method='auto',
    user_column='',
    rows_per_user=1,
  ),
  # decay: 'linear' or 'constant'.
  tx=dict(learning_rate=5e-4, weight_decay=0.0, decay='linear'),
  step=dict(microbatches=8, compute_dtype='float32'),
  # Nothing without noise may choose what is published: no best checkpoint.
  run=dict(
    log_every=10,
    eval_every=100,
    save_every=100,
    keep=2,
    best='',
    best_mode='max',
  ),
)

# Of a text model: what trains, see `finetuning.adapt`. The paper has all
# parameters and, as another row, LoRA: adapter.kind=lora.
_ADAPTER = dict(kind='full', rank=16, length=16, scale=2.0, hidden_dim=0)

_GENERATION = dict(
  batch_size=1024,
  epochs=10.0,
  data=dict(
    kind='completions',
    name='e2e_nlg',
    eval_splits=('validation', 'test'),
    column='meaning_representation',
    target='human_reference',
    length=512,
  ),
  dp=dict(delta=8e-6),
  tx=dict(learning_rate=2e-3, decay='constant'),
)

_SMALL = dict(
  # Of each set alike: see dp.sampling_rate.
  batch_size=256,
  eval_batch_size=360,
  epochs=10.0,
  data=dict(kind='images', name='digits', eval_splits=('test',), column=''),
  dp=dict(delta=1e-5, clip_norm=0.5, sampling_rate=0.1),
  tx=dict(learning_rate=0.1, decay='linear'),
  step=dict(microbatches=1),
  run=dict(log_every=20, eval_every=50, save_every=50),
)

_ENCODER = dict(num_positions=32, mlp_dim=64, num_heads=2)
_STUDY = dict(
  parts=('images', 'text'),
  text=dict(num_classes=6, size=48, length=24, vocab_size=600),
  small=dict(_ENCODER, hidden_dim=32, num_layers=1),
  large=dict(_ENCODER, hidden_dim=64, num_layers=2),
  pretraining=dict(steps=1000, batch_size=64, learning_rate=3e-3),
  privacy=dict(epsilon=8.0, delta=0.0, clip_norm=0.1, epochs=20.0),
  adapter=dict(_ADAPTER, kind='lora', rank=4),
  small_batch=64,
  large_batch=1024,
  # Of all batches alike: up to where the best one lies inside.
  rates=(1e-3, 1e-2, 3e-2, 1e-1, 3e-1),
  # What the paper compares: a usual rate, and a high one.
  low_rate=1e-3,
  high_rate=1e-1,
)

# The thresholds stood here before the first run of the study.
_CLAIMS = dict(
  image_accuracy=dict(
    says='images at (3, 1e-5): test accuracy',
    paper='not reported (the paper is about text)',
  ),
  mnist_accuracy=dict(
    says='MNIST at (3, 1e-5): test accuracy',
    paper='not reported (the paper is about text)',
    at_least=0.95,
  ),
  image_cost=dict(
    says='images: test accuracy without noise minus with it',
    paper='not reported',
  ),
  large_batch_gain=dict(
    says='text at epsilon 8, equal epochs: test accuracy, large batches minus '
    'small ones, each at the best of the same rates',
    paper='large batches with high rates win at equal privacy and epochs',
    at_least=0.01,
  ),
  recipe_gain=dict(
    says='the same, large batches at the high rate minus small ones at the low '
    'one',
    paper='large batches with high rates win at equal privacy and epochs',
    at_least=0.01,
  ),
  large_model_gain=dict(
    says='text at epsilon 8: test accuracy, larger pretrained encoder minus '
    'smaller one',
    paper='larger pretrained models are better at equal privacy (GLUE, E2E)',
    at_least=-0.01,
  ),
)


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset: paper, paper_generation, small or smoke."""
  config = config_dict.ConfigDict(_PAPER)
  config.claims = _CLAIMS
  config.seeds = (0, 1, 2)
  config.study = _STUDY
  if preset in ('paper', 'paper_generation'):
    name = 'ROBERTA'
    if preset == 'paper_generation':
      config.update(_GENERATION)
      name = 'GPT2'
    config.model = dict(getattr(transformer, name))
    config.adapter = _ADAPTER
    return config
  config.update(_SMALL)
  config.bins = 8
  if preset == 'smoke':
    config.update(
      dict(
        batch_size=48,
        epochs=0.25,
        dp=dict(sampling_rate=0.0, accountant='rdp'),
        run=dict(log_every=4, eval_every=4, save_every=4),
        seeds=(0, 1),
        study=dict(
          small=dict(hidden_dim=8, mlp_dim=8),
          large=dict(hidden_dim=8, mlp_dim=8, num_layers=1),
          pretraining=dict(steps=2, batch_size=8),
          privacy=dict(epochs=0.05),
          text=dict(length=8),
          rates=(1e-3, 1e-1),
        ),
      )
    )
  elif preset != 'small':
    raise ValueError(
      'presets are paper, small and smoke, and paper_generation; got '
      f'{preset!r}'
    )
  return config


def build(config: config_dict.ConfigDict) -> types.Experiment:
  """One training run."""
  if config.weights and config.data.kind == 'images':
    raise types.InputError(
      f'config.weights={config.weights} cannot be used: what images are '
      "learned with has no published weights. Leave it ''."
    )
  builder = text_models.by_kind(
    config,
    {
      'images': _images,
      'sentences': _sentences,
      'completions': _completions,
    },
  )
  return builder(config)


def _plan(config, num_rows, **changes) -> private.Plan:
  return private.plan(
    num_rows,
    **{
      'batch_size': config.batch_size,
      'epochs': config.epochs,
      'seed': config.seed,
      'multiple': jax.device_count() * config.step.microbatches,
      **config.dp,
      **changes,
    },
  )


def _with_users(config, train: source.Source) -> source.Source:
  """Rows of tokens with the column that says whose they are, if it counts."""
  name = config.dp.user_column
  if not name:
    return train
  data = config.data
  whole = source.load(data.name, data.train_split, data_dir=data.dir)
  return train.with_columns(**{name: whole.column(name)})


def _adam(tx, plan, learning_rate=None):
  """Private gradients, then Adam (sec. 3)."""
  rate = tx.learning_rate if learning_rate is None else learning_rate
  if tx.decay == 'linear':
    rate = optax.linear_schedule(rate, 0.0, plan.steps)
  elif tx.decay != 'constant':
    raise types.InputError(
      f"config.tx.decay is 'linear' or 'constant'; got {tx.decay!r}."
    )
  return optax.chain(
    plan.link(), optax.adamw(rate, weight_decay=tx.weight_decay)
  )


def _images(config):
  train = source.load(
    config.data.name, config.data.train_split, data_dir=config.data.dir
  )
  features = _features(config, train)
  plan = _plan(config, private.count(train, config.dp.user_column))
  recipe = wiring.AS_IT_IS._replace(train=features, evaluate=features)
  made = of_images.classifier(
    config,
    of_images.Data(train, recipe, plan.steps),
    _linear(config, train.num_classes, plan),
    batches=plan.batches(train, **wiring.reading(config, recipe)),
  )
  return plan.guarded(made)


def _features(config, rows) -> transforms.Transform:
  if rows.image_shape is None:
    raise types.InputError(
      f'The images of {rows.name} differ in size, or there are none: '
      "config.data.kind='images' takes sets whose images have one size."
    )
  # Seven cells a side, or cells of two pixels in tiny images.
  return oriented_gradients.oriented_gradients(
    cell=max(2, rows.image_shape[0] // 7), bins=config.bins
  )


def _linear(config, num_classes, plan):
  return supervised.make(
    mlp.Mlp(num_classes, features=()),
    _adam(config.tx, plan),
    **config.step,
  )


def _sentences(config):
  tokenizer = text_models.tokenizer(config)
  load = text_models.sentences(config, tokenizer)
  train = _with_users(config, load(config.data.train_split))
  plan = _plan(config, private.count(train, config.dp.user_column))
  model = text_models.model(
    config,
    text_heads.Classifier,
    tokenizer.vocab_size,
    num_classes=train.num_classes,
  )
  adapted = finetuning.adapt(model, **config.adapter)
  method = supervised.make(
    adapted,
    _adam(config.tx, plan),
    inputs=supervised.text_inputs,
    **config.step,
  )
  made = of_tokens.classifier(
    config,
    method,
    batches=plan.batches(train, **wiring.reading(config)),
    sources=load,
    steps=plan.steps,
  )
  return plan.guarded(made)._replace(
    warm_start=text_models.warm_start(config, model, adapted)
  )


def _completions(config):
  tokenizer = text_models.tokenizer(config)
  load = text_models.completions(config, tokenizer)
  train = _with_users(config, load(config.data.train_split))
  plan = _plan(config, private.count(train, config.dp.user_column))
  model = text_models.model(config, transformer.DecoderLM, tokenizer.vocab_size)
  adapted = finetuning.adapt(model, **config.adapter)
  method = language_modeling.make(
    adapted, _adam(config.tx, plan), **config.step
  )
  made = of_tokens.predictor(
    config,
    method,
    batches=plan.batches(train, **wiring.reading(config)),
    sources=load,
    steps=plan.steps,
    show=tokenizer.decode,
  )
  return plan.guarded(made)._replace(
    warm_start=text_models.warm_start(config, model, adapted)
  )


def run(config: config_dict.ConfigDict, report) -> types.Report:
  """Images at one epsilon; text by several recipes and two encoders."""
  del report  # Nothing is written but what is returned.
  parts = {'images': _study_images, 'text': _study_text}
  scalars, curves = {}, {}
  for name in config.study.parts:
    found, lines = parts[name](config)
    scalars.update(found)
    curves.update(lines)
  return types.Report(
    scalars=scalars,
    arrays={},
    figures={
      f'{name}_accuracy': plots.seed_curves(
        lines,
        ylabel='test accuracy',
        xlabel='epochs' if name == 'text' else 'step',
      )
      for name, lines in curves.items()
    },
  )


def _study_images(config):
  train, test = (
    source.load(config.data.name, split, data_dir=config.data.dir)
    for split in (config.data.train_split, config.data.eval_splits[0])
  )
  features = _features(config, train)
  columns = side_by_side.per_seed(
    side_by_side.rows(train, features), config.seeds
  )
  test_rows = side_by_side.rows(test, features)
  trained = {}
  for name, epsilon in (
    (f'epsilon {config.dp.epsilon:g}', config.dp.epsilon),
    ('without noise', float('inf')),
  ):
    plan = _plan(config, len(train), epsilon=epsilon)
    trained[name] = side_by_side.train(
      f'{config.data.name}, {name}',
      _linear(config, train.num_classes, plan),
      columns,
      test_rows,
      seeds=config.seeds,
      batch_size=plan.capacity,
      steps=plan.steps,
      order=side_by_side.poisson_order(plan, config.seeds),
    )
  noisy, plain = (x.score for x in trained.values())
  scalars = {'image_accuracy': noisy, 'image_cost': plain - noisy}
  if config.data.name.startswith('mnist'):
    scalars['mnist_accuracy'] = noisy
  return scalars, {'image': {name: x.curve for name, x in trained.items()}}


def _study_text(config):
  """Small and large batches, low and high rates; two pretrained encoders."""
  group = config.study
  task = private_text.largest_or_not(private_text.read(**group.text))
  pretrained = {
    size: private_text.pretrain(
      task, group[size], seed=config.seed, **group.pretraining
    )
    for size in ('small', 'large')
  }
  few, many = group.small_batch, group.large_batch
  low, high = group.low_rate, group.high_rate
  plans = {
    batch: _plan(
      config,
      len(task.train['label']),
      batch_size=batch,
      sampling_rate=0.0,
      **group.privacy,
    )
    for batch in (few, many)
  }
  trained = {}
  for size, batch, rate in (
    *(('small', batch, rate) for batch in (few, many) for rate in group.rates),
    ('large', many, high),
  ):
    trained[size, batch, rate] = private_text.finetune(
      _name(size, batch, rate),
      task,
      group[size],
      pretrained[size],
      plan=plans[batch],
      tx=functools.partial(_adam, config.tx, learning_rate=rate),
      adapter=group.adapter,
      seeds=config.seeds,
    )
  score = {key: x.score for key, x in trained.items()}

  def best(batch):
    """The scores at that rate whose mean over seeds is highest."""
    found = [score['small', batch, rate] for rate in group.rates]
    return max(found, key=lambda x: x.mean())

  scalars = {
    'large_batch_gain': best(many) - best(few),
    'recipe_gain': score['small', many, high] - score['small', few, low],
    'large_model_gain': score['large', many, high] - score['small', many, high],
    **{f'text, {_name(*key)}, accuracy': x for key, x in score.items()},
  }
  curves = {
    # Over epochs, since runs have different numbers of steps.
    _name(*key): (
      x.curve[0] / x.curve[0][-1] * group.privacy.epochs,
      x.curve[1],
    )
    for key, x in trained.items()
  }
  return scalars, {'text': curves}


def _name(size, batch, rate):
  return f'{size} encoder, batch {batch}, rate {rate:g}'
