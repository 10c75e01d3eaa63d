"""Layers by Keras' names."""

from fastserve.core.layer import Layer
from fastserve.layers.attention import MultiHeadAttention, TransformerBlock
from fastserve.layers.batch_normalization import BatchNormalization
from fastserve.layers.chain import Chain, Residual
from fastserve.layers.dense import Activation, Dense
from fastserve.layers.dropout import Dropout
from fastserve.layers.embedding import Embedding, PositionEmbedding, TiedHead
from fastserve.layers.gated import SwiGLU
from fastserve.layers.lambdas import Affine, Identity, Item, Lambda
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
from fastserve.layers.normalization import LayerNormalization, RMSNormalization
from fastserve.layers.recurrent import GRU, LSTM, SimpleRNN
from fastserve.layers.shapes import Flatten, Input, InputLayer, Reshape

__all__ = [
    "GRU",
    "LSTM",
    "Activation",
    "Add",
    "Affine",
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
    "Identity",
    "Input",
    "InputLayer",
    "Item",
    "Lambda",
    "Layer",
    "LayerNormalization",
    "Maximum",
    "Minimum",
    "MultiHeadAttention",
    "Multiply",
    "PositionEmbedding",
    "RMSNormalization",
    "Reshape",
    "Residual",
    "SimpleRNN",
    "Subtract",
    "SwiGLU",
    "TiedHead",
    "TransformerBlock",
    "add",
    "average",
    "concatenate",
    "dot",
    "maximum",
    "minimum",
    "multiply",
    "subtract",
]
