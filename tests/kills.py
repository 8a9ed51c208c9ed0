"""Kills launchers at random moments and compares what they end with.

    python tests/kills.py --kills=20 --seed=1

Of each kind, an uninterrupted run, and one that is killed so many times, with
SIGKILL and all its processes, and then finishes: parameters, results and every
logged average are the same, bit for bit. Prints one line a kind.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import launching

_RUN = (
  f'--config={launching.SMOKE}',
  '--config.min_steps=40',
  '--config.run.save_every=7',
  '--config.run.eval_every=20',
  '--config.run.log_every=5',
)
_SWEEP = (
  f'--config={launching.SMOKE}',
  '--space=tx.learning_rate=0.01,0.02',
  '--jobs=2',
  '--config.run.save_every=2',
)
_PRIVATE = (
  '--config=configs/dp_tuning.py:smoke',
  '--space=dp.clip_norm=0.5,1.0',
  '--metric=train[80%:]/accuracy',
  '--private',
  '--score=noisy',
  # A law without a long tail: how many trials it draws is left to chance.
  '--eta=30',
  '--expected_trials=2',
  '--config.run.save_every=2',
)


def _one(workdir):
  return [launching.start('train', *_RUN, f'--workdir={workdir}')]


def _workers(workdir):
  flags = (*_RUN, '--config.data.num_workers=2')
  return [launching.start('train', *flags, f'--workdir={workdir}')]


def _two(workdir):
  return launching.start_two('train', *_RUN, f'--workdir={workdir}')


def _at_once(workdir):
  return _one(workdir) + _one(workdir)


def _sweep(workdir):
  return [launching.start('sweep', *_SWEEP, f'--workdir={workdir}')]


def _private(workdir):
  return [launching.start('sweep', *_PRIVATE, f'--workdir={workdir}')]


KINDS = {
  'one process': _one,
  'worker processes': _workers,
  'two processes': _two,
  'two launches at once': _at_once,
  'sweep': _sweep,
  'private sweep': _private,
}


def campaign(kind, folder, *, kills, rng):
  """Kills one kind so many times, each time in the middle of something.

  Args:
    kind: One of KINDS.
    folder: An empty one.
    kills: How many must hit a process that runs.
    rng: A `random.Random` of the moments.
  """
  start = KINDS[kind]
  whole, killed = folder / 'whole', folder / 'killed'
  started = time.monotonic()
  _finish(start(whole), kind)
  seconds = time.monotonic() - started
  killed.mkdir()
  if kind == 'private sweep':  # Draws its trials and their keys but once.
    for path in (*whole.rglob('plan.json'), *whole.rglob('noise_key')):
      place = killed / path.relative_to(whole)
      place.parent.mkdir(parents=True, exist_ok=True)
      shutil.copy2(path, place)
  hits = 0
  while hits < kills:
    processes = start(killed)
    time.sleep(rng.uniform(0.1, 0.9) * seconds)
    alive = [x for x in processes if x.poll() is None]
    hits += bool(alive)
    if not alive:  # Programs are compiled now: it takes less time.
      seconds *= 0.8
    for process in alive:
      process.send_signal(signal.SIGKILL)
    for process in processes:
      process.communicate()
    if _is_done(killed):
      # Nothing is left to kill: from the beginning, with what was drawn.
      _forget(killed)
  _finish(start(killed), kind)
  assert ends(killed) == ends(whole), kind


def ends(workdir):
  """What a run, or each trial of a sweep, has ended with."""
  found = {}
  for path in sorted(workdir.rglob('report.json')):
    report = json.loads(path.read_text())
    name = str(path.parent.relative_to(workdir))
    if 'params_crc32' not in report:
      found[name] = report['best']
      continue
    lines = (path.parent / 'metrics.jsonl').read_text().splitlines()
    rows = [json.loads(x) for x in lines]
    for row in rows:
      row.pop('examples_per_second', None)
    found[name] = (report['params_crc32'], report['result'], rows)
  return found


def _is_done(workdir):
  return (workdir / 'report.json').exists() or (
    (workdir / 'summary.md').exists()
  )


def _forget(workdir):
  for path in (*workdir.rglob('report.json'), *workdir.rglob('checkpoints')):
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  for path in workdir.glob('summary.*'):
    path.unlink()


def _finish(processes, kind):
  codes, outputs = launching.finish(processes)
  if kind == 'two launches at once':
    # One is refused, or comes when the other is done.
    assert sorted(codes) in ([0, 0], [0, 1]), (codes, outputs)
    for code, output in zip(codes, outputs, strict=True):
      assert not code or 'is in use by' in output, output
  else:
    assert not any(codes), (codes, outputs)
  assert not any('Traceback' in x for x in outputs), outputs


def main():
  """Runs the campaign of the flags."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--kills', type=int, default=20, help='Of each kind.')
  parser.add_argument('--seed', type=int, default=0, help='Of the moments.')
  parser.add_argument('--only', default='', help='One kind.')
  flags = parser.parse_args()
  os.chdir(launching.ROOT)
  rng = random.Random(flags.seed)
  for kind in [flags.only] if flags.only else KINDS:
    with tempfile.TemporaryDirectory() as folder:
      campaign(kind, pathlib.Path(folder), kills=flags.kills, rng=rng)
    print(f'{kind}: the same after {flags.kills} kills', flush=True)


if __name__ == '__main__':
  main()
