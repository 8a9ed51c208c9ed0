"""What studies of language models share: rows, training, score of all seeds."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
import math

import numpy as np

from configs.parts import language
from repjax.protocols import side_by_side


def rows(config, data: language.Data, seeds: Sequence[int]):
  """Rows as `side_by_side.train` takes them: training [S, N, ...], test.

  Pixels are bytes: without a number of bytes each target is one.
  """
  train, test = (
    side_by_side.rows(x, data.recipe.evaluate)
    for x in (data.train, data.sources(config.data.eval_splits[0]))
  )
  if 'num_bytes' not in test:
    num_rows, length = test['tokens'].shape
    test['num_bytes'] = np.full(num_rows, length - 1, np.float32)
  return side_by_side.per_seed(train, seeds), test


def trainer(
  config, columns, test, seeds: Sequence[int]
) -> Callable[..., side_by_side.Trained]:
  """`side_by_side.train` on `rows`, by bits per byte, with a config's settings.

  What is left to give: name, method, steps and, optionally, states.
  """
  return functools.partial(
    side_by_side.train,
    columns=columns,
    test=test,
    seeds=seeds,
    batch_size=config.batch_size,
    points=6,
    vectorize=False,
    score=bits_per_byte,
  )


def bits_per_byte(
  outputs: Mapping[str, np.ndarray], test: Mapping[str, np.ndarray]
) -> np.ndarray:
  """Of each seed's model on the test rows, [S]; a `side_by_side.Score`."""
  return outputs['nll'].sum(-1) / math.log(2) / test['num_bytes'].sum()
