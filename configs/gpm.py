"""GPM (Saha et al., ICLR 2021): learn tasks in sequence without forgetting.

    python -m launch.reproduce --papers=gpm

learns the sequence and measures the claims (`configs/studies/gpm.py`): over 5
permutations of `digits` about 24 points more final accuracy than plain SGD, and
6 more than EWC. `launch.train` trains the first task alone.
https://arxiv.org/abs/2103.09762

paper: permuted MNIST, 10 tasks, the 100-100 network, one head.
  paper_cifar100: 10 splits of CIFAR-100, one head each, the AlexNet.
  paper_5datasets: five sets, one head each, a ResNet-18 of width 20 (ours
  normalises before activations).
small: 5 permutations of `digits`.
  mnist: 10 of MNIST and the paper's network, a tenth of an epoch each.
"""

from ml_collections import config_dict
import optax

from configs import presets
from configs.parts import task_streams
from repjax import optim
from repjax import types
from repjax.experiments import of_images
from repjax.methods import multitask

PRESETS = dict(
  paper=dict(
    batch_size=10,
    eval_batch_size=1000,
    epochs=5.0,  # Of each task.
    # stream: 'permuted', 'rotated', 'split' (classes of one set) or 'sets' (one
    # task each, `names`).
    data=dict(
      stream='permuted',
      name='mnist',
      names=(),
      eval_splits=('test',),
      num_tasks=10,
      size=32,
      order_seed=0,
    ),
    augment=dict(mean=(0.1307,), std=(0.3081,)),
    # 'one' head that all tasks share, or 'each' its own, which stays free.
    heads='one',
    network='mlp',
    mlp=dict(features=(100, 100), use_bias=False),
    alexnet=dict(features=(2048, 2048)),
    preact_resnet=dict(width=20),
    tx=dict(learning_rate=0.01),
    # Thresholds of each network, one for all layers or one a layer; `growth` is
    # added for every task before.
    gpm=dict(
      thresholds=dict(
        mlp=dict(hidden_0=0.95, hidden_1=0.99, head=0.99),
        alexnet=0.97,
        preact_resnet=0.965,
      ),
      growth=0.0,
      num_samples=300,
    ),
    # Of the other learners.
    replay=dict(memory_per_class=25, memory_batch=10),
    # The best of these counts.
    ewc=dict(strengths=(1.0, 5.0, 20.0, 100.0)),
    run=dict(
      log_every=500, eval_every=5000, save_every=5000, best='test/accuracy'
    ),
  ),
  small=dict(
    epochs=15.0,
    eval_batch_size=360,
    data=dict(num_tasks=5),
    augment=dict(mean=(0.3,), std=(0.37,)),
    mlp=dict(features=(64, 64)),
    tx=dict(learning_rate=0.02),
    ewc=dict(strengths=(1.0, 5.0, 20.0, 100.0, 300.0, 1000.0)),
    run=dict(log_every=200, eval_every=1000, save_every=1000),
  ),
  smoke=dict(
    batch_size=16,
    epochs=0.0,
    min_steps=8,
    data=dict(num_tasks=3),
    mlp=dict(features=(16, 16)),
    gpm=dict(num_samples=40),
    ewc=dict(strengths=(1.0, 20.0)),
  ),
  mnist=dict(
    on='small',
    epochs=0.1,
    data=dict(name='mnist', num_tasks=10),
    mlp=dict(features=(100, 100)),
    tx=dict(learning_rate=0.01),
    ewc=dict(strengths=(0.01, 0.03, 0.1, 0.3, 1.0, 5.0, 20.0, 100.0)),
  ),
  paper_cifar100=dict(
    on='paper',
    batch_size=64,
    epochs=200.0,
    data=dict(stream='split', name='cifar100'),
    augment=dict(mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762)),
    heads='each',
    network='alexnet',
    gpm=dict(growth=0.003, num_samples=125),
  ),
  paper_5datasets=dict(
    on='paper',
    batch_size=64,
    epochs=100.0,
    data=dict(
      stream='sets',
      name='',
      names=('cifar10', 'mnist', 'svhn_cropped', 'fashion_mnist', 'notmnist'),
      num_tasks=5,
    ),
    augment=dict(mean=(0.5,), std=(0.25,)),
    heads='each',
    network='preact_resnet',
    tx=dict(learning_rate=0.1),
    gpm=dict(num_samples=100),
  ),
)


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset: paper, small, smoke, or another of `PRESETS`."""
  return presets.get_config(preset, presets.IMAGES, PRESETS)


def build(
  config: config_dict.ConfigDict, optimizer: types.Optimizer = optax.sgd
) -> types.Experiment:
  """The first task, with the link that later tasks need."""
  first = task_streams.read(config)[0]
  free = (lambda path: path[0] == 'head') if config.heads == 'each' else None
  method = multitask.make(
    task_streams.network(config, first.train.num_classes),
    optax.chain(
      optimizer(config.tx.learning_rate), optim.project_gradients(free=free)
    ),
    num_tasks=config.data.num_tasks,
    weighting='rows',
    heads=config.heads,
    **config.step,
  )
  data = of_images.data(config, first.train)
  known = {
    config.data.train_split: first.train,
    config.data.eval_splits[0]: first.test,
  }
  return of_images.classifier(
    config,
    data,
    method,
    sources=lambda split: presets.choose('data.eval_splits', split, known),
  )
