"""Host side: whether all processes of a job do the same.

Each process of a job is a launch of its own, and nothing in a step would notice
that one has another learning rate, key or file: replicas of the state drift
apart, and process 0 writes its own.
"""

from collections.abc import Mapping
import hashlib
import json
import pathlib
import sys
from typing import Any

import jax

from repjax import checkpoint
from repjax import parallel
from repjax import report
from repjax import trees
from repjax import types
from repjax.data.batches import in_order


def check(facts: Mapping[str, Any]) -> None:
  """Refuses, on all processes, a job whose processes differ.

  Args:
    facts: What must agree, by the name that a user knows it by: plain numbers,
      strings and mappings of them.

  Raises:
    InputError: It names what differs.
  """
  first, *others = [
    json.loads(x) for x in parallel.gather(json.dumps(facts).encode())
  ]
  for process, other in enumerate(others, 1):
    lines = checkpoint.differing_fields(first, other)
    if lines:
      raise types.InputError(
        'The processes of this job differ (process 0 -> process '
        f'{process}): {"; ".join(lines)}. Start all of them with the same '
        'command, code and files.'
      )


def facts(
  experiment: types.Experiment, config: Any, origin: Mapping[str, Any]
) -> dict[str, Any]:
  """What the processes of one run must agree on before it begins.

  Args:
    experiment: What is trained.
    config: All of it, but for `data.dir`: each machine has its own.
    origin: With the 'file' of the recipe, if there is one.
  """
  # Homes differ between machines; what is read from there is compared, too.
  home = json.dumps(str(pathlib.Path.home()) + '/')[:-1]
  text = json.dumps(config.to_dict()).replace(home, '"~/')
  fields = json.loads(text)
  fields.get('data', {}).pop('dir', None)
  return {
    'config': {**origin, **fields},
    'training rows': experiment.train.fingerprint(),
    # Of as many batches, too: one process would wait for another's last one.
    'evaluation rows': {
      split: rows.fingerprint()
      for split in experiment.eval_splits
      if isinstance(rows := experiment.evals(split), in_order.EvalBatches)
    },
    'code': code(origin.get('file')),
    'versions': report.environment()['versions'],
  }


def check_start(state: types.TrainState) -> None:
  """Refuses processes of one run that would start, or go on, from others.

  One that cannot read the newest checkpoint goes on from an older one.
  """
  params = trees.crc32(jax.device_get(state.params))
  check({'step to start from': int(state.step), 'initial parameters': params})


def code(recipe: str | None) -> str:
  """Digest of the source files of repjax, its configs and a recipe's file."""
  packages = [sys.modules[x] for x in ('repjax', 'configs') if x in sys.modules]
  folders = [pathlib.Path(x.__path__[0]) for x in packages]
  files = [x for folder in folders for x in sorted(folder.rglob('*.py'))]
  if recipe:
    files.append(pathlib.Path(recipe))
  found = hashlib.sha256()
  for file in files:
    found.update(file.read_bytes())
  return found.hexdigest()
