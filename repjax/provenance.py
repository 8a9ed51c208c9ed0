"""Where a result comes from: versions, git commit, devices, command line."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys
from typing import Any

import jax

_PACKAGES = (
  'repjax',
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'tensorflow-datasets',
  'grain',
  'numpy',
)


def of_process() -> dict[str, Any]:
  """Versions, git commit, devices and command line of this process."""
  versions = {'python': platform.python_version()}
  for name in _PACKAGES:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      versions[name] = 'not installed'
  return {
    'versions': versions,
    'git': git_commit(),
    'devices': [str(d) for d in jax.devices()],
    'cores': os.cpu_count(),
    'processes': jax.process_count(),
    'command': [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]],
    'time': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
  }


def git_commit() -> str:
  """The commit of the package's checkout, '+' if code is not it; '' if none."""
  folder = pathlib.Path(__file__).parent

  def git(*args):
    # Reading the status may not lock the user's index.
    command = ('git', '--no-optional-locks', *args)
    return subprocess.run(
      command, cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()

  try:
    changed = git('status', '-s', '--', ':/*.py')  # And not what runs leave.
    return git('rev-parse', 'HEAD') + ('+' if changed else '')
  except (OSError, subprocess.CalledProcessError):
    return ''
