"""What is computed again is the same, and is not kept for the backward pass."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax.models import anomaly_transformer
from repjax.models import beit
from repjax.models import clip
from repjax.models import conv_gan
from repjax.models import conv_net
from repjax.models import densenet
from repjax.models import dvae
from repjax.models import pyraformer
from repjax.models import resnet
from repjax.models import shot_detector
from repjax.models import swin
from repjax.models import t5
from repjax.models import t5_block
from repjax.models import unfolded_conv_net
from repjax.models import vit_discriminator
from repjax.models import vit_generator

IMAGE = np.cos(np.arange(4 * 8 * 8 * 3.0)).reshape(4, 8, 8, 3)
IMAGE = IMAGE.astype(np.float32)
IDS = np.arange(24).reshape(4, 6) % 7
MASK = np.array([1.0, 1.0, 1.0, 0.0], np.float32)
LATENT = IMAGE[:, 0, 0].repeat(3, 1)  # [4, 9]
SERIES = IMAGE.reshape(4, 64, 3)[:, :12]

BLOCKS = dict(hidden_dim=8, mlp_dim=32, num_heads=2, num_layers=2)
TOWER = clip.TowerConfig(**BLOCKS)

# (network, what it is called with).
CASES = {
  'WideResNet': (
    resnet.WideResNet(3, depth=10, widen=1, dropout_rate=0.3),
    dict(image=IMAGE, mask=MASK),
  ),
  'PreActResNet': (
    resnet.PreActResNet(3, stage_sizes=(2,), width=16, norm='group'),
    dict(image=IMAGE),
  ),
  'ResNet': (resnet.ResNet(3, stage_sizes=(2,)), dict(image=IMAGE, mask=MASK)),
  'detector': (
    shot_detector.ShotDetector(stage_sizes=(1, 1), maps=(1,), sides=(3.0,)),
    dict(image=IMAGE, mask=MASK),
  ),
  'Swin': (
    swin.Swin(
      3,
      hidden_dim=8,
      depths=(2,),
      num_heads=(2,),
      patch_size=2,
      window=2,
      dropout_rate=0.2,
      drop_path_rate=0.3,
    ),
    dict(image=IMAGE),
  ),
  'T5': (
    t5.T5(
      7,
      config=t5_block.LayerConfig(
        hidden_dim=8, mlp_dim=32, num_heads=2, head_dim=4, dropout_rate=0.2
      ),
      num_layers=2,
      num_decoder_layers=1,
    ),
    dict(tokens=IDS, source=IDS, source_mask=IDS > 0),
  ),
  'vision tower of CLIP': (
    clip.VisionTower(TOWER, patch_size=2),
    dict(image=IMAGE),
  ),
  'text tower of CLIP': (
    clip.TextTower(TOWER, vocab_size=7, num_positions=6),
    dict(tokens=IDS),
  ),
  'generator of ViTGAN': (
    vit_generator.VitGenerator(
      8,
      3,
      patch_size=2,
      latent_dim=9,
      mapping_layers=1,
      norm='improved',
      **BLOCKS,
    ),
    dict(latent=LATENT),
  ),
  'discriminator of ViTGAN': (
    vit_discriminator.VitDiscriminator(patch_size=2, **BLOCKS),
    dict(image=IMAGE),
  ),
  'convolutional generator': (
    conv_gan.ConvGenerator(8, 3, 9, (8, 8)),
    dict(latent=LATENT),
  ),
  'convolutional discriminator': (
    conv_gan.ConvDiscriminator((8, 8), hidden_dim=8),
    dict(image=IMAGE),
  ),
  'Pyraformer': (
    pyraformer.Pyraformer(
      3,
      9,
      children=(3,),
      predictor='decoder',
      head_dim=4,
      bottleneck=4,
      dropout_rate=0.2,
      **BLOCKS,
    ),
    dict(series=SERIES[:, :9], covariates=SERIES),
  ),
  'Anomaly Transformer': (
    anomaly_transformer.AnomalyTransformer(dropout_rate=0.2, **BLOCKS),
    dict(series=SERIES),
  ),
  'BEiT': (
    beit.Encoder(2, relative='per_layer', drop_path_rate=0.3, **BLOCKS),
    dict(image=IMAGE),
  ),
  'BEiT, one table': (
    beit.Encoder(2, relative='shared', dropout_rate=0.2, **BLOCKS),
    dict(image=IMAGE),
  ),
  'DenseNet': (
    densenet.DenseNet(3, stage_sizes=(2,), growth=4, width=8),
    dict(image=IMAGE, mask=MASK),
  ),
  'ConvNet': (
    conv_net.ConvNet(3, channels=(8, 8)),
    dict(image=IMAGE, mask=MASK),
  ),
  'unfolded ConvNet': (
    unfolded_conv_net.UnfoldedConvNet(
      3, channels=(8, 8), kernels=(3, 3), strides=(1, 1), normalize=True
    ),
    dict(image=IMAGE, mask=MASK),
  ),
  'encoder of a dVAE': (
    dvae.Encoder(7, hidden_dim=8, num_halvings=1, num_blocks=2),
    dict(image=IMAGE),
  ),
  'decoder of a dVAE': (
    dvae.Decoder(3, hidden_dim=8, num_halvings=1, num_blocks=2),
    dict(weights=IMAGE),
  ),
  'encoder of DALL-E': (
    dvae.DalleEncoder(7, hidden_dim=4, blocks_per_group=1),
    dict(image=IMAGE),
  ),
}
# These have no mode of training.
_PLAIN = (dvae.Encoder, dvae.Decoder, dvae.DalleEncoder)


def again(model):
  """The network with `remat`, wherever that is a field of."""
  if hasattr(model, 'remat'):
    return model.clone(remat=True)
  return model.clone(config=dataclasses.replace(model.config, remat=True))


def begun(model, inputs):
  """(parameters, other variables)."""
  rngs = dict(params=jax.random.key(0), dropout=jax.random.key(1))
  settings = {} if isinstance(model, _PLAIN) else dict(train=False)
  init = jax.jit(functools.partial(model.init, **settings))
  variables = dict(init(rngs, **inputs))
  return variables.pop('params'), variables


def trained(model, inputs, params, others):
  """Of one step: the loss, then outputs and variables that it changes."""
  settings = {} if isinstance(model, _PLAIN) else dict(train=True)
  outputs, changed = model.apply(
    dict(params=params, **others),
    **inputs,
    **settings,
    mutable=list(others),
    rngs=dict(dropout=jax.random.key(2)),
  )
  loss = sum(jnp.square(x).sum() for x in jax.tree.leaves(outputs))
  return loss, (outputs, changed)


def kept_bytes(model, inputs, params, others):
  """What the backward pass is given by the forward pass."""

  def backward(params):
    return jax.vjp(lambda x: trained(model, inputs, x, others)[0], params)[1]

  kept = jax.tree.leaves(jax.eval_shape(backward, params))
  return sum(x.size * x.dtype.itemsize for x in kept)


@pytest.mark.parametrize('name', CASES)
def test_all_is_the_same_and_less_is_kept(name):
  model, inputs = CASES[name]
  params, others = begun(model, inputs)
  # Names and shapes, so that checkpoints and published weights fit.
  shapes = jax.eval_shape(lambda: begun(again(model), inputs))
  assert jax.tree.map(jnp.shape, (params, others)) == jax.tree.map(
    jnp.shape, shapes
  )
  # Masks of dropout, statistics and vectors of spectral norms among them.
  slopes = [
    jax.grad(functools.partial(trained, x, inputs), has_aux=True)
    for x in (model, again(model))
  ]
  found = jax.jit(lambda *x: [slope(*x) for slope in slopes])(params, others)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), *found
  )
  plain, less = (
    kept_bytes(x, inputs, params, others) for x in (model, again(model))
  )
  assert less < 0.75 * plain, (less, plain)
