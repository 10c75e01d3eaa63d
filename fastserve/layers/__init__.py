"""Layers by Keras' names."""

from fastserve.core.layer import Layer
from fastserve.layers.attention import MultiHeadAttention, TransformerBlock
from fastserve.layers.batch_normalization import BatchNormalization
from fastserve.layers.chain import Chain, Residual
from fastserve.layers.dense import Activation, Dense
from fastserve.layers.dropout import Dropout
from fastserve.layers.embedding import Embedding, PositionEmbedding, TiedHead
from fastserve.layers.gated import SwiGLU
from fastserve.layers.merging import Add, Concatenate
from fastserve.layers.normalization import LayerNormalization, RMSNormalization
from fastserve.layers.recurrent import GRU, LSTM, SimpleRNN
from fastserve.layers.shapes import Flatten, Input, Reshape

__all__ = [
    "GRU",
    "LSTM",
    "Activation",
    "Add",
    "BatchNormalization",
    "Chain",
    "Concatenate",
    "Dense",
    "Dropout",
    "Embedding",
    "Flatten",
    "Input",
    "Layer",
    "LayerNormalization",
    "MultiHeadAttention",
    "PositionEmbedding",
    "RMSNormalization",
    "Reshape",
    "Residual",
    "SimpleRNN",
    "SwiGLU",
    "TiedHead",
    "TransformerBlock",
]
