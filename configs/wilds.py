"""WILDS and U-WILDS (Koh et al., ICML 2021; Sagawa et al., ICLR 2022): domains.

    python -m launch.reproduce --papers=wilds

measures the claims (`configs/studies/wilds.py`); --config.algorithm names the
method. https://arxiv.org/abs/2012.07421 and https://arxiv.org/abs/2112.05090

paper: DenseNet-121 on Camelyon17 (WILDS); --data_dir holds `camelyon17_v1.0`.
paper_unlabelled: as in U-WILDS, RandAugment and rows of the test hospital
  without labels; 'noisy_student' needs --config.teacher=WORKDIR of an 'erm'.
  'swav' learns from these rows alone; --config.pretrained=WORKDIR of such a
  run is what others start from. (WILDS has six crops, LARC and a queue.)
small: an MLP on 'hospitals' of `digits`; augment.kind=stains, whose jitter
  stands in for RandAugment, is what 'fixmatch' and 'swav' need.
mnist: the same of MNIST, at a tenth of the rate (at .1 and .03 it diverges).
"""

from ml_collections import config_dict
import optax

from configs import presets
from configs.parts import domains
from repjax import types
from repjax.benchmarks.wilds import algorithms
from repjax.benchmarks.wilds import experiment
from repjax.models import densenet
from repjax.models import mlp

PRESETS = dict(
  paper=dict(
    batch_size=32,
    eval_batch_size=256,
    epochs=10.0,
    min_steps=0,
    unlabelled_batch_size=32,
    data=dict(
      kind='published',
      name='camelyon17',
      group_by=('hospital',),
      eval_splits=('val', 'id_val', 'test'),
      # looks: seed of how hospitals look; num_digits: of all, 0 for all.
      **dict(fraction=1.0, looks=0, num_digits=0),
    ),
    augment=dict(
      **dict(size=0, flip=False, kind='none', jitter=0.5),
      **dict(layers=2, magnitude=10.0, cutout=48),
      mean=(0.485, 0.456, 0.406),
      std=(0.229, 0.224, 0.225),
    ),
    network='densenet',
    densenet=dict(stage_sizes=(6, 12, 24, 16), growth=32),
    mlp=dict(features=(128, 128)),
    # dann_divisor: of the rate of all layers below the head, in DANN.
    tx=dict(
      learning_rate=1e-3, momentum=0.9, weight_decay=1e-2, dann_divisor=10.0
    ),
    fixmatch=dict(threshold=0.7, weight=1.0),
    swav=dict(
      **dict(num_prototypes=20, temperature=0.1, epsilon=0.03, iterations=3),
      **dict(frozen_steps=5005, hidden_dim=2048, dim=128),
    ),
    run=dict(best='val/accuracy'),
  ),
  paper_unlabelled=dict(
    on='paper',
    unlabelled='test_unlabeled',
    augment=dict(kind='randaugment', flip=True),
  ),
  small=dict(
    batch_size=64,
    unlabelled_batch_size=64,
    eval_batch_size=360,
    epochs=0.0,
    min_steps=1000,
    data=dict(kind='hospitals', name='digits'),
    augment=dict(kind='none', mean=(0.5,), std=(0.5,)),
    network='mlp',
    # Rate, weight and thresholds by accuracy on 'val' of other draws.
    tx=dict(learning_rate=0.1, weight_decay=0.0, dann_divisor=1.0),
    irm=dict(at=100),
    afn=dict(weight=1e-4),
    pseudo_label=dict(threshold=0.95),
    fixmatch=dict(threshold=0.95),
    swav=dict(
      **dict(num_prototypes=64, epsilon=0.05, frozen_steps=50),
      **dict(hidden_dim=128, dim=32),
    ),
    adversary=dict(features=(64, 64), normalize=False),
    run=dict(log_every=100, eval_every=300, save_every=300),
  ),
  mnist=dict(
    on='small',
    data=dict(name='mnist', num_digits=10000),
    tx=dict(learning_rate=0.01),
  ),
  smoke=dict(min_steps=8, data=dict(num_digits=300)),
)


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset."""
  return presets.get_config(preset, presets.RUN, domains.ALGORITHMS, PRESETS)


def build(
  config: config_dict.ConfigDict, optimizer: types.Optimizer = optax.sgd
) -> types.Experiment:
  """One training run."""
  compares = config.algorithm in ('fixmatch', 'swav')
  if compares and config.augment.kind == 'none' and not config.augment.flip:
    raise types.InputError(
      f'config.algorithm={config.algorithm} compares views of an image, and '
      'config.augment.kind=none makes them alike: set stains or randaugment.'
    )
  return domains.build(
    config, method, experiment.build, optimizer, kinds=experiment.IMAGES
  )


def method(
  config: config_dict.ConfigDict,
  data: experiment.Data,
  optimizer: types.Optimizer = optax.sgd,
  algorithm: str = '',
) -> types.Method:
  """The network, its optimizer and the algorithm, that of the config if ''."""
  kinds = dict(densenet=densenet.DenseNet, mlp=mlp.Mlp)
  network = presets.choose('network', config.network, kinds)
  return algorithms.make(
    algorithm or config.algorithm,
    network(data.labelled.num_classes, **config[config.network]),
    config,
    optimizer,
    group_counts=data.group_counts,
    steps=data.steps,
  )
