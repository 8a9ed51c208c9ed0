"""Host side: plans a private training run, and refuses what would void it.

The numbers of DP-SGD hang together: the noise follows from epsilon, delta, the
sampling rate and the number of updates, the rate from the batch size and the
rows of the set. `plan` derives them from what a config says, `Plan` makes the
parts of the run from them, so that no two parts can disagree, and `check` and
`check_resumed` refuse runs that the accounting would not cover.
"""

import dataclasses
import hashlib
import math
import pathlib
from typing import Any
from typing import NamedTuple

import jax
import numpy as np
import optax

from repjax import optim
from repjax import types
from repjax.data.batches import poisson
from repjax.data.batches import users
from repjax.data.reading import source as sources
from repjax.optim.dp_sgd import DpSgdState
from repjax.privacy import accounting

_BYTES = 16  # Of a file with a key, at least.


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
    accountant: See `accounting.epsilon`.
    method: See `clipping.clipped_gradient`.
    secret: What the sampling and the noise are derived from.
    is_secret: Whether that is a key of a file, or a seed that others know.
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
  is_secret: bool
  user_column: str = ''
  rows_per_user: int = 1

  @property
  def is_open(self) -> bool:
    """Whether it clips without noise, which is not private at all."""
    return self.noise_multiplier == 0

  def link(self) -> optax.GradientTransformationExtraArgs:
    """What the optax chain of the run begins with."""
    words = np.frombuffer(_digest(self.secret, 'noise')[:8], np.uint32)
    return optim.dp_sgd(
      self.clip_norm,
      self.noise_multiplier,
      expected_batch_size=self.rate * self.num_rows,
      key=jax.random.wrap_key_data(words.copy(), impl='threefry2x32'),
      method=self.method,
      rows_per_user=self.rows_per_user,
    )

  def batches(
    self, source: sources.Source, **reading: Any
  ) -> poisson.PoissonBatches | users.UserBatches:
    """What the run trains on.

    Args:
      source: The training rows: `num_rows` of them, or of as many users.
      **reading: See `poisson.poisson_batches`.
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
    return int.from_bytes(_digest(self.secret, 'rows')[:16], 'big')

  def guarded(self, experiment: types.Experiment) -> types.Experiment:
    """The experiment, which now refuses what would void the run's statement."""
    if self.is_open:
      return experiment
    return experiment._replace(
      guard=types.Guard(
        check=check,
        resumed=check_resumed,
        line=lambda step: {'epsilon': self.statement(step).epsilon},
        statement=lambda steps: {'privacy': self.statement(steps)},
      )
    )

  def statement(self, steps: int) -> accounting.Statement:
    """What may be claimed after some updates."""
    said = accounting.statement(
      noise_multiplier=self.noise_multiplier,
      sampling_rate=self.rate,
      steps=steps,
      delta=self.delta,
      accountant=self.accountant,
      overflow=_overflow(self.num_rows, self.rate, self.capacity),
      **({'unit': users.UNIT} if self.user_column else {}),
    )
    more = ['checkpoints as a whole, which hold the key of the noise']
    if not self.is_secret:
      more.append(
        'whoever knows or guesses the seed, since no file with a secret key '
        'was given'
      )
    return dataclasses.replace(said, not_covered=(*said.not_covered, *more))


def count(source: sources.Source, user_column: str = '') -> int:
  """Rows of a training set or, where a column names them, its users: n."""
  if user_column:
    return len(np.unique(source.column(user_column)))
  return len(source)


def plan(
  num_rows: int,
  *,
  batch_size: float,
  epochs: float,
  epsilon: float,
  sampling_rate: float = 0.0,
  delta: float,
  clip_norm: float,
  seed: int,
  key_file: str = '',
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
      nothing.
    sampling_rate: In the place of batch_size / n, for batches that grow with
      the set; 0 means that.
    delta: 0 means 1 / (2 n), as Li et al. (2022) take it.
    clip_norm: C > 0, in units of the gradient of one row's loss.
    seed: Of what is random, where there is no `key_file`.
    key_file: A file of 16 bytes or more that nobody else knows, the same on
      all processes. Sampling and noise are derived from it.
    accountant: See `accounting.epsilon`.
    method: See `clipping.clipped_gradient`.
    multiple: What the rows of a batch must be a multiple of: devices times
      microbatches.
    user_column: Name of the column that says whose a row is: all rows of one
      user are then protected together, see `repjax.data.batches.users`.
    rows_per_user: U, with `user_column`: of a user's rows, U at the most are in
      a batch.

  Raises:
    InputError: If a number is out of range, epsilon out of reach, or the file
      cannot be read.
  """
  for name, value in (
    ('batch_size', batch_size),
    ('epochs', epochs),
    ('clip_norm', clip_norm),
  ):
    if not 0 < value < math.inf:
      raise types.InputError(
        f'Private training needs a finite {name} > 0; got {value}.'
      )
  if not epsilon > 0:
    raise types.InputError(f'Need epsilon > 0; got {epsilon=}')
  if rows_per_user < 1 or (rows_per_user > 1 and not user_column):
    raise types.InputError(
      'rows_per_user is 1 or more, and goes with user_column, the column that '
      f'says whose a row is; got {rows_per_user=} and {user_column=}.'
    )
  if not sampling_rate and batch_size > num_rows:
    raise types.InputError(
      f'{batch_size=} is more than the {num_rows} '
      f'{"users" if user_column else "rows"} of the training set: '
      'the whole set in every step is as large as a private batch can be.'
    )
  rate = sampling_rate or batch_size / num_rows
  if not 0 < rate <= 1:
    raise types.InputError(f'Need 0 < sampling_rate <= 1; got {sampling_rate}')
  steps = max(1, math.ceil(epochs / rate - 1e-6))
  capacity = poisson.capacity(num_rows, rate, multiple=multiple)
  delta = delta or 1 / (2 * num_rows)
  noise_multiplier = 0.0
  if epsilon < math.inf:
    noise_multiplier = accounting.noise_multiplier_for(
      epsilon,
      sampling_rate=rate,
      steps=steps,
      delta=delta,
      accountant=accountant,
      overflow=_overflow(num_rows, rate, capacity),
      num_rows=num_rows,
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
    secret=_read_key(key_file) if key_file else f'seed {seed}'.encode(),
    is_secret=bool(key_file),
    user_column=user_column,
    rows_per_user=rows_per_user,
  )


def check(
  experiment: types.Experiment, state: types.TrainState, best: str
) -> None:
  """Refuses a run whose claim to privacy would not hold.

  Args:
    experiment: From `Plan.guarded`.
    state: A fresh state of it.
    best: The metric that chooses a checkpoint; '' for none.

  Raises:
    InputError: If batches are not Poisson samples, no link of the optimizer
      makes gradients private, or a metric chooses what is published.
  """
  sampled = (poisson.PoissonBatches, users.UserBatches)
  if not isinstance(experiment.train, sampled):
    raise types.InputError(
      'The experiment claims privacy for Poisson samples, but its batches are '
      'those of a shuffled epoch, which the accounting does not cover: draw '
      'them with repjax.data.batches.poisson (private.Plan.batches).'
    )
  if not _keys(state):
    raise types.InputError(
      'The experiment claims privacy, but its optimizer has no link that makes '
      'gradients private: begin the chain with private.Plan.link().'
    )
  if best:
    raise types.InputError(
      f'config.run.best={best!r} would choose the checkpoint by a metric '
      'without noise, which the privacy statement does not cover: set '
      "--config.run.best='' and publish the last one."
    )


def check_resumed(
  fresh: types.TrainState, restored: types.TrainState, same_config: bool
) -> None:
  """Refuses to go on in a way that the statement does not cover.

  Repeating a step with the same key gives the same noise and tells nothing
  new; with another key both results together would tell more.

  Args:
    fresh: The state before the first step.
    restored: The state to go on from.
    same_config: Whether both have one config.

  Raises:
    InputError: If the config or the key of the noise differs.
  """
  if not same_config:
    raise types.InputError(
      'A private run goes on with the config that it was begun with alone, '
      'since its privacy statement is about one kind of step: leave out '
      '--resume_config=new, or give another --workdir.'
    )
  equal = [
    np.array_equal(a, b)
    for a, b in zip(_keys(fresh), _keys(restored), strict=True)
  ]
  if not all(equal):
    raise types.InputError(
      'The checkpoint was made with another key of the noise, and repeated '
      'steps would tell more than the privacy statement says: give the '
      'key_file and the seed that the run was begun with, or another --workdir.'
    )


def _keys(state):
  """Keys of all links that add noise."""
  return [
    np.asarray(x.key)
    for x in jax.tree.leaves(
      state.opt_state, is_leaf=lambda x: isinstance(x, DpSgdState)
    )
    if isinstance(x, DpSgdState)
  ]


def _overflow(num_rows, rate, capacity):
  return poisson.overflow_probability(num_rows, rate, capacity)


def _digest(secret, purpose):
  return hashlib.sha256(purpose.encode() + b'\0' + secret).digest()


def _read_key(path):
  advice = f'make one by: head -c 32 /dev/urandom > {path}; chmod 600 {path}'
  try:
    secret = pathlib.Path(path).read_bytes()
  except OSError as error:
    raise types.InputError(
      f'The key file {path} cannot be read ({error.strerror}): {advice}'
    ) from error
  if len(secret) < _BYTES:
    raise types.InputError(
      f'The key file {path} holds {len(secret)} bytes, and {_BYTES} random '
      f'ones are the least: {advice}'
    )
  return secret
