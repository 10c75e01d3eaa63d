"""Layers by Keras' names."""

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
from fastserve.layers.chain import Chain, Residual
from fastserve.layers.dense import Activation, Dense
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
from fastserve.layers.lookup import IntegerLookup, StringLookup
from fastserve.layers.merging import Add, Concatenate
from fastserve.layers.normalization import (
    LayerNormalization,
    RMSNormalization,
    UnitNormalization,
)
from fastserve.layers.preprocessing import (
    CategoryEncoding,
    Discretization,
    Normalization,
    Rescaling,
)
from fastserve.layers.recurrent import GRU, LSTM, SimpleRNN
from fastserve.layers.shapes import Flatten, Input, Reshape
from fastserve.layers.text import TextVectorization

__all__ = [
    "ELU",
    "GRU",
    "LSTM",
    "Activation",
    "Add",
    "AlphaDropout",
    "BatchNormalization",
    "CategoryEncoding",
    "CenterCrop",
    "Chain",
    "Concatenate",
    "Dense",
    "Discretization",
    "Dropout",
    "Embedding",
    "Flatten",
    "GaussianDropout",
    "GaussianNoise",
    "GroupNormalization",
    "Input",
    "IntegerLookup",
    "Layer",
    "LayerNormalization",
    "LeakyReLU",
    "MultiHeadAttention",
    "Normalization",
    "PReLU",
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
    "Rescaling",
    "Reshape",
    "Residual",
    "Resizing",
    "SimpleRNN",
    "Softmax",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "StringLookup",
    "SwiGLU",
    "TextVectorization",
    "TiedHead",
    "TransformerBlock",
    "UnitNormalization",
]
