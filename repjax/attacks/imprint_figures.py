"""Host side: private images beside what was recovered of them."""

from collections.abc import Mapping

import numpy as np

from repjax import plots


def beside(
  private: np.ndarray,
  recovered: Mapping[str, tuple[np.ndarray, np.ndarray]],
  *,
  count: int = 16,
) -> plots.Figure:
  """One row of private images, and one below it for each defence.

  Args:
    private: Pixels in [0, 1], [N, H, W, C].
    recovered: Name -> (recovered images in the order of the private ones, their
      signal-to-noise ratios [N]), the first of which stand above them.
    count: How many images are shown, the first ones.
  """
  count = min(count, len(private))
  fig = plots.Figure(figsize=(1.0 + 0.62 * count, 0.85 * (len(recovered) + 1)))
  places = fig.subplots(len(recovered) + 1, count, squeeze=False)
  everything = {
    'private': (private, np.full(len(private), np.nan)),
    **recovered,
  }
  for line, (name, (images, decibels)) in zip(
    places, everything.items(), strict=True
  ):
    for axes, image, value in zip(line, images, decibels, strict=False):
      shown = image[..., 0] if image.shape[-1] == 1 else image
      axes.imshow(np.clip(shown, 0, 1), cmap='gray', vmin=0, vmax=1)
      axes.set(xticks=[], yticks=[])
      if np.isfinite(value):
        axes.set_title(f'{value:.0f} dB', fontsize=6, pad=2)
    line[0].set_ylabel(
      name, rotation=0, ha='right', va='center', fontsize=8, labelpad=4
    )
  return fig
