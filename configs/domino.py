"""Domino (Eyuboglu et al., ICLR 2022): where a classifier fails, in words.

    python -m launch.reproduce --papers=domino

measures the claims (`configs/studies/domino.py`): an error-aware mixture in the
space of a model of images and texts finds planted slices that others miss.
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
import numpy as np
import optax
import scipy.special

from configs import presets
from configs.parts import worded_pairs
from repjax import types
from repjax.analysis import domino
from repjax.analysis import slice_report
from repjax.analysis import slice_scores
from repjax.analysis import slice_words
from repjax.experiments import of_images

PRESETS = dict(
  paper=dict(
    batch_size=512,
    eval_batch_size=1000,
    epochs=60.0,
    # num_rows: drawn of the training split, for all epochs. length: tokens of a
    # caption; vocab_size: subwords, learned from them.
    data=dict(
      name='cifar10',
      num_rows=100_000,
      eval_splits=('test',),
      length=20,
      vocab_size=400,
    ),
    augment=dict(padding=2, mean=(0.3,), std=(0.3,)),
    network='resnet',
    resnet=dict(stage_sizes=(3, 4, 6, 3)),
    preact_resnet=dict(stage_sizes=(2, 2, 2, 2), width=64),
    text=dict(hidden_dim=256, mlp_dim=1024, num_heads=4, num_layers=4),
    clip=dict(features=128, loss='softmax', max_scale=100.0),
    # Of `domino.discover`.
    slices=dict(
      num_slices=5,
      num_components=25,
      label_weight=10.0,
      prediction_weight=10.0,
      start='kmeans',
      num_starts=1,
    ),
    tx=dict(learning_rate=1e-3, weight_decay=0.1, warmup=0.02),
    run=dict(best=''),
  ),
  gpu=dict(
    on='paper',
    epochs=20.0,
    network='preact_resnet',
    text=dict(hidden_dim=128, mlp_dim=512, num_heads=4, num_layers=2),
  ),
  small=dict(
    batch_size=128,
    eval_batch_size=360,
    epochs=20.0,
    data=dict(train_split='train[:50%]', num_rows=4000, vocab_size=400),
    augment=dict(padding=0, mean=(0.1,), std=(0.25,)),
    network='mlp',
    mlp=dict(features=(128, 128)),
    text=dict(hidden_dim=32, mlp_dim=64, num_heads=2, num_layers=1),
    clip=dict(features=32),
    run=dict(log_every=50, eval_every=200, save_every=200),
  ),
  mnist=dict(on='small', data=dict(name='mnist', num_rows=20_000)),
  smoke=dict(
    batch_size=32,
    epochs=0.2,
    data=dict(num_rows=600),
    mlp=dict(features=(16,)),
    text=dict(hidden_dim=8, mlp_dim=8),
    clip=dict(features=8),
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
  for split in config.data.eval_splits:
    rows = len(of_images.load(config, split))
    if rows // 2 < config.slices.num_components:
      raise types.InputError(
        f'half of the {rows} rows of {split} are fewer than config.slices.'
        f'num_components={config.slices.num_components}: lower it.'
      )
  data = of_images.data(config, pairs.train)
  made = of_images.classifier(
    config,
    data,
    worded_pairs.method(config, pairs, data.steps, optimizer),
    sources=lambda split: worded_pairs.evaluated(config, split),
  )

  def figures(split, outputs, columns):
    rows = worded_pairs.evaluated(config, split)
    return {
      **made.figures(split, outputs, columns),
      'slices': slice_report.figure(
        report(config, pairs, outputs, columns),
        rows.read(columns['index'])['image'],
      ),
    }

  return made._replace(figures=figures)


def report(config, pairs, outputs, columns) -> slice_report.Page:
  """Slices of the zero-shot classification: found on half, told of the rest."""
  probs = scipy.special.softmax(outputs['logits'], -1)
  embeddings, labels = outputs['image_embedding'], columns['label']
  half = np.arange(len(labels)) % 2 == 0
  found = domino.discover(
    embeddings[half],
    labels[half],
    probs[half],
    seed=config.seed,
    **config.slices,
  )
  new = ~half
  odds = domino.log_odds(found, embeddings[new], labels[new], probs[new])
  return slice_report.page(
    odds,
    labels[new],
    probs[new],
    rows=np.flatnonzero(new),
    class_names=pairs.names,
    words=slice_words.of_cosines(
      scipy.special.expit(odds),
      outputs['phrase_logits'][new],
      labels[new],
      pairs.phrases,
    ),
    audits=slice_scores.audit(
      domino.scores(found, embeddings[new]),
      probs[new].argmax(-1) != labels[new],
    ),
  )
