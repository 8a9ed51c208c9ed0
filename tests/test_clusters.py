"""When a launch joins a job, and what it refuses."""

import jax
import pytest

from repjax import clusters
from repjax import types


@pytest.fixture
def joined(monkeypatch):
  """Arguments of each attempt to join, in an environment of no cluster."""
  for name in (*clusters._COUNTS, *clusters._HOSTS, *clusters._PRESENT):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(clusters, '_on_tpu_vm', lambda: False)
  calls = []
  monkeypatch.setattr(
    jax.distributed, 'initialize', lambda *args, **_: calls.append(args)
  )
  return calls


@pytest.mark.parametrize(
  ('environment', 'joins'),
  [
    ({}, False),
    ({'SLURM_NTASKS': '1'}, False),
    ({'SLURM_NTASKS': '2'}, True),
    ({'TPU_WORKER_HOSTNAMES': 'a'}, False),
    ({'TPU_WORKER_HOSTNAMES': 'a,b'}, True),
    ({'JAX_COORDINATOR_ADDRESS': 'a:1'}, True),
  ],
)
def test_an_environment_of_several_processes_is_joined(
  joined, monkeypatch, environment, joins
):
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  clusters.initialize()
  assert joined == [(None, None, None)] * joins
  clusters.initialize(detect='off')
  assert len(joined) == joins


def test_who_is_told_joins_whatever_is_detected(joined):
  clusters.initialize('a:1', 2, 0, detect='off')
  assert joined == [('a:1', 2, 0)]
  with pytest.raises(types.InputError, match='go together: give all three'):
    clusters.initialize('a:1', 2)
  with pytest.raises(types.InputError, match=r'=2 must lie in \[0, 2\)'):
    clusters.initialize('a:1', 2, 2)
  assert len(joined) == 1
