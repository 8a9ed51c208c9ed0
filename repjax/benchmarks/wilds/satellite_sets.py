"""Host side: FMoW and PovertyMap as WILDS publishes them.

Columns, splits and metadata are those of PyPI's `wilds` 2.0.0, its draws of
rows included.
"""

import numpy as np

from repjax import types
from repjax.benchmarks.wilds import datasets
from repjax.benchmarks.wilds import evaluation
from repjax.benchmarks.wilds import folders
from repjax.benchmarks.wilds import metrics
from repjax.benchmarks.wilds.image_sets import UNLABELLED_SPLITS

_ID_OOD = {'train': 0, 'id_val': 1, 'id_test': 2, 'val': 3, 'test': 4}
_YEARS = range(2002, 2018)
_CATEGORIES = """
airport airport_hangar airport_terminal amusement_park aquaculture
archaeological_site barn border_checkpoint burial_site car_dealership
construction_site crop_field dam debris_or_rubble educational_institution
electric_substation factory_or_powerplant fire_station flooded_road fountain
gas_station golf_course ground_transportation_station helipad hospital
impoverished_settlement interchange lake_or_pond lighthouse military_facility
multi-unit_residential nuclear_powerplant office_building oil_or_gas_facility
park parking_lot_or_garage place_of_worship police_station port prison
race_track railway_bridge recreational_facility road_bridge runway shipyard
shopping_mall single-unit_residential smokestack solar_farm space_facility
stadium storage_tank surface_mine swimming_pool toll_booth tower
tunnel_opening waste_disposal water_treatment_facility wind_farm zoo
"""
_COUNTRIES = """
angola benin burkina_faso cameroon cote_d_ivoire democratic_republic_of_congo
ethiopia ghana guinea kenya lesotho malawi mali mozambique nigeria rwanda
senegal sierra_leone tanzania togo uganda zambia zimbabwe
"""
CATEGORIES = tuple(_CATEGORIES.split())
COUNTRIES = tuple(_COUNTRIES.split())
# Five parts of the countries; a fold tests on one, validates on another and
# trains on the rest.
_PARTS = (
  'angola cote_d_ivoire ethiopia mali rwanda',
  'benin burkina_faso guinea sierra_leone tanzania',
  'cameroon ghana malawi zimbabwe',
  'democratic_republic_of_congo mozambique nigeria togo uganda',
  'kenya lesotho senegal zambia',
)
FOLDS = ('A', 'B', 'C', 'D', 'E')


def fmow(
  root: str,
  *,
  unlabelled: bool = False,
  scheme: str = 'official',
  seed: int = 111,
) -> datasets.Dataset:
  """Use of land and buildings seen from above, by year and region.

  Args:
    root: Folder of `fmow_v1.1`, with rgb_metadata.csv,
      country_code_mapping.csv and images/ (the same for the rows without
      labels).
    unlabelled: Whether the rows without labels are read.
    scheme: 'official', which is 'time_after_2016'; 'time_after_<year>'; or,
      labelled, 'mixed-to-test'.
    seed: Of what 'mixed-to-test' draws.
  """
  mixed = scheme == 'mixed-to-test' and not unlabelled
  if scheme == 'official' or mixed:
    scheme = 'time_after_2016'
  known = [f'time_after_{x}' for x in range(2002, 2019)]
  if scheme not in known:
    raise types.InputError(
      "scheme is 'official', 'mixed-to-test' (labelled) or 'time_after_<year>' "
      f'with a year from 2002 to 2018; got {scheme!r}.'
    )
  name = 'fmow_unlabeled' if unlabelled else 'fmow'
  tables = ('rgb_metadata.csv', 'country_code_mapping.csv')
  folder = folders.locate('fmow_v1.1', root, needs=(*tables, 'images'))
  path, codes = (folder / x for x in tables)
  table = folders.read_table(
    path, ('split', 'category', 'country_code', 'timestamp')
  )
  mapping = folders.read_table(codes, ('alpha-3', 'region'))
  region_of = dict(zip(mapping['alpha-3'], mapping['region'], strict=True))
  regions = np.array(
    [region_of.get(x, 'Other') for x in table['country_code']], object
  )
  # Times are in UTC, so that the first four letters are the year.
  year = folders.whole(
    np.array([x[:4] for x in table['timestamp']], object),
    what=f"The year of 'timestamp' of {path}",
  )
  if any(not x.endswith(('Z', '+00:00')) for x in table['timestamp']):
    raise types.InputError(f"'timestamp' of {path} is not in UTC.")
  first = int(scheme.rpartition('_')[2])
  new, newer = year >= first, (year >= first - 3) & (year < first)
  old, part = ~(new | newer), table['split']
  every = np.arange(len(year))
  split = np.full(len(year), -1)
  if unlabelled:
    ids, rest = UNLABELLED_SPLITS, (part != 'test') & (part != 'val')
    split[new & rest] = ids['test_unlabeled']
    split[newer & rest] = ids['val_unlabeled']
    split[old & (part == 'seq')] = ids['train_unlabeled']
    kept = split != -1
  else:
    ids = _ID_OOD
    train = every[old & (part == 'train')]
    if mixed:  # Half of the training rows give way to new ones.
      unused = every[~old & (part != 'test')]
      half = len(train) // 2
      train = np.concatenate(
        [
          folders.subsampled(unused, half, seed=seed + 2),
          folders.subsampled(train, half, seed=seed + 3),
        ]
      )
    split[train] = ids['train']
    split[old & (part == 'val')] = ids['id_val']
    split[old & (part == 'test')] = ids['id_test']
    split[newer & (part == 'val')] = ids['val']
    split[new & (part == 'test')] = ids['test']
    kept = part != 'seq'
  named = tuple(dict.fromkeys(regions))
  label = folders.codes(
    table['category'], CATEGORIES, what=f"'category' of {path}"
  )[kept]
  region = folders.codes(regions, named, what='region')[kept]
  known_year = (year >= _YEARS[0]) & (year <= _YEARS[-1])
  return datasets.make(
    name,
    split_ids=ids,
    split=split[kept],
    label=label,
    num_classes=len(CATEGORIES),
    metadata=dict(
      region=region,
      year=np.where(known_year, year - _YEARS[0], -1)[kept],
      y=label,
    ),
    names=dict(region=named, year=_YEARS),
    inputs=folders.numbered_files(
      name, folder / 'images', every[kept], 'rgb_img_{}.png', (224, 224, 3)
    ),
    evaluate=None if unlabelled else evaluation.years_and_regions,
    source_splits=(10,) if unlabelled else (0, 1, 2),
  )


def poverty(
  root: str,
  *,
  unlabelled: bool = False,
  fold: str = 'A',
  nightlights: bool = True,
  scheme: str = 'official',
) -> datasets.Dataset:
  """Wealth of places in Africa, seen by satellites in eight channels.

  Args:
    root: Folder of `poverty_v1.1`, with dhs_metadata.csv and images/ (or
      `poverty_unlabeled_v1.0`, unlabeled_metadata.csv and images/).
    unlabelled: Whether the rows without labels are read.
    fold: Which countries are new: 'A' to 'E'.
    nightlights: Whether the last channel is kept.
    scheme: 'official', which is 'countries'; or, labelled, 'mixed-to-test'.
  """
  types.check_choice('fold', fold, FOLDS)
  kinds = ('official', 'countries')
  types.check_choice(
    'scheme', scheme, kinds if unlabelled else (*kinds, 'mixed-to-test')
  )
  name = 'poverty_unlabeled' if unlabelled else 'poverty'
  file = f'{"unlabeled" if unlabelled else "dhs"}_metadata.csv'
  folder = folders.locate(
    f'{name}_v{"1.0" if unlabelled else "1.1"}', root, needs=(file, 'images')
  )
  own = () if unlabelled else ('urban', 'wealthpooled')
  table = folders.read_table(folder / file, ('country', *own))
  country = folders.codes(
    table['country'], COUNTRIES, what=f"'country' of {folder / file}"
  )
  tested = FOLDS.index(fold)
  test, val = (
    np.isin(country, [COUNTRIES.index(x) for x in _PARTS[part].split()])
    for part in (tested, (tested + 1) % len(FOLDS))
  )
  every = np.arange(len(country))
  split = np.full(len(country), -1)
  if unlabelled:
    ids = UNLABELLED_SPLITS
    split[~(test | val)] = ids['train_unlabeled']
    split[val], split[test] = ids['val_unlabeled'], ids['test_unlabeled']
    # Neither wealth nor what is a town is known.
    wealth = urban = np.full(len(country), -100.0)
  else:
    ids, known, seed = _ID_OOD, every[~(test | val)], ord(fold)
    split[test], split[val] = ids['test'], ids['val']
    held_out = folders.subsampled(known, 2000, seed=seed)
    split[held_out[1000:]], split[held_out[:1000]] = (
      ids['id_test'],
      ids['id_val'],
    )
    if scheme == 'mixed-to-test':
      # As there: the training rows come from all countries, and what they
      # take is no other split's any more.
      split[folders.subsampled(every, len(known), seed=seed)[2000:]] = 0
    else:
      split[folders.subsampled(known, 2000, seed=seed, rest=True)] = 0
    urban, wealth = (
      folders.real(
        np.array([_TRUTH.get(x, x) for x in table[c]], object),
        what=f"'{c}' of {folder / file}",
      )
      for c in own
    )
  return datasets.make(
    name,
    split_ids=ids,
    split=split,
    label=wealth[:, None].astype(np.float32),
    num_classes=None,
    metadata=dict(urban=urban, y=wealth, country=country),
    names=dict(country=COUNTRIES),
    inputs=folders.arrays(
      name,
      folder / 'images',
      len(country),
      'landsat_poverty_img_{}.npz',
      (224, 224, 8),
      without_last=not nightlights,
    ),
    evaluate=None
    if unlabelled
    else datasets.by_fields(('urban',), metrics.SQUARED_ERROR, metrics.PEARSON),
    source_splits=(10,) if unlabelled else (0,),
  )


_TRUTH = {'True': '1', 'False': '0'}
