r"""DP tuning (Papernot and Steinke, ICLR 2022): the price of the best run.

    python -m launch.reproduce --papers=dp_tuning

measures the claims (`configs/studies/dp_tuning.py`): the best of 10 private
runs on average costs 0.45 of the epsilon of composing 10, and the best of 1,000
0.03 of composing those. https://arxiv.org/abs/2110.03620

    python -m launch.sweep --config=configs/dp_tuning.py:small --private \
      --space=tx.learning_rate=0.1,1,10 --metric='train[80%:]/accuracy' \
      --score=noisy --workdir=runs/search

paper: DP-SGD on MNIST (batches of 256, noise 1.1, 60 epochs, as in its example
  of accounting), an MLP. A tenth of the rows scores, so that epsilon is 2.53,
  and 2.38 with all 60,000 of the example (delta 1e-5).
small: softmax regression on `digits`. Rows that are held out of training score
  the runs, and test rows judge them.
"""

import jax
from ml_collections import config_dict
import optax

from configs import presets
from repjax import types
from repjax.experiments import of_images
from repjax.experiments import private
from repjax.experiments import private_sizes
from repjax.experiments import wiring
from repjax.methods import supervised
from repjax.models import mlp

PRESETS = dict(
  paper=dict(
    batch_size=256,  # On average: batches are Poisson samples.
    eval_batch_size=1000,
    epochs=60.0,
    data=dict(
      name='mnist',
      train_split='train[:90%]',
      eval_splits=('train[90%:]', 'test'),
    ),
    augment=dict(mean=(0.1307,), std=(0.3081,)),
    mlp=dict(features=(128,)),
    tx=dict(learning_rate=0.25, momentum=0.0),
    dp=dict(
      clip_norm=1.0, noise_multiplier=1.1, delta=1e-5, overflow=0.0, key_file=''
    ),
    # No best checkpoint: its score is not accounted for.
    run=dict(best=''),
  ),
  small=dict(
    eval_batch_size=360,
    epochs=10.0,
    data=dict(train_split='train[:80%]', eval_splits=('train[80%:]', 'test')),
    augment=dict(mean=(0.3,), std=(0.37,)),
    mlp=dict(features=()),
    tx=dict(learning_rate=1.0),
    dp=dict(noise_multiplier=5.0, delta=1e-4),
    run=dict(log_every=10, eval_every=0, save_every=20),
  ),
  smoke=dict(
    batch_size=32,
    epochs=0.3,
    run=dict(log_every=5, eval_every=0, save_every=20),
  ),
)


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset: paper, small or smoke."""
  return presets.get_config(preset, presets.IMAGES, PRESETS)


def build(
  config: config_dict.ConfigDict, optimizer: types.Optimizer = optax.sgd
) -> types.Experiment:
  """One private training run."""
  data = of_images.read(config)
  plan = plan_of(config, len(data.train))
  tx = optimizer(config.tx.learning_rate, momentum=config.tx.momentum)
  made = of_images.classifier(
    config,
    data._replace(steps=plan.steps),
    method(config, data.train.num_classes, plan, tx),
    batches=plan.batches(data.train, **wiring.reading(config, data.recipe)),
  )
  return plan.guarded(made)


def plan_of(config, num_rows: int) -> private.Plan:
  """The plan of a run: its noise is given, the same for every rate."""
  plan = private.plan(
    num_rows,
    batch_size=config.batch_size,
    epochs=config.epochs,
    seed=config.seed,
    nonce=b'',  # Drawn when a run begins.
    multiple=jax.device_count() * config.step.microbatches,
    **config.dp,
  )
  private_sizes.check_steps(plan.steps, config.epochs, config.min_steps)
  return plan


def method(
  config, num_classes: int, plan: private.Plan, tx: optax.GradientTransformation
) -> types.Method:
  """The network, with the updates that `tx` makes of private gradients."""
  return supervised.make(
    mlp.Mlp(num_classes=num_classes, **config.mlp),
    optax.chain(plan.link(), tx),
    **config.step,
  )
