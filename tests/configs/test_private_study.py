"""The study of private fine-tuning on text: what it trains, and what not."""

import numpy as np
import pytest

from configs.parts import private_study
from configs.studies import dp_finetuning as study
from repjax.protocols import private_text


@pytest.mark.parametrize('larger', [0.5, 0.8])
def test_larger_encoders_are_trained_with_noise_where_they_are_better_without(
  monkeypatch, larger
):
  trained = []

  def trainer(name, *args, **kwargs):
    def tune(seeds, rates):
      trained.append(name)
      score = np.full(len(seeds), larger if 'large' in name else 0.6)
      curve = np.ones(2), np.full((2, len(seeds)), 0.6)
      return {rate: private_text.Scores(score, score, curve) for rate in rates}

    return tune

  monkeypatch.setattr(private_text, 'trainer', trainer)
  monkeypatch.setattr(private_text, 'pretrain', lambda *args, **kwargs: {})
  scalars, _ = private_study.topics(study.get_config('smoke'), (0, 1))
  names = [x for x in trained if 'large' in x]
  np.testing.assert_allclose(scalars['large_model_plain_gain'], larger - 0.6)
  assert names[0].endswith('epsilon inf')
  if larger < 0.6:
    assert len(names) == 1
    assert list(scalars['large_model_gain']) == []
  else:
    assert names[1].endswith('epsilon 8')
    np.testing.assert_allclose(scalars['large_model_gain'], larger - 0.6)
