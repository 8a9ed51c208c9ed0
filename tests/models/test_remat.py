"""What is computed again is the same, and is not kept for the backward pass."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recomputed_networks

from repjax.models import agent
from repjax.models import dvae
from repjax.models import refined_vit

CASES = recomputed_networks.CASES

# These have no mode of training.
_PLAIN = (
  dvae.Encoder,
  dvae.Decoder,
  dvae.DalleEncoder,
  dvae.Dvae,
  agent.Encoder,
)


def again(model):
  """The network with `remat`, wherever that is a field of."""
  if isinstance(model, refined_vit.RefinedViT):
    return model.clone(remat=True, vit=again(model.vit))
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


def test_refinements_are_computed_again_beside_blocks():
  make, inputs = CASES['refined ViT']
  plain = make(3)
  variables = shapes(plain, inputs)
  every = again(plain)
  refined, blocks = plain.clone(remat=True), every.clone(remat=False)
  kept = [
    kept_bytes(x, inputs, variables) for x in (plain, refined, blocks, every)
  ]
  assert kept[0] - kept[1] == kept[2] - kept[3] > 0


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
  loops = [
    x.params['jaxpr'] for x in program.eqns if x.primitive.name == 'scan'
  ]
  own = sum(x.primitive.name in _AGAIN for x in program.eqns)
  return own + sum(num_again(x) for x in loops)


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
  # What is the same in all steps of a loop is taken out of it otherwise: by
  # its gradients below.
  if name != 'describer':
    assert written_out(plain) == written_out(less)


# With dropout and statistics; dropped paths; vectors of spectral norms; layers
# that are called in a list; statistics of a part; a loop with dropout.
@pytest.mark.parametrize(
  'name',
  [
    *('WideResNet', 'Swin', 'discriminator of ViTGAN', 'AlexNet'),
    *('strided ConvNet', 'encoder of agents', 'dVAE', 'refined ViT'),
    'describer',
  ],
)
def test_gradients_are_the_same(name):
  make, inputs = CASES[name]
  model = make(1 + (name == 'refined ViT'))  # The last block has no part.
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
