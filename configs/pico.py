"""PiCO (Wang et al., ICLR 2022): which of a row's candidate labels is right.

    python -m launch.reproduce --papers=pico

measures the claims (`configs/studies/pico.py`). --config.algorithm names the
method: 'pico', what it is compared with (uniform, cc, mse, exp, proden, lws),
or 'supervised', with right labels. https://arxiv.org/abs/2201.08984

paper: CIFAR-10, q = .5, by the authors' script, but for a PreAct ResNet-18, and
  views without hue and grey: crops, flips and jitter, and RandAugment of fixed
  strength for the keys. (CIFAR-100: --config.data.name=cifar100
  --config.data.rate=.05; its warm-up is said to be of 100 epochs.)
small: an MLP on `digits`: 98.4 %, 3.5 points above targets that stay uniform.
"""

from ml_collections import config_dict
import optax

from configs import presets
from configs.parts import candidate_sets
from repjax import optim
from repjax import types
from repjax.experiments import of_images

PRESETS = dict(
  paper=dict(
    batch_size=256,
    eval_batch_size=1000,
    epochs=800.0,
    algorithm='pico',
    # candidates: how sets are drawn, at `rate` (q); noise: of missing labels.
    data=dict(
      **dict(name='cifar10', eval_splits=('targets', 'test')),
      **dict(candidates='uniform', rate=0.5, noise=0.0),
    ),
    augment=presets.CIFAR10,
    views=dict(
      **dict(area=(0.2, 1.0), flip=True, jitter=0.4, noise=0.0),
      **dict(strong_layers=3, strong_magnitude=5.0),
    ),
    network='preact_resnet',
    preact_resnet=dict(stage_sizes=(2, 2, 2, 2), width=64, remat=False),
    mlp=dict(features=(256,)),
    tx=dict(learning_rate=0.01, momentum=0.9, weight_decay=1e-3, end=1e-3),
    pico=dict(
      **dict(dim=128, queue_size=8192, temperature=0.07, weight=0.5),
      **dict(momentum=0.999, prototype_momentum=0.99),
    ),
    # warmup: epochs; phi goes from start to end.
    targets=dict(warmup=1.0, start=0.95, end=0.8),
    leverage=1.0,
    run=dict(best='targets/confidence'),
  ),
  small=dict(
    batch_size=64,
    eval_batch_size=360,
    epochs=60.0,
    augment=dict(mean=(0.3,), std=(0.37,)),
    views=dict(
      area=(0.6, 1.0), flip=False, jitter=0.0, noise=0.3, strong_layers=0
    ),
    network='mlp',
    tx=dict(learning_rate=0.05),
    pico=dict(dim=32, queue_size=512, momentum=0.99),
    run=dict(log_every=200, eval_every=400, save_every=400),
  ),
  smoke=dict(
    **dict(batch_size=16, epochs=0.1),
    mlp=dict(features=(16,)),
    pico=dict(dim=8, queue_size=64),
    targets=dict(warmup=0.02),
  ),
)


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset."""
  return presets.get_config(preset, presets.IMAGES, PRESETS)


def build(
  config: config_dict.ConfigDict, optimizer: types.Optimizer = optax.sgd
) -> types.Experiment:
  """One training run."""
  if config.algorithm != 'pico' and config.run.best.startswith('targets/'):
    config.run.best = ''  # Others have no targets to choose by.
  data = candidate_sets.read(config)
  return candidate_sets.experiment(
    config, data, method(config, data, optimizer)
  )


def method(
  config, data: of_images.Data, optimizer: types.Optimizer = optax.sgd
) -> types.Method:
  """The network, its optimizer and its loss."""
  tx = config.tx
  rate = optim.warmup_cosine(
    tx.learning_rate, steps=data.steps, warmup=0.0, end=tx.end
  )
  return candidate_sets.algorithm(
    config,
    data,
    optax.chain(
      optax.add_decayed_weights(tx.weight_decay),
      optimizer(rate, momentum=tx.momentum),
    ),
  )
