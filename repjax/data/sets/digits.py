"""Host side: a TFDS builder of the digits that come with scikit-learn.

1,797 handwritten digits of 8 x 8 pixels (Alpaydin and Kaynak, 1998, the test
part of UCI's 'Optical Recognition of Handwritten Digits', CC BY 4.0,
https://doi.org/10.24432/C50P49).
"""

import numpy as np
import tensorflow_datasets as tfds


class Digits(tfds.core.GeneratorBasedBuilder):
  """Handwritten digits, image uint8 (8, 8, 1) and label in [0, 10).

  scikit-learn's grey values 0 to 16 become round(value * 255 / 16). The split
  is fixed and stratified: of the rows of each class in scikit-learn's order,
  every fifth is test, the others are train (1,442 and 355 rows).
  """

  VERSION = tfds.core.Version('1.0.0')

  # TFDS looks beside the code for checksums of downloads, of which there are
  # none; on the way it imports importlib_resources, which it does not require.
  code_path = None

  def _info(self):
    # `Tensor`, since an `Image` feature needs TensorFlow to be written.
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
          'label': tfds.features.ClassLabel(num_classes=10),
        }
      ),
      supervised_keys=('image', 'label'),
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # Nothing is downloaded.
    from sklearn import datasets

    digits = datasets.load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    test = np.zeros(len(images), bool)
    for label in range(10):
      test[np.flatnonzero(digits.target == label)[4::5]] = True
    return {
      'train': self._generate_examples(images, digits.target, ~test),
      'test': self._generate_examples(images, digits.target, test),
    }

  def _generate_examples(self, images, labels, chosen):
    for row in np.flatnonzero(chosen):
      yield int(row), {'image': images[row], 'label': int(labels[row])}
