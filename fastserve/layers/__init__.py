"""Layers by Keras' names.

Shapes are given with the batch; those of ``input_shape`` and ``build`` are without it.
Arguments that many layers have, with the same meaning in each:

- ``input_shape``: shape of one sample, for the first layer of a ``Sequential``; None:
  it is taken from the layer before or the first batch. ``name``: for ``get_layer`` and
  the functional API; None: one is made from the class.
- ``activation``: a name such as 'relu', or None. ``use_bias``: whether to add a bias.
- ``kernel_initializer`` and others that end in ``_initializer``: what the weight begins
  with; ``_regularizer``: a penalty on it that joins the loss; ``_constraint``: what
  holds for it after each update. Names or objects of ``fs.initializers``,
  ``fs.regularizers``, ``fs.constraints``.
- ``seed``: of random numbers; None: the model's.
- ``data_format``: only 'channels_last' (None is that).

What doesn't fit raises ArgumentError when the layer is made, or ShapeError when it is
built or called; names that aren't known raise UnknownNameError.
"""

from fastserve.core.layer import Layer
from fastserve.layers.activations import ELU, LeakyReLU, PReLU, ReLU, Softmax
from fastserve.layers.attention import MultiHeadAttention, TransformerBlock
from fastserve.layers.augmentation import (
    RandomBrightness,
    RandomContrast,
    RandomCrop,
    RandomFlip,
    RandomRotation,
    RandomTranslation,
    RandomZoom,
)
from fastserve.layers.batch_normalization import BatchNormalization
from fastserve.layers.bidirectional import Bidirectional
from fastserve.layers.chain import Chain, Residual
from fastserve.layers.convolution import (
    Conv1D,
    Conv1DTranspose,
    Conv2D,
    Conv2DTranspose,
    Convolution1D,
    Convolution1DTranspose,
    Convolution2D,
    Convolution2DTranspose,
)
from fastserve.layers.cross_attention import AdditiveAttention, Attention
from fastserve.layers.dense import Activation, Dense
from fastserve.layers.depthwise import (
    DepthwiseConv1D,
    DepthwiseConv2D,
    SeparableConv1D,
    SeparableConv2D,
    SeparableConvolution1D,
    SeparableConvolution2D,
)
from fastserve.layers.dropout import (
    AlphaDropout,
    Dropout,
    GaussianDropout,
    GaussianNoise,
    SpatialDropout1D,
    SpatialDropout2D,
)
from fastserve.layers.embedding import Embedding, PositionEmbedding, TiedHead
from fastserve.layers.gated import SwiGLU
from fastserve.layers.group_normalization import GroupNormalization
from fastserve.layers.images import CenterCrop, Resizing
from fastserve.layers.lambdas import Affine, Identity, Item, Lambda
from fastserve.layers.lookup import IntegerLookup, StringLookup
from fastserve.layers.merging import (
    Add,
    Average,
    Concatenate,
    Divide,
    Dot,
    Maximum,
    Minimum,
    Multiply,
    Subtract,
    add,
    average,
    concatenate,
    dot,
    maximum,
    minimum,
    multiply,
    subtract,
)
from fastserve.layers.normalization import (
    LayerNormalization,
    RMSNormalization,
    UnitNormalization,
)
from fastserve.layers.pooling import (
    AveragePooling1D,
    AveragePooling2D,
    AvgPool1D,
    AvgPool2D,
    GlobalAveragePooling1D,
    GlobalAveragePooling2D,
    GlobalAvgPool1D,
    GlobalAvgPool2D,
    GlobalMaxPool1D,
    GlobalMaxPool2D,
    GlobalMaxPooling1D,
    GlobalMaxPooling2D,
    MaxPool1D,
    MaxPool2D,
    MaxPooling1D,
    MaxPooling2D,
)
from fastserve.layers.preprocessing import (
    CategoryEncoding,
    Discretization,
    Normalization,
    Rescaling,
)
from fastserve.layers.rearranging import Permute, RepeatVector
from fastserve.layers.recurrent import GRU, LSTM, SimpleRNN
from fastserve.layers.resizing import (
    Cropping1D,
    Cropping2D,
    UpSampling1D,
    UpSampling2D,
    ZeroPadding1D,
    ZeroPadding2D,
)
from fastserve.layers.sequences import Masking, TimeDistributed
from fastserve.layers.shapes import Flatten, Input, InputLayer, Reshape
from fastserve.layers.text import TextVectorization

__all__ = [
    "ELU",
    "GRU",
    "LSTM",
    "Activation",
    "Add",
    "AdditiveAttention",
    "Affine",
    "AlphaDropout",
    "Attention",
    "Average",
    "AveragePooling1D",
    "AveragePooling2D",
    "AvgPool1D",
    "AvgPool2D",
    "BatchNormalization",
    "Bidirectional",
    "CategoryEncoding",
    "CenterCrop",
    "Chain",
    "Concatenate",
    "Conv1D",
    "Conv1DTranspose",
    "Conv2D",
    "Conv2DTranspose",
    "Convolution1D",
    "Convolution1DTranspose",
    "Convolution2D",
    "Convolution2DTranspose",
    "Cropping1D",
    "Cropping2D",
    "Dense",
    "DepthwiseConv1D",
    "DepthwiseConv2D",
    "Discretization",
    "Divide",
    "Dot",
    "Dropout",
    "Embedding",
    "Flatten",
    "GaussianDropout",
    "GaussianNoise",
    "GlobalAveragePooling1D",
    "GlobalAveragePooling2D",
    "GlobalAvgPool1D",
    "GlobalAvgPool2D",
    "GlobalMaxPool1D",
    "GlobalMaxPool2D",
    "GlobalMaxPooling1D",
    "GlobalMaxPooling2D",
    "GroupNormalization",
    "Identity",
    "Input",
    "InputLayer",
    "IntegerLookup",
    "Item",
    "Lambda",
    "Layer",
    "LayerNormalization",
    "LeakyReLU",
    "Masking",
    "MaxPool1D",
    "MaxPool2D",
    "MaxPooling1D",
    "MaxPooling2D",
    "Maximum",
    "Minimum",
    "MultiHeadAttention",
    "Multiply",
    "Normalization",
    "PReLU",
    "Permute",
    "PositionEmbedding",
    "RMSNormalization",
    "RandomBrightness",
    "RandomContrast",
    "RandomCrop",
    "RandomFlip",
    "RandomRotation",
    "RandomTranslation",
    "RandomZoom",
    "ReLU",
    "RepeatVector",
    "Rescaling",
    "Reshape",
    "Residual",
    "Resizing",
    "SeparableConv1D",
    "SeparableConv2D",
    "SeparableConvolution1D",
    "SeparableConvolution2D",
    "SimpleRNN",
    "Softmax",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "StringLookup",
    "Subtract",
    "SwiGLU",
    "TextVectorization",
    "TiedHead",
    "TimeDistributed",
    "TransformerBlock",
    "UnitNormalization",
    "UpSampling1D",
    "UpSampling2D",
    "ZeroPadding1D",
    "ZeroPadding2D",
    "add",
    "average",
    "concatenate",
    "dot",
    "maximum",
    "minimum",
    "multiply",
    "subtract",
]
