r"""Fine-grained shifts (Wiles et al., ICLR 2022): tables of two attributes.

    python -m launch.reproduce --papers=fine_grained_shift

measures the claims (`configs/studies/fine_grained_shift.py`), and

    python -m launch.grid --config=configs/fine_grained_shift.py:small \
      --workdir=runs/shift --methods=erm,hue,irm,coral --seeds=3 \
      --space='shift.kind=correlated,low_data,unseen'

trains one cell of a grid at a time, with a table of the accuracy by label and
nuisance. One run is `launch.train`. https://arxiv.org/abs/2110.11328

paper: dSprites in three colours, of which the label is the shape; ResNet-18 for
  100,000 steps. The authors choose the rate among 1e-2, 1e-3 and 1e-4, and the
  weights of penalties among 0.01, 0.1, 1 and 10.
small: shapes of our own in three colours, a small convolutional network.
"""

from ml_collections import config_dict
import numpy as np
import optax

from configs import presets
from configs.parts import shift_methods
from configs.parts import shift_tables
from repjax import start
from repjax import types
from repjax.data.batches import mixtures
from repjax.experiments import of_images
from repjax.experiments import wiring
from repjax.models import vit

PRESETS = dict(
  paper=dict(
    batch_size=128,
    eval_batch_size=1000,
    epochs=0.0,
    min_steps=100_000,
    data=dict(
      name='dsprites',
      label='shape',
      nuisance='colour',
      num_held_out=10_000,
      eval_splits=('valid', 'test'),
      # Of what is drawn here, name='shapes'.
      drawn=dict(num_rows=9000, num_kinds=3, num_colours=3, size=20),
    ),
    # kind: correlated, low_data, unseen or uniform; num_common and total: 0 for
    # all there is.
    shift=dict(
      kind='correlated',
      num_rare=500,
      num_common=0,
      share=0.7,
      rare_weight=0.5,
      total=0,
      rare_share=0.001,
      label_noise=0.0,
      fixed_noise=True,
    ),
    augment=dict(mean=(0.5,), std=(0.5,)),
    # A run whose network this one starts from, but for its head.
    **dict(method='erm', pretrained=''),
    irm=dict(weight=1.0, form='unbiased'),
    coral=dict(weight=1.0, form='mean_and_covariance'),
    dann=dict(weight=0.1, features=(64, 64)),
    sagnet=dict(weight=1.0, style_features=(64, 64)),
    domain_mixup=dict(alpha=0.2, per='batch'),
    group_dro=dict(step_size=0.01),
    jtt=dict(first='', upweight=20.0),
    crop=dict(padding=4),
    rand_augment=dict(layers=2, magnitude=10.0),
    **dict(augmix=dict(severity=3.0), bn_adapt=dict(prior=100.0)),
    network='preact_resnet',
    preact_resnet=dict(stage_sizes=(2, 2, 2, 2)),
    resnet=dict(stage_sizes=(3, 4, 6, 3)),
    mlp=dict(features=(256, 256, 256, 256)),
    vit=dict(patch_size=8, **vit.SIZES['Ti']),
    tx=dict(learning_rate=1e-3, decay=False),
    run=dict(best='valid/accuracy', eval_every=1000),
  ),
  small=dict(
    batch_size=48,
    eval_batch_size=900,
    min_steps=400,
    data=dict(name='shapes', num_held_out=900),
    shift=dict(num_rare=50, num_common=1500),
    augment=dict(mean=(0.1,), std=(0.25,)),
    crop=dict(padding=2),
    network='convnet',
    convnet=dict(
      **dict(channels=(16, 32, 64), kernels=(4, 3, 3), strides=(2, 2, 1)),
      normalize=False,
    ),
    vit=dict(patch_size=5, hidden_dim=48, mlp_dim=96, num_layers=3),
    tx=dict(learning_rate=1e-2, decay=True),
    run=dict(log_every=100, eval_every=200, save_every=200),
  ),
  smoke=dict(
    min_steps=8,
    batch_size=16,
    data=dict(num_held_out=45, drawn=dict(num_rows=360)),
    shift=dict(num_rare=9, num_common=90),
  ),
)


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset: paper, small or smoke."""
  return presets.get_config(preset, presets.IMAGES, PRESETS)


def build(
  config: config_dict.ConfigDict, optimizer: types.Optimizer = optax.adam
) -> types.Experiment:
  """One training run: a method, a shift and a seed."""
  splits = shift_tables.read(config)
  data, realised = shift_tables.training(config, splits)
  if config.method == 'jtt':
    data = shift_methods.with_error_weights(config, data)
  method = shift_methods.make(
    config,
    num_labels=data.train.num_classes,
    group_counts=np.bincount(
      data.train.column('group'), minlength=splits.num_values
    ),
    steps=data.steps,
    optimizer=optimizer,
  )
  batches = wiring.shuffled(config, data.train, data.recipe).extended(
    mixtures.MixtureBatches, rates=realised.weights, sizes=realised.sizes
  )
  held_out = dict(valid=splits.valid, test=splits.test)
  experiment = of_images.classifier(
    config,
    data,
    method,
    batches=batches,
    sources=lambda split: presets.choose('data.eval_splits', split, held_out),
    warm_start=start.begin_from(config.pretrained),
  )
  return shift_tables.with_cells(config, experiment, splits)
