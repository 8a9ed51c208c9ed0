"""Plans of private runs, and what voids their statement."""

import functools
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import loop
from repjax import optim
from repjax import types
from repjax.data.batches import in_order
from repjax.data.batches import poisson
from repjax.data.batches import users
from repjax.data.reading import source
from repjax.experiments import private
from repjax.experiments import private_guard
from repjax.experiments import private_keys
from repjax.methods import dann
from repjax.methods import supervised
from repjax.models import mlp
from repjax.optim import rehearsal
from repjax.optim.dp_sgd import DpSgdState
from repjax.protocols import rounds

# SST-2 as Li et al. train on it.
SST2 = dict(batch_size=1000, epochs=3.0, epsilon=3.0, delta=0.0, clip_norm=0.1)
TINY = dict(
  batch_size=10,
  epochs=0.5,
  epsilon=20.0,
  delta=1e-3,
  clip_norm=1.0,
  seed=0,
  accountant='rdp',
)


@pytest.fixture(scope='module')
def rows():
  rng = np.random.default_rng(0)
  return source.from_arrays(
    'rows',
    {
      'image': rng.normal(size=(40, 2, 2, 1)).astype(np.float32),
      'label': np.arange(40) % 3,
    },
    num_classes=3,
  )


@pytest.fixture(scope='module')
def plan():
  return private.plan(40, **TINY, nonce=bytes(range(32)))


@functools.cache  # So that runs of one plan share its programs.
def method_of(plan):
  return supervised.make(
    mlp.Mlp(3, features=()), optax.chain(plan.link(), optax.sgd(1.0))
  )


def experiment_of(plan, rows, **changes):
  made = types.Experiment(
    method=method_of(plan),
    train=plan.batches(rows, process_index=0, process_count=1),
    evals=None,
    eval_splits=(),
    steps=plan.steps,
    warm_start=None,
    measure=None,
    figures=None,
  )
  return plan.guarded(made)._replace(**changes)


def state_of(experiment):
  first = experiment.train.batch(0)
  state = loop.init(experiment.method, first, 0, jax.local_devices()[:1])
  return experiment.guard.keyed(state)


def ravel(tree):
  return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def key_file(folder, data=b''):
  path = folder / f'key{data.decode()}'
  path.write_bytes(data + bytes(range(32)))
  path.chmod(0o600)
  return str(path)


def test_the_noise_is_that_of_the_papers_recipe():
  found = private.plan(67_349, seed=0, accountant='rdp', **SST2)
  # Measured with dp_accounting: rate 1000 / n, delta 1 / (2 n).
  assert found.steps == math.ceil(3 * 67_349 / 1000)
  np.testing.assert_allclose(found.noise_multiplier, 0.8221, rtol=2e-3)
  said = found.statement(found.steps)
  assert 2.99 < said.epsilon <= 3.0
  assert said.delta == 1 / (2 * 67_349)
  # What is spent on the way is less.
  assert found.statement(50).epsilon < 0.8 * said.epsilon


@pytest.mark.parametrize(
  'num_rows, epochs, delta, noise',
  [
    (1_281_167, 90.0, 0.0, 0.5617),
    (60_000, 20.0, 1e-7, 0.7813),
    (60_000, 20.0, 1e-8, 0.8125),
    (60_000, 20.0, 1e-10, 0.8694),
    (60_000, 20.0, 1e-14, 0.9687),
  ],
)
def test_the_plan_spends_what_it_is_given(num_rows, epochs, delta, noise):
  found = private.plan(
    num_rows,
    batch_size=1024,
    epochs=epochs,
    epsilon=8.0,
    delta=delta,
    clip_norm=1.0,
    seed=0,
  )
  np.testing.assert_allclose(found.noise_multiplier, noise, rtol=2e-3)
  said = found.statement(found.steps)
  assert 7.96 < said.epsilon <= 8.0
  assert said.delta == (delta or 1 / (2 * num_rows))
  # A batch is no larger than that takes.
  assert found.capacity < 1024 + 12 * 32
  lost = found.steps * said.overflow * (1 + math.exp(said.epsilon))
  assert 0 < lost <= 0.01 * said.delta


def test_noise_that_is_given_has_its_price():
  settings = {**TINY, 'accountant': 'pld'}
  first = private.plan(40, **settings)
  noise = first.noise_multiplier
  found = private.plan(
    40, **{**settings, 'epsilon': math.inf}, noise_multiplier=noise
  )
  assert found._replace(nonce=first.nonce) == first
  said = found.statement(found.steps)
  assert 19.9 < said.epsilon <= 20
  with pytest.raises(types.InputError, match='or the noise that decides it'):
    private.plan(40, **settings, noise_multiplier=noise)
  with pytest.raises(types.InputError, match='is no privacy'):
    private.plan(40, **{**settings, 'epsilon': math.inf}, noise_multiplier=0.01)


def test_overflows_may_be_rarer_and_not_more_frequent():
  first = private.plan(40, **TINY)
  rarer = private.plan(40, **TINY, overflow=1e-20)
  assert rarer.capacity > first.capacity
  assert rarer.noise_multiplier == first.noise_multiplier
  with pytest.raises(types.InputError, match=r'config\.dp\.overflow=.*e-1'):
    private.plan(40, **TINY, overflow=1e-3)
  given = dict(TINY, epsilon=math.inf, noise_multiplier=first.noise_multiplier)
  with pytest.raises(types.InputError, match=r'config\.dp\.overflow=.*e-1'):
    private.plan(40, **given, overflow=1e-3)


def test_parts_of_a_run_agree_with_its_plan(plan, rows):
  drawn = plan.batches(rows, process_index=0, process_count=1)
  assert (drawn.rate, drawn.batch_size) == (0.25, plan.capacity)
  assert plan.steps == 2
  said = plan.statement(2)
  assert (said.sampling_rate, said.noise_multiplier) == (
    0.25,
    plan.noise_multiplier,
  )
  with pytest.raises(ValueError, match='40 rows'):
    plan.batches(rows.select(np.arange(30)))


def test_infinite_epsilon_clips_without_noise_and_is_open():
  found = private.plan(40, **{**TINY, 'epsilon': math.inf})
  assert found.is_open
  assert found.noise_multiplier == 0


def test_a_step_that_drew_no_row_is_noise_alone(plan, rows):
  method = method_of(plan)
  batch = dict(plan.batches(rows, process_index=0, process_count=1).batch(0))
  batch['mask'] = np.zeros_like(batch['mask'])
  batch['image'] = np.full_like(batch['image'], np.nan)
  state = method.init(jax.random.key(0), {k: x[:1] for k, x in batch.items()})
  new, sums = jax.jit(method.update)(state, batch, jax.random.key(1))
  moved = np.concatenate(
    [
      np.ravel(a - b)
      for a, b in zip(
        jax.tree.leaves(new.params), jax.tree.leaves(state.params), strict=True
      )
    ]
  )
  stddev = plan.noise_multiplier * plan.clip_norm / 10
  assert 0.5 * stddev < moved.std() < 2 * stddev
  assert sums['loss'] == (0, 0)
  # And it stops nothing.
  lines = []
  progress = loop.Progress(
    every=1,
    steps=2,
    batch_size=10,
    write=lambda step, values: lines.append((step, values)),
    also=lambda step: {'epsilon': 0.5 * step},
  )
  progress(1, new, sums)
  progress(2, new, {**sums, 'loss': (jnp.ones(()), jnp.ones(()))})
  assert lines[0] == (1, {'epsilon': 0.5})
  assert lines[1][1]['loss'] == 1
  assert lines[1][1]['epsilon'] == 1


@pytest.mark.parametrize(
  ('change', 'says'),
  [
    ({'clip_norm': 0.0}, 'clip_norm > 0'),
    ({'clip_norm': -1.0}, 'clip_norm > 0'),
    ({'epochs': 0.0}, 'epochs > 0'),
    ({'epsilon': 0.0}, '0 < epsilon'),
    ({'epsilon': 700.0}, 'epsilon <= 600'),
    ({'overflow': 1.0}, 'overflow < 1'),
    ({'batch_size': 41}, '40 rows'),
    ({'sampling_rate': 1.5}, 'sampling_rate'),
    ({'epsilon': 1e-4, 'epochs': 1e5}, 'out of reach'),
    ({'key_file': '/nowhere/key'}, 'head -c 32 /dev/urandom'),
  ],
)
def test_what_cannot_be_planned_is_refused(change, says):
  with pytest.raises(types.InputError, match=says):
    private.plan(40, **{**TINY, **change})


def test_a_large_delta_is_warned_about():
  with pytest.warns(UserWarning, match='publishing one row in full'):
    private.plan(40, **{**TINY, 'delta': 0.1})


def begun(plan, rows, workdir, **identity):
  experiment = experiment_of(plan, rows)
  return experiment.guard.begin(experiment, workdir, identity)


def keys_of(experiment):
  """(key of the noise, seed of the rows) as text."""
  (key,) = private_keys.of(state_of(experiment))
  return f'{key}', experiment.train.seed


def test_every_run_has_keys_of_its_own_and_keeps_them(tmp_path, rows):
  path = key_file(tmp_path)
  plan = private.plan(40, **TINY, key_file=path, nonce=b'')
  folders = [tmp_path / x for x in ('first', 'second')]
  for folder in folders:
    folder.mkdir()
  first = keys_of(begun(plan, rows, folders[0], rate=1))
  assert keys_of(begun(plan, rows, folders[0], rate=1)) == first
  assert (folders[0] / 'noise_key').stat().st_mode & 0o777 == 0o600
  assert len((folders[0] / 'noise_key').read_bytes()) == 32
  # Another folder, config, training set, key, seed, or none of these.
  fewer = rows.with_columns(label=np.arange(40)[::-1] % 3)
  other = private.plan(40, **TINY, key_file=key_file(tmp_path, b'2'), nonce=b'')
  seed = private.plan(40, **{**TINY, 'seed': 1}, key_file=path, nonce=b'')
  found = [
    first,
    keys_of(begun(plan, rows, folders[1], rate=1)),
    keys_of(begun(plan, rows, folders[0], rate=2)),
    keys_of(begun(plan, fewer, folders[0], rate=1)),
    keys_of(begun(other, rows, folders[0], rate=1)),
    keys_of(begun(seed, rows, folders[0], rate=1)),
    keys_of(begun(plan, rows, None)),
    keys_of(begun(plan, rows, None)),
    keys_of(experiment_of(plan, rows)),
    keys_of(experiment_of(private.plan(40, **TINY, key_file=path), rows)),
    keys_of(experiment_of(private.plan(40, **TINY, key_file=path), rows)),
  ]
  for one in zip(*found, strict=True):
    assert len(set(one)) == len(found)


def test_one_key_file_at_two_epsilons_does_not_give_the_gradient(
  tmp_path, rows
):
  path = key_file(tmp_path)
  plans = [
    private.plan(40, **{**TINY, 'epsilon': epsilon}, key_file=path, nonce=b'')
    for epsilon in (3.0, 1.0)
  ]
  strong, weak = (x.noise_multiplier for x in plans)

  def released(experiment):
    """The first private gradient, as whoever sees both states knows it."""
    state = state_of(experiment)
    batch = experiment.train.batch(0)
    new, _ = jax.jit(experiment.method.update)(state, batch, jax.random.key(1))
    return ravel(state.params) - ravel(new.params)

  def error(experiments):
    """Of the gradient that both together give, over that of the first."""
    one, two = (released(x) for x in experiments)
    solved = (weak * one - strong * two) / (weak - strong)
    exact = experiments[0]._replace(
      method=method_of(plans[0]._replace(noise_multiplier=0.0))
    )
    state = state_of(exact._replace(guard=types.Guard()))
    batch = experiments[0].train.batch(0)
    new, _ = jax.jit(exact.method.update)(state, batch, jax.random.key(1))
    gradient = ravel(state.params) - ravel(new.params)
    return np.linalg.norm(solved - gradient) / np.linalg.norm(one - gradient)

  # What follows from the file and the seed alone gives it away.
  assert error([experiment_of(x, rows) for x in plans]) < 1e-4
  for name in 'ab':
    (tmp_path / name).mkdir()
  folders = (tmp_path / 'a', tmp_path / 'b')
  in_folders = [begun(x, rows, f) for x, f in zip(plans, folders, strict=True)]
  # In one folder, too, after a first run that left no checkpoint.
  in_one = [begun(x, rows, folders[0], epsilon=i) for i, x in enumerate(plans)]
  drawn = [
    private.plan(40, **{**TINY, 'epsilon': epsilon}, key_file=path)
    for epsilon in (3.0, 1.0)
  ]
  without_folder = [experiment_of(x, rows) for x in drawn]
  for runs in (in_folders, in_one, without_folder):
    assert error(runs) > 0.5


def test_what_follows_from_a_seed_claims_nothing(rows):
  plan = private.plan(40, **TINY, nonce=b'')
  experiment = experiment_of(plan, rows)
  for claim in (
    lambda: plan.statement(1),
    lambda: experiment.guard.statement(1),
    lambda: experiment.guard.line(1),
  ):
    with pytest.raises(types.InputError, match='nothing may be claimed'):
      claim()
  said = begun(plan, rows, None).guard.statement(1)['privacy']
  assert said.epsilon > 0
  assert any('other runs on the same rows' in x for x in said.not_covered)
  with pytest.raises(types.InputError, match='16 random bytes'):
    private.plan(40, **TINY, nonce=b'short')


def test_shuffled_batches_are_not_called_poisson(plan, rows):
  shuffled = in_order.train_batches(
    rows, batch_size=10, seed=0, process_index=0, process_count=1
  )
  honest = experiment_of(plan, rows)
  state = state_of(honest)
  honest.guard.check(honest, state, '')
  assert isinstance(honest.train, poisson.PoissonBatches)
  with pytest.raises(types.InputError, match='shuffled epoch'):
    other = experiment_of(plan, rows, train=shuffled)
    other.guard.check(other, state, '')


@pytest.mark.parametrize(
  ('links', 'named'),
  [
    (lambda link: (link, optim.sam(0.1)), 'sam'),
    (lambda link: (optim.sam(0.1), link), 'sam'),
    (lambda link: (link, optim.gradient_vaccine(2)), 'gradient_vaccine'),
    (lambda link: (optim.task_cosines(2), link), 'task_cosines'),
    (lambda link: (link, rehearsal.a_gem()), 'a_gem'),
    (lambda link: (link, link), 'dp_sgd'),
  ],
)
def test_one_link_alone_may_see_the_rows(plan, rows, links, named):
  chain = optax.chain(*links(plan.link()), optax.sgd(1.0))
  method = supervised.make(mlp.Mlp(3, features=()), chain)
  made = experiment_of(plan, rows, method=method)
  with pytest.raises(types.InputError, match=f'beside dp_sgd: {named}'):
    made.guard.check(made, state_of(made), '')
  # What only looks at the update may stand behind.
  tx = optax.chain(plan.link(), optax.adam(1.0), optim.project_gradients())
  method = supervised.make(mlp.Mlp(3, features=()), tx)
  made = experiment_of(plan, rows, method=method)
  made.guard.check(made, state_of(made), '')


@pytest.mark.parametrize(
  'keeps', [lambda: optim.gradient_norms(4), rounds.record]
)
@pytest.mark.parametrize(
  'wrap',
  [
    lambda *links: optax.chain(*links, optax.sgd(1.0)),
    lambda *links: optax.chain(optax.chain(*links), optax.sgd(1.0)),
    lambda first, link: optax.chain(
      first, optax.chain(optax.identity(), link), optax.sgd(1.0)
    ),
    lambda *links: optax.inject_hyperparams(
      lambda rate: optax.chain(*links, optax.sgd(rate))
    )(rate=0.1),
  ],
)
def test_nothing_in_front_remembers_gradients_without_noise(
  plan, rows, keeps, wrap
):
  def check(*links):
    method = supervised.make(mlp.Mlp(3, features=()), wrap(*links))
    made = experiment_of(plan, rows, method=method)
    made.guard.check(made, state_of(made), '')

  with pytest.raises(types.InputError, match='in front of dp_sgd'):
    check(keeps(), plan.link())
  check(plan.link(), keeps())  # Which sees the private gradient.
  check(optax.identity(), plan.link())


@pytest.mark.parametrize(
  ('wrap', 'named'),
  [
    # Lets the plain gradient through in every other step.
    (
      lambda link: optax.conditionally_transform(link, lambda step: step % 2),
      'ConditionallyTransformState',
    ),
    # Steps or not as the plain gradient says.
    (lambda link: optax.apply_if_finite(link, 3), 'ApplyIfFiniteState'),
    (
      lambda link: optax.inject_hyperparams(
        lambda rate: optax.chain(link, optax.sgd(rate))
      )(rate=0.1),
      '',
    ),
  ],
)
def test_no_wrapper_decides_whether_the_gradient_is_private(
  plan, rows, wrap, named, monkeypatch
):
  # The link refuses them, too.
  monkeypatch.setattr(
    sys.modules['repjax.optim.dp_sgd'], '_CONDITIONS', frozenset()
  )
  tx = optax.chain(wrap(plan.link()), optax.sgd(1.0))
  method = supervised.make(mlp.Mlp(3, features=()), tx)
  made = experiment_of(plan, rows, method=method)
  if not named:
    made.guard.check(made, state_of(made), '')
    return
  with pytest.raises(types.InputError, match=f'inside of {named}'):
    made.guard.check(made, state_of(made), '')


@pytest.mark.parametrize(
  ('link', 'batches', 'match'),
  [
    (dict(noise_multiplier=0.0), {}, 'dp_sgd in its optimizer has 0:'),
    (dict(rows_per_user=2), {}, 'clips rows_per_user=2'),
    ({}, dict(rate=0.5), 'a rate of 0.5:'),
    ({}, dict(capacity=16), '16 a batch'),
  ],
)
def test_another_noise_or_other_batches_than_the_plan_has_are_refused(
  plan, rows, link, batches, match
):
  settings = dict(
    noise_multiplier=plan.noise_multiplier,
    expected_batch_size=plan.rate * plan.num_rows,
    key=jax.random.key(0),
  )
  tx = optax.chain(
    optim.dp_sgd(plan.clip_norm, **{**settings, **link}), optax.sgd(1.0)
  )
  drawn = dict(rate=plan.rate, capacity=plan.capacity, seed=0)
  train = poisson.poisson_batches(
    rows, **{**drawn, **batches}, process_index=0, process_count=1
  )
  method = supervised.make(mlp.Mlp(3, features=()), tx)
  made = experiment_of(plan, rows, method=method, train=train)
  with pytest.raises(types.InputError, match=match):
    made.guard.check(made, state_of(made), '')


def test_of_runs_side_by_side_the_one_with_the_least_noise_counts(plan, rows):
  made = experiment_of(plan, rows)
  state = state_of(made)

  def with_noise(*factors):
    def changed(x):
      noise = np.float32(plan.noise_multiplier) * np.array(factors, np.float32)
      return x._replace(noise_multiplier=noise) if is_link(x) else x

    is_link = lambda x: isinstance(x, DpSgdState)  # noqa: E731
    return state.replace(
      opt_state=jax.tree.map(changed, state.opt_state, is_leaf=is_link)
    )

  made.guard.check(made, with_noise(1, 2), '')
  with pytest.raises(types.InputError, match='noise_multiplier'):
    made.guard.check(made, with_noise(0.5, 2), '')


@pytest.mark.parametrize('is_private', ['one', 'both'])
def test_no_second_optimizer_trains_beside_the_private_one(
  plan, rows, is_private
):
  tx = optax.chain(plan.link(), optax.sgd(1.0))
  method = dann.make(
    mlp.Mlp(3, features=()),
    tx,
    num_groups=2,
    weight=1.0,
    form='alternating',
    tx_adversary=tx if is_private == 'both' else optax.sgd(1.0),
  )
  grouped = rows.with_columns(group=np.arange(40) % 2)
  made = experiment_of(plan, grouped, method=method)
  with pytest.raises(types.InputError, match='dp_sgd'):
    made.guard.check(made, state_of(made), '')


def test_nothing_without_noise_chooses_what_is_published(plan, rows):
  honest = experiment_of(plan, rows)
  with pytest.raises(types.InputError, match=r'config\.run\.best'):
    honest.guard.check(honest, state_of(honest), 'test/accuracy')


def test_an_optimizer_without_the_link_is_refused(plan, rows):
  plain = experiment_of(
    plan,
    rows,
    method=supervised.make(mlp.Mlp(3, features=()), optax.sgd(1.0)),
  )
  with pytest.raises(types.InputError, match='begin the chain'):
    plain.guard.check(plain, state_of(plain), '')


def test_a_run_goes_on_with_its_key_and_its_config_alone(plan, rows):
  fresh = state_of(experiment_of(plan, rows))
  later = fresh.replace(step=fresh.step + 3)
  check_resumed = private_guard.check_resumed
  check_resumed(fresh, later, True)
  with pytest.raises(types.InputError, match='config that it was begun with'):
    check_resumed(fresh, later, False)
  other = private.plan(40, **{**TINY, 'seed': 1})
  with pytest.raises(types.InputError, match='another key'):
    check_resumed(state_of(experiment_of(other, rows)), later, True)


def test_users_whose_numbers_have_become_equal_are_refused(rows):
  long = rows.with_columns(author=np.full(len(rows), 1e10, np.float32))
  with pytest.raises(types.InputError, match="'author' has fractions, or num"):
    private.count(long, 'author')


def test_a_column_of_users_makes_the_run_protect_them(rows):
  # Seven users: of one row, of two ... the last of 19.
  sizes = [1, 2, 3, 4, 5, 6, 19]
  owned = rows.with_columns(
    author=np.repeat([f'{i}'.encode() for i in range(7)], sizes).astype(object)
  )
  assert private.count(owned, 'author') == 7
  plan = private.plan(
    7, **{**TINY, 'batch_size': 3}, user_column='author', rows_per_user=4
  )
  made = experiment_of(plan, owned)
  state = state_of(made)
  made.guard.check(made, state, '')
  assert made.guard.statement(1)['privacy'].unit == users.UNIT
  # Rows of a batch on average: no user has more than four.
  mean = 3 / 7 * (1 + 2 + 3 + 4 * 4)
  assert made.train.expected_rows == pytest.approx(mean)
  batch = next(made.train.iterate(0))
  assert len(batch['mask']) == plan.capacity * 4
  state, sums = jax.jit(made.method.update)(state, batch, jax.random.key(0))
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
  # One norm a user, however many rows are theirs.
  assert sums['gradient_norm'][1] == len(set(batch['user']) - {-1})
  with pytest.raises(ValueError, match='7 rows; got 40'):
    plan._replace(user_column='').batches(owned)
  with pytest.raises(types.InputError, match='author'):
    plan.batches(rows)
  with pytest.raises(types.InputError, match='rows_per_user'):
    private.plan(7, **{**TINY, 'batch_size': 3}, rows_per_user=4)


@pytest.mark.parametrize('what', ['classes', 'weights', 'tokenizers'])
def test_a_statement_names_what_comes_from_the_rows_besides(plan, what):
  assert any(what in x for x in plan.statement(1).not_covered)


def test_rows_of_nobody_are_no_user(rows):
  owners = np.array([b'ann', b'', b'bob', b' '] * (len(rows) // 4), object)
  rows = rows.select(np.arange(len(owners)))
  with pytest.raises(types.InputError, match=r"'author' is empty in \d+ row"):
    private.count(rows.with_columns(author=owners), 'author')


def test_steps_that_had_less_noise_are_not_gone_on_with(plan, rows):
  fresh = state_of(experiment_of(plan, rows))
  (link,) = private_keys.links(fresh)
  is_link = lambda x: isinstance(x, type(link))  # noqa: E731
  less = link._replace(noise_multiplier=0.9 * link.noise_multiplier)
  restored = fresh.replace(
    opt_state=jax.tree.map(
      lambda x: less if is_link(x) else x, fresh.opt_state, is_leaf=is_link
    )
  )
  private_guard.check_resumed(fresh, fresh, True)
  with pytest.raises(types.InputError, match='less noise'):
    private_guard.check_resumed(fresh, restored, True)


def test_what_is_spent_is_told_as_it_is_spent(plan, rows):
  guard = experiment_of(plan, rows).guard
  first, last = (guard.line(i)['epsilon'] for i in (1, 2))
  assert first < last == plan.statement(2).epsilon
