"""Small networks of as many blocks as asked for, each with a field `remat`."""

from collections.abc import Callable

import numpy as np

from repjax.models import agent
from repjax.models import alexnet
from repjax.models import anomaly_transformer
from repjax.models import beit
from repjax.models import clip
from repjax.models import conv_gan
from repjax.models import conv_net
from repjax.models import densenet
from repjax.models import describer
from repjax.models import dvae
from repjax.models import pyraformer
from repjax.models import refined_vit
from repjax.models import resnet
from repjax.models import shot_detector
from repjax.models import strided_conv_net
from repjax.models import swin
from repjax.models import t5
from repjax.models import t5_block
from repjax.models import unfolded_conv_net
from repjax.models import vit
from repjax.models import vit_discriminator
from repjax.models import vit_generator

IMAGE = np.cos(np.arange(4 * 8 * 8 * 3.0)).reshape(4, 8, 8, 3)
IMAGE = IMAGE.astype(np.float32)
IDS = np.arange(24).reshape(4, 6) % 7
MASK = np.array([1.0, 1.0, 1.0, 0.0], np.float32)
LATENT = IMAGE[:, 0, 0].repeat(3, 1)  # [4, 9]
SERIES = IMAGE.reshape(4, 64, 3)[:, :12]


def blocks(depth):
  return dict(hidden_dim=8, mlp_dim=32, num_heads=2, num_layers=depth)


def tower(depth):
  return clip.TowerConfig(**blocks(depth))


LAYER = t5_block.LayerConfig(
  hidden_dim=8, mlp_dim=32, num_heads=2, head_dim=4, dropout_rate=0.2
)

# (number of blocks -> network, what it is called with).
CASES: dict[str, tuple[Callable, dict]] = {
  'WideResNet': (
    lambda n: resnet.WideResNet(3, depth=6 * n + 4, widen=1, dropout_rate=0.3),
    dict(image=IMAGE, mask=MASK),
  ),
  'PreActResNet': (
    lambda n: resnet.PreActResNet(3, stage_sizes=(n,), width=16, norm='group'),
    dict(image=IMAGE),
  ),
  'ResNet': (
    lambda n: resnet.ResNet(3, stage_sizes=(n,)),
    dict(image=IMAGE, mask=MASK),
  ),
  'detector': (
    lambda n: shot_detector.ShotDetector(
      stage_sizes=(n,), maps=(0,), sides=(3.0,)
    ),
    dict(image=IMAGE, mask=MASK),
  ),
  'Swin': (
    lambda n: swin.Swin(
      3,
      hidden_dim=8,
      depths=(n,),
      num_heads=(2,),
      patch_size=2,
      window=2,
      dropout_rate=0.2,
      drop_path_rate=0.3,
    ),
    dict(image=IMAGE),
  ),
  'T5': (
    lambda n: t5.T5(7, config=LAYER, num_layers=n),
    dict(tokens=IDS, source=IDS, source_mask=IDS > 0),
  ),
  'vision tower of CLIP': (
    lambda n: clip.VisionTower(tower(n), patch_size=2),
    dict(image=IMAGE),
  ),
  'text tower of CLIP': (
    lambda n: clip.TextTower(tower(n), vocab_size=7, num_positions=6),
    dict(tokens=IDS),
  ),
  'generator of ViTGAN': (
    lambda n: vit_generator.VitGenerator(
      *(8, 3),
      patch_size=2,
      latent_dim=9,
      mapping_layers=1,
      pixels='linear',
      norm='improved',
      **blocks(n),
    ),
    dict(latent=LATENT),
  ),
  'discriminator of ViTGAN': (
    lambda n: vit_discriminator.VitDiscriminator(patch_size=2, **blocks(n)),
    dict(image=IMAGE),
  ),
  'convolutional generator': (
    lambda n: conv_gan.ConvGenerator(8, 3, 9, (8,) * n),
    dict(latent=LATENT),
  ),
  'convolutional discriminator': (
    lambda n: conv_gan.ConvDiscriminator((8,) * n, hidden_dim=8),
    dict(image=IMAGE),
  ),
  'Pyraformer': (
    lambda n: pyraformer.Pyraformer(
      *(3, 9),
      children=(3,),
      predictor='decoder',
      head_dim=4,
      bottleneck=4,
      dropout_rate=0.2,
      **blocks(n),
    ),
    dict(series=SERIES[:, :9], covariates=SERIES),
  ),
  'Anomaly Transformer': (
    lambda n: anomaly_transformer.AnomalyTransformer(
      dropout_rate=0.2, **blocks(n)
    ),
    dict(series=SERIES),
  ),
  'BEiT': (
    lambda n: beit.Encoder(
      2, relative='per_layer', drop_path_rate=0.3, **blocks(n)
    ),
    dict(image=IMAGE),
  ),
  'BEiT, one table': (
    lambda n: beit.Encoder(2, dropout_rate=0.2, **blocks(n)),
    dict(image=IMAGE),
  ),
  'DenseNet': (
    lambda n: densenet.DenseNet(3, stage_sizes=(n,), growth=4, width=8),
    dict(image=IMAGE, mask=MASK),
  ),
  'ConvNet': (
    lambda n: conv_net.ConvNet(3, channels=(8,) * n),
    dict(image=IMAGE, mask=MASK),
  ),
  'unfolded ConvNet': (
    lambda n: unfolded_conv_net.UnfoldedConvNet(
      3, channels=(8,) * n, kernels=(3,) * n, strides=(1,) * n, normalize=True
    ),
    dict(image=IMAGE, mask=MASK),
  ),
  'encoder of a dVAE': (
    lambda n: dvae.Encoder(7, hidden_dim=8, num_halvings=1, num_blocks=n),
    dict(image=IMAGE),
  ),
  'decoder of a dVAE': (
    lambda n: dvae.Decoder(3, hidden_dim=8, num_halvings=1, num_blocks=n),
    dict(weights=IMAGE),
  ),
  'encoder of DALL-E': (
    lambda n: dvae.DalleEncoder(7, hidden_dim=4, blocks_per_group=n),
    dict(image=IMAGE),
  ),
  'dVAE': (
    lambda n: dvae.Dvae(
      dvae.Encoder(3, hidden_dim=8, num_halvings=1, num_blocks=n),
      dvae.Decoder(3, hidden_dim=8, num_halvings=1, num_blocks=n),
    ),
    dict(image=IMAGE, noise=0.0, temperature=1.0),
  ),
  'encoder of agents': (
    lambda n: agent.Encoder((8,) * n, (1,) * n, unfolded=True),
    dict(image=IMAGE),
  ),
  'AlexNet': (
    lambda n: alexnet.AlexNet(
      3,
      channels=(8,) * n,
      kernels=(1,) * n,
      dropout_rates=(0.2,) * n,
      features=(8,),
    ),
    dict(image=IMAGE),
  ),
  'strided ConvNet': (
    lambda n: strided_conv_net.StridedConvNet(
      3, channels=(8,) * 2 * n, strides=(1, 2) * n
    ),
    dict(image=IMAGE),
  ),
  'refined ViT': (
    lambda n: refined_vit.RefinedViT(vit.ViT(3, patch_size=2, **blocks(n))),
    dict(image=IMAGE, mask=MASK),
  ),
  'describer': (
    lambda n: describer.Describer(
      describer.Captioner(7, 4, 8), describer.LanguageModel(7, 4, 8, n)
    ),
    dict(features=IMAGE[:, :, 0], tokens=IDS),
  ),
}
