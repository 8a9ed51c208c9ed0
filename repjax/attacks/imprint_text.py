"""Host side: texts from what an imprint behind an embedding has seen.

Fowl et al., ICLR 2022, section 4.4 (https://arxiv.org/abs/2110.13057): what is
recovered are the vectors of a text's tokens, side by side, and the server knows
the table that they come from.
"""

import numpy as np

from repjax import types


def tokens(inputs: np.ndarray, embedding: np.ndarray) -> np.ndarray:
  """The nearest token at each position, [m, L].

  Args:
    inputs: What was read from a gradient, [m, L * D].
    embedding: The table of vectors, [V, D].

  Raises:
    InputError: If inputs are no whole number of vectors.
  """
  inputs, table = (np.asarray(x, np.float64) for x in (inputs, embedding))
  if inputs.shape[1] % table.shape[1]:
    raise types.InputError(
      f'inputs of {inputs.shape[1]} numbers are no vectors of '
      f'{table.shape[1]}: the imprint stands elsewhere than behind this table.'
    )
  length = inputs.shape[1] // table.shape[1]  # Of no inputs, -1 is not known.
  vectors = inputs.reshape((len(inputs), length, table.shape[1]))
  # |v - e|^2 without |v|^2, which is that of all tokens.
  distance = (table**2).sum(1) - 2 * vectors @ table.T
  return distance.argmin(-1)


def agreement(found: np.ndarray, texts: np.ndarray) -> np.ndarray:
  """Share of each text's tokens that its own of the found ones has, [n].

  Texts and what was found are paired so that most tokens agree; a text without
  one has 0.

  Args:
    found: From `tokens`, [m, L].
    texts: Private ones, [n, L].
  """
  from scipy import optimize

  same = (np.asarray(texts)[:, None] == np.asarray(found)[None]).mean(-1)
  shares = np.zeros(len(texts))
  if same.size:
    rows, columns = optimize.linear_sum_assignment(-same)
    shares[rows] = same[rows, columns]
  return shares
