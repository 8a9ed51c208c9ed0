"""Host side: columns of a source that lie in memory."""

import numpy as np

from repjax.data.reading import source as sources


def column(source: sources.Source, name: str) -> np.ndarray | None:
  """All values of a column for which nothing has to be read, or None."""
  if name in source.encoded:
    return None
  return _known(source.reader, name, np.arange(len(source)))


def _known(reader, name, rows):
  if isinstance(reader, sources._Selection):
    return _known(reader.reader, name, reader.rows[rows])
  if not isinstance(reader, sources._Arrays | sources._Overlay):
    return None
  if name in reader.columns:
    return reader.columns[name][rows]
  below = getattr(reader, 'reader', None)
  return below and _known(below, name, rows)
