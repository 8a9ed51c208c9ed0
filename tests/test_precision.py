"""Products that must keep all of float32 do so whatever a device's default."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest

from repjax.analysis import decision_losses
from repjax.analysis import error_mixture
from repjax.analysis import fitted_losses
from repjax.analysis import kernels
from repjax.analysis import mmd
from repjax.analysis import nearest_neighbours
from repjax.analysis import two_sample
from repjax.attacks import smoothing
from repjax.layers import adapters
from repjax.layers import layer_inputs
from repjax.layers import pyramid
from repjax.layers import pyramid_graph
from repjax.layers import spectral_norm
from repjax.layers.adapters import merging
from repjax.layers.attention.linear import random_features
from repjax.layers.positions import grid_positions
from repjax.layers.positions import relative_positions
from repjax.methods import class_conditional
from repjax.methods import clip
from repjax.methods import contrastive
from repjax.methods import coral
from repjax.methods import diff_augment
from repjax.methods import disambiguation
from repjax.methods import distribution_calibration
from repjax.methods import dividing_network
from repjax.methods import few_shot
from repjax.methods import group_inference
from repjax.methods import grouped
from repjax.methods import logistic_regression
from repjax.methods import model_inputs
from repjax.methods import naive_forecasts
from repjax.methods import pico
from repjax.models import mlp
from repjax.optim import gradient_projection
from repjax.optim.gradient_vaccine import gram
from repjax.optim.gradient_vaccine import surgery
from repjax.privacy import clipping
from repjax.privacy.ghost import rules
from repjax.protocols import linear_probe
from repjax.protocols import probes
from repjax.protocols import rounds

_HIGHEST = (jax.lax.Precision.HIGHEST,) * 2


def products(jaxpr):
  """All matrix products and convolutions, those of inner programs too."""
  for equation in jaxpr.eqns:
    if equation.primitive.name in ('dot_general', 'conv_general_dilated'):
      yield equation
    for value in equation.params.values():
      for x in value if isinstance(value, tuple | list) else (value,):
        inner = getattr(x, 'jaxpr', x)
        if hasattr(inner, 'eqns'):
          yield from products(inner)


def rounded(fn, *args):
  """(number of products of a function, those that a device may round)."""
  found = list(products(jax.make_jaxpr(fn)(*args).jaxpr))
  return len(found), [x for x in found if x.params['precision'] != _HIGHEST]


ROWS = jnp.cos(jnp.arange(24.0)).reshape(6, 4)
IDS, MASK = jnp.arange(6) % 2, jnp.ones(6)
KERNEL = ROWS[:4]
BASE = distribution_calibration.Base(
  ROWS[:3], jnp.stack([KERNEL, 2 * KERNEL, -KERNEL]), None, None, 1.0
)
DENSE = BASE._replace(
  factors=None, covariances=jnp.einsum('crd,cre->cde', *[BASE.factors] * 2)
)
MIXTURE = fitted_losses.Mixture(
  jnp.full(2, 0.5), ROWS[:2], jnp.stack([jnp.eye(4)] * 2)
)


SHARES = jax.nn.softmax(ROWS)
KNOWN = error_mixture.Rows(ROWS, SHARES, SHARES, MASK)


def _entropy(loss):
  return lambda x: loss.entropy(loss.prepare(x), MASK)


def _of_split(statistic):
  split = two_sample.split(jnp.arange(6))
  return lambda x: statistic.value(statistic.prepare(x), split)


def _attended(x):
  graph = pyramid_graph.Pyramid(length=4, children=(2,))  # 6 nodes.
  one = jnp.ones(())
  return pyramid._attend(graph, x, x, x, one).sum()


def _collapsed(x):
  made = adapters.Reparametrization(6, 4)
  model = adapters.adapt(
    nn.MultiHeadDotProductAttention(1),
    {'': adapters.prefix(6, reparametrization=made)},
  )
  params = jax.eval_shape(model.init, jax.random.key(0), x[None])['params']
  full = jax.tree.map(lambda leaf: jnp.full(leaf.shape, x[0, 0]), params)
  return merging.collapse(model, full)[1]


CASES = {
  'random features': (random_features.positive, ROWS[None, None], KERNEL),
  'features of RFA': (random_features.gaussian, ROWS[None, None], KERNEL),
  'distances of kernels': (kernels.squared_distances, ROWS),
  'decision values': (logistic_regression.zeros(4, 3).logits, ROWS),
  'cosines to classes': (
    lambda x: few_shot.cosine()(x.reshape(2, 3, 4), x, None),
    ROWS,
  ),
  'logistic regression': (
    lambda x: logistic_regression.fit(x, IDS, num_classes=2, strength=1.0),
    ROWS,
  ),
  'logistic regression of few rows': (
    lambda x: logistic_regression.fit(
      x, jnp.arange(3), num_classes=3, strength=1.0
    ),
    ROWS[:3],
  ),
  'a path of linear probes': (
    lambda x: linear_probe.regularization_path(
      x, IDS, jnp.ones(2), num_classes=2
    ),
    ROWS,
  ),
  'a linear probe, compiled': (
    lambda x: linear_probe._compiled_path(
      x, IDS, jnp.ones(2), num_classes=2, intercept=True, max_iter=9, tol=1e-4
    ),
    ROWS,
  ),
  'votes of nearest rows': (
    lambda x: probes._votes(x, IDS, x, 2, 2, 0.1),
    ROWS,
  ),
  'a secure sum': (
    lambda x: rounds.secure_sum(
      rounds.Sent({'kernel': x, 'bias': x[:, 0]}, MASK, {}, {})
    ),
    ROWS,
  ),
  'norms of the network that infers groups': (
    dividing_network._of_norm_one,
    ROWS,
    ROWS[:, 0],
  ),
  'their gradient': (
    lambda x, side: jax.grad(
      lambda y: dividing_network._of_norm_one(y, side)[0].sum()
    )(x),
    ROWS,
    ROWS[:, 0],
  ),
  'what inferred groups are made by': (
    lambda x: group_inference.objective(
      MASK / 3, x[:, :2], IDS, MASK, penalty=1.0
    ),
    ROWS,
  ),
  'weights of rows by groups': (
    lambda x: grouped.row_weights(IDS, MASK * jnp.square(x[:, 0]), 2),
    ROWS,
  ),
  'means of groups': (lambda x: grouped.means(x, IDS, MASK, 2), ROWS),
  'CORAL': (lambda x: coral.penalty(x, IDS, MASK, num_groups=2), ROWS),
  'MMD': (lambda x: class_conditional.mmd(x, IDS, MASK, num_groups=2), ROWS),
  'calibrated covariance': (
    lambda x: distribution_calibration.calibrated(BASE, x),
    ROWS[0],
  ),
  'draws of a calibrated distribution': (
    lambda x: distribution_calibration.drawn(
      jax.random.key(0), BASE, x, num_drawn=3
    ),
    ROWS[0],
  ),
  'draws from a covariance': (
    lambda x: distribution_calibration.drawn(
      jax.random.key(0), DENSE, x, num_drawn=3
    ),
    ROWS[0],
  ),
  'spectral norm': (spectral_norm.norm, ROWS),
  "spectral norm's gradient": (jax.grad(spectral_norm.norm), ROWS),
  "gradient vaccine's products": (
    lambda x: gram([x], [0]),
    ROWS,
  ),
  'gradient vaccine': (
    lambda x: surgery(
      x,
      jnp.ones(4, bool),
      jnp.stack([jnp.arange(4)] * 4),
      jnp.zeros((1, 4, 4)),
      decay=0.1,
    ),
    (KERNEL @ KERNEL.T)[None],
  ),
  'EM of a mixture': (
    lambda x: fitted_losses.fit_mixture(
      x, MASK, MIXTURE, ridge=jnp.eye(4), steps=2
    ),
    ROWS,
  ),
  'H-entropy of mixtures': (
    _entropy(fitted_losses.gaussian_mixture(2, rng=jax.random.key(0), steps=2)),
    ROWS,
  ),
  'total variance': (_entropy(decision_losses.squared()), ROWS),
  'H-entropy of a kernel': (_entropy(decision_losses.kernel(1.0)), ROWS),
  'H-entropy of densities': (_entropy(decision_losses.kde(1.0)), ROWS),
  'H-entropy of densities of others': (
    _entropy(decision_losses.kde(1.0, rows='leave_one_out')),
    ROWS,
  ),
  'a bandwidth': (
    lambda x: decision_losses.best_bandwidth(x, jnp.array([0.1, 1.0])),
    ROWS,
  ),
  'rows of unit covariance': (lambda x: decision_losses.scott(x, 3)[0], ROWS),
  "Shannon's entropy": (_entropy(decision_losses.histogram(2)), IDS),
  'costs of actions': (
    _entropy(decision_losses.actions('which', lambda x: x, 'abcd')),
    ROWS,
  ),
  'the best action': (lambda x: decision_losses.best_action(x, MASK), ROWS),
  'MMD of two samples': (_of_split(mmd.statistic(1.0)), ROWS),
  'unbiased MMD of two samples': (
    _of_split(mmd.statistic(1.0, estimate='unbiased')),
    ROWS,
  ),
  'views that a discriminator sees': (
    lambda x: diff_augment.augment(
      x.reshape(6, 2, 2, 1),
      jax.random.split(jax.random.key(0), 6),
      kinds=('scale', 'translation'),
    ),
    ROWS,
  ),
  'InfoNCE': (
    lambda x: contrastive.info_nce(
      x,
      x,
      positive=jnp.eye(6, dtype=bool),
      counted=MASK > 0,
      temperature=0.1,
    ),
    ROWS,
  ),
  'moved prototypes': (
    lambda x: disambiguation.moved_prototypes(
      ROWS[:2], x, IDS, MASK, momentum=0.9
    ),
    ROWS,
  ),
  'a norm of ghost clipping': (rules._product, ROWS[:, :2], ROWS),
  'a norm of ghost clipping by Gram matrices': (
    rules._product,
    jnp.ones((1, 4)),
    jnp.ones((1, 4)),
  ),
  'what old tasks take out of a gradient': (
    lambda x: gradient_projection._take_out(x, jnp.eye(6), 2),
    ROWS,
  ),
  'distances to nearest rows': (
    lambda x: nearest_neighbours._distances(x, MASK, IDS, k=2),
    ROWS,
  ),
  'EM of errors': (
    lambda x: error_mixture.fit(
      KNOWN._replace(embeddings=x),
      SHARES,
      label_weight=1.0,
      prediction_weight=1.0,
      update='exact',
    ),
    ROWS,
  ),
  'where EM of errors starts': (
    lambda x: error_mixture.kmeans(
      KNOWN._replace(embeddings=x), 2, jax.random.key(0)
    ),
    ROWS,
  ),
  'attention in a pyramid': (_attended, ROWS.reshape(1, 6, 2, 2)),
  "its attention's gradient": (
    jax.grad(_attended),
    ROWS.reshape(1, 6, 2, 2),
  ),
  'positions of a larger image': (
    lambda x: grid_positions.resize_grid(
      x[None], (2, 3), (4, 4), num_prefix_tokens=0
    ),
    ROWS,
  ),
  'relative positions of a larger image': (
    lambda x: relative_positions.resize(x, (3, 3), (4, 4)),
    jnp.ones((relative_positions.num_distances((3, 3)), 2)),
  ),
  'a merged change': (lambda x: merging._product(x, x.T, 2), ROWS),
  'prefixes that their network has made': (_collapsed, ROWS),
  "SigLIP's loss": (
    lambda x: clip.sigmoid_loss(x, x, MASK, scale=10.0, bias=-10.0),
    ROWS,
  ),
  'a linear forecast': (
    lambda x: naive_forecasts.linear(ROWS[:5])({'series': x[None, :4]}),
    ROWS,
  ),
  'smoothed images': (
    lambda x: smoothing.smooth(
      x.reshape(1, 6, 2, 2), smoothing.gaussian(3, 1.0)
    ),
    ROWS,
  ),
}


@pytest.mark.parametrize('name', CASES)
def test_no_product_is_rounded(name):
  number, found = rounded(*CASES[name])
  assert number, 'the case has no product'
  assert not found


def test_what_a_convolution_sees_is_copied_whole():
  layer, image = nn.Conv(2, (2, 2)), ROWS.reshape(1, 6, 2, 2)
  found = list(
    products(
      jax.make_jaxpr(lambda x: layer_inputs._patches(layer, '', x))(image).jaxpr
    )
  )
  # What it is multiplied with, zeros and ones, is the same in any precision.
  assert [x.params['precision'][0] for x in found] == [_HIGHEST[0]]


def test_no_score_of_a_prototype_is_rounded():
  dim, num_classes = 5, 3  # The products of both are of prototypes.
  method = pico.make(
    mlp.Mlp(num_classes, features=(7,)),
    optax.sgd(0.1),
    num_rows=6,
    num_classes=num_classes,
    views=lambda batch, rng: (batch, batch),
    warmup_steps=1,
    target_momentum=0.9,
    dim=dim,
    queue_size=6,
    inputs=model_inputs.features,
  )
  batch = {
    'features': ROWS,
    'candidates': jnp.ones((6, num_classes)),
    'index': jnp.arange(6),
    'mask': MASK,
  }
  state = jax.eval_shape(method.init, jax.random.key(0), batch)
  found = [
    product.params['precision']
    for product in products(
      jax.make_jaxpr(method.update)(state, batch, jax.random.key(1)).jaxpr
    )
    if {dim, num_classes}
    <= {n for x in (*product.invars, *product.outvars) for n in x.aval.shape}
  ]
  assert found == [_HIGHEST] * 2  # And that which moves them.


# Of sizes that tell products of a layer's gradient from all others.
_WIDTH, _FEATURES = 4, 7
_LAYERS = {
  'dense': nn.Dense(_FEATURES),
  'a layer that names its own': nn.Dense(_FEATURES, precision='default'),
  'general': nn.DenseGeneral(_FEATURES),
  'convolution': nn.Conv(_FEATURES, (1,)),
}


class _Body(nn.Module):
  layer: nn.Module

  @nn.compact
  def __call__(self, x):
    return nn.Dense(1, name='head')(jnp.tanh(self.layer(jnp.tanh(x))))


def _clipped(layer, *, style='flat'):
  """(a clipped sum as a function of rows, rows)."""
  model = _Body(layer)
  x = jnp.stack([ROWS] * 3)
  params = model.init(jax.random.key(0), x)

  def loss_fn(params, x, rng):
    del rng
    return jnp.square(model.apply(params, x)).sum((1, 2))

  clip = clipping.clipped_gradient(loss_fn, 1.0, method='ghost', style=style)
  return lambda x: clip(params, x).grads, x


@pytest.mark.parametrize('name', _LAYERS)
def test_no_gradient_of_a_layer_is_rounded_by_ghost_clipping(name):
  fn, x = _clipped(_LAYERS[name])
  number, found = rounded(fn, x)
  assert found, 'the loss itself goes by the default'
  shapes = [set(product.outvars[0].aval.shape) for product in found]
  assert not [x for x in shapes if {_WIDTH, _FEATURES} <= x]
  assert number > len(found)


@pytest.mark.parametrize('style', ['flat', 'per_layer'])
@pytest.mark.parametrize('precision', [None, 'default', 'high'])
def test_two_backward_passes_of_ghost_clipping_round_nothing(style, precision):
  layer = nn.remat(nn.Dense)(_FEATURES, precision=precision)
  number, found = rounded(*_clipped(layer, style=style))
  assert number > len(found)
  # Where units go one by one, norms are those of the numbers that are summed.
  assert not [x for x in found if x.invars[0].aval.shape[0] != 1]
  assert not found or precision


@pytest.mark.parametrize(
  'fn',
  [
    lambda x: x @ x.T,
    jax.jit(lambda x: x @ x.T),
    lambda x: jax.lax.scan(lambda c, _: (c @ x @ x.T, None), x @ x.T, None, 2),
    lambda x: jax.lax.cond(x[0, 0] > 0, lambda: x @ x.T, lambda: jnp.eye(6)),
    lambda x: jax.lax.while_loop(
      lambda y: y.sum() > 0, lambda y: y @ x.T @ x, x
    ),
    jax.grad(jax.checkpoint(lambda x: (x @ x.T).sum())),
  ],
  ids=['plain', 'jit', 'scan', 'cond', 'while', 'checkpoint'],
)
def test_a_rounded_product_is_found_wherever_it_stands(fn):
  assert rounded(fn, ROWS)[1]
  assert not rounded(jax.default_matmul_precision('highest')(fn), ROWS)[1]


def test_a_precision_that_is_named_stays():
  def fn(x):
    return jnp.matmul(x, x.T, precision='default')

  assert rounded(jax.default_matmul_precision('highest')(fn), ROWS)[1]
