"""Joins the processes of a job, before anything else touches JAX.

What they then say to each other is in `parallel`.
"""

import importlib.util
import os
from typing import Literal

import jax

from repjax import types

# Variables that give the number of processes, a list of hosts, or whose mere
# presence means several processes, where `jax.distributed` finds the rest.
_COUNTS = ('SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE', 'JAX_NUM_PROCESSES')
_HOSTS = ('TPU_WORKER_HOSTNAMES',)
_PRESENT = ('MEGASCALE_COORDINATOR_ADDRESS', 'JAX_COORDINATOR_ADDRESS')


def initialize(
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  detect: Literal['auto', 'on', 'off'] = 'auto',
  timeout_s: int = 300,
) -> None:
  """Joins the processes of a job; does nothing for a job of one process.

  Call it before anything else touches JAX. Without arguments, SLURM, Open
  MPI, GKE and TPU pods are detected by their environment.

  Args:
    coordinator_address: host:port of process 0.
    num_processes: Number of processes of the job.
    process_id: Index of this one.
    detect: Without the three: 'auto' joins where the environment is that of
      several processes, 'on' always, 'off' never.
    timeout_s: Seconds to wait for the others, then an error.

  Raises:
    InputError: If only some of the three arguments are given, or if the other
      processes did not come.
  """
  given = [
    x is not None for x in (coordinator_address, num_processes, process_id)
  ]
  if any(given) and not all(given):
    raise types.InputError(
      '--coordinator_address, --num_processes and --process_id go together: '
      'give all three, or none to detect the cluster.'
    )
  alone = detect == 'off' or (detect == 'auto' and not _in_cluster())
  if not any(given) and alone:
    return
  if (
    process_id is not None
    and num_processes is not None
    and not 0 <= process_id < num_processes
  ):
    raise types.InputError(
      f'--process_id={process_id} must lie in [0, {num_processes}), the '
      'range that --num_processes gives.'
    )
  try:
    jax.distributed.initialize(
      coordinator_address,
      num_processes,
      process_id,
      initialization_timeout=timeout_s,
    )
  except (RuntimeError, ValueError) as error:
    raise types.InputError(
      f'Could not join the job at --coordinator_address='
      f'{coordinator_address}: {str(error).splitlines()[0]}'
    ) from error


def _in_cluster() -> bool:
  """Whether the environment is that of a job of several processes."""
  counts = [os.environ.get(name, '') for name in _COUNTS]
  hosts = [os.environ.get(name, '') for name in _HOSTS]
  return (
    any(x.isdigit() and int(x) > 1 for x in counts)
    or any(',' in x for x in hosts)
    or any(os.environ.get(name) for name in _PRESENT)
    or _on_tpu_vm()
  )


def _on_tpu_vm() -> bool:
  # A slice of several hosts looks like a single one until libtpu is asked.
  devices = ('/dev/accel0', '/dev/vfio/0')
  return importlib.util.find_spec('libtpu') is not None and any(
    os.path.exists(path) for path in devices
  )
