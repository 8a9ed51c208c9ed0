"""Costs are counted of shapes, and whole strides keep what was learnt."""

import flax.linen as nn
import pytest

from repjax.analysis import stride_costs
from repjax.layers import downsampling
from repjax.models import resnet
from repjax.types import InputError


def net(kind='strided', width=16, **settings):
  stride = downsampling.Downsampling(kind, **settings)
  return resnet.PreActResNet(10, (1, 1, 1, 1), width=width, stride=stride)


def test_a_network_is_counted_by_hand():
  costs = stride_costs.stage_costs(net(), (32, 32, 3))
  assert list(costs) == [
    'stem',
    'stage_0',
    'stage_1',
    'stage_2',
    'stage_3',
    'head',
  ]
  assert costs['stem'] == (1024, 2 * 1024 * 27 * 16, 4 * 1024 * 16)
  # 3 x 3 and 1 x 1 of 16 channels, 3 x 3 of 32, at 16 x 16 places.
  products = 256 * 32 * (9 * 16 + 16 + 9 * 32)
  assert costs['stage_1'] == (256, 2 * products, 4 * 3 * 256 * 32)
  assert costs['head'] == (1, 2 * 128 * 10, 4 * 10)
  assert stride_costs.total(costs).flops == sum(x.flops for x in costs.values())


class Attends(nn.Module):
  """Attention, perhaps a loop, and a layer that is called by name."""

  loops: bool = False

  @nn.compact
  def __call__(self, x, train):
    x = nn.Conv(8, 3, name='patch')(x.reshape(len(x), -1, 3))
    x = nn.MultiHeadDotProductAttention(2, name='attention')(x)
    if self.loops:
      x = nn.RNN(nn.SimpleCell(8), name='rnn')(x)
    return nn.Dense(2, name='head')(inputs=x.mean(1))


def test_attention_and_calls_by_name_are_counted():
  costs = stride_costs.stage_costs(Attends(), (4, 4, 3))
  assert costs['patch'].flops == 2 * 16 * 3 * 3 * 8
  # Queries, keys, values and what is made of them.
  assert costs['attention'].flops == 4 * 2 * 16 * 8 * 8
  assert costs['head'].flops == 2 * 8 * 2
  with pytest.raises(InputError, match='is a loop'):
    stride_costs.stage_costs(Attends(loops=True), (4, 4, 3))


def test_a_part_that_is_called_by_other_names_is_counted():
  class Parts(nn.Module):
    def setup(self):
      self.conv = nn.Conv(4, (3, 3))
      self.head = nn.Dense(2)

    def maps(self, x):
      return self.conv(x)

    def __call__(self, x, train):
      return self.head(x.mean((1, 2)))

  class Whole(nn.Module):
    def setup(self):
      self.parts = Parts()

    def __call__(self, x, train):
      return self.parts.maps(x).mean((1, 2))

  costs = stride_costs.stage_costs(Whole(), (5, 5, 3))
  assert costs == {'parts': stride_costs.StageCost(25, 2 * 25 * 27 * 4, 400)}


def test_learnt_strides_of_two_keep_more_places():
  positions = {
    stride: [x.positions for x in costs.values()][1:-1]
    for stride in ('strided', 'spectral', 'diffstride')
    for costs in [stride_costs.stage_costs(net(stride), (32, 32, 3))]
  }
  assert positions == {
    'strided': [32**2, 16**2, 8**2, 4**2],
    'spectral': [32**2, 16**2, 8**2, 4**2],
    'diffstride': [32**2, 24**2, 20**2, 18**2],
  }


def test_what_is_not_matched_is_said():
  small = net('diffstride', smoothness=1.0)
  header, lines, said = stride_costs.compare(
    {'strided': net(), 'R 4': net('diffstride'), 'R 1': small}, (32, 32, 3)
  )
  assert len(header) == len(lines[0]) and len(lines) == 3
  assert said.startswith('Not matched to strided: R 4 has 1.') and 'R 1' in said
  assert stride_costs.compare({'a': net(), 'b': net()}, (32, 32, 3))[2] == (
    'All are matched to a within 5 %.'
  )
  with pytest.raises(InputError, match='at least one'):
    stride_costs.compare({}, (32, 32, 3))


def test_a_width_matches_the_flops():
  wanted = stride_costs.total(
    stride_costs.stage_costs(net(width=24), (32, 32, 3))
  ).flops

  def found(flops):
    return stride_costs.matched_width(
      lambda width: net(width=width), (32, 32, 3), flops, range(16, 33, 4)
    )

  assert found(wanted) == found(0.9 * wanted) == found(1.1 * wanted) == 24
  assert (found(1), found(1e12)) == (16, 32)


@pytest.mark.parametrize(
  'learnt, whole',
  [
    ((2.0, 3.0), (2, 3)),
    ((1.4, 1.4), (1, 2)),
    ((1.2, 1.2, 1.2), (1, 2, 1)),
    ((2.6, 1.0), (3, 1)),
    ((), ()),
  ],
)
def test_whole_strides_together_are_near_the_learnt_ones(learnt, whole):
  assert stride_costs.whole_strides(learnt) == whole


def test_strides_below_one_are_refused():
  with pytest.raises(InputError, match='stride'):
    stride_costs.whole_strides((0.5,))


def test_all_convolutions_are_counted():
  class Kinds(nn.Module):
    @nn.compact
    def __call__(self, x, train):
      x = nn.ConvTranspose(8, (2, 2), strides=(2, 2), name='up')(x)
      x = nn.Conv(8, (3, 3), feature_group_count=4, name='grouped')(x)
      return nn.ConvLocal(4, (3, 3), name='local')(x)

  costs = stride_costs.stage_costs(Kinds(), (5, 5, 3))
  # Each of 25 places is spread over 2 x 2.
  assert costs['up'] == (100, 2 * 25 * 3 * 4 * 8, 4 * 100 * 8)
  # A channel sees 2 of 8.
  assert costs['grouped'].flops == 2 * 100 * 9 * 2 * 8
  assert costs['local'].flops == 2 * 100 * 9 * 8 * 4
