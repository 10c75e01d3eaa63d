"""Models that Keras and fastserve make by the same lines, with inputs for them."""

import numpy as np


def rows(*shape):
    return np.random.default_rng(3).uniform(-1, 1, shape).astype(np.float32)


def text(k):
    L = k.layers
    model = k.Sequential(
        [
            k.Input((6,)),
            L.Embedding(7, 3),
            L.Bidirectional(L.LSTM(2, return_sequences=True)),
            L.GRU(3, return_sequences=True),
            L.LayerNormalization(),
            L.TimeDistributed(L.Dense(2)),
            L.SimpleRNN(2),
            L.Dense(4, activation="relu"),
            L.Dropout(0.5),
            L.Dense(2),
        ]
    )
    return model, np.random.default_rng(3).integers(0, 7, (4, 6))


def image(k):
    L = k.layers
    model = k.Sequential(
        [
            k.Input((8, 8, 2)),
            L.Conv2D(3, 3),
            L.BatchNormalization(),
            L.SeparableConv2D(2, 2),
            L.DepthwiseConv2D(2),
            L.Conv2DTranspose(2, 2),
            L.GroupNormalization(1),
            L.GlobalAveragePooling2D(),
            L.Dense(2),
        ]
    )
    return model, rows(4, 8, 8, 2)


def nested(k):
    L = k.layers
    shared = k.Sequential([k.Input((3,)), L.Dense(3), L.PReLU()])
    one, two = k.Input((3,)), k.Input((3,))
    inner = k.Model(one, L.Dense(2, use_bias=False)(shared(one)))
    merged = L.Concatenate()([inner(two), L.Dense(2, name="mine")(shared(two))])
    return k.Model(two, L.Dense(2)(merged)), rows(4, 3)


def convolutions(k):
    L = k.layers
    model = k.Sequential(
        [k.Input((9, 2)), L.Conv1D(3, 2), L.Conv1D(2, 3), L.Flatten(), L.Dense(2)]
    )
    return model, rows(4, 9, 2)


MODELS = {
    "text": text,
    "image": image,
    "nested": nested,
    "convolutions": convolutions,
}
