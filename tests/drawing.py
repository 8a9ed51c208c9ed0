"""How tests save figures: once, and small."""

from matplotlib import figure as mpl_figure


def draw_once() -> None:
  """From here on figures of this process are drawn once, without a frame.

  A tight frame draws a figure a second time, and needs no reader in a test. The
  demo and the notebooks draw as users do.
  """
  savefig = mpl_figure.Figure.savefig

  def save(figure, path, **unused):
    del unused
    savefig(figure, path, dpi=40)

  mpl_figure.Figure.savefig = save
