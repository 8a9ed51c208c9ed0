"""Host side: events for TensorBoard, without TensorFlow and PyTorch."""

from collections.abc import Mapping
import pathlib
import sys
import time
from typing import Any

import PIL.Image

from repjax import files


class Events:
  """Writes events as they come.

  tensorboardX's own thread dies of a full disk, and with it everybody who waits
  for its queue.

  Args:
    workdir: Where the file goes, `events.out.*`.
  """

  def __init__(self, workdir: pathlib.Path):
    board = _tensorboard()
    self._summary, self._event = board.summary, board.proto.event_pb2
    self._image = board.proto.summary_pb2.Summary
    self._path = workdir / 'events.out'
    with files.naming(self._path):
      self._file = board.event_file_writer.EventsWriter(str(workdir / 'events'))

  def hyperparameters(self, fields: Mapping[str, Any]) -> None:
    """What the run is."""
    self._write(0, *self._summary.hparams(dict(fields), {}))

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Numbers of a step."""
    self._write(
      step, *(self._summary.scalar(name, x) for name, x in values.items())
    )

  def image(self, step: int, name: str, path: pathlib.Path) -> None:
    """A figure, as a PNG file."""
    with PIL.Image.open(path) as picture:
      width, height = picture.size
    image = self._image.Image(
      height=height,
      width=width,
      colorspace=3,
      encoded_image_string=path.read_bytes(),
    )
    value = self._image.Value(tag=f'plots/{name}', image=image)
    self._write(step, self._image(value=[value]))

  def close(self, *, finished: bool) -> None:
    """Closes the file."""
    del finished  # A file that goes on is another one.
    with files.naming(self._path):
      self._file.close()

  def _write(self, step, *summaries):
    with files.naming(self._path):
      for summary in summaries:
        self._file.write_event(
          self._event.Event(wall_time=time.time(), step=step, summary=summary)
        )
      self._file.flush()


def _tensorboard() -> Any:
  """Imports tensorboardX without PyTorch, which it would load for seconds."""
  modules: dict[str, Any] = sys.modules
  hidden = 'torch' not in modules
  if hidden:
    modules['torch'] = None  # Importing it fails now.
  try:
    import tensorboardX
    import tensorboardX.proto.event_pb2
    import tensorboardX.proto.summary_pb2
  finally:
    if hidden:
      del modules['torch']
  return tensorboardX
