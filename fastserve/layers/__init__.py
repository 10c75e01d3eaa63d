"""Layers by Keras' names."""

from fastserve.core.layer import Layer
from fastserve.layers.activations import ELU, LeakyReLU, PReLU, ReLU, Softmax
from fastserve.layers.attention import MultiHeadAttention, TransformerBlock
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
from fastserve.layers.recurrent import GRU, LSTM, SimpleRNN
from fastserve.layers.shapes import Flatten, Input, InputLayer, Reshape
from fastserve.layers.text import TextVectorization

__all__ = [
    "ELU",
    "GRU",
    "LSTM",
    "Activation",
    "Add",
    "Affine",
    "AlphaDropout",
    "Average",
    "BatchNormalization",
    "Chain",
    "Concatenate",
    "Dense",
    "Divide",
    "Dot",
    "Dropout",
    "Embedding",
    "Flatten",
    "GaussianDropout",
    "GaussianNoise",
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
    "Maximum",
    "Minimum",
    "MultiHeadAttention",
    "Multiply",
    "PReLU",
    "PositionEmbedding",
    "RMSNormalization",
    "ReLU",
    "Reshape",
    "Residual",
    "SimpleRNN",
    "Softmax",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "StringLookup",
    "Subtract",
    "SwiGLU",
    "TextVectorization",
    "TiedHead",
    "TransformerBlock",
    "UnitNormalization",
    "add",
    "average",
    "concatenate",
    "dot",
    "maximum",
    "minimum",
    "multiply",
    "subtract",
]
