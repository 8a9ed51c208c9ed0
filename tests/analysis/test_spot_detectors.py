"""Alarms are raised by images that have no square."""

import numpy as np

from repjax.analysis import spot_detectors
from repjax.protocols import side_by_side


def test_alarms_are_those_of_images_without_a_square(monkeypatch):
  def train(name, method, columns, test, **how):
    shape = 1, len(test['image']), 1
    outputs = {'score': np.zeros(shape), 'boxes': np.zeros((*shape, 4))}
    return side_by_side.Trained(None, outputs, None, None)

  def predict_fn(method, *, vectorize):
    return lambda states, rows: {'score': 1.0 * rows['label'][None, :, None]}

  monkeypatch.setattr(side_by_side, 'train', train)
  monkeypatch.setattr(side_by_side, 'predict_fn', predict_fn)
  maps, alarms = spot_detectors.probe(
    'test',
    mode=None,
    seeds=(0,),
    drawing=dict(side=9, size=3, contrast=1.0, noise=0.1),
    **dict(rows=8, blank_rows=20, repeats=1, width=4, batch_size=4, steps=1),
    **dict(learning_rate=0.1, least_overlap=0.3),
  )
  assert maps.shape == (1, 7, 7)
  assert alarms.tolist() == [0.0]
