r"""Poisoning CLIP (Carlini & Terzis, ICLR 2022): a few pairs are enough.

    python -m launch.reproduce --papers=contrastive_poisoning

measures the claims (`configs/studies/contrastive_poisoning.py`).
https://arxiv.org/abs/2106.09667

    python -m launch.train --config=configs/contrastive_poisoning.py:small \
      --workdir=runs/backdoor --config.poison.kind=backdoor \
      --config.poison.count=20

trains CLIP on images and captions of which 20 are poisoned; attacked/success is
how many test images with the trigger are taken for class poison.wanted.
kind=targeted adds copies of the test image poison.target instead, and
--config.clip.in_modal=1 trains as CleanCLIP does. Weights decay, gains, biases
and the scale, too; build(config, functools.partial(optax.adamw,
mask=clip.weight_decay_mask)) spares these three, as CLIP and open_clip do.

paper: a ResNet-50 and a text transformer in batches of 1,024 for 30 epochs, on
  captions of ImageNet's classes: there is no reader of Conceptual Captions. The
  trigger is put on images before crops of 5 % and more are taken of them, which
  hardly ever hold it: --config.poison.kind=backdoor is for sets of one size.
gpu: a ResNet-18 on captions of CIFAR-10.
small: an MLP and a small transformer on captions of `digits`.
"""

from ml_collections import config_dict
import optax

from configs import presets
from configs.parts import poisoned_pairs
from repjax import types
from repjax.attacks import contrastive_poisoning
from repjax.experiments import kept_tokens
from repjax.experiments import of_images

_TEST = dict(test_split='test', eval_splits=('test', 'attacked'))

PRESETS = dict(
  paper=dict(
    batch_size=1024,
    eval_batch_size=1024,
    epochs=30.0,
    # length: tokens of a caption; vocab_size: subwords, learned from them.
    data=dict(
      name='imagenet2012',
      test_split='validation',
      eval_splits=('validation', 'attacked'),
      length=32,
      vocab_size=4096,
    ),
    augment=dict(
      size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    ),
    # Of clip.in_modal alone; word_loss: rate of tokens that a text loses.
    views=dict(area=(0.5, 1.0), flip=True, jitter=0.4, word_loss=0.2),
    network='resnet',
    resnet=dict(stage_sizes=(3, 4, 6, 3)),
    preact_resnet=dict(stage_sizes=(2, 2, 2, 2), width=64),
    text=dict(hidden_dim=512, mlp_dim=2048, num_heads=8, num_layers=12),
    clip=dict(features=512, loss='softmax', max_scale=100.0, in_modal=0.0),
    # kind: 'none', 'targeted' or 'backdoor'. count: pairs that are added or
    # changed. captions: different ones about the class `wanted`. target: a test
    # row. size: side of the trigger, whose corner is at `place` (row, column),
    # or 'anywhere'.
    poison=dict(
      **dict(kind='none', count=0, wanted=0, captions=8, target=0),
      **dict(size=16, place=(-1, -1)),
    ),
    tx=dict(learning_rate=1e-3, weight_decay=0.1, warmup=0.02),
    run=dict(best='', tokenizer=''),
  ),
  gpu=dict(
    on='paper',
    batch_size=512,
    epochs=60.0,
    data=dict(name='cifar10', length=16, vocab_size=400, **_TEST),
    augment=dict(size=0, padding=4, flip=True, **presets.CIFAR10),
    network='preact_resnet',
    preact_resnet=dict(remat=False),
    text=dict(
      **dict(hidden_dim=128, mlp_dim=512, num_heads=4, num_layers=2),
      remat=False,
    ),
    clip=dict(features=128),
    poison=dict(size=3),
  ),
  small=dict(
    batch_size=128,
    eval_batch_size=360,
    epochs=30.0,
    data=dict(length=16, vocab_size=400, **_TEST),
    augment=dict(size=0, mean=(0.3,), std=(0.37,)),
    views=dict(area=(0.6, 1.0), flip=False, jitter=0.0),
    network='mlp',
    mlp=dict(features=(128, 128)),
    text=dict(hidden_dim=32, mlp_dim=64, num_heads=2, num_layers=1),
    clip=dict(features=64),
    poison=dict(size=2),
    run=dict(log_every=50, eval_every=150, save_every=150),
  ),
  smoke=dict(
    batch_size=32,
    epochs=0.2,
    mlp=dict(features=(16,)),
    text=dict(hidden_dim=8, mlp_dim=8),
    clip=dict(features=8),
  ),
)


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset: paper, gpu, small or smoke."""
  return presets.get_config(preset, presets.IMAGES, PRESETS)


def build(
  config: config_dict.ConfigDict, optimizer: types.Optimizer = optax.adamw
) -> types.Experiment:
  """One training run on poisoned pairs."""
  pairs = poisoned_pairs.read(config)
  poison = poisoned_pairs.poison(config, pairs)
  train = contrastive_poisoning.apply(pairs.clean, poison)
  data = of_images.data(config, train)
  return of_images.classifier(
    config,
    data,
    poisoned_pairs.method(config, pairs, data.steps, optimizer),
    sources=lambda split: poisoned_pairs.split_of(config, split),
  )._replace(
    measure=poisoned_pairs.measure,
    companion=kept_tokens.companion(pairs.tokenizer),
  )
