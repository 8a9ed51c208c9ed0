"""ViTGAN (Lee et al., ICLR 2022): transformers that make images and judge them.

    python -m launch.reproduce --papers=vitgan

measures the claims (`configs/studies/vitgan.py`). A run draws samples along the
way (plots/samples_*.png); `vitgan.sample` makes more of them from its averaged
generator. https://arxiv.org/abs/2107.04589

paper: CIFAR-10; the number of updates is that of the authors' code, which cuts
  out with probability .3 and changes otherwise with .8, as here all.
small: networks of 16 patches on `digits`, of 2 x 2 pixels; mnist: on MNIST, of
  7 x 7 pixels.
gpu: CIFAR-10 with less width and 20,000 updates.

config.network is 'vit' or 'conv', of both networks. `feature_frechet` and the
others at evaluations are by features of an MLP that is trained on the same set
on the spot: no FID, which --config.run.inception=FILE adds, a file of the
weights that are published for it (`repjax/weights/inception_weights.py`).
"""

from ml_collections import config_dict
import optax

from configs import presets
from configs.parts import gans
from repjax import types
from repjax.experiments import of_images

PRESETS = dict(
  paper=dict(
    batch_size=128,
    eval_batch_size=500,
    epochs=0.0,
    min_steps=800_000,
    data=dict(name='cifar10', eval_splits=('test',)),
    augment=dict(flip=True, mean=(0.5,), std=(0.5,)),
    network='vit',
    model=dict(
      patch_size=4, hidden_dim=384, mlp_dim=1536, num_heads=6, num_layers=4
    ),
    generator=dict(latent_dim=384, mapping_layers=8, pixels='implicit'),
    # See layers/l2_attention.py and layers/spectral_norm.py for the kinds.
    discriminator=dict(overlap=2, attention='l2', norm='improved'),
    # Of the generator, the smallest map first; the discriminator's reversed.
    # Of as many parameters as `model` has.
    conv=dict(channels=(376, 188, 94), hidden_dim=256),
    views=dict(
      kinds=('colour', 'translation', 'cutout', 'scale'), probability=0.8
    ),
    gan=dict(loss='non_saturating', bcr_real=10.0, bcr_fake=10.0, r1=0.0),
    tx=dict(learning_rate=2e-3, b1=0.0, b2=0.99),
    step=dict(ema_decay=0.9999),
    judge=dict(features=(512, 256), steps=4000),
    samples=dict(every=10_000, num=64, judged=10_000),
    # inception: file of the published weights, for 'fid' and 'kid'.
    run=dict(
      inception='',
      eval_every=20_000,
      save_every=10_000,
      best='feature_frechet',
      best_mode='min',
    ),
  ),
  small=dict(
    batch_size=32,
    min_steps=1600,
    augment=dict(flip=False),
    model=dict(
      patch_size=2, hidden_dim=32, mlp_dim=64, num_heads=4, num_layers=2
    ),
    generator=dict(latent_dim=32, mapping_layers=2),
    discriminator=dict(overlap=1),
    conv=dict(channels=(28, 28), hidden_dim=32),
    # A digit turned grey or cut is no digit.
    views=dict(kinds=('translation',)),
    gan=dict(bcr_real=0.0, bcr_fake=0.0),
    tx=dict(learning_rate=5e-3),
    step=dict(ema_decay=0.995),
    judge=dict(features=(128, 64), steps=500),
    samples=dict(every=400, judged=1000),
    run=dict(log_every=100, eval_every=400, save_every=400),
  ),
  mnist=dict(
    on='small',
    min_steps=1500,
    run=dict(eval_every=500, save_every=500),
    data=dict(name='mnist'),
    model=dict(patch_size=7),
    discriminator=dict(overlap=3),
    conv=dict(channels=(16, 12, 8)),
    judge=dict(steps=4000),
  ),
  gpu=dict(
    on='paper',
    min_steps=20_000,
    model=dict(hidden_dim=192, mlp_dim=768, remat=False),
    conv=dict(channels=(108, 60, 32), hidden_dim=256),
    samples=dict(every=2000),
    run=dict(eval_every=5000),
  ),
  smoke=dict(
    batch_size=16,
    min_steps=8,
    model=dict(hidden_dim=8, mlp_dim=8, num_heads=2, num_layers=1),
    generator=dict(latent_dim=4, mapping_layers=1),
    conv=dict(channels=(4, 4), hidden_dim=4),
    gan=dict(bcr_real=1.0),
    judge=dict(features=(8,), steps=4),
    samples=dict(every=4, num=16, judged=50),
  ),
)


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset: paper, small, mnist, gpu or smoke."""
  return presets.get_config(preset, presets.IMAGES, PRESETS)


def build(
  config: config_dict.ConfigDict, optimizer: types.Optimizer = optax.adam
) -> types.Experiment:
  """One training run."""
  return gans.experiment(config, of_images.read(config), optimizer)
