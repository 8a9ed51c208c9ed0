"""Host side: folders of images, one sub-folder a class.

    photos/cat/1.jpg  photos/dog/2.png ...
    photos/train/cat/1.jpg  photos/test/cat/3.jpg ...

All images are decoded once, to find those that cannot be read; what was found,
and images of one size that fit, are kept in the cache folder. Larger ones are
decoded whenever they are read, by the workers of a run. Orientations that a
camera has written into a file (EXIF) are not applied, as with TFDS.
"""

from collections.abc import Sequence
import dataclasses
import hashlib
import os
import pathlib
import re
from typing import NamedTuple

from absl import logging
import numpy as np
from PIL import Image

from repjax import types
from repjax.data.own import rows
from repjax.data.reading import cache
from repjax.data.reading import decode
from repjax.data.reading import source

SUFFIXES = (
  *('.png', '.jpg', '.jpeg', '.webp', '.bmp', '.gif'),
  *('.tif', '.tiff', '.ppm', '.pgm'),
  # Read where Pillow can, else named and refused, not passed over.
  *('.jfif', '.jpe', '.jp2', '.avif', '.heic', '.heif', '.jxl', '.tga'),
)
_CACHE_LIMIT = 4 << 30


class _File(NamedTuple):
  """One image: its path, label (None without) and split ('' without)."""

  path: pathlib.Path
  label: str | None
  split: str


def read(
  root: pathlib.Path, *, unreadable: str = 'refuse', channels: int = 0
) -> rows.Rows:
  """The images of a folder of classes, or of one of splits of classes.

  Args:
    root: The folder.
    unreadable: 'refuse' images that cannot be read, or 'skip' them.
    channels: 1 for grey, 3 for colours, 0 for what the images have.

  Raises:
    InputError: There are no classes, an image cannot be read, or two files of a
      class have one stem.
  """
  return _rows(root, _listed(root), unreadable, channels, keeps=True)


def read_unlabelled(
  path: pathlib.Path, *, unreadable: str = 'refuse', channels: int = 0
) -> rows.Rows:
  """One image, or all images of a folder and of those in it, without labels.

  Nothing of them is kept in the cache folder: they are read once.

  Args:
    path: Of a file or a folder.
    unreadable: 'refuse' images that cannot be read, or 'skip' them.
    channels: 1 for grey, 3 for colours, 0 for what the images have.

  Raises:
    InputError: There is no image, or one cannot be read.
  """
  if path.is_dir():
    files, root = [_File(x, None, '') for x in _images(path)], path
  else:
    files, root = [_File(path, None, '')], path.parent
  if not files:
    raise types.InputError(
      f'{path} holds no image ({", ".join(SUFFIXES)}): give a folder of some, '
      'or one file.'
    )
  return _rows(root, files, unreadable, channels, keeps=False)


def has_images(folder: pathlib.Path) -> bool:
  """Whether there is an image in a folder, or in those in it."""
  return bool(_images(folder))


def fingerprint(files: Sequence[pathlib.Path]) -> str:
  """Changes whenever one of the files does, by its name, size and times."""
  whole = hashlib.sha256()
  for file in files:
    status = os.stat(file)
    whole.update(os.fsencode(file.absolute()))
    # That of the change as well: archives and renames keep the other one.
    times = f'{status.st_mtime_ns} {status.st_ctime_ns}'
    whole.update(f'\0{status.st_size} {times}\n'.encode())
  return whole.hexdigest()[:16]


def _rows(root, files, unreadable, channels, *, keeps):
  paths = [x.path for x in files]
  _check_names(root, paths)
  found = _Looked(tuple(paths))
  if keeps:
    found = cache.columns(f'{_key(root, paths)}-looked-2', found, len(paths))
  sizes = found(np.arange(len(paths)))['size']  # Height, width, channels.
  good = sizes[:, 2] > 0
  if not good.all():
    bad = [x for x, y in zip(paths, good, strict=True) if not y]
    _report(root, bad, len(paths), unreadable)
    files = [x for x, y in zip(files, good, strict=True) if y]
    sizes, paths = sizes[good], [x.path for x in files]
  if not channels:
    channels = int(sizes[:, 2].max())
  (height, width), *others = np.unique(sizes[:, :2], axis=0).tolist()
  shape = (None, None, channels) if others else (height, width, channels)
  made = source.Source(
    name=f'folder {root}',
    version='',
    split='',
    num_rows=len(files),
    num_classes=None,
    class_names=None,
    image_shape=None if others else shape,
    reader=_Files(tuple(paths)),
    encoded={'image': shape},
  )
  num_bytes = height * width * channels * len(files)
  if keeps and not others and num_bytes <= _CACHE_LIMIT:
    key = f'{_key(root, paths)}-{channels}'
    reader = cache.columns(key, made.read, len(files))
    made = dataclasses.replace(made, reader=reader, encoded={})
  names = [x.relative_to(root).as_posix() for x in paths]
  labels = None
  if files[0].label is not None:
    labels = np.fromiter((x.label for x in files), object, len(files))
  return rows.Rows(
    source=made,
    labels=labels,
    splits=np.fromiter((x.split for x in files), object, len(files)),
    names=names,
    order=np.array([rows.digest(x.encode()) for x in names], np.uint64),
  )


def _key(root, paths):
  """Where the cache keeps what is made of some files."""
  name = re.sub(r'[^\w.+-]', '_', root.name)
  return f'own/{name}-{fingerprint(paths)}'


def _listed(root):
  """All images, by split and class."""
  folders = _folders(root)
  splits = {x: rows.SPLITS.get(x.name.lower(), '') for x in folders}
  if splits and all(splits.values()) and 'train' not in splits.values():
    raise types.InputError(
      f'{root} has folders of splits, {", ".join(x.name for x in splits)}, and '
      'none is called train: add it.'
    )
  if 'train' not in splits.values():
    return _of_classes(root, folders, '')
  others = [x.name for x, split in splits.items() if not split]
  if others:
    raise types.InputError(
      f'{root} has folders of splits and others beside them, such as '
      f'{others[0]}: move those elsewhere, or call no class train.'
    )
  if len(set(splits.values())) < len(splits):
    raise types.InputError(
      f'{root} has two folders of one split: {", ".join(map(str, splits))}.'
    )
  return [
    file
    for folder, split in splits.items()
    for file in _of_classes(folder, _folders(folder), split)
  ]


def _of_classes(root, folders, split):
  """Images of the classes of one folder."""
  outside = [x for x in sorted(root.iterdir()) if _is_image(x)]
  if not folders:
    raise types.InputError(
      f'{root} has no folders of classes'
      + f' (but {len(outside)} image(s))' * bool(outside)
      + ": put each class's images in a folder that is called like the class."
    )
  if outside:
    logging.warning(
      '%s: %d image(s) outside of the folders of classes are left out, such '
      'as %s.',
      root,
      len(outside),
      outside[0].name,
    )
  files = []
  for folder in folders:
    own = _images(folder)
    if not own:
      raise types.InputError(
        f'{folder} holds no image ({", ".join(SUFFIXES)}): a folder there is a '
        'class: remove it, or fill it.'
      )
    stems: dict[pathlib.Path, pathlib.Path] = {}
    for file in own:
      twin = stems.setdefault(file.with_suffix(''), file)
      if twin is not file:
        raise types.InputError(
          f'{twin} and {file.name} have one stem: if they are one picture, '
          'keep one of them, else rename one.'
        )
    files += [_File(x, folder.name, split) for x in own]
  return files


def _folders(root):
  if root.is_file():
    raise types.InputError(
      f'{root} is a file, not a folder of images: --config.data.name=csv, '
      'jsonl or npz read files.'
    )
  if not root.is_dir():
    raise types.InputError(
      f'There is no folder {root}: give --data_dir one that has a folder of '
      'images for each class.'
    )
  return [
    x for x in sorted(root.iterdir()) if x.is_dir() and not _is_hidden([x.name])
  ]


def _images(folder):
  found = []
  for path in sorted(folder.rglob('*')):
    if _is_hidden(path.relative_to(folder).parts):
      continue
    if path.is_symlink() and path.is_dir():
      raise types.InputError(
        f'{path} is a link to a folder, whose images would be left out: put '
        'them, or links to them, into a folder of their own.'
      )
    if _is_image(path):
      found.append(path)
  return found


def _is_image(path):
  return (
    path.suffix.lower() in SUFFIXES
    and not _is_hidden([path.name])
    and path.is_file()
  )


def _is_hidden(parts):
  """Whether a file is one that programs leave behind: previews, copies."""
  return any(x.startswith('.') or x == '__MACOSX' for x in parts)


def _check_names(root, paths):
  """Refuses names that cannot be written to a table of predictions."""
  names = [x.relative_to(root).as_posix() for x in paths]
  odd = [x for x in names if not _is_unicode(x)]
  if odd:
    raise types.InputError(
      f'{len(odd)} of {len(names)} images of {root} have names that are not in '
      f'UTF-8, such as {odd[0]!a}: rename them.'
    )


def _is_unicode(text):
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return True


def _report(root, bad, num, unreadable):
  shown = ', '.join(x.relative_to(root).as_posix() for x in bad[:5])
  more = f' and {len(bad) - 5} more' * (len(bad) > 5)
  said = (
    f'{len(bad)} of {num} images of {root} cannot be read as images of 8 bits: '
    f'{shown}{more}'
  )
  if unreadable == 'refuse' or len(bad) == num:
    raise types.InputError(
      f'{said}. Mend or remove them'
      + ', or leave them out by --config.data.name=folder:unreadable=skip'
      * (len(bad) < num)
      + '.'
    )
  logging.warning('%s. They are left out.', said)


@dataclasses.dataclass(frozen=True)
class _Files:
  """Reads files as they are."""

  paths: tuple[pathlib.Path, ...]

  def __call__(self, indices):
    files = [self.paths[i].read_bytes() for i in indices]
    return {'image': np.fromiter(files, object, len(files))}


@dataclasses.dataclass(frozen=True)
class _Looked:
  """Decodes files: 'size' is height, width and channels, or three zeros."""

  paths: tuple[pathlib.Path, ...]

  def __call__(self, indices):
    return {'size': np.array([_size(self.paths[i]) for i in indices], np.int32)}


def _size(path):
  # Pillow's decoders raise many kinds of errors for a damaged file.
  try:
    with Image.open(path) as picture:
      if _is_deep(picture):
        return 0, 0, 0
      channels = 1 if picture.mode in ('1', 'L') else 3
      height, width, _ = decode.to_array(picture).shape
      return height, width, channels
  except Exception:
    return 0, 0, 0


def _is_deep(picture):
  """Whether it has 16 bits or more, which 8 would cut off."""
  # Of colours Pillow cuts them itself, and only its raw mode tells.
  raw = ' '.join(str(x[3]) for x in getattr(picture, 'tile', ()))
  deep = re.search(r';16[BLN]', raw) is not None  # 'BGR;16' has 5 or 6 bits.
  return picture.mode.startswith(('I', 'F')) or deep
