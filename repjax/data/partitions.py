"""Host side: whose a row is, where rows of a set are divided among users.

Each function gives the user of every row, int32 [N] in [0, U), for
`Source.with_columns(user=...)`; every row has one user and every user a row.
"""

import numpy as np

from repjax import types


def iid(num_rows: int, num_users: int, *, seed: int) -> np.ndarray:
  """At random, in parts whose sizes differ by one row at most.

  Raises:
    InputError: If there are more users than rows.
  """
  _check(num_rows, num_users)
  users = np.arange(num_rows, dtype=np.int32) % num_users
  return np.random.default_rng([seed, 0]).permutation(users)


def by_label(
  labels: np.ndarray, num_users: int, *, shards: int = 2, seed: int
) -> np.ndarray:
  """Few labels a user: rows sorted by label are cut, and the parts dealt out.

  McMahan et al., 'Communication-Efficient Learning of Deep Networks from
  Decentralized Data', AISTATS 2017, section 3, with two parts a user.
  https://arxiv.org/abs/1602.05629

  Args:
    labels: Of the rows, integers [N].
    num_users: U.
    shards: Parts that each user gets.
    seed: Decides who gets which, and the order of rows of one label.

  Raises:
    InputError: If there are more parts than rows.
  """
  labels = np.asarray(labels)
  types.check_range('[1, inf)', shards=shards)
  _check(len(labels), num_users, each=shards)
  generator = np.random.default_rng([seed, 1])
  shuffled = generator.permutation(len(labels))
  order = shuffled[np.argsort(labels[shuffled], kind='stable')]
  owners = generator.permutation(np.arange(num_users * shards) % num_users)
  users = np.empty(len(labels), np.int32)
  for owner, part in zip(
    owners, np.array_split(order, num_users * shards), strict=True
  ):
    users[part] = owner
  return users


def dirichlet(
  labels: np.ndarray, num_users: int, *, alpha: float, seed: int
) -> np.ndarray:
  """Rows of each label by shares that are drawn from a Dirichlet distribution.

  Yurochkin et al., 'Bayesian Nonparametric Federated Learning of Neural
  Networks', ICML 2019, section 4. https://arxiv.org/abs/1905.12022

  Args:
    labels: Of the rows, integers [N].
    num_users: U.
    alpha: Concentration > 0: the smaller, the fewer users have most of a label;
      infinitely large is the same share of it for everybody.
    seed: Decides shares and rows.

  Raises:
    InputError: If a user is left without a row; names how many.
  """
  labels = np.asarray(labels)
  types.check_range('(0, inf)', alpha=alpha)
  _check(len(labels), num_users)
  generator = np.random.default_rng([seed, 2])
  users = np.empty(len(labels), np.int32)
  for label in np.unique(labels):
    rows = generator.permutation(np.flatnonzero(labels == label))
    shares = generator.dirichlet(np.full(num_users, alpha))
    cuts = np.rint(np.cumsum(shares)[:-1] * len(rows)).astype(int)
    for user, part in enumerate(np.split(rows, cuts)):
      users[part] = user
  empty = num_users - len(np.unique(users))
  if empty:
    raise types.InputError(
      f'{empty} of {num_users} users are left without a row at {alpha=}: take '
      'a larger alpha, fewer users or another seed.'
    )
  return users


def table(users: np.ndarray, num_users: int) -> np.ndarray:
  """The rows of each user, [U, most rows of one], -1 behind the last one.

  Args:
    users: Of the rows, integers [N] in [0, U).
    num_users: U.

  Raises:
    InputError: If a user has no row, or a row no user; names the first one.
  """
  users = np.asarray(users)
  strange = users[(users < 0) | (users >= num_users)]
  if len(strange):
    raise types.InputError(
      f'user {strange[0]} of a row is not in [0, {num_users}).'
    )
  counts = np.bincount(users, minlength=num_users)
  if not counts.all():
    raise types.InputError(
      f'user {int(np.argmin(counts))} of {num_users} has no row: a round asks '
      'all of them; leave it out, or divide the rows otherwise.'
    )
  rows = np.full((num_users, counts.max()), -1, np.int64)
  for user, own in enumerate(
    np.split(np.argsort(users, kind='stable'), np.cumsum(counts)[:-1])
  ):
    rows[user, : len(own)] = own
  return rows


def _check(num_rows, num_users, each=1):
  types.check_range('[1, inf)', num_users=num_users)
  if num_users * each > num_rows:
    raise types.InputError(
      f'{num_rows} rows are too few for {num_users} users with {each} part(s) '
      'of one row at least each: take fewer users.'
    )
