r"""MILAN (Hernandez et al., ICLR 2022): units of a network, described in words.

    python -m launch.reproduce --papers=milan

measures the claims (`configs/studies/milan.py`).
https://arxiv.org/abs/2201.11114

A run trains two models, p(caption | exemplars) and p(caption); those exemplars
are of any network (`analysis/exemplars.py`), and `analysis/milan.py` describes.

paper: the published sizes on MILANNOTATIONS, whose folders are in data.dir, as
  a ResNet-101 sees them: that of a run (`--config.encoder.run`, its work
  directory), or an untrained one. 100 epochs, the best one by held-out loss;
  AdamW with a weight decay of .01, where the others have one of .0001.
gpu: planted units of CIFAR-10, seen through a ResNet-18; not run yet.
small: planted units of drawn scenes, seen through a small network.
"""

import functools

from ml_collections import config_dict
import optax

from configs import presets
from configs.parts import described_units
from repjax import types
from repjax.experiments import wiring

_SIZES = dict(embed_dim=128, hidden_dim=512, dropout_rate=0.5)
_TINY = dict(embed_dim=4, hidden_dim=8, dropout_rate=0.0)

PRESETS = dict(
  paper=dict(
    **dict(batch_size=64, eval_batch_size=64, epochs=100.0, min_steps=0),
    # heldout: share of the units.
    data=dict(
      **dict(name='milannotations', heldout=0.1, eval_splits=('heldout',)),
      networks=('alexnet/imagenet', 'resnet152/imagenet', 'biggan/imagenet'),
    ),
    augment=dict(
      size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    ),
    # k: exemplars; length: tokens of a caption with START and END, of which the
    # beam writes one less, 15 as the authors' (who cut no caption of training);
    # at_least: how often a word must be there to be known.
    units=dict(k=15, length=16, at_least=1),
    encoder=dict(
      **dict(network='resnet', run='', num_classes=1000, batch_size=64),
      layers=('stem', *(f'stage_{i}' for i in range(4))),
    ),
    resnet=dict(stage_sizes=(3, 4, 23, 3)),
    preact_resnet=dict(stage_sizes=(2, 2, 2, 2), width=64),
    captioner=dict(_SIZES),
    language_model=dict(num_layers=2, **_SIZES),
    describing=dict(penalty=1.0, strength=0.2, width=50),
    tx=dict(learning_rate=1e-3, warmup=0.0, end=1.0),
    run=dict(best='heldout/loss', best_mode='min'),
  ),
  small=dict(
    **dict(epochs=12.0, data=dict(name='scenes'), units=dict(length=9)),
    augment=dict(size=0, mean=(0.35,), std=(0.25,)),
    encoder=dict(
      **dict(network='conv_net', num_classes=13, batch_size=500),
      layers=('', 'norm_0', 'norm_1', 'norm_2'),
    ),
    conv_net=dict(channels=(16, 32, 64)),
    # units: of each concept; heldout: share of the concepts of several
    # attributes; mention: how likely an annotator names an attribute; grow:
    # pixels by which masks are too wide; noise: of scenes.
    planted=dict(
      **dict(train_images=2000, heldout_images=1200, units=10),
      **dict(heldout_units=4, heldout=0.25, annotators=3, mention=0.75),
      **dict(grow=(0, 2, 4), noise=(0.06, 0.14)),
    ),
    captioner=dict(embed_dim=24, hidden_dim=48, dropout_rate=0.3),
    language_model=dict(embed_dim=24, hidden_dim=32, dropout_rate=0.3),
    tx=dict(learning_rate=5e-3, warmup=0.05, end=0.0),
    run=dict(log_every=100, eval_every=400, save_every=400),
  ),
  smoke=dict(
    **dict(batch_size=16, epochs=0.3, units=dict(k=5)),
    **dict(encoder=dict(batch_size=100), conv_net=dict(channels=(4, 4, 4))),
    planted=dict(train_images=300, heldout_images=250, units=1),
    **dict(captioner=_TINY, language_model=_TINY, describing=dict(width=4)),
  ),
  gpu=dict(
    on='small',
    data=dict(name='cifar10', train_split='train', heldout_split='test'),
    augment=dict(size=32, **presets.CIFAR10),
    encoder=dict(
      **dict(network='preact_resnet', num_classes=10),
      layers=('', 'stem', 'stage_0', 'stage_1', 'stage_2', 'norm'),
    ),
    captioner=dict(embed_dim=64, hidden_dim=256),
    language_model=dict(embed_dim=64, hidden_dim=128),
  ),
)


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset: paper, small, smoke or gpu."""
  return presets.get_config(preset, presets.RUN, PRESETS)


def build(
  config: config_dict.ConfigDict, optimizer: types.Optimizer = optax.adamw
) -> types.Experiment:
  """One training run of the captioner and the language model."""
  units = described_units.read(config)
  train = described_units.source(units, 'train')
  steps = wiring.steps_of(config, len(train))
  return wiring.of_sources(
    config,
    described_units.method(config, units, steps, optimizer),
    batches=wiring.shuffled(config, train),
    sources=functools.partial(described_units.source, units),
    steps=steps,
    measure=functools.partial(described_units.measure, units),
    figures=lambda rows, outputs, columns: {},
  )
