"""What is computed again is the same, and is not kept for the backward pass."""

from collections.abc import Callable
import dataclasses
import functools
import itertools

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


def blocks(depth):
  return dict(hidden_dim=8, mlp_dim=32, num_heads=2, num_layers=depth)


def tower(depth):
  return clip.TowerConfig(**blocks(depth))


LAYER = t5_block.LayerConfig(
  hidden_dim=8, mlp_dim=32, num_heads=2, head_dim=4, dropout_rate=0.2
)

# (number of blocks -> network, what it is called with).
CASES: dict[str, tuple[Callable, dict]] = {
  'WideResNet': (
    lambda n: resnet.WideResNet(3, depth=6 * n + 4, widen=1, dropout_rate=0.3),
    dict(image=IMAGE, mask=MASK),
  ),
  'PreActResNet': (
    lambda n: resnet.PreActResNet(3, stage_sizes=(n,), width=16, norm='group'),
    dict(image=IMAGE),
  ),
  'ResNet': (
    lambda n: resnet.ResNet(3, stage_sizes=(n,)),
    dict(image=IMAGE, mask=MASK),
  ),
  'detector': (
    lambda n: shot_detector.ShotDetector(
      stage_sizes=(n,), maps=(0,), sides=(3.0,)
    ),
    dict(image=IMAGE, mask=MASK),
  ),
  'Swin': (
    lambda n: swin.Swin(
      3,
      hidden_dim=8,
      depths=(n,),
      num_heads=(2,),
      patch_size=2,
      window=2,
      dropout_rate=0.2,
      drop_path_rate=0.3,
    ),
    dict(image=IMAGE),
  ),
  'T5': (
    lambda n: t5.T5(7, config=LAYER, num_layers=n),
    dict(tokens=IDS, source=IDS, source_mask=IDS > 0),
  ),
  'vision tower of CLIP': (
    lambda n: clip.VisionTower(tower(n), patch_size=2),
    dict(image=IMAGE),
  ),
  'text tower of CLIP': (
    lambda n: clip.TextTower(tower(n), vocab_size=7, num_positions=6),
    dict(tokens=IDS),
  ),
  'generator of ViTGAN': (
    lambda n: vit_generator.VitGenerator(
      *(8, 3),
      patch_size=2,
      latent_dim=9,
      mapping_layers=1,
      pixels='linear',
      norm='improved',
      **blocks(n),
    ),
    dict(latent=LATENT),
  ),
  'discriminator of ViTGAN': (
    lambda n: vit_discriminator.VitDiscriminator(patch_size=2, **blocks(n)),
    dict(image=IMAGE),
  ),
  'convolutional generator': (
    lambda n: conv_gan.ConvGenerator(8, 3, 9, (8,) * n),
    dict(latent=LATENT),
  ),
  'convolutional discriminator': (
    lambda n: conv_gan.ConvDiscriminator((8,) * n, hidden_dim=8),
    dict(image=IMAGE),
  ),
  'Pyraformer': (
    lambda n: pyraformer.Pyraformer(
      *(3, 9),
      children=(3,),
      predictor='decoder',
      head_dim=4,
      bottleneck=4,
      dropout_rate=0.2,
      **blocks(n),
    ),
    dict(series=SERIES[:, :9], covariates=SERIES),
  ),
  'Anomaly Transformer': (
    lambda n: anomaly_transformer.AnomalyTransformer(
      dropout_rate=0.2, **blocks(n)
    ),
    dict(series=SERIES),
  ),
  'BEiT': (
    lambda n: beit.Encoder(
      2, relative='per_layer', drop_path_rate=0.3, **blocks(n)
    ),
    dict(image=IMAGE),
  ),
  'BEiT, one table': (
    lambda n: beit.Encoder(2, dropout_rate=0.2, **blocks(n)),
    dict(image=IMAGE),
  ),
  'DenseNet': (
    lambda n: densenet.DenseNet(3, stage_sizes=(n,), growth=4, width=8),
    dict(image=IMAGE, mask=MASK),
  ),
  'ConvNet': (
    lambda n: conv_net.ConvNet(3, channels=(8,) * n),
    dict(image=IMAGE, mask=MASK),
  ),
  'unfolded ConvNet': (
    lambda n: unfolded_conv_net.UnfoldedConvNet(
      3, channels=(8,) * n, kernels=(3,) * n, strides=(1,) * n, normalize=True
    ),
    dict(image=IMAGE, mask=MASK),
  ),
  'encoder of a dVAE': (
    lambda n: dvae.Encoder(7, hidden_dim=8, num_halvings=1, num_blocks=n),
    dict(image=IMAGE),
  ),
  'decoder of a dVAE': (
    lambda n: dvae.Decoder(3, hidden_dim=8, num_halvings=1, num_blocks=n),
    dict(weights=IMAGE),
  ),
  'encoder of DALL-E': (
    lambda n: dvae.DalleEncoder(7, hidden_dim=4, blocks_per_group=n),
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


def shapes(model, inputs):
  """Of all variables."""
  rngs = dict(params=jax.random.key(0), dropout=jax.random.key(1))
  settings = {} if isinstance(model, _PLAIN) else dict(train=False)
  init = functools.partial(model.init, rngs, **inputs, **settings)
  return jax.eval_shape(init)


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


def kept_bytes(model, inputs, variables):
  """What the backward pass is given by the forward pass.

  Not the memory of a compiled step: XLA computes nothing again on CPUs.
  """

  def backward(variables):
    variables = dict(variables)
    params = variables.pop('params')
    loss = functools.partial(trained, model, inputs)
    return jax.vjp(lambda x: loss(x, variables)[0], params)[1]

  kept = jax.tree.leaves(jax.eval_shape(backward, variables))
  return sum(x.size * x.dtype.itemsize for x in kept)


@pytest.mark.parametrize('name', CASES)
def test_less_is_kept_for_the_backward_pass(name):
  make, inputs = CASES[name]
  model = make(3)
  variables = shapes(model, inputs)  # Of both, as is tested below.
  plain, less = (
    kept_bytes(x, inputs, variables) for x in (model, again(model))
  )
  assert less < 0.75 * plain, (less, plain)


# As JAX calls them, and did.
_AGAIN = ('checkpoint', 'remat2')
_WRAPPERS = (*_AGAIN, 'jit', 'pjit', 'custom_jvp_call', 'custom_vjp_call')


def written_out(closed):
  """A program's operations in order, of what is wrapped as of all else."""
  lines, numbers = [], itertools.count()

  def walk(jaxpr, constants, given):
    names = dict(zip(jaxpr.invars, given, strict=True))
    names |= {
      x: np.asarray(value).tobytes()
      for x, value in zip(jaxpr.constvars, constants, strict=True)
    }

    def named(x):
      return repr(x.val) if hasattr(x, 'val') else names[x]

    for equation in jaxpr.eqns:
      params = dict(equation.params)
      inputs = [named(x) for x in equation.invars]
      inner = params.get('jaxpr') or params.get('call_jaxpr')
      if inner is not None and equation.primitive.name in _WRAPPERS:
        constants = getattr(inner, 'consts', ())
        outputs = walk(getattr(inner, 'jaxpr', inner), constants, inputs)
      else:
        outputs = [next(numbers) for _ in equation.outvars]
        types = [str(x.aval) for x in equation.outvars]
        settings = {name: str(x) for name, x in params.items()}
        lines.append((equation.primitive.name, settings, inputs, types))
      names.update(zip(equation.outvars, outputs, strict=True))
    return [named(x) for x in jaxpr.outvars]

  inputs = [f'input {i}' for i in range(len(closed.jaxpr.invars))]
  return walk(closed.jaxpr, closed.consts, inputs), lines


def num_again(program):
  return sum(x.primitive.name in _AGAIN for x in program.eqns)


@pytest.mark.parametrize('name', CASES)
def test_names_and_programs_are_the_same(name):
  make, inputs = CASES[name]
  model = make(2)
  # So that checkpoints and published weights fit.
  made = dict(shapes(model, inputs))
  assert made == shapes(again(model), inputs)
  # Keys of dropout, statistics and vectors of spectral norms among them.
  params = made.pop('params')
  plain, less = (
    jax.make_jaxpr(functools.partial(trained, x, inputs))(params, made)
    for x in (model, again(model))
  )
  assert num_again(plain) == 0 < num_again(less)
  assert written_out(plain) == written_out(less)


# With dropout and statistics; dropped paths; vectors of spectral norms.
@pytest.mark.parametrize(
  'name', ['WideResNet', 'Swin', 'discriminator of ViTGAN']
)
def test_gradients_are_the_same(name):
  make, inputs = CASES[name]
  model = make(1)
  made = shapes(model, inputs)
  generator = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: (0.3 * generator.normal(size=x.shape)).astype(x.dtype),
    made['params'],
  )
  others = {
    name: jax.tree.map(lambda x: np.ones(x.shape, x.dtype), x)
    for name, x in made.items()
    if name != 'params'
  }
  # Masks of dropout, statistics and vectors of spectral norms among them.
  slopes = [
    jax.grad(functools.partial(trained, x, inputs), has_aux=True)
    for x in (model, again(model))
  ]
  found = jax.device_get(
    jax.jit(lambda *x: [slope(*x) for slope in slopes])(params, others)
  )
  largest = max(float(abs(x).max()) for x in jax.tree.leaves(found[0][0]))
  jax.tree.map(
    functools.partial(
      np.testing.assert_allclose, rtol=1e-5, atol=1e-6 * max(largest, 1.0)
    ),
    *found,
  )
