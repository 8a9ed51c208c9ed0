"""ViT: sizes, symmetries, dropout, types and what it refuses."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from repjax import trees
from repjax.layers.positions import grid_positions
from repjax.models import block
from repjax.models import vit
from repjax.types import InputError


def tiny(**fields):
  settings = dict(
    patch_size=4,
    hidden_dim=16,
    mlp_dim=32,
    num_heads=2,
    num_layers=2,
    grid=(2, 3),
  )
  return vit.ViT(3, **(settings | fields))


def images(rows=2, size=(8, 12)):
  shape = (rows, *size, 3)
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def draw(model, image):
  """Variables with random leaves, so that none starts as zero."""
  rng = np.random.default_rng(1)
  shapes = jax.eval_shape(
    functools.partial(model.init, train=False), jax.random.key(0), image
  )
  return jax.tree.map(
    lambda leaf: rng.normal(0.1, 0.3, leaf.shape).astype(leaf.dtype), shapes
  )


@functools.partial(
  jax.jit, static_argnums=0, static_argnames=('train', 'method')
)
def apply(model, variables, image, *, train=False, rngs=None, method=None):
  return model.apply(variables, image, train=train, rngs=rngs, method=method)


@functools.partial(jax.jit, static_argnums=0)
def slopes(model, variables, image):
  def loss(params):
    logits = model.apply(
      {'params': params},
      image,
      train=True,
      rngs={'dropout': jax.random.key(0)},
    )
    return jnp.sin(logits).sum()

  return jax.value_and_grad(loss)(variables['params'])


@functools.partial(jax.jit, static_argnums=0)
def apply_and_sow(model, variables, image):
  logits, sown = model.apply(
    variables, image, train=False, mutable=['intermediates']
  )
  blocks = [
    sown['intermediates'][f'block_{i}'] for i in range(model.num_layers)
  ]
  return logits, blocks


def count(name, num_classes, size, **fields):
  model = vit.variant(name, num_classes, **fields)
  image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  shapes = jax.eval_shape(
    functools.partial(model.init, train=False), jax.random.key(0), image
  )
  return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_blocks_that_are_computed_again_give_the_same_numbers():
  fields = dict(dropout_rate=0.1, drop_path_rate=0.2)
  kept, again = (tiny(remat=x, **fields) for x in (False, True))
  image = images()
  variables = draw(kept, image)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5),
    slopes(kept, variables, image),
    slopes(again, variables, image),
  )
  # XLA computes nothing again on CPUs; GPUs and TPUs do as they are told.
  for model, times in ((kept, 0), (again, 2)):
    made = jax.make_jaxpr(functools.partial(slopes.__wrapped__, model))(
      variables, image
    )
    assert str(made).count('= remat2[') == times


class SizesTest(parameterized.TestCase):
  def test_b16_at_224_with_1000_classes_has_86567656_parameters(self):
    self.assertEqual(count('B/16', 1000, 224), 86_567_656)

  # The published widths, written here a second time.
  @parameterized.parameters(
    ('Ti/16', 192, 768, 12, 224),
    ('S/16', 384, 1536, 12, 384),
    ('B/32', 768, 3072, 12, 224),
    ('L/16', 1024, 4096, 24, 224),
    ('H/14', 1280, 5120, 32, 224),
  )
  def test_parameters_are_those_of_the_formula(
    self, name, d, mlp, layers, size
  ):
    patch = int(name.split('/')[1])
    attention_block = 4 * (d * d + d)
    mlp_block = d * mlp + mlp + mlp * d + d
    norms = 2 * 2 * d
    tokens = (size // patch) ** 2 + 1
    expected = (
      (patch * patch * 3 * d + d)
      + d  # Class token.
      + tokens * d
      + layers * (attention_block + mlp_block + norms)
      + 2 * d
      + (d * 10 + 10)
    )
    self.assertEqual(count(name, 10, size), expected)

  def test_average_pooling_has_no_class_token_and_sincos_no_parameters(self):
    tokens = 14 * 14 + 1
    self.assertEqual(
      count('Ti/16', 10, 224)
      - count('Ti/16', 10, 224, pool='average', position='sincos'),
      192 + tokens * 192,
    )

  @parameterized.parameters(
    ('B16', "'B/16'"),
    ('vit-b/16', "'B/16'"),
    ('s/14', "'S/14'"),
    ('B/x', "'B/"),
    ('', "'H/14'"),
  )
  def test_an_unknown_size_is_refused_with_near_names(self, name, near):
    with self.assertRaisesRegex(InputError, near):
      vit.variant(name, 10)


class ForwardTest(parameterized.TestCase):
  @parameterized.parameters('token', 'average')
  def test_patches_are_a_set_but_for_their_positions(self, pool):
    model = tiny(pool=pool)
    image = images()
    variables = draw(model, image)
    # Swap the upper and the lower row of patches.
    swapped = np.concatenate([image[:, 4:], image[:, :4]], axis=1)
    logits = apply(model, variables, image)
    self.assertGreater(
      np.abs(logits - apply(model, variables, swapped)).max(), 1e-3
    )
    blind = jax.tree.map(np.copy, variables)
    blind['params']['positions']['embedding'] *= 0
    np.testing.assert_allclose(
      apply(model, blind, image), apply(model, blind, swapped), atol=1e-5
    )

  def test_rows_do_not_see_each_other(self):
    model = tiny()
    image = images()
    variables = draw(model, image)
    other = np.concatenate([image[:1], image[1:] * -7])
    np.testing.assert_allclose(
      apply(model, variables, image)[0],
      apply(model, variables, other)[0],
      atol=1e-5,
    )

  def test_initial_values_are_those_of_the_authors(self):
    model = tiny(hidden_dim=64, num_layers=1, grid=None)
    init = jax.jit(functools.partial(model.init, train=False))
    params = init(jax.random.key(0), images(size=(32, 32)))['params']
    np.testing.assert_array_equal(params['head']['kernel'], np.zeros((64, 3)))
    np.testing.assert_array_equal(params['cls'], np.zeros((1, 1, 64)))
    embedding = params['positions']['embedding']
    self.assertAlmostEqual(float(embedding.std()), 0.02, delta=0.001)
    # Xavier: uniform up to sqrt(6 / (fan in + fan out)).
    kernel = params['block_0']['mlp']['hidden']['kernel']
    limit = np.sqrt(6 / (64 + 32))
    self.assertBetween(float(abs(kernel).max()), 0.99 * limit, limit)

  def test_parts_compose_to_the_whole(self):
    model = tiny(representation_dim=6)
    image = images()
    variables = draw(model, image)
    logits, blocks = apply_and_sow(model, variables, image)
    features = np.asarray(apply(model, variables, image, method='features'))
    self.assertEqual(features.shape, (2, 6))
    head = variables['params']['head']
    for found in (
      features @ head['kernel'] + head['bias'][None],
      jax.jit(functools.partial(model.apply, method='classify'))(
        variables, blocks[1]['output'][0]
      ),
    ):
      np.testing.assert_allclose(found, logits, atol=1e-5)
    tokens = apply(model, variables, image, method='encode')
    self.assertEqual(tokens.shape, (2, 7, 16))

  def test_attention_maps_are_those_of_the_projected_tokens(self):
    model = tiny(num_layers=1)
    image = images()
    variables = draw(model, image)
    maps = jax.jit(functools.partial(vit.attention_maps, model))(
      variables, image
    )
    self.assertEqual(maps.shape, (1, 2, 2, 7, 7))
    tokens = np.array(apply(model, variables, image, method='embed'))
    tokens -= tokens.mean(-1, keepdims=True)
    tokens /= np.sqrt((tokens**2).mean(-1, keepdims=True) + 1e-6)
    layer = variables['params']['block_0']
    norm = layer['attention_norm']
    tokens = tokens * norm['scale'] + norm['bias']
    query, key = (
      np.einsum('btd,dhe->bhte', tokens, dense['kernel'])
      + dense['bias'][:, None]
      for dense in (layer['attention']['query'], layer['attention']['key'])
    )
    weights = np.exp(query @ key.swapaxes(-1, -2) / np.sqrt(8))
    weights /= weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(np.asarray(maps)[0], weights, atol=1e-5)

  def test_another_image_size_is_refused(self):
    model = tiny()
    variables = draw(model, images())
    with self.assertRaisesRegex(InputError, 'resize_grid'):
      model.apply(variables, images(size=(8, 8)), train=False)

  def test_as_many_patches_in_another_grid_are_refused(self):
    square, wide = images(size=(16, 16)), images(size=(8, 32))
    model = tiny(grid=None)
    variables = draw(model, square)
    for image in (wide, images(size=(32, 8))):
      with self.assertRaisesRegex(InputError, r'positions are of a square'):
        model.apply(variables, image, train=False)
      with self.assertRaisesRegex(InputError, r'grid=\('):
        draw(model, image)
    # Resized, they are those of the wide grid.
    params = variables['params']
    resized = jax.jit(
      lambda embedding: grid_positions.resize_grid(
        embedding, (4, 4), (2, 8), num_prefix_tokens=1
      )
    )(params['positions']['embedding'])
    params = {**params, 'positions': {'embedding': resized}}
    found = apply(tiny(grid=(2, 8)), {'params': params}, wide)
    self.assertTrue(np.isfinite(found).all())
    with self.assertRaisesRegex(InputError, r'2 x 4 .* are of 4 x 2'):
      draw(tiny(grid=(4, 2)), images(size=(8, 16)))
    # Without learned positions there is nothing to be wrong.
    free = tiny(grid=None, position='sincos')
    apply(free, draw(free, square), wide)

  @parameterized.parameters(
    (dict(num_heads=3), 'num_heads'),
    (dict(patch_size=5), 'patch_size'),
    (dict(pool='max'), 'pool'),
    (dict(position='rope'), 'position'),
    (dict(gelu='relu'), 'gelu'),
  )
  def test_a_field_that_does_not_fit_is_refused_by_name(self, fields, name):
    with self.assertRaisesRegex(InputError, name):
      tiny(**fields).init(jax.random.key(0), images(), train=False)


class TrainingTest(parameterized.TestCase):
  def test_training_without_rates_is_the_plain_pass_and_needs_no_key(self):
    model = tiny()
    variables = draw(model, images())
    np.testing.assert_array_equal(
      apply(model, variables, images(), train=True),
      apply(model, variables, images()),
    )

  @parameterized.parameters(
    'dropout_rate', 'attention_dropout_rate', 'drop_path_rate'
  )
  def test_each_rate_acts_when_training_and_only_then(self, field):
    plain, model = tiny(), tiny(**{field: 0.5})
    variables = draw(plain, images(8))
    logits = apply(plain, variables, images(8))
    np.testing.assert_array_equal(apply(model, variables, images(8)), logits)
    first, again, second = (
      apply(
        model,
        variables,
        images(8),
        train=True,
        rngs={'dropout': jax.random.key(seed)},
      )
      for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    self.assertGreater(np.abs(first - logits).max(), 1e-3)
    self.assertGreater(np.abs(first - second).max(), 1e-3)

  def test_stochastic_depth_rises_linearly_from_zero(self):
    model = tiny(num_layers=4, drop_path_rate=0.3)
    model = model.bind(draw(model, images()))
    np.testing.assert_allclose(
      [x.config.drop_path_rate for x in model.block], [0, 0.1, 0.2, 0.3]
    )

  def test_the_given_attention_is_used(self):
    def mean_of_values(query, key, value):
      del query, key
      return jnp.broadcast_to(value.mean(-3, keepdims=True), value.shape)

    model = tiny()
    variables = draw(model, images())
    # Without queries, exact attention is the mean of the values, too.
    for name in ('block_0', 'block_1'):
      for leaf in variables['params'][name]['attention']['query'].values():
        leaf *= 0
    exact = apply(model, variables, images())
    np.testing.assert_allclose(
      apply(tiny(attention_fn=mean_of_values), variables, images()),
      exact,
      atol=1e-5,
    )
    twice = tiny(attention_fn=lambda q, k, v: 2 * mean_of_values(q, k, v))
    self.assertGreater(
      np.abs(apply(twice, variables, images()) - exact).max(), 1e-3
    )

  def test_attention_without_weights_has_no_maps_but_still_runs(self):
    model = tiny(attention_fn=lambda query, key, value: value)
    variables = draw(model, images())
    with self.assertRaisesRegex(InputError, 'attention_fn'):
      vit.attention_maps(model, variables, images())

  def test_parameters_are_those_of_the_stock_attention(self):
    stock = tiny(attention_fn=nn.dot_product_attention)
    variables = draw(stock, images())
    np.testing.assert_allclose(
      apply(stock, variables, images()),
      apply(tiny(), variables, images()),
      atol=1e-5,
    )

  def test_every_parameter_gets_a_gradient(self):
    model = tiny(representation_dim=6)
    variables = draw(model, images())

    @jax.jit
    def grads(variables):
      def loss(variables):
        logits = model.apply(variables, images(), train=True)
        return jnp.square(logits).sum()

      return jax.grad(loss)(variables)

    for path, grad in trees.flatten(grads(variables)).items():
      # A constant shift of all scores of a query changes no weight.
      if path[-2:] != ('key', 'bias'):
        self.assertGreater(np.abs(grad).max(), 1e-8, path)


class TypesTest(parameterized.TestCase):
  @parameterized.parameters('field', 'inputs')
  def test_bfloat16_is_near_float32_and_logits_are_float32(self, how):
    model = tiny()
    variables = draw(model, images())
    exact = apply(model, variables, images())
    if how == 'field':
      half = apply(tiny(dtype=jnp.bfloat16), variables, images())
    else:
      variables, image = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.bfloat16), (variables, images())
      )
      half = apply(model, variables, image)
    self.assertEqual(half.dtype, jnp.float32)
    difference = np.abs(half - exact).max() / np.abs(exact).max()
    self.assertBetween(difference, 1e-5, 0.05)

  def test_blocks_compute_in_the_type_of_the_field(self):
    model = tiny(dtype=jnp.bfloat16, param_dtype=jnp.float32)
    variables = draw(model, images())
    for leaf in jax.tree.leaves(variables):
      self.assertEqual(leaf.dtype, jnp.float32)
    _, (_, layer) = apply_and_sow(model, variables, images())
    self.assertEqual(layer['output'][0].dtype, jnp.bfloat16)
    self.assertEqual(
      layer['attention']['attention_weights'][0].dtype, jnp.float32
    )

  def test_exact_gelu_is_the_product_with_the_normal_distribution(self):
    x = np.linspace(-6, 6, 1001)
    layer = block.Mlp(
      block.BlockConfig(mlp_dim=1001, num_heads=1, activation='gelu_exact')
    )
    # The identity on both sides of the gelu.
    dense = {'kernel': np.eye(1001), 'bias': np.zeros(1001)}
    found = jax.jit(functools.partial(layer.apply, train=False))(
      {'params': {'hidden': dense, 'out': dense}},
      x.astype(np.float32)[None],
    )
    np.testing.assert_allclose(found[0], x * scipy.stats.norm.cdf(x), atol=1e-6)


if __name__ == '__main__':
  absltest.main()
