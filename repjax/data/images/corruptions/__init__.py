"""Host side: the common corruptions of images, without a download.

Hendrycks and Dietterich, 'Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations', ICLR 2019 (https://arxiv.org/abs/1903.12261): 15
corruptions at 5 severities, and four more on which settings are chosen.

    from repjax.data.images import corruptions

    rows = corruptions.corrupted(source, 'contrast', severity=5)

Constants are those of the authors' code for CIFAR-10-C and for ImageNet-C
(https://github.com/hendrycks/robustness), which two corruptions differ from:
`frost` draws its own textures, where theirs lays photographs, and
`motion_blur`, with the flakes of `snow`, does what the port
`imagecorruptions` does, where theirs calls ImageMagick. Severities are made for
images of about 32 and 224 pixels; blurs and noises do not scale with the size.
Grey images get the corruption of one channel.
"""

from repjax.data.images.corruptions.applying import COMMON as COMMON
from repjax.data.images.corruptions.applying import HELD_OUT as HELD_OUT
from repjax.data.images.corruptions.applying import corrupt as corrupt
from repjax.data.images.corruptions.applying import corrupted as corrupted
