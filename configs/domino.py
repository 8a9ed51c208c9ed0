r"""Domino (Eyuboglu et al., ICLR 2022): where a classifier fails, in words.

    python -m launch.reproduce --papers=domino

measures the claims (`configs/studies/domino.py`): an error-aware mixture in the
space of a model of images and texts finds planted slices that a mixture without
labels and predictions misses.
https://arxiv.org/abs/2203.14960

The recipe trains such a model, a CLIP of images in drawn inks and places with
captions; its evaluation shows in which slices its own zero-shot classification
fails, and calls them by words (plots/slices_*.png):

    python -m launch.train --config=configs/domino.py:small \
      --workdir=runs/slices

paper: not the paper's CLIP, which read 400 million pairs, and not CelebA or
  ImageNet, but a ResNet-50 on captions of CIFAR-10. What `slices` holds is
  the paper's; weights are those of the authors' evaluation (10, not 1).
gpu: a ResNet-18 on the same.
small: an MLP and a small transformer on captions of `digits`.
mnist: the same on MNIST.
"""

from ml_collections import config_dict
import optax

from configs import presets
from configs.parts import slice_pages
from configs.parts import worded_pairs
from repjax import types
from repjax.experiments import of_images

PRESETS = dict(
  paper=dict(
    batch_size=512,
    eval_batch_size=1000,
    epochs=60.0,
    # num_rows: drawn of the training split, for all epochs. length: tokens of a
    # caption; vocab_size: subwords, learned from them.
    data=dict(
      **dict(name='cifar10', train_split='train[:50%]', num_rows=100_000),
      **dict(eval_splits=('test',), length=20, vocab_size=400),
    ),
    augment=dict(padding=2, mean=(0.3,), std=(0.3,)),
    network='resnet',
    resnet=dict(stage_sizes=(3, 4, 6, 3)),
    preact_resnet=dict(stage_sizes=(2, 2, 2, 2), width=64),
    text=dict(hidden_dim=256, mlp_dim=1024, num_heads=4, num_layers=4),
    clip=dict(features=128, loss='softmax', max_scale=100.0),
    # Of `domino.discover`.
    slices=dict(
      **dict(num_slices=5, num_components=25, pca_dim=128),
      **dict(label_weight=10.0, prediction_weight=10.0),
      **dict(start='kmeans', num_starts=1),
    ),
    tx=dict(learning_rate=1e-3, weight_decay=0.1, warmup=0.02),
    run=dict(best=''),
  ),
  gpu=dict(
    on='paper',
    epochs=20.0,
    network='preact_resnet',
    preact_resnet=dict(remat=False),
    text=dict(
      **dict(hidden_dim=128, mlp_dim=512, num_heads=4, num_layers=2),
      remat=False,
    ),
  ),
  small=dict(
    batch_size=128,
    eval_batch_size=360,
    epochs=20.0,
    data=dict(num_rows=4000),
    augment=dict(padding=0, mean=(0.1,), std=(0.25,)),
    network='mlp',
    mlp=dict(features=(128, 128)),
    text=dict(hidden_dim=32, mlp_dim=64, num_heads=2, num_layers=1),
    clip=dict(features=32),
    slices=dict(num_components=50, pca_dim=16),
    run=dict(log_every=50, eval_every=200, save_every=200),
  ),
  mnist=dict(on='small', data=dict(name='mnist', num_rows=20_000)),
  smoke=dict(
    **dict(batch_size=32, epochs=0.2, data=dict(num_rows=600)),
    mlp=dict(features=(16,)),
    **dict(text=dict(hidden_dim=8, mlp_dim=8), clip=dict(features=8)),
    slices=dict(num_components=25, pca_dim=8),
  ),
)


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset: paper, gpu, small, mnist or smoke."""
  return presets.get_config(preset, presets.IMAGES, PRESETS)


def build(
  config: config_dict.ConfigDict, optimizer: types.Optimizer = optax.adamw
) -> types.Experiment:
  """Trains CLIP; evaluation looks for slices of its own errors."""
  pairs = worded_pairs.read(config, config.seed)
  slice_pages.check(config, len(pairs.names))
  data = of_images.data(config, pairs.train)
  made = of_images.classifier(
    config,
    data,
    worded_pairs.method(config, pairs, data.steps, optimizer),
    sources=lambda split: worded_pairs.evaluated(config, split),
  )
  return made._replace(figures=slice_pages.figures(config, pairs, made))
