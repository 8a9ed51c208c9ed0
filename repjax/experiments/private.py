"""Host side: plans a private training run, and refuses what would void it.

The numbers of DP-SGD hang together: the noise follows from epsilon, delta, the
sampling rate and the number of updates, the rate from the batch size and the
rows of the set. `plan` derives them from what a config says, and `Plan` makes
the parts of the run from them, so that no two parts can disagree; many runs
side by side, as studies train them, get their batches by `Plan.order` and their
keys by `Plan.with_keys`.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import math
import pathlib
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from repjax import optim
from repjax import types
from repjax.data.batches import poisson
from repjax.data.batches import users
from repjax.data.reading import source as sources
from repjax.experiments import private_guard
from repjax.experiments import private_keys
from repjax.experiments import private_sizes
from repjax.privacy import accounting
from repjax.privacy import statements

_METHODS = ('auto', 'ghost', 'vmap', 'microbatch')


class Plan(NamedTuple):
  """One private run.

  Attributes:
    num_rows: n, of the training set. Where users are protected, all numbers
      are of users in the place of rows.
    rate: Probability of each row to be in a batch.
    capacity: Rows that a batch of all devices can hold.
    steps: Number of updates.
    clip_norm: C.
    noise_multiplier: Standard deviation of the noise in units of C.
    delta: Of (epsilon, delta)-differential privacy.
    accountant: 'pld', which is tight, or 'rdp'.
    method: How gradients are clipped: 'auto', 'ghost', 'vmap', 'microbatch'.
    secret: Of the key file and the seed; see `root`.
    nonce: Random bytes of this run alone, or b'': see `plan`.
    user_column: What says whose a row is; '' protects rows, not users.
    rows_per_user: Of a user in a batch at the most.
  """

  num_rows: int
  rate: float
  capacity: int
  steps: int
  clip_norm: float
  noise_multiplier: float
  delta: float
  accountant: accounting.Accountant
  method: str
  secret: bytes
  nonce: bytes
  user_column: str = ''
  rows_per_user: int = 1

  @property
  def is_open(self) -> bool:
    """Whether it clips without noise, which is not private at all."""
    return self.noise_multiplier == 0

  @property
  def root(self) -> bytes:
    """What the sampling and the noise are derived from."""
    return private_keys.joined(self.secret, self.nonce)

  def link(self) -> optax.GradientTransformationExtraArgs:
    """What the optax chain of the run begins with."""
    words = private_keys.words(self.root, 'noise')
    return optim.dp_sgd(
      self.clip_norm,
      self.noise_multiplier,
      expected_batch_size=self.rate * self.num_rows,
      key=jax.random.wrap_key_data(jnp.asarray(words), impl='threefry2x32'),
      method=self.method,
      rows_per_user=self.rows_per_user,
    )

  def batches(
    self, source: sources.Source, **reading: Any
  ) -> poisson.PoissonBatches | users.UserBatches:
    """What the run trains on.

    Args:
      source: The training rows: `num_rows` of them, or of as many users.
      **reading: How rows are read, as for `poisson.poisson_batches`.
    """
    found = count(source, self.user_column)
    if found != self.num_rows:
      what = 'users' if self.user_column else 'rows'
      raise ValueError(f'The plan is for {self.num_rows} {what}; got {found}')
    if self.user_column:
      return users.user_batches(
        source,
        source.column(self.user_column),
        rate=self.rate,
        rows_per_user=self.rows_per_user,
        capacity=self.capacity,
        seed=self.sampling_seed,
        **reading,
      )
    return poisson.poisson_batches(
      source,
      rate=self.rate,
      capacity=self.capacity,
      seed=self.sampling_seed,
      **reading,
    )

  @property
  def sampling_seed(self) -> int:
    """Decides which rows each step draws."""
    return private_keys.number(self.root, 'rows')

  def order(self, seeds: Sequence[int]) -> np.ndarray:
    """Rows of each step of runs side by side: `side_by_side.train(order=...)`.

    Args:
      seeds: S seeds, which together with the secret decide the rows.

    Returns:
      [S, T, capacity], -1 for padding.
    """
    if self.user_column:
      raise types.InputError(
        'Runs side by side draw rows, not users: leave out '
        f'user_column={self.user_column!r}.'
      )
    order = np.full((len(seeds), self.steps, self.capacity), -1, np.int32)
    for i, seed in enumerate(seeds):
      for step in range(self.steps):
        rows = poisson.rows_at(
          step, self.num_rows, self.rate, self.sampling_seed + int(seed)
        )[: self.capacity]
        order[i, step, : len(rows)] = rows
    return order

  def with_keys(
    self, states: types.TrainState, runs: Sequence[Any]
  ) -> types.TrainState:
    """States of runs side by side, each with its own key of the noise.

    Args:
      states: Of a method whose optimizer has `link()`, [S, ...].
      runs: S names of runs, all distinct: seeds, or whatever has a `str`.
    """
    return private_keys.with_own(states, self.root, runs)

  def guarded(self, experiment: types.Experiment) -> types.Experiment:
    """The experiment, which now refuses what would void the run's statement."""
    if self.is_open:
      return experiment
    return experiment._replace(
      guard=types.Guard(
        begin=self.begin,
        keyed=lambda state: private_keys.with_run(state, self.root),
        check=functools.partial(private_guard.check, self),
        resumed=private_guard.check_resumed,
        watch=private_guard.watch(self.clip_norm),
        line=lambda step: {'epsilon': self.statement(step).epsilon},
        statement=lambda steps: {'privacy': self.statement(steps)},
      )
    )

  def begin(
    self,
    experiment: types.Experiment,
    workdir: pathlib.Path | None,
    identity: Mapping[str, Any],
  ) -> types.Experiment:
    """The experiment with rows and keys of one run alone: `types.Guard.begin`.

    Args:
      experiment: From `guarded`.
      workdir: Of the run; None keeps its random bytes nowhere.
      identity: What the run is, as `run.identity` has it.

    Raises:
      InputError: As `private_keys.of_run` does.
    """
    nonce = private_keys.of_run(
      workdir, self.secret, identity, experiment.train.fingerprint()
    )
    plan = self._replace(nonce=nonce)
    train = experiment.train
    if isinstance(train, private_guard.SAMPLED):
      train = dataclasses.replace(train, seed=plan.sampling_seed)
    return plan.guarded(experiment._replace(train=train))

  def statement(self, steps: int) -> statements.Statement:
    """What may be claimed after some updates.

    Raises:
      InputError: If the run has no random bytes of its own.
    """
    if not self.nonce:
      raise types.InputError(
        'The noise of this plan follows from its seed and key file, so that '
        'others can guess it, or have it too: nothing may be claimed before '
        'Guard.begin, which repjax.run calls, has drawn keys for this run.'
      )
    said = statements.statement(
      noise_multiplier=self.noise_multiplier,
      sampling_rate=self.rate,
      steps=steps,
      delta=self.delta,
      accountant=self.accountant,
      overflow=poisson.overflow_probability(
        self.num_rows, self.rate, self.capacity
      ),
    )
    return dataclasses.replace(
      said,
      unit=users.UNIT if self.user_column else said.unit,
      not_covered=(*said.not_covered, *private_guard.NOT_COVERED),
    )


def count(source: sources.Source, user_column: str = '') -> int:
  """Rows of a training set or, where a column names them, its users: n."""
  if user_column:
    users_of_rows = source.column(user_column)
    if users_of_rows.dtype.kind == 'f':  # Long numbers have become equal.
      raise types.InputError(
        f'The column {user_column!r} has fractions, or numbers of 2^31 and '
        'more: call users by smaller whole numbers, or by texts such as u123.'
      )
    users.check_named(users_of_rows, user_column)
    return len(np.unique(users_of_rows))
  return len(source)


def plan(
  num_rows: int,
  *,
  batch_size: float,
  epochs: float,
  epsilon: float = math.inf,
  noise_multiplier: float = 0.0,
  sampling_rate: float = 0.0,
  delta: float,
  overflow: float = 0.0,
  clip_norm: float,
  seed: int,
  key_file: str = '',
  nonce: bytes | None = None,
  accountant: accounting.Accountant = 'pld',
  method: str = 'auto',
  multiple: int = 1,
  user_column: str = '',
  rows_per_user: int = 1,
) -> Plan:
  """Plans a run from what a config says.

  Args:
    num_rows: n, the `count` of the training set: rows, or users where
      `user_column` is given, and then so are all numbers of rows below.
    batch_size: Rows of a step on average, over all devices.
    epochs: Passes over the rows on average.
    epsilon: To be spent by the whole run; inf clips without noise and claims
      nothing, or goes with `noise_multiplier`.
    noise_multiplier: In the place of epsilon: what the run has costs.
    sampling_rate: In the place of batch_size / n, for batches that grow with
      the set; 0 means that.
    delta: 0 means 1 / (2 n), as in Li et al. (2022,
      https://arxiv.org/abs/2110.05679).
    overflow: Probability that a step draws more rows than its batch holds; 0
      takes 1e-15, or what delta allows (`repjax.privacy.overflow`). The best of
      many runs may need less.
    clip_norm: C > 0, in units of the gradient of one row's loss.
    seed: Of what is random.
    key_file: A file of 16 bytes or more that nobody else knows, the same on
      all processes. Sampling and noise are derived from it, too.
    nonce: Random bytes of this run alone, from which sampling and noise are
      derived; None draws them. b'' leaves that to `Plan.begin`, and before it
      everything follows from the seed: to be made again, and without a claim.
    accountant: 'pld', which is tight, or 'rdp'.
    method: How gradients are clipped: 'auto', 'ghost', 'vmap', 'microbatch'.
    multiple: What the rows of a batch must be a multiple of: devices times
      microbatches.
    user_column: Name of the column that says whose a row is: all rows of one
      user are then protected together (`repjax.data.batches.users`).
    rows_per_user: U, with `user_column`: of a user's rows, U at the most are in
      a batch.

  Raises:
    InputError: If a number is out of range, epsilon out of reach, or the file
      cannot be read.
  """
  types.check_range('[0, 1)', delta=delta)
  types.check_choice('method', method, _METHODS)
  private_guard.check_numbers(
    num_rows,
    batch_size=batch_size,
    sampling_rate=sampling_rate,
    epochs=epochs,
    clip_norm=clip_norm,
    epsilon=epsilon,
    noise_multiplier=noise_multiplier,
    overflow=overflow,
    user_column=user_column,
    rows_per_user=rows_per_user,
  )
  rate = sampling_rate or batch_size / num_rows
  steps = max(1, math.ceil(epochs / rate - 1e-6))
  delta = delta or 1 / (2 * num_rows)
  noise_multiplier, capacity = private_sizes.noise_and_capacity(
    num_rows,
    rate=rate,
    steps=steps,
    epsilon=epsilon,
    noise_multiplier=noise_multiplier,
    delta=delta,
    overflow=overflow,
    accountant=accountant,
    multiple=multiple,
  )
  return Plan(
    num_rows=num_rows,
    rate=rate,
    capacity=capacity,
    steps=steps,
    clip_norm=clip_norm,
    noise_multiplier=noise_multiplier,
    delta=delta,
    accountant=accountant,
    method=method,
    secret=private_keys.secret_of(key_file, seed),
    nonce=private_keys.given_or_drawn(nonce),
    user_column=user_column,
    rows_per_user=rows_per_user,
  )
