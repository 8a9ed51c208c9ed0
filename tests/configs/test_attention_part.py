"""What the group `attention` of a config stands for."""

import pytest

from configs import performer as performer_recipe
from configs import rfa as rfa_recipe
from configs.parts.attention import attention_fn
from repjax.layers import attention
from repjax.layers import performer
from repjax.layers import rfa
from repjax.types import InputError


@pytest.mark.parametrize('causal', [True, False])
@pytest.mark.parametrize('kind', ['favor', 'performer'])
def test_both_names_of_favor_take_its_fields(kind, causal):
  settings = dict(kind=kind, num_features=16, redraw_every=3)
  expected = performer.Favor(causal=causal, num_features=16, redraw_every=3)
  assert attention_fn(settings, causal=causal) == expected
  del settings['redraw_every']  # ViT has none.
  expected = performer.Favor(causal=causal, num_features=16)
  assert attention_fn(settings, causal=causal) == expected


def test_rfa_has_a_gate_only_where_there_is_an_order():
  settings = rfa_recipe.get_config('small').attention
  fields = dict(num_features=64, features='gaussian', redraw_every=1)
  assert attention_fn(settings, causal=True) == rfa.Rfa(
    causal=True, gate='learned', **fields
  )
  assert attention_fn(settings, causal=False) == rfa.Rfa(gate='none', **fields)


def test_a_performer_is_one_override_away_from_rfa():
  settings = performer_recipe.get_config('smoke').attention
  settings.kind = 'rfa'
  expected = rfa.Rfa(causal=True, num_features=16, redraw_every=3)
  assert attention_fn(settings, causal=True) == expected


@pytest.mark.parametrize('recipe', [performer_recipe, rfa_recipe])
@pytest.mark.parametrize('kind', ['exact', 'flash'])
def test_exact_attention_is_one_override_away(recipe, kind):
  config = recipe.get_config('small')
  before = config.attention.to_dict()
  config.attention.kind = kind
  made = dict(exact=attention.Softmax, flash=attention.Flash)[kind]
  for causal in (True, False):
    expected = made(causal=causal)
    found = attention_fn(config.attention, causal=causal)
    assert found == expected and type(found) is made
  assert config.attention.to_dict() == {**before, 'kind': kind}


@pytest.mark.parametrize(
  ('kind', 'fields', 'kinds'),
  [
    ('local', dict(num_features=8), 'exact, flash, favor, performer, rfa'),
    # FAVOR+ has no gate.
    ('favor', dict(num_features=8, gate='none'), 'exact, flash, rfa'),
  ],
)
def test_other_kinds_are_refused(kind, fields, kinds):
  message = rf"config\.attention\.kind is one of {kinds} \(.*got '{kind}'"
  with pytest.raises(InputError, match=message):
    attention_fn(dict(kind=kind, **fields), causal=True)
