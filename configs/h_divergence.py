"""H-divergence (Zhao et al., ICLR 2022): differences that affect decisions.

    python -m launch.reproduce --papers=h_divergence

measures the claims (`configs/studies/h_divergence.py`): a test of two samples
that sees slanted blobs, and faked digits, far sooner than MMD does.
https://openreview.net/forum?id=KB5onONJIAU

The loss of the paper's images is -ELBO of an autoencoder, and this recipe
trains one: on real images (--config.term=real), on fakes, or on their mixture.
H-Min is the mean of 'real/loss' and 'fake/loss' of the mixture's run, minus the
smaller one of 'real/loss' of the first and 'fake/loss' of the second run. All
runs have the steps of one sample's epochs: a network that learns longer would
say less of the others.

paper: MNIST at its own size (theirs are scaled to 32 x 32), 200 images of each,
  an autoencoder of 128, 64 and 8 units, 500 epochs. Theirs are fakes of a
  DCGAN; these are of one Gaussian a class.
small: the same on `digits`, a smaller autoencoder, 100 images of each.
"""

from ml_collections import config_dict
import numpy as np
import optax

from configs import presets
from repjax import plots
from repjax import types
from repjax.data.batches import mixtures
from repjax.data.images import recipes
from repjax.data.reading import source
from repjax.data.sets import gaussian_fakes
from repjax.experiments import wiring
from repjax.methods import vae as training
from repjax.models import vae

PRESETS = dict(
  paper=dict(
    batch_size=100,
    eval_batch_size=100,
    epochs=500.0,
    # Fakes have the moments of train_split, real images are of real_split.
    data=dict(
      name='mnist',
      train_split='train',
      real_split='test',
      num_rows=200,
      eval_splits=('real', 'fake'),
    ),
    # 'real', 'fake' or 'mixture': what is modelled.
    term='mixture',
    augment=dict(mean=(0.0,), std=(1.0,)),
    vae=dict(features=(128, 64), code_dim=8),
    tx=dict(learning_rate=5e-3, weight_decay=0.0),
    run=dict(best=''),
  ),
  small=dict(
    epochs=100.0,
    data=dict(
      train_split='train[:50%]', real_split='train[50%:]', num_rows=100
    ),
    vae=dict(features=(32,), code_dim=4),
    tx=dict(learning_rate=1e-2),
    run=dict(log_every=50, eval_every=100, save_every=100),
  ),
  smoke=dict(batch_size=16, eval_batch_size=32, epochs=1.0),
)


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset: paper, small or smoke."""
  return presets.get_config(preset, presets.IMAGES, PRESETS)


def build(
  config: config_dict.ConfigDict, optimizer: types.Optimizer = optax.adamw
) -> types.Experiment:
  """Trains one autoencoder on what `config.term` names."""
  real, fake = samples(config)
  mixture = mixtures.union([real, fake])
  rows = dict(real=real, fake=fake, mixture=mixture)
  chosen = presets.choose('term', config.term, rows)
  recipe = recipes.images(real, **config.augment)
  tx = optimizer(config.tx.learning_rate, weight_decay=config.tx.weight_decay)
  return wiring.of_sources(
    config,
    training.make(network(config), tx, **config.step),
    batches=wiring.shuffled(config, chosen, recipe),
    sources=lambda split: presets.choose('data.eval_splits', split, rows),
    steps=wiring.steps_of(config, len(real)),
    measure=_measure,
    figures=_figures,
    recipe=recipe,
  )


def samples(config) -> tuple[source.Source, source.Source]:
  """Real images and as many fakes: num_rows of each, chosen by the seed."""
  data = config.data
  types.check_range('[2, inf)', **{'config.data.num_rows': data.num_rows})
  real = source.load(data.name, data.real_split, data_dir=data.dir)
  seen = source.load(data.name, data.train_split, data_dir=data.dir)
  if data.num_rows > len(real):
    raise types.InputError(
      f'config.data.num_rows={data.num_rows}: {data.real_split} has '
      f'{len(real)} rows.'
    )
  rng = np.random.default_rng(config.seed)
  chosen = rng.permutation(len(real))[: data.num_rows]
  fake = gaussian_fakes.make(seen, data.num_rows, seed=config.seed)
  return real.select(chosen), fake


def network(config) -> vae.Vae:
  """The autoencoder."""
  return vae.Vae(**config.vae)


def _measure(outputs, columns):
  """-ELBO in nats an image, and its parts."""
  del columns  # Nothing is compared with labels.
  parts = {name: float(x.mean()) for name, x in outputs.items()}
  return {'loss': sum(parts.values()), **parts}


def _figures(rows, outputs, columns):
  del columns  # Only the parts of the bound are shown.
  return {
    'bound': plots.lines(
      {rows.name: (outputs['kl'], outputs['reconstruction'])},
      xlabel='KL (nats)',
      ylabel='reconstruction (nats)',
      joined=False,
    )
  }
