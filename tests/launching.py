"""Runs launchers as a user does: in processes of their own."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import orbax.checkpoint as ocp

ROOT = pathlib.Path(__file__).resolve().parent.parent
SMOKE = 'configs/vit.py:smoke'


def start(module, *flags, devices=1, env=None, **kwargs):
  """Starts `python -m launch.<module>`."""
  env = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
    'JAX_CPU_ENABLE_ASYNC_DISPATCH': 'false',
    'PYTHONPATH': f'{ROOT}:{os.environ.get("PYTHONPATH", "")}',
    **(env or {}),
  }
  return subprocess.Popen(
    [sys.executable, '-m', f'launch.{module}', *map(str, flags)],
    env=env,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    **{'cwd': ROOT, **kwargs},
  )


def run(module, *flags, timeout=240, **kwargs):
  """Runs a launcher to its end: (exit code, output)."""
  process = start(module, *flags, **kwargs)
  output, _ = process.communicate(timeout=timeout)
  return process.returncode, output


def start_two(module, *flags, **kwargs):
  """Starts two processes of one job on the loopback."""
  with socket.socket() as s:
    s.bind(('localhost', 0))
    port = s.getsockname()[1]
  job = [f'--coordinator_address=localhost:{port}', '--num_processes=2']
  return [
    start(module, *flags, *job, f'--process_id={i}', **kwargs) for i in (0, 1)
  ]


def finish(processes, timeout=240):
  """Exit codes and outputs of processes."""
  outputs = [p.communicate(timeout=timeout)[0] for p in processes]
  return [p.returncode for p in processes], outputs


def arrays(workdir):
  """Path -> array of the newest checkpoint."""
  folder = pathlib.Path(workdir) / 'checkpoints'
  step = max(int(p.name) for p in folder.iterdir() if p.name.isdigit())
  with ocp.StandardCheckpointer() as reader:
    return {
      name: np.asarray(x)
      for name, x in reader.restore(folder / str(step) / 'state').items()
    }


def report(workdir):
  """The content of report.json."""
  return json.loads((pathlib.Path(workdir) / 'report.json').read_text())
