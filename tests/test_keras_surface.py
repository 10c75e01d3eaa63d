"""Keras 3's names and arguments: here too, or left out for a reason that is told.

``python tests/test_keras_surface.py`` prints what differs.
"""

from __future__ import annotations

import ast
import fnmatch
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fastserve as fs

SURFACE: dict[str, Any] = json.loads(
    Path(__file__).with_name("references").joinpath("keras_surface.json").read_text()
)
del SURFACE["keras"]

# patterns of GROUP.NAME -> why it isn't here
LEFT_OUT = {
    "layers.*3D": "volumes aren't a use here",
    "layers.*3DTranspose": "volumes aren't a use here",
    "layers.ConvLSTM*": "videos aren't a use here",
    "layers.*Cell": "recurrent layers aren't composed of cells",
    "layers.StackedRNNCells": "recurrent layers aren't composed of cells",
    "layers.RNN": "recurrent layers aren't composed of cells",
    "layers.ActivityRegularization": "losses come from outputs and weights alone",
    "layers.Adaptive*Pooling*": "of PyTorch's users; GlobalAveragePooling covers most",
    "layers.*Spectrogram": "audio isn't a use here",
    "layers.FlaxLayer": "of another framework",
    "layers.JaxLayer": "of another framework",
    "layers.TFSMLayer": "of another framework",
    "layers.TorchModuleWrapper": "of another framework",
    "layers.Wrapper": "a base class for wrappers; Layer serves",
    "layers.GroupQueryAttention": "MultiHeadAttention(num_kv_heads=...)",
    "layers.ReversibleEmbedding": "GPT(tied=True)",
    "layers.EinsumDense": "Dense, Reshape and Permute cover it",
    "layers.SpectralNormalization": "of generative adversarial networks",
    "layers.HashedCrossing": "feature engineering",
    "layers.Hashing": "feature engineering",
    "layers.AugMix": "rarely used augmentation",
    "layers.AutoContrast": "rarely used augmentation",
    "layers.ContrastLimited*": "rarely used augmentation",
    "layers.CutMix": "mixes targets too",
    "layers.MixUp": "mixes targets too",
    "layers.Equalization": "rarely used augmentation",
    "layers.MaxNumBoundingBoxes": "boxes aren't a use here",
    "layers.Pipeline": "Sequential does this",
    "layers.RandAugment": "rarely used augmentation",
    "layers.RandomColor*": "rarely used augmentation",
    "layers.RandomElasticTransform": "rarely used augmentation",
    "layers.RandomErasing": "rarely used augmentation",
    "layers.RandomGaussianBlur": "rarely used augmentation",
    "layers.RandomGrayscale": "rarely used augmentation",
    "layers.RandomHue": "rarely used augmentation",
    "layers.RandomInvert": "rarely used augmentation",
    "layers.RandomPerspective": "rarely used augmentation",
    "layers.RandomPosterization": "rarely used augmentation",
    "layers.RandomSaturation": "rarely used augmentation",
    "layers.RandomSharpness": "rarely used augmentation",
    "layers.RandomShear": "rarely used augmentation",
    "layers.Solarization": "rarely used augmentation",
    "losses.CategoricalGeneralizedCrossEntropy": "rarely used",
    "losses.Circle": "of metric learning",
    "optimizers.Adafactor": "matrices only; the optimizers here work on flat vectors",
    "optimizers.LossScaleOptimizer": "of half precision",
    "optimizers.MultiOptimizer": "one optimizer trains all weights",
    "optimizers.Muon": "matrices only; the optimizers here work on flat vectors",
    "optimizers.ScheduleFreeAdamW": "rarely used",
    "callbacks.SwapEMAWeights": "fit ends with optimizer.finalize(), as in Keras",
    "callbacks.OrbaxCheckpoint": "of another framework",
    "callbacks.ProgbarLogger": "verbose=1 shows progress",
    "callbacks.RemoteMonitor": "needs a server and another package",
    "initializers.STFT*": "audio isn't a use here",
    "initializers.?*Initializer": "another name of what has a shorter one",
    "activations.glu": "its output has another shape",
}
# here, but not for users, or of another kind
OWN = (
    "callbacks.CallbackList",
    "layers.InputLayer",
    "layers.Layer",
    "losses.Loss",
    "metrics.MeanMetricWrapper",
    "model.trainable",
)
# patterns of GROUP.NAME(ARGUMENT) -> why the argument isn't there
LEFT_OUT_ARGUMENTS = {
    "layers.*(activity_regularizer)": "losses come from outputs and weights alone",
    "layers.*(lora_*)": "an adapter is added with LoRA",
    "layers.*(quantization_config)": "there is no quantization",
    "layers.*(use_cudnn)": "of GPUs",
    "layers.*(unroll)": "there is no graph to unroll",
    "layers.*(flash_attention)": "attention always runs in tiles",
    "layers.BatchNormalization(renorm*)": "rarely used",
    "layers.Embedding(weights)": "set_weights after the model is built",
    "layers.*(dtype)": "the model has one type",
    "*(dtype)": "float32; sums of metrics are float64",
    "losses.*(reduction)": "losses are sums over the batch, divided once by its size",
    "optimizers.*(loss_scale_factor)": "of half precision",
    "optimizers.*(gradient_accumulation_steps)": "fit's batch is cut by micro_batch",
    "callbacks.TensorBoard(*embeddings*)": "its projector isn't fed",
    "callbacks.TensorBoard(profile_batch)": "there is no profiler",
    "callbacks.TensorBoard(write_graph)": "there is no graph to draw",
    "callbacks.TensorBoard(write_images)": "weights as images are rarely of use",
    "initializers.*(input_axes)": "the last axis of a kernel is its output",
    "initializers.*(output_axes)": "the last axis of a kernel is its output",
    "layers.Bidirectional(weights)": "set_weights after the model is built",
    "layers.MultiHeadAttention(attention_axes)": "attention is over time",
    "layers.TextVectorization(ragged)": "arrays here aren't ragged",
    "layers.*(sparse)": "arrays here aren't sparse",
    "layers.IntegerLookup(oov_method)": "unknown numbers aren't hashed",
    "layers.*Lookup(salt)": "unknown words aren't hashed",
    "layers.MultiHeadAttention(sliding_window)": "rarely used",
    "layers.MultiHeadAttention(use_gate)": "rarely used",
    "layers.Layer(autocast)": "of half precision",
    "metrics.*TopK*(from_sorted_ids)": "of recommenders",
    "metrics.SparseCategoricalCrossentropy(ignore_class)": "the loss has it",
    "model.add(rebuild)": "a model is built once it knows its input",
    "model.pop(rebuild)": "a model is built once it knows its input",
    "model.compile(jit_compile)": "nothing is compiled",
    "model.compile(run_eagerly)": "all runs eagerly",
    "model.compile(steps_per_execution)": "all runs eagerly",
    "model.compile(auto_scale_loss)": "of half precision",
    "model.save_weights(max_shard_size)": "weights are one file",
    "models.clone_model(*input_tensors)": "a clone has inputs of its own",
    "models.clone_model(*function)": "change what get_config returns",
    "models.clone_model(recursive)": "it always is",
    "model.summary(line_length)": "the table is as wide as it has to be",
    "model.summary(positions)": "the table is as wide as it has to be",
    "model.summary(layer_range)": "all layers are shown",
    "model.save(zipped)": "a model is a folder",
    "model.from_config(custom_objects)": "classes come by import, not by a registry",
    "models.*(custom_objects)": "classes come by import, not by a registry",
    "models.load_model(safe_mode)": "nothing that is loaded is run",
    "models.load_model(compile)": "load_model never compiles",
}
# GROUP.NAME(ARGUMENT) -> our default, and why it differs from Keras'
OTHER_DEFAULTS: dict[str, tuple[str, str]] = {
    "layers.CategoryEncoding(num_tokens)": ("required", "it isn't learned"),
    "layers.Embedding(embeddings_initializer)": (
        "'random_uniform'",
        "the same by its other name",
    ),
    "layers.PReLU(alpha_initializer)": ("'zeros'", "the same by its other name"),
    "model.build(input_shape)": ("required", "there is nothing to do without it"),
    "model.evaluate(batch_size)": ("32", "what Keras' None means"),
    "model.evaluate(x)": ("required", "there is nothing to do without it"),
    "model.fit(batch_size)": ("32", "what Keras' None means"),
    "model.fit(x)": ("required", "there is nothing to do without it"),
    "model.test_on_batch(y)": ("required", "there is no loss without it"),
    "model.train_on_batch(y)": ("required", "there is no loss without it"),
}


def left_out(key: str, table: dict[str, str]) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in table)


def place(group: str) -> Any:
    """Return what holds a group's names."""
    if group == "model":
        return fs.Sequential
    return getattr(fs, group, None)


def arguments(found: Any) -> dict[str, inspect.Parameter]:
    """Return the arguments of a function, or of a class with those of its bases."""
    functions = [found]
    if isinstance(found, type):
        functions = [
            vars(c)["__init__"] for c in found.__mro__ if "__init__" in vars(c)
        ]
        functions.remove(object.__init__)
    named: dict[str, inspect.Parameter] = {}
    for function in functions:
        parameters = inspect.signature(function).parameters.values()
        for p in parameters:
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name != "self":
                named.setdefault(p.name, p)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return named


def differences(group: str, name: str) -> Iterator[str]:
    """Yield how our NAME differs from Keras'."""
    key = f"{group}.{name}"
    found = getattr(place(group), name, None)
    if key in OWN:
        return
    if left_out(key, LEFT_OUT):
        if found is not None:
            yield f"{key}: it is here, so it isn't left out"
        return
    if found is None:
        yield f"{key}: missing"
        return
    wanted = SURFACE[group][name]
    if isinstance(found, property) or not callable(found) or not wanted:
        return
    ours = arguments(found)
    missing = [
        a
        for a in wanted
        if a not in ours and not left_out(f"{key}({a})", LEFT_OUT_ARGUMENTS)
    ]
    if missing:
        yield f"{key}: missing arguments {', '.join(missing)}"
    for argument, default in wanted.items():
        if argument in ours:
            yield from _default(f"{key}({argument})", default, ours[argument])
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.KEYWORD_ONLY)
    order = [a for a in ours if a in wanted and ours[a].kind not in positional]
    if order != sorted(order, key=list(wanted).index):
        theirs = [a for a in wanted if a in order]
        yield f"{key}: order {', '.join(order)}; Keras': {', '.join(theirs)}"


def _default(key: str, default: str, ours: inspect.Parameter) -> Iterator[str]:
    own = "required" if ours.default is ours.empty else repr(ours.default)
    if key.endswith("(name)") and own == "None":
        return  # it comes from the class then
    if key in OTHER_DEFAULTS:
        if own != OTHER_DEFAULTS[key][0]:
            yield f"{key}: default {own}, told {OTHER_DEFAULTS[key][0]}"
    elif not _same(own, default):
        yield f"{key}: default {own}, Keras' {default}"


def _same(own: str, default: str) -> bool:
    if default == "required" or {own, default} == {"()", "None"}:
        return True  # a program for Keras gets the same
    try:
        mine, theirs = ast.literal_eval(own), ast.literal_eval(default)
    except ValueError:
        return own == default
    if isinstance(theirs, tuple) and not isinstance(mine, tuple):
        return bool(theirs) and all(n == mine for n in theirs)  # 2 is (2, 2)
    return bool(mine == theirs)


@pytest.mark.parametrize("group", SURFACE)
def test_as_in_keras(group: str) -> None:
    found = [text for name in SURFACE[group] for text in differences(group, name)]
    assert not found, "\n".join(found)


def test_what_is_left_out_exists_in_keras() -> None:
    names = [f"{group}.{name}" for group in SURFACE for name in SURFACE[group]]
    unknown = [p for p in LEFT_OUT if not fnmatch.filter(names, p)]
    assert not unknown
    named = [
        f"{group}.{name}({argument})"
        for group in SURFACE
        for name in SURFACE[group]
        for argument in SURFACE[group][name]
    ]
    keys = [*LEFT_OUT_ARGUMENTS, *OTHER_DEFAULTS]
    assert not [p for p in keys if p not in named and not fnmatch.filter(named, p)]


if __name__ == "__main__":
    for group in SURFACE:
        for name in SURFACE[group]:
            for text in differences(group, name):
                print(text)
