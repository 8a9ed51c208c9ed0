"""Rounds of users are what a loop over users does."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import optim
from repjax import types
from repjax.data import partitions
from repjax.methods import supervised
from repjax.models import mlp
from repjax.models import resnet
from repjax.protocols import compression
from repjax.protocols import rounds

RNG = np.random.default_rng(0)
COLUMNS = {
  'image': RNG.normal(size=(64, 4)).astype(np.float32),
  'label': RNG.integers(0, 3, 64),
}
MODEL = mlp.Mlp(3, (5,))

# One program each; step by step, every operation would be compiled by itself.
send = jax.jit(rounds.send, static_argnums=0)
mean_of = jax.jit(lambda sent, params: rounds.OfUsers(sent)(params))
clipped = jax.jit(
  lambda sent, params, clip: rounds.OfUsers(sent).clipped(params, clip)
)


def method(*links, rate=1.0, model=MODEL):
  return supervised.make(
    model, optax.chain(*links, optax.sgd(rate), rounds.record())
  )


def state_of(made):
  batch = {**{k: x[:1] for k, x in COLUMNS.items()}, 'mask': np.ones(1)}
  return jax.jit(made.init)(jax.random.key(0), batch)


@jax.jit
def gradient(params, rows):
  def loss(params):
    image, label = (jnp.asarray(COLUMNS[x])[rows] for x in ('image', 'label'))
    logits = MODEL.apply({'params': params}, image, train=True)
    return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

  return jax.grad(loss)(params)


@pytest.fixture(scope='module')
def plain():
  made = method()
  return made, state_of(made)


def test_the_sum_of_64_users_is_one_large_batch(plain):
  made, state = plain
  traces = []

  @jax.jit
  def step(state, columns, order):
    traces.append(0)
    sent = rounds.send(made, state, columns, order, jax.random.key(0))
    return sent, rounds.secure_sum(sent)

  order = np.arange(64).reshape(64, 1, 1)
  sent, (total, weight) = jax.device_get(step(state, COLUMNS, order))
  assert len(traces) == 1
  assert float(weight) == 64
  mean = jax.tree.map(lambda x: x / weight, total)
  everything = np.arange(64)
  chex.assert_trees_all_close(
    mean, gradient(state.params, everything), atol=1e-6
  )
  # And each user's is its own.
  chex.assert_trees_all_close(
    jax.tree.map(lambda x: x[7], sent.update),
    gradient(state.params, everything[7:8]),
    atol=1e-6,
  )


def test_users_of_unequal_size_count_by_their_rows(plain):
  made, state = plain
  order = np.full((3, 1, 8), -1)
  for user, rows in enumerate((range(8), range(8, 11), range(20, 21))):
    order[user, 0, : len(rows)] = rows
  sent = send(made, state, COLUMNS, order, jax.random.key(0))
  np.testing.assert_array_equal(sent.weight, [8, 3, 1])
  total, weight = jax.device_get(jax.jit(rounds.secure_sum)(sent))
  rows = order[order >= 0]
  chex.assert_trees_all_close(
    jax.tree.map(lambda x: x / weight, total),
    gradient(state.params, rows),
    atol=1e-6,
  )


def test_users_count_by_all_their_rows_where_steps_end_first(plain):
  made, state = plain
  table = np.full((3, 20), -1)
  for user, size in enumerate((20, 12, 5)):
    table[user, :size] = np.arange(size) + 20 * user
  order = rounds.order(table, steps=1, batch_size=5, seed=0)
  sizes = (table >= 0).sum(1)
  sent = send(made, state, COLUMNS, order, jax.random.key(0), weight=sizes)
  federated = rounds.make(made)
  server, _ = federated.step(
    federated.begin(state), COLUMNS, order, jax.random.key(0), weight=sizes
  )
  of_users = [
    jax.tree.map(lambda x, i=i: np.asarray(x[i]), sent.update) for i in range(3)
  ]
  expected = jax.tree.map(
    lambda p, *x: p - np.average(x, axis=0, weights=[20, 12, 5]),
    jax.device_get(state.params),
    *of_users,
  )
  chex.assert_trees_all_close(server.state.params, expected, atol=1e-6)


@pytest.mark.parametrize('what', ['sum', 'difference'])
def test_averaging_is_a_loop_over_users_and_steps(plain, what):
  del plain
  made = method(rate=0.3)
  state = state_of(made)
  users = partitions.iid(64, 4, seed=0)
  order = rounds.order(
    partitions.table(users, 4), steps=3, batch_size=5, seed=1
  )
  federated = rounds.make(made, what=what)
  server, sums = federated.step(
    federated.begin(state), COLUMNS, order, jax.random.key(0)
  )
  ends = []
  for rows in order:
    params = jax.device_get(state.params)
    for step in rows:
      grads = jax.device_get(gradient(params, step))
      params = jax.tree.map(lambda p, g: p - 0.3 * g, params, grads)
    ends.append(params)
  expected = jax.tree.map(lambda *x: sum(x) / 4, *ends)
  chex.assert_trees_all_close(server.state.params, expected, atol=2e-6)
  assert int(server.state.step) == 1
  assert float(sums['loss'][1]) == 4 * 3 * 5


def test_one_local_step_of_averaging_is_one_step_of_sgd(plain):
  made, state = plain
  slow = method(rate=0.1)
  order = np.arange(64).reshape(4, 1, 16)
  averaged = rounds.make(slow)
  server, _ = averaged.step(
    averaged.begin(state_of(slow)), COLUMNS, order, jax.random.key(0)
  )
  descending = rounds.make(made, optax.sgd(0.1))
  other, _ = descending.step(
    descending.begin(state), COLUMNS, order, jax.random.key(0)
  )
  chex.assert_trees_all_close(
    server.state.params, other.state.params, atol=1e-6
  )


@pytest.mark.devices(4)
def test_users_may_live_on_several_devices(plain):
  made, state = plain
  order = np.arange(64).reshape(8, 1, 8)
  kinds = (jax.sharding.AxisType.Auto,)
  mesh = jax.make_mesh((4,), ('users',), axis_types=kinds)
  spread = jax.device_put(
    order, jax.NamedSharding(mesh, jax.sharding.PartitionSpec('users'))
  )
  step = jax.jit(
    lambda order: rounds.send(made, state, COLUMNS, order, jax.random.key(0))
  )
  alone, together = step(order), step(spread)
  chex.assert_trees_all_close(together.update, alone.update, atol=1e-6)
  kernel = together.update['head']['kernel']
  assert len(kernel.sharding.device_set) == 4
  assert kernel.addressable_shards[0].data.shape[0] == 2


def test_noise_is_of_each_user_and_each_round_alone():
  link = optim.dp_sgd(
    1e-3,
    1.0,
    expected_batch_size=4,
    key=jax.random.key(0),
    method='vmap',
  )
  made = method(link, model=mlp.Mlp(3, ()))
  state = state_of(made)
  order = np.zeros((2, 1, 4), int)  # The same rows for both.

  def noisy(state):
    sent = send(made, state, COLUMNS, order, jax.random.key(0))
    return np.asarray(sent.update['head']['kernel'])

  first = noisy(state)
  later = noisy(state.replace(step=state.step + 1))
  assert (first[0] != first[1]).all()
  assert (first != later).all()
  np.testing.assert_array_equal(first, noisy(state))


def test_a_private_server_clips_users_and_adds_noise(plain):
  made, state = plain
  order = np.arange(64).reshape(4, 1, 16)
  sent = send(made, state, COLUMNS, order, jax.random.key(0))
  update = jax.device_get(sent.update)
  each = [jax.tree.map(lambda x, u=u: x[u], update) for u in range(4)]
  squares = [sum((y**2).sum() for y in jax.tree.leaves(x)) for x in each]
  norms = np.sqrt(squares)
  clip = float(np.median(norms))
  expected = jax.tree.map(
    lambda *x: sum(
      np.asarray(y) * min(1, clip / n) for y, n in zip(x, norms, strict=True)
    ),
    *each,
  )
  total, aux = clipped(sent, state.params, clip)
  chex.assert_trees_all_close(total, expected, rtol=1e-5)
  assert float(aux.sums['unclipped'][0]) == (norms <= clip).sum()
  # A user that sends what is no number counts for nothing.
  bad = sent._replace(
    update=jax.tree.map(
      lambda x: np.stack([x[0], np.full_like(x[1], np.nan), *x[2:]]), update
    )
  )
  total, aux = clipped(bad, state.params, np.inf)
  chex.assert_trees_all_close(
    total, jax.tree.map(lambda *x: x[0] + x[2] + x[3], *each), rtol=1e-5
  )
  assert float(aux.sums['nonfinite'][0]) == 1
  # Numbers of few digits are cut to this norm, too, not to what they round to.
  short = jax.tree.map(lambda x: 100 * x[:1].astype(jnp.bfloat16), update)
  one = rounds.Sent(short, sent.weight[:1], {}, {})
  # (Not compiled as a whole, where XLA may keep more digits.)
  total, _ = rounds.OfUsers(one).clipped(state.params, 1.0)
  assert float(optax.tree.norm(total)) <= 1.0
  # The server's chain is that of any private optimizer.
  quiet = optax.chain(
    optim.dp_sgd(clip, 0.0, expected_batch_size=4, key=jax.random.key(1)),
    optax.sgd(0.5),
  )
  federated = rounds.make(made, quiet)
  server, sums = federated.step(
    federated.begin(state), COLUMNS, order, jax.random.key(0)
  )
  chex.assert_trees_all_close(
    server.state.params,
    jax.tree.map(
      lambda p, x: np.asarray(p) - 0.5 * x / 4, state.params, expected
    ),
    rtol=1e-5,
    atol=1e-6,
  )
  assert float(sums['gradient_norm'][1]) == 4


def test_a_private_server_refuses_what_it_cannot_keep_private(plain):
  made, state = plain
  order = np.arange(64).reshape(4, 1, 16)

  def step(links, made, state, columns=COLUMNS):
    federated = rounds.make(made, optax.chain(links, optax.sgd(0.5)))
    # What is refused is refused when traced.
    jax.eval_shape(
      lambda state, rng: federated.step(
        federated.begin(state), columns, order, rng
      ),
      *(state, jax.random.key(0)),
    )

  def private(**changes):
    key = jax.random.key(1)
    return optim.dp_sgd(1.0, 1.0, expected_batch_size=4, key=key, **changes)

  for changes in (dict(style='automatic'), dict(rows_per_user=2)):
    with pytest.raises(types.InputError, match='clipped as a whole'):
      step(private(**changes), made, state)
  # A climb to other parameters, where no user has been.
  with pytest.raises(types.InputError, match='SAM'):
    step(optim.sam(0.1), made, state)
  # Running means of batch normalisation are the users' data.
  network = resnet.PreActResNet(3, stage_sizes=(1,), width=4, norm='batch')
  tx = optax.chain(optax.sgd(1.0), rounds.record())
  made = supervised.make(network, tx)
  images = np.zeros((64, 4, 4, 1), np.float32)
  columns = {**COLUMNS, 'image': images}
  batch = {'image': images[:1], 'label': COLUMNS['label'][:1]}
  batch['mask'] = np.ones(1)
  state = jax.jit(made.init)(jax.random.key(0), batch)
  # A server that promises nothing takes them.
  federated = rounds.make(made, optax.chain(optax.identity(), optax.sgd(0.5)))
  federated.step(federated.begin(state), columns, order, jax.random.key(0))
  with pytest.raises(types.InputError, match='batch_stats'):
    step(private(), made, state, columns)


def test_a_place_that_nobody_was_drawn_for_counts_for_nothing(plain):
  made, state = plain
  order = np.arange(64).reshape(4, 1, 16)
  padded = np.concatenate([order, np.full((2, 1, 16), -1)])
  totals = []
  for each in (order, padded):
    sent = send(made, state, COLUMNS, each, jax.random.key(0))
    total, aux = clipped(sent, state.params, 0.1)
    assert float(aux.sums['gradient_norm'][1]) == 4
    totals.append(total)
    totals.append(mean_of(sent, state.params)[0])
  for one, padded in ((totals[0], totals[2]), (totals[1], totals[3])):
    chex.assert_trees_all_close(one, padded, rtol=1e-6, atol=1e-7)


def test_who_was_not_drawn_weighs_nothing_whatever_is_said(plain):
  made, state = plain
  order = np.arange(12).reshape(3, 1, 4)
  order[2] = -1
  sent = send(
    made,
    state,
    COLUMNS,
    order,
    jax.random.key(0),
    weight=np.array([20.0, 12.0, 5.0]),
  )
  np.testing.assert_array_equal(sent.weight, [20, 12, 0])


def test_statistics_are_those_of_all_users(plain):
  made, state = plain
  order = np.arange(12).reshape(3, 1, 4)
  weight = np.array([3.0, 1.0, 4.0])
  sent = send(made, state, COLUMNS, order, jax.random.key(0), weight=weight)
  means = np.random.default_rng(0).normal(size=(3, 5))
  sent = sent._replace(model_state={'batch_stats': jnp.asarray(means)})
  _, aux = mean_of(sent, state.params)
  np.testing.assert_allclose(
    aux.model_state['batch_stats'], weight / 8 @ means, rtol=1e-5
  )


def test_a_chain_without_a_record_and_users_without_rows_are_refused(plain):
  _, state = plain
  made = supervised.make(MODEL, optax.sgd(0.1))
  with pytest.raises(types.InputError, match=r'rounds\.record'):
    send(
      made,
      state_of(made),
      COLUMNS,
      np.zeros((1, 1, 1), int),
      jax.random.key(0),
    )
  with pytest.raises(types.InputError, match='user 1 has no row'):
    rounds.order(np.array([[0], [-1]]), steps=1, batch_size=1, seed=0)
  del state


@pytest.mark.parametrize('shape', [(1,), (2, 1), (3,), ()], ids=str)
def test_weights_are_one_of_each_user(plain, shape):
  made, state = plain
  order = np.zeros((2, 1, 1), int)
  with pytest.raises(types.InputError, match=r'weight must be \(2,\)'):
    send(
      *(made, state, COLUMNS, order, jax.random.key(0)), weight=np.ones(shape)
    )


def test_every_epoch_of_a_user_has_all_its_rows():
  table = np.array([[0, 1, 2, 3], [4, 5, -1, -1]])
  order = rounds.order(table, steps=4, batch_size=2, seed=0)
  for epoch in (order[0, :2], order[0, 2:]):
    np.testing.assert_array_equal(np.sort(epoch.reshape(-1)), range(4))
  np.testing.assert_array_equal(np.sort(order[1], 1), [[4, 5]] * 4)


def test_compression_keeps_the_largest_and_is_right_on_average():
  update = {'a': jnp.asarray(RNG.normal(size=(5, 8)), jnp.float32)}
  largest = jax.jit(lambda x: compression.largest(x, share=0.1))
  kept = np.asarray(largest(update)['a'])
  flat = np.abs(np.asarray(update['a'])).reshape(-1)
  places = np.sort(np.argsort(flat)[-4:])
  np.testing.assert_array_equal(np.flatnonzero(kept.reshape(-1)), places)
  of_keys = jax.jit(
    jax.vmap(lambda rng: compression.rounded(update, rng, levels=3)['a'])
  )
  rounded = np.asarray(of_keys(jax.random.split(jax.random.key(0), 4000)))
  unit = flat.max() / 3
  np.testing.assert_allclose(
    rounded / unit, np.round(rounded / unit), atol=1e-4
  )
  np.testing.assert_allclose(rounded.mean(0), update['a'], atol=4 * unit / 120)
  with pytest.raises(types.InputError, match='share'):
    compression.largest(update, share=0.0)


def test_no_draw_is_beyond_the_largest_entry():
  update = {'a': jnp.ones(4_000_000)}  # Some draws are 1 - 2^-24 or nearly.
  rounded = jax.jit(compression.rounded)(update, jax.random.key(0))
  np.testing.assert_allclose(np.asarray(rounded['a']).max(), 1, rtol=1e-6)


def test_of_small_leaves_one_entry_is_sent_and_none_of_empty_ones():
  update = {'small': jnp.array([1.0, -3.0]), 'empty': jnp.zeros((0, 4))}
  kept = compression.largest(update, share=0.01)
  np.testing.assert_array_equal(kept['small'], [0.0, -3.0])
  rounded = compression.rounded(update, jax.random.key(0), levels=3)
  assert kept['empty'].shape == rounded['empty'].shape == (0, 4)


def test_of_weights_the_ratios_count_alone(plain):
  made, state = plain
  order = np.arange(12).reshape(3, 1, 4)
  found = []
  for scale in (1.0, 0.01):
    sent = send(
      *(made, state, COLUMNS, order, jax.random.key(0)),
      weight=scale * np.array([3.0, 1.0, 4.0]),
    )
    sent = sent._replace(model_state={'batch_stats': jnp.ones((3, 5))})
    mean, aux = mean_of(sent, state.params)
    found.append((mean, aux.model_state))
  chex.assert_trees_all_close(*found, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
  ('dtype', 'num_rows'), [(jnp.bfloat16, 257), (jnp.float16, 70_000)]
)
def test_equal_updates_of_few_bits_have_themselves_as_mean(dtype, num_rows):
  update = {'w': jnp.full((10, 3), 0.5, dtype)}
  # Numbers of rows that the type rounds, or does not hold.
  sent = rounds.Sent(update, jnp.full(10, float(num_rows)), {}, {})
  mean, _ = mean_of(sent, {'w': jnp.zeros(3, dtype)})
  assert mean['w'].dtype == dtype
  np.testing.assert_array_equal(np.asarray(mean['w'], np.float32), 0.5)


def test_users_that_keep_an_average_are_refused():
  tx = optax.chain(optax.sgd(1.0), rounds.record())
  made = supervised.make(MODEL, tx, ema_decay=0.9)
  with pytest.raises(types.InputError, match='ema_decay'):
    rounds.make(made).begin(state_of(made))


def test_whole_levels_of_bfloat16_are_sent_as_they_are():
  update = {'a': jnp.asarray([127.0, 100.0, -100.0], jnp.bfloat16)}
  for seed in range(20):
    sent = compression.rounded(update, jax.random.key(seed))['a']
    np.testing.assert_array_equal(np.asarray(sent, 'f4'), [127, 100, -100])
