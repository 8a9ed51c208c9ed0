"""Runs launchers: as a user does, in processes of their own, or in this one."""

import contextlib
import io
import json
import logging as python_logging
import os
import pathlib
import runpy
import signal
import socket
import subprocess
import sys
from unittest import mock

from absl import app
from absl import flags
from absl import logging
import compiling
import forked
import numpy as np
import orbax.checkpoint as ocp
import spreading

ROOT = pathlib.Path(__file__).resolve().parent.parent
SMOKE = 'configs/vit.py:smoke'
# A preset of seconds evaluates and saves at every fourth step.
AT_THE_END = ('--config.run.eval_every=0', '--config.run.save_every=0')


def start(module, *flags, devices=1, env=None, cwd=ROOT, **popen):
  """Starts `python -m launch.<module>`; with arguments of Popen, by it."""
  env = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': compiling.flags(devices),
    'JAX_CPU_ENABLE_ASYNC_DISPATCH': 'false',
    'PYTHONPATH': f'{ROOT}:{os.environ.get("PYTHONPATH", "")}',
    **(env or {}),
  }
  flags = [*map(str, flags)]
  if not popen and sys.platform == 'linux':
    return forked.start(module, flags, env, cwd)
  return subprocess.Popen(
    [sys.executable, '-m', f'launch.{module}', *flags],
    **dict(cwd=cwd, env=env, text=True),
    **dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT),
    **popen,
  )


def run(module, *flags, timeout=240, **kwargs):
  """Runs a launcher to its end: (exit code, output)."""
  process = start(module, *flags, **kwargs)
  output, _ = process.communicate(timeout=timeout)
  return process.returncode, output


def call(module, *arguments):
  """As `run`, but in this process: with its devices, and warm.

  For a launcher that refuses something, or finishes. What one leaves in a
  process is taken back: its flags, handlers of signals, and how it logs.
  """
  output = io.StringIO()
  arguments = [f'launch/{module}.py', *map(str, arguments)]
  with (
    _as_first_import(),
    _logs_to(output),
    contextlib.redirect_stdout(output),
    contextlib.redirect_stderr(output),
    mock.patch.object(sys, 'unraisablehook', sys.unraisablehook),
    mock.patch.object(sys, 'argv', arguments),
    mock.patch.object(os, '_exit', sys.exit),  # This process goes on.
    # absl heeds --only_check_args in the first launcher of a process alone.
    mock.patch.object(app._run_init, 'done', False),
    mock.patch.object(app._register_and_parse_flags_with_usage, 'done', False),
  ):
    handlers = {x: signal.getsignal(x) for x in (signal.SIGTERM, signal.SIGINT)}
    try:
      runpy.run_module(f'launch.{module}', run_name='__main__', alter_sys=True)
      code = 0
    except SystemExit as ended:
      code = ended.code or 0
    finally:
      for number, handler in handlers.items():
        signal.signal(number, handler)
  return code, output.getvalue()


@contextlib.contextmanager
def _as_first_import():
  """Sets aside launchers that were imported: they share names of flags."""
  parsed = flags.FLAGS.is_parsed()
  modules, given = _take_modules(), _take_flags()
  try:
    yield
  finally:
    _take_modules()
    _take_flags()
    sys.modules.update(modules)
    for flag, module in given.items():
      flags.FLAGS[flag.name] = flag
      flags.FLAGS.register_flag_by_module(module, flag)
    if 'only_check_args' in flags.FLAGS:  # Of absl: the next one would stop.
      flags.FLAGS['only_check_args'].value = False
    if not parsed:
      flags.FLAGS.unparse_flags()


def _take_modules():
  """Removes the modules of launchers and returns them."""
  names = [x for x in sys.modules if x.partition('.')[0] == 'launch']
  return {name: sys.modules.pop(name) for name in names}


def _take_flags():
  """Removes the flags of launchers, imported or run: flag -> module."""
  taken = {
    flag: module
    for module, group in flags.FLAGS.flags_by_module_dict().items()
    for flag in group
    if module.startswith(('launch.', f'{ROOT}/launch/'))
    or flag.name.startswith('config.')
  }
  for flag in taken:
    delattr(flags.FLAGS, flag.name)
  return taken


@contextlib.contextmanager
def _logs_to(stream):
  """What absl logs; takes back what a launcher does to its handlers."""
  root, handler = python_logging.root, logging.get_absl_handler()
  handlers, filters = list(root.handlers), list(handler.filters)
  formatter = handler.python_handler.formatter
  verbosity = logging.get_verbosity()
  logging.use_absl_handler()
  before = handler.python_handler.setStream(stream)
  try:
    yield
  finally:
    handler.python_handler.setStream(before)
    handler.setFormatter(formatter)
    handler.filters[:] = filters
    root.handlers[:] = handlers
    logging.set_verbosity(verbosity)
    logger = logging.get_absl_logger()
    for file in set(logger.handlers) - {handler}:  # log.txt of the run.
      logger.removeHandler(file)
      file.close()


def start_two(module, *flags, own=((), ()), envs=({}, {}), **kwargs):
  """Starts two processes of one job on the loopback.

  `own` are more flags of each, and `envs` what its environment has.
  """
  with socket.socket() as s:
    s.bind(('localhost', 0))
    port = s.getsockname()[1]
  job = [f'--coordinator_address=localhost:{port}', '--num_processes=2']
  processes = [
    start(
      module,
      *flags,
      *job,
      f'--process_id={i}',
      *own[i],
      env=envs[i],
      **kwargs,
    )
    for i in (0, 1)
  ]
  for process in processes:
    spreading.take_all_cores(process.pid)
  return processes


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
