"""Audits of pipelines: the right one passes, each broken one is found out."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import parallel
from repjax import types
from repjax.data.batches import in_order
from repjax.data.batches import poisson
from repjax.data.batches import users
from repjax.data.reading import source
from repjax.experiments import private
from repjax.methods import supervised
from repjax.models import mlp
from repjax.protocols import audit_of_batches
from repjax.protocols import pipeline_audit

_ROWS = 400


@pytest.fixture(scope='module')
def rows():
  rng = np.random.default_rng(0)
  return source.from_arrays(
    'rows',
    {
      'image': rng.normal(size=(_ROWS, 4, 4, 1)).astype(np.float32),
      'label': rng.integers(0, 3, _ROWS),
    },
    num_classes=3,
  )


def plan_of(num_units=_ROWS, **changes):
  settings = dict(
    batch_size=20,
    epochs=1.0,
    epsilon=8.0,
    delta=1e-4,
    clip_norm=0.5,
    seed=0,
    nonce=b'',
    accountant='rdp',
    multiple=4,
  )
  return private.plan(num_units, **{**settings, **changes})


def experiment_of(plan, rows, link):
  method = supervised.make(
    mlp.Mlp(3, features=(12,)),
    optax.chain(link, pipeline_audit.readable()),
  )
  made = types.Experiment(
    method=method,
    train=plan.batches(rows, process_index=0, process_count=1),
    evals=None,
    eval_splits=(),
    steps=plan.steps,
    warm_start=lambda state: state,
    measure=None,
    figures=None,
  )
  return plan.guarded(made)


def audit(experiment):
  found = pipeline_audit.audit(
    experiment, seed=0, steps=8, draws=60, rows=2, layers=3
  )
  return {x.check: x for x in found}


def wrong(findings):
  return {name for name, x in findings.items() if not x.holds}


def test_what_is_claimed_is_measured(rows):
  plan = plan_of()
  found = audit(experiment_of(plan, rows, plan.link()))
  assert not wrong(found)
  moved = found['movement by one canary, in clip norms']
  # Canaries reach the bound, so that more would be seen.
  assert moved.measured == pytest.approx(1, abs=2e-3)
  noise = found['noise, as a share of the claimed']
  assert noise.measured == pytest.approx(1, abs=0.1)
  epsilon = found['epsilon of the movement and the noise that were measured']
  assert epsilon.measured == pytest.approx(epsilon.claimed, rel=1e-3)
  assert 7.9 < epsilon.claimed <= 8


def test_users_are_audited_as_a_whole(rows):
  owned = rows.with_columns(author=np.arange(_ROWS) // 4)
  plan = plan_of(100, user_column='author', rows_per_user=2)
  made = experiment_of(plan, owned, plan.link())
  assert isinstance(made.train, users.UserBatches)
  found = audit(made)
  assert not wrong(found)
  moved = found['movement by one canary, in clip norms']
  assert moved.measured == pytest.approx(1, abs=2e-3)


# Pipelines that claim what `plan` says, and do something else.


def changed(plan, change, *, link=None):
  """The link, and what `change` makes of its updates and state."""
  link = link or plan.link()

  def update(updates, state, params=None, *, grad_fn, **extra):
    new, after = link.update(updates, state, params, grad_fn=grad_fn, **extra)
    unseen = copy.copy(grad_fn)  # Else `link.ask` would refuse what follows.
    unseen.asked = types.Asked()
    return change(new, after, state, params, unseen)

  return optax.GradientTransformationExtraArgs(link.init, update)


def unclipped_layer(plan):
  def change(new, after, state, params, grad_fn):
    del state
    plain, _ = grad_fn(params)
    new['hidden_0'] = jax.tree.map(jnp.add, new['hidden_0'], plain['hidden_0'])
    return new, after

  return changed(plan, change)


def claiming(plan, link):
  """A link whose state says that it has the noise of the plan."""

  def init(params):
    claimed = jnp.float32(plan.noise_multiplier)
    return link.init(params)._replace(noise_multiplier=claimed)

  return optax.GradientTransformationExtraArgs(init, link.update)


def half_the_noise(plan):
  half = plan._replace(noise_multiplier=plan.noise_multiplier / 2)
  return claiming(plan, half.link())


def a_layer_without_noise(plan):
  quiet = plan._replace(noise_multiplier=0.0).link()

  def change(new, after, state, params, grad_fn):
    exact, _ = quiet.update(new, state, params, grad_fn=grad_fn)
    return {**new, 'head': exact['head']}, after

  return changed(plan, change)


def noise_of_each_device(plan):
  def change(new, after, state, params, grad_fn):
    del state, params, grad_fn
    rng = parallel.device_rng(jax.random.key(0))
    return jax.tree.map(
      lambda x: x + 1e-3 * jax.random.normal(rng, x.shape), new
    ), after

  return changed(plan, change)


def one_noise_for_all_steps(plan):
  def change(new, after, state, params, grad_fn):
    del params, grad_fn
    return new, after._replace(step=state.step)

  return changed(plan, change)


def one_noise_for_all_layers(plan):
  quiet = plan._replace(noise_multiplier=0.0).link()
  size = plan.noise_multiplier * plan.clip_norm / (plan.rate * plan.num_rows)

  def change(new, after, state, params, grad_fn):
    del state, params, grad_fn
    rng = jax.random.fold_in(
      jax.random.wrap_key_data(after.key, impl='threefry2x32'), after.step
    )
    return jax.tree.map(
      lambda x: x + size * jax.random.normal(rng, (x.size,)).reshape(x.shape),
      new,
    ), after

  return changed(plan, change, link=claiming(plan, quiet))


def clipped_after_the_sum(plan):
  def change(new, after, state, params, grad_fn):
    noise, _ = plan.link().update(None, state, params, grad_fn=_Nothing(params))
    del new
    plain, _ = grad_fn(params)
    factor = jnp.minimum(1, plan.clip_norm / optax.tree.norm(plain))
    return jax.tree.map(lambda g, n: factor * g + n, plain, noise), after

  return changed(plan, change)


class _Nothing:
  """A gradient of no rows, so that noise alone is left."""

  def __init__(self, params):
    self._zeros = jax.tree.map(jnp.zeros_like, params)

  def clipped(self, params, clip_norm, **settings):
    del params, clip_norm, settings
    return self._zeros, types.Aux({}, {})


def one_key_for_all_runs(plan):
  return plan.link()  # And the guard gives it no key of its own.


MOVED = 'movement by one canary, in clip norms'
NOISE = 'noise, as a share of the claimed'
EPSILON = 'epsilon of the movement and the noise that were measured'


@pytest.mark.devices(4)
@pytest.mark.parametrize(
  ('broken', 'found_out'),
  [
    (unclipped_layer, {MOVED, EPSILON}),
    (half_the_noise, {NOISE, EPSILON}),
    (a_layer_without_noise, {NOISE, EPSILON}),
    (noise_of_each_device, {'steps after which devices differ'}),
    (one_noise_for_all_steps, {'correlation of the noise of two steps'}),
    (one_noise_for_all_layers, {'correlation of the noise of two layers'}),
    (clipped_after_the_sum, {MOVED, EPSILON}),
    (one_key_for_all_runs, {'correlation of the noise of two runs'}),
  ],
)
def test_what_is_broken_is_found_out(rows, broken, found_out):
  plan = plan_of()
  made = experiment_of(plan, rows, broken(plan))
  if broken is one_key_for_all_runs:
    begin = made.guard.begin
    made = made._replace(
      guard=made.guard._replace(begin=lambda *args: _unkeyed(begin(*args)))
    )
  found = audit(made)
  assert found_out <= wrong(found), found
  epsilon = found[EPSILON]
  if EPSILON in found_out:
    assert epsilon.measured > 1.5 * epsilon.claimed


def _unkeyed(begun):
  return begun._replace(guard=begun.guard._replace(keyed=lambda state: state))


@pytest.mark.parametrize('kind', ['shuffled', 'too often', 'twice'])
def test_batches_that_are_no_samples_are_found_out(rows, kind):
  rate = 0.05
  right = poisson.poisson_batches(
    rows,
    rate=rate,
    capacity=poisson.capacity(_ROWS, rate),
    seed=0,
    process_index=0,
    process_count=1,
  )
  if kind == 'shuffled':
    wrong_ones = in_order.train_batches(
      rows, batch_size=20, seed=0, process_index=0, process_count=1
    )
  elif kind == 'too often':
    wrong_ones = dataclasses.replace(right, rate=1.3 * rate)
  else:
    wrong_ones = _Twice(
      **{x.name: getattr(right, x.name) for x in dataclasses.fields(right)}
    )
  assert all(x.holds for x in audit_of_batches.sampling(right, rate, 60))
  found = audit_of_batches.sampling(wrong_ones, rate, 60)
  expected = {
    'shuffled': 'variance of the size',
    'too often': 'sampling rate',
    'twice': 'rows that are twice',
  }
  assert any(not x.holds and expected[kind] in x.check for x in found), found


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Twice(poisson.PoissonBatches):
  def batch(self, step):
    batch = super().batch(step)
    batch['index'][1] = batch['index'][0]
    return batch


def test_what_claims_nothing_cannot_be_audited(rows):
  plan = plan_of(epsilon=float('inf'))
  with pytest.raises(types.InputError, match='claims no privacy'):
    audit(experiment_of(plan, rows, plan.link()))
