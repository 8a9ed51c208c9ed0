"""Host side: which run elsewhere a work directory goes on with."""

import pathlib

from repjax import files

_FILE = 'tracking.json'


def read(workdir: pathlib.Path, client: str) -> str:
  """The id of the run that a client has begun for a work directory, or ''."""
  stored = files.read_json_if_whole(workdir / _FILE) or {}
  return str(stored.get(client, ''))


def write(workdir: pathlib.Path, client: str, run_id: str) -> None:
  """Keeps an id, so that a run that was stopped goes on as one."""
  stored = files.read_json_if_whole(workdir / _FILE) or {}
  files.write_json(workdir / _FILE, {**stored, client: run_id})
