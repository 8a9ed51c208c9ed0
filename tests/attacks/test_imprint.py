"""What is read from a gradient is what was alone in its bin, and only that."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import imprint as recipe
from configs.parts import imprints
from repjax import float64
from repjax import types
from repjax.attacks import imprint as attack
from repjax.attacks import imprint_audit
from repjax.attacks import imprint_bins
from repjax.attacks import imprint_text
from repjax.attacks import imprint_trials
from repjax.data.images import recipes
from repjax.data.reading import source as sources
from repjax.experiments import of_images
from repjax.layers import imprint
from repjax.models import mlp
from repjax.models import vit

RNG = np.random.default_rng(0)
PRIVATE = RNG.normal(size=(12, 2, 2, 1))
LABEL = RNG.integers(0, 3, 12)
SHAPE = (2, 2, 1)


def trap(num_bins, kind='cumulative', gain=1.0):
  direction = imprint_bins.direction('randn', SHAPE, seed=1)
  made = attack.Trap(direction, direction[:0], kind, gain)
  public = made.scores(np.random.default_rng(5).normal(size=(200, *SHAPE)))
  return made._replace(edges=imprint_bins.of_public(public, num_bins))


def gradient(
  made, connection, images=PRIVATE, labels=LABEL, weights=1, dtype='float64'
):
  """Of the mean loss of a small network behind a trap."""
  model = imprint.Imprinted(mlp.Mlp(3, (6,)), made.layer(connection))
  init = jax.jit(functools.partial(model.init, train=False))
  variables = init(jax.random.key(0), np.ones((1, *SHAPE)))
  variables = jax.tree.map(lambda x: np.asarray(x).astype(dtype), variables)
  params = attack.plant(variables, made, connection)['params']
  images = images.astype(dtype)

  def loss(params):
    logits = model.apply({'params': params}, images, train=True)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return (weights * losses).mean()

  return jax.jit(jax.grad(loss))(params)


def alone(made, images=PRIVATE):
  """Too simple to be wrong: who shares a bin with nobody."""
  scores = [float((x.reshape(-1) * made.direction).sum()) for x in images]
  edges = [*made.edges[:-1], np.inf]
  bins = [
    next((i for i in range(len(edges) - 1) if edges[i] < s <= edges[i + 1]), -1)
    for s in scores
  ]
  return np.array([b >= 0 and bins.count(b) == 1 for b in bins])


def recovered(found, images=PRIVATE, atol=1e-9):
  flat = images.reshape(len(images), -1)
  hits = found.inputs[found.hit]
  return np.array([(abs(hits - x).max(1) < atol).any() for x in flat])


@pytest.mark.parametrize(
  ('kind', 'connection', 'gain'),
  [
    ('cumulative', 'addition', 1.0),
    ('cumulative', 'linear', 1e-3),
    ('sparse', 'addition', 2.0),
    ('sparse', 'linear', 1.0),
    ('sparse', 'cat', 1.0),
  ],
)
def test_recovery_is_that_of_singly_occupied_bins_exactly(
  kind, connection, gain
):
  # The 'cat' of k rows needs k numbers of an input.
  made = trap(4 if connection == 'cat' else 16, kind, gain)
  with float64.enabled():
    found = attack.read(gradient(made, connection), kind)
  expected = alone(made)
  np.testing.assert_array_equal(recovered(found), expected)
  np.testing.assert_array_equal(
    imprint_bins.singles(made.scores(PRIVATE), made.edges), expected
  )
  if connection != 'cat':
    assert 0 < expected.sum() < len(expected)


@pytest.mark.parametrize(
  ('dtype', 'faint', 'atol'),
  [('float32', 1e-9, 1e-5), ('float64', 1e-15, 1e-9)],
)
def test_an_input_of_faint_gradient_is_read_of_sparse_rows(dtype, faint, atol):
  # Nothing is subtracted of them that could round it away.
  made = trap(16, 'sparse')
  expected = alone(made)
  weights = np.ones(len(PRIVATE))
  weights[expected.argmax()] = faint
  with float64.enabled():
    grads = gradient(made, 'linear', weights=weights.astype(dtype), dtype=dtype)
  assert grads['imprint']['rows']['bias'].dtype == dtype
  found = attack.read(grads, 'sparse')
  np.testing.assert_array_equal(recovered(found, atol=atol), expected)
  bins = np.histogram(made.scores(PRIVATE), [*made.edges[:-1], np.inf])[0]
  np.testing.assert_array_equal(found.hit[:-1], bins[:-1] > 0)


def test_the_top_bin_is_read_and_the_authors_code_leaves_it():
  made = trap(8)
  highest = PRIVATE[[made.scores(PRIVATE).argmax()]]
  top = highest * (made.edges[-2] + 1) / made.scores(highest)[0]
  images = np.concatenate([PRIVATE[:3] * 0.1, top])
  with float64.enabled():
    grads = gradient(made, 'addition', images, LABEL[:4])
  with_top = recovered(attack.read(grads, 'cumulative'), images)
  without = recovered(attack.read(grads, 'cumulative', top=False), images)
  assert with_top[-1]
  assert not without[-1]
  np.testing.assert_array_equal(with_top[:-1], without[:-1])


def test_cumulative_rows_come_apart_only_with_equal_upstream_gradients():
  # 'cat' leads each row to another place, so that sums do not cancel.
  made = trap(4)
  with float64.enabled():
    found = attack.read(gradient(made, 'cat'), 'cumulative')
  below_top = recovered(found)[made.scores(PRIVATE) < made.edges[-2]]
  assert not below_top.any()


def test_sparse_windows_cover_everything_once():
  made = trap(6, 'sparse', gain=1.5)
  planted = attack.params(made, 'addition')['rows']
  x = np.linspace(made.edges[0] + 1e-6, made.edges[-1] - 1e-6, 400)
  inputs = x[:, None] * made.direction / (made.direction**2).sum()
  before = inputs @ planted['kernel'] + planted['bias']
  active = (before > 0) & (before < made.gain)
  np.testing.assert_array_equal(active.sum(1), 1)


@pytest.mark.parametrize(
  ('n', 'k'), [(5, 4), (6, 2), (7, 3), (8, 4), (1, 2), (3, 5)]
)
def test_expected_numbers_are_means_over_all_cases(n, k):
  cases = list(itertools.product(range(k), repeat=n))
  counts = [np.bincount(x, minlength=k) for x in cases]
  independent = np.mean([(x == 1).sum() for x in counts])
  assert imprint_bins.expected(n, k) == pytest.approx(independent)
  assert imprint_bins.one_shot(n, k) == pytest.approx(
    np.mean([x[0] == 1 for x in counts])
  )
  # The published formulas count ways to fill bins, each once.
  ways = np.array(sorted({tuple(x) for x in counts}))
  assert imprint_bins.published(n, k) == pytest.approx(
    (ways == 1).sum(1).mean() - n / k
  )
  assert imprint_bins.published_one_shot(n, k) == pytest.approx(
    (ways[:, 0] == 1).mean()
  )


def test_expected_numbers_are_those_of_the_authors_code():
  assert imprint_bins.published(64, 256) == pytest.approx(40.935, abs=1e-3)
  assert imprint_bins.expected(64, 256) == pytest.approx(50.014, abs=1e-3)
  # Fewer bins than inputs.
  assert 0 < imprint_bins.published(64, 32) < imprint_bins.expected(64, 32)


def test_laws_have_bins_of_equal_mass():
  drawn = np.random.default_rng(0).laplace(3, 2 / np.sqrt(2), 40_000)
  edges = imprint_bins.by_law(8, 'laplace', mean=3, std=2)
  np.testing.assert_allclose(np.histogram(drawn, edges)[0] / 4e4, 1 / 8, 2e-1)
  edges = imprint_bins.by_law(8, mean=3, std=2)
  drawn = np.random.default_rng(0).normal(3, 2, 40_000)
  np.testing.assert_allclose(
    np.histogram(drawn, edges)[0] / 4e4, 1 / 8, rtol=0.05
  )


def test_edges_end_ten_deviations_away():
  edges = imprint_bins.by_law(2, mean=3, std=2)
  np.testing.assert_allclose(edges, [-17, 3, 23], atol=1e-9)
  edges = imprint_bins.of_public([1.0, 1.0, 5.0, 5.0], 2)
  np.testing.assert_allclose(edges, [-17, 3, 23])


@pytest.mark.parametrize('kind', ['mean', 'fourier', 'randn', 'rand'])
def test_directions_run_channel_by_channel(kind):
  found = imprint_bins.direction(kind, (4, 5, 3), mode=3, seed=2)
  assert found.shape == (60,)
  if kind == 'fourier':
    image = found.reshape(4, 5, 3)
    first = np.cos(np.pi / 60 * (np.arange(60) + 0.5) * 3) * 12 / 60
    np.testing.assert_allclose(
      image.transpose(2, 0, 1).reshape(-1), first, rtol=1e-12
    )


def test_two_rows_keep_one_bin():
  made = trap(12)
  with float64.enabled():
    expected = alone(made)
    for row in range(4):
      place = float(made.scores(PRIVATE[[row]])[0])
      two = made._replace(edges=imprint_bins.around(place, 12, made.edges))
      found = attack.read(gradient(two, 'addition'), 'cumulative')
      near = abs(found.inputs[0] - PRIVATE[row].reshape(-1)).max()
      assert (near < 1e-9) == expected[row]


@pytest.mark.parametrize(
  ('target', 'expected'),
  [
    (1.5, [1, 2, 4]),
    # Below all bins; or in the last one, which the second row has.
    (-7.0, [0, 1, 4]),
    (3.5, [2, 3, 4]),
    (9.0, [2, 3, 4]),
  ],
)
def test_two_rows_have_increasing_edges_wherever_the_target_is(
  target, expected
):
  around = imprint_bins.around(target, 4, np.arange(5.0))
  np.testing.assert_array_equal(around, expected)


def test_texts_are_read_through_their_embedding():
  table = RNG.normal(size=(9, 3))
  texts = RNG.integers(0, 9, (6, 4))
  found = table[texts[[4, 0, 2]]].reshape(3, -1)
  read = imprint_text.tokens(found + 1e-3, table)
  np.testing.assert_array_equal(read, texts[[4, 0, 2]])
  shares = imprint_text.agreement(read, texts)
  np.testing.assert_array_equal(shares[[4, 0, 2]], 1.0)
  assert (shares[[1, 3, 5]] == 0).all()  # Three found, three without one.
  with pytest.raises(types.InputError, match='stands elsewhere'):
    imprint_text.tokens(np.ones((2, 7)), table)
  nothing = imprint_text.tokens(np.zeros((0, 12)), table)
  assert nothing.shape == (0, 4)
  np.testing.assert_array_equal(imprint_text.agreement(nothing, texts), 0)


class Reader(nn.Module):
  """Embeds tokens, and classifies what it sees."""

  @nn.compact
  def __call__(self, tokens):
    seen = nn.Embed(9, 3, name='token_embedding')(tokens)
    return nn.Dense(2, name='head')(seen.reshape((len(tokens), -1)))


def test_texts_are_read_from_a_gradient():
  texts = np.random.default_rng(3).integers(0, 9, (6, 4))
  direction = imprint_bins.direction('randn', (4, 3), seed=2)
  made = attack.Trap(direction, imprint_bins.by_law(8, std=0.6))
  layer = made.layer('addition')
  model = imprint.Imprinted(Reader(), layer, after='token_embedding')
  with float64.enabled():
    variables = jax.tree.map(
      lambda x: np.asarray(x).astype(np.float64),
      jax.jit(model.init)(jax.random.key(0), texts),
    )
    params = attack.plant(variables, made, 'addition')['params']
    table = np.asarray(params['model']['token_embedding']['embedding'])
    alone_there = imprint_bins.singles(made.scores(table[texts]), made.edges)
    loss = lambda p: (model.apply({'params': p}, texts) ** 2).sum()  # noqa: E731
    found = attack.read(jax.jit(jax.grad(loss))(params), 'cumulative')
  read = imprint_text.tokens(found.inputs[found.hit], table)
  whole = [(read == text).all(1).any() for text in texts]
  assert 0 < alone_there.sum() < 6
  np.testing.assert_array_equal(np.array(whole)[alone_there], True)


def test_an_auditor_names_imprints_and_nothing_else():
  honest = {
    'hidden': {'kernel': RNG.normal(size=(9, 8)), 'bias': RNG.normal(size=8)},
    'fresh': {'kernel': np.zeros((9, 8)), 'bias': np.zeros(8)},
    'ones': {'kernel': np.ones((9, 8)), 'bias': np.zeros(8)},
    'conv': {
      'kernel': RNG.normal(size=(3, 3, 2, 8)),
      'bias': RNG.normal(size=8),
    },
    'gate': {'kernel': RNG.normal(size=(1, 8)), 'bias': RNG.normal(size=8)},
  }
  assert not imprint_audit.audit(honest)
  for kind in imprint.KINDS:
    for bins in (2, 16):
      planted = attack.params(trap(bins, kind), 'linear')
      found = imprint_audit.audit({**honest, 'odd': planted})
      assert [x.name for x in found] == ['odd/rows/kernel']
      assert found[0].parallel == 1.0
      assert found[0].steps == bins
  # Among other rows, in another order.
  mixed = attack.params(trap(16), 'addition')['rows']
  order = RNG.permutation(24)
  mixed = {
    'kernel': np.hstack([mixed['kernel'], RNG.normal(size=(4, 8))])[:, order],
    'bias': np.append(mixed['bias'], RNG.normal(size=8))[order],
  }
  assert imprint_audit.audit({'mixed': mixed})[0].parallel == pytest.approx(
    2 / 3
  )


@pytest.mark.parametrize('place', [0, 2])
def test_an_auditor_looks_at_each_layer_of_a_stack(place):
  kernel, bias = RNG.normal(size=(3, 6, 20)), RNG.normal(size=(3, 20))
  assert not imprint_audit.audit({'scan': {'kernel': kernel, 'bias': bias}})
  kernel[place] = RNG.normal(size=(6, 1))
  (found,) = imprint_audit.audit({'scan': {'kernel': kernel, 'bias': bias}})
  assert (found.name, found.parallel) == ('scan/kernel', 1.0)


@pytest.mark.parametrize('outputs', [64, 128, 1000])
@pytest.mark.parametrize('every', [2, 4, 8])
def test_an_auditor_sees_rows_in_any_order(outputs, every):
  kernel, bias = RNG.normal(size=(48, outputs)), RNG.normal(size=outputs)
  planted = np.arange(outputs) % every != 0
  kernel[:, planted] = RNG.normal(size=(48, 1))
  (found,) = imprint_audit.audit({'odd': {'kernel': kernel, 'bias': bias}})
  assert found.parallel == planted.mean()
  assert found.steps > 0.98 * planted.sum()  # Of six digits.
  few = np.where(planted, RNG.normal(size=(48, outputs)), kernel)
  assert not imprint_audit.audit({'odd': {'kernel': few, 'bias': bias}})


def test_a_trained_head_of_two_classes_is_no_imprint():
  # Its columns begin at 0, and their gradients are opposite.
  model = vit.ViT(
    2, patch_size=2, hidden_dim=8, mlp_dim=8, num_heads=2, num_layers=1
  )
  image = jnp.asarray(RNG.normal(size=(8, 4, 4, 1)), jnp.float32)
  label = jnp.asarray(RNG.integers(0, 2, 8))
  tx = optax.adam(1e-2)
  init = jax.jit(functools.partial(model.init, train=False))
  params = init(jax.random.key(0), image)['params']

  def loss(params):
    logits = model.apply({'params': params}, image, train=False)
    return optax.softmax_cross_entropy_with_integer_labels(logits, label).sum()

  @jax.jit
  def step(params, state):
    updates, state = tx.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  state = tx.init(params)
  for _ in range(5):
    params, state = step(params, state)
  first, second = np.asarray(params['head']['kernel']).T
  np.testing.assert_allclose(first, -second, rtol=1e-4)
  assert abs(first).max() > 0.01
  assert not imprint_audit.audit(params)


def test_bins_from_private_data_are_refused_by_name():
  images = RNG.integers(0, 255, (6, 2, 2, 1)).astype(np.uint8)
  whole = sources.from_arrays('scans', {'image': images}, split='all')
  imprint_bins.check_public(whole.select([0, 1]), whole.select([2, 3]))
  with pytest.raises(types.InputError, match='1 of the 2 rows of scans all'):
    imprint_bins.check_public(whole.select([0, 1]), whole.select([1, 2]))


def test_what_cannot_be_planted_is_refused():
  made = trap(4)
  model = imprint.Imprinted(mlp.Mlp(3, ()), made.layer('addition'))
  variables = jax.eval_shape(
    lambda: model.init(jax.random.key(0), jnp.ones((1, 3, 3, 1)), train=False)
  )
  with pytest.raises(types.InputError, match='other shapes'):
    attack.plant(variables, made, 'addition')
  with pytest.raises(types.InputError, match='missing'):
    attack.plant(variables, made, 'addition', at=('front',))
  for wrong, says in (
    (trap(4)._replace(edges=np.array([0.0, 1.0])), 'num_bins'),
    (made._replace(edges=made.edges[::-1]), 'must increase'),
    (made._replace(gain=0.0), 'gain'),
  ):
    with pytest.raises(types.InputError, match=says):
      attack.params(wrong, 'addition')
  for bins in (0, 1):
    with pytest.raises(types.InputError, match='num_bins'):
      imprint_bins.by_law(bins)
  with pytest.raises(types.InputError, match='all the same'):
    imprint_bins.of_public(np.ones(5), 4)


def test_noise_is_no_hit_and_the_best_are_few():
  kernel = np.zeros((2, 4), np.float32)
  bias = np.array([3, 3, 1, 1], np.float32)
  kernel[0] = [6, 6, 1, 1]
  found = attack.invert(kernel, bias, 'cumulative')
  np.testing.assert_array_equal(found.hit, [False, True, False, True])
  np.testing.assert_allclose(found.inputs[1], [2.5, 0])
  np.testing.assert_allclose(attack.best(found, 1), [[1, 0]])


def test_the_paper_preset_has_the_paper_s_shapes():
  config = recipe.get_config('paper')
  side = config.augment.size
  images = sources.from_arrays(
    'imagenet2012',
    {
      'image': np.zeros((2, side, side, 3), np.uint8),
      'label': np.zeros(2, int),
    },
    num_classes=1000,
  )
  data = of_images.Data(images, recipes.images(images, **config.augment), 1)
  made = imprints.trap(config, data)
  assert made.edges.shape == (129,)
  model = imprints.network(config, 1000, made)
  method = imprints.method(model, optax.sgd(config.tx.learning_rate), config)
  batch = {
    'image': jax.ShapeDtypeStruct((64, side, side, 3), jnp.float32),
    'label': jax.ShapeDtypeStruct((64,), jnp.int32),
    'mask': jax.ShapeDtypeStruct((64,), jnp.float32),
  }
  state = jax.eval_shape(method.init, jax.random.key(0), batch)
  assert state.params['imprint']['rows']['kernel'].shape == (150_528, 128)
  assert state.params['imprint']['back']['kernel'].shape == (128, 150_528)
  after, _ = jax.eval_shape(method.update, state, batch, jax.random.key(0))
  assert jax.tree.structure(after.params) == jax.tree.structure(state.params)


def test_rows_that_users_cannot_share_are_refused():
  made = trap(4)
  model = imprint.Imprinted(mlp.Mlp(3, ()), made.layer('addition'))
  columns = {'image': PRIVATE[None], 'label': LABEL[None]}
  with pytest.raises(types.InputError, match='evenly among 5 users'):
    imprint_trials.seen(
      model, [made], 'addition', columns, [0], imprint_trials.Round(users=5)
    )


def test_random_directions_are_of_their_seed_law_and_length():
  shape = (9, 8, 3)
  for kind in ('randn', 'rand'):
    first, other = (
      imprint_bins.direction(kind, shape, seed=seed) for seed in (0, 1)
    )
    assert abs(first - other).max() > 1e-3
    np.testing.assert_allclose(first.sum(), 0, atol=1e-9)
    np.testing.assert_allclose((first**2).sum(), 215 / 216, rtol=1e-9)
    # In deviations a uniform number is never beyond 1.9, of 216 normal ones
    # some are.
    largest = abs(first).max() * np.sqrt(216)
    assert (largest > 2) == (kind == 'randn')


def test_the_best_are_chosen_by_what_is_asked_for():
  found = attack.Found(
    inputs=np.array([[1.0, 1.0], [2.0, 2.0]]),
    weight=np.array([3.0, 1.0]),
    bias=np.array([1.0, 3.0]),
    hit=np.array([True, True]),
  )
  np.testing.assert_array_equal(attack.best(found, 1), [[1, 1]])
  np.testing.assert_array_equal(attack.best(found, 1, 'weight'), [[1, 1]])


def test_under_noise_bins_with_an_input_are_kept():
  noise = np.full(4, 1e-3)
  found = attack.Found(
    inputs=np.arange(8.0).reshape(4, 2),
    weight=noise * [1, -2, 1, 1] + [0, 0, -3, 0],
    bias=noise * [5, 5, 0, 5] + [0, 0, 2, 0],
    hit=np.ones(4, bool),
  )
  np.testing.assert_array_equal(attack.best(found, 1, 'weight'), [[4, 5]])
