"""Processes of launchers that begin with their libraries imported.

A launch of seconds spends half of them on importing what all launchers need. A
server beside each test process imports that once and forks a process for every
launch, which runs it as `python -m` does, with devices, signals and an end of
its own. Nothing of ours is imported before a fork, and no backend is started.

    python tests/forked.py  # The server: jobs come in by its standard input.
"""

import atexit
import functools
import gc
import json
import os
import pathlib
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import time

# Read when JAX or Python starts, and so as the server found them.
_READ_AT_START = ('JAX_', 'LD_', 'OPENBLAS_', 'PYTHON', 'TF_')


class Process:
  """A child of the server, with what tests use of `subprocess.Popen`."""

  def __init__(self, server, job):
    ours, theirs = os.pipe()
    self._server = server
    self.pid = server.ask(job, theirs)
    os.close(theirs)
    self.stdout = os.fdopen(ours, encoding='utf-8', errors='replace')
    self.returncode = None

  def poll(self):
    """Its exit code, or None while it runs."""
    if self.returncode is None:
      self.returncode = self._server.ask({'ended': self.pid})
    return self.returncode

  def wait(self, timeout=None):
    """Its exit code, once it has one."""
    latest = None if timeout is None else time.monotonic() + timeout
    while self.poll() is None:
      if latest is not None and time.monotonic() > latest:
        raise subprocess.TimeoutExpired(f'process {self.pid}', timeout)
      time.sleep(0.01)
    return self.returncode

  def communicate(self, timeout=None):
    """What it has written until its end, and None."""
    latest = None if timeout is None else time.monotonic() + timeout
    found = []
    with self.stdout, selectors.DefaultSelector() as selector:
      selector.register(self.stdout, selectors.EVENT_READ)
      while not found or found[-1]:
        left = None if latest is None else latest - time.monotonic()
        if not selector.select(left):
          raise subprocess.TimeoutExpired(f'process {self.pid}', timeout)
        found.append(os.read(self.stdout.fileno(), 1 << 16))
    self.wait(timeout)
    return b''.join(found).decode('utf-8', 'replace'), None

  def send_signal(self, number):
    """Sends it a signal, if it has not ended."""
    if self.poll() is None:  # The server keeps its number until it is asked.
      os.kill(self.pid, number)

  def terminate(self):
    self.send_signal(signal.SIGTERM)

  def kill(self):
    self.send_signal(signal.SIGKILL)


class _Server:
  """This process's end of a server."""

  def __init__(self, env):
    kind = socket.SOCK_SEQPACKET
    self._socket, theirs = socket.socketpair(socket.AF_UNIX, kind)
    with theirs:
      self._process = subprocess.Popen(
        [sys.executable, __file__], stdin=theirs, env=env
      )
    atexit.register(self._end)

  def _end(self):
    self._socket.close()
    self._process.wait()

  def ask(self, message, *files):
    """Its answer to a job, whose output goes to a file, or to a question."""
    socket.send_fds(self._socket, [json.dumps(message).encode()], files)
    answer = self._socket.recv(100)
    if not answer:
      raise RuntimeError('The server of forked launchers has ended.')
    return json.loads(answer)


@functools.cache
def _server(read_at_start):
  return _Server(dict(read_at_start))


def start(module, flags, env, cwd):
  """Starts `python -m launch.<module>` in a fork."""
  kept = tuple(
    sorted(
      (name, value)
      for name, value in env.items()
      if name.startswith(_READ_AT_START) or name in ('HOME', 'PATH')
    )
  )
  job = {'module': module, 'flags': flags, 'env': env, 'cwd': str(cwd)}
  return Process(_server(kept), job)


def _serve():
  """Forks until its client ends; a fork returns with its job."""
  with socket.socket(fileno=os.dup(0)) as client:
    while True:
      message, files, _, _ = socket.recv_fds(client, 1 << 20, 1)
      if not message:
        return None
      asked = json.loads(message)
      if 'ended' in asked:
        pid, status = os.waitpid(asked['ended'], os.WNOHANG)
        answer = os.waitstatus_to_exitcode(status) if pid else None
      else:
        answer = os.fork()
        if not answer:
          break
        os.close(files[0])
      client.send(json.dumps(answer).encode())
  os.dup2(files[0], 1)
  os.dup2(files[0], 2)
  os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
  os.close(files[0])
  return asked


def _main():
  # What a launch of one recipe or another imports, and nothing of ours.
  import drawing
  import flax.linen  # noqa: F401
  import matplotlib.backends.backend_agg  # noqa: F401
  import ml_collections.config_flags  # noqa: F401
  import optax  # noqa: F401
  import orbax.checkpoint  # noqa: F401
  import tensorflow_datasets  # noqa: F401

  # As tests look for garbage (conftest).
  gc.freeze()
  gc.set_threshold(20_000, 20, 100)
  drawing.draw_once()
  job = _serve()
  if job is None:
    return
  os.environ.clear()
  os.environ.update(job['env'])
  os.chdir(job['cwd'])
  file = pathlib.Path(__file__).parent.parent / 'launch' / f'{job["module"]}.py'
  sys.argv = [str(file), *job['flags']]
  sys.path[0] = job['cwd']
  name = f'launch.{job["module"]}'
  runpy.run_module(name, run_name='__main__', alter_sys=True)


if __name__ == '__main__':
  _main()
