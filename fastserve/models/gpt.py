"""GPT: a language model of causal transformer blocks, each with its norm first.

``gpt2``: Radford et al., "Language models are unsupervised multitask learners", 2019:
learned positions, layer norm, GELU in its tanh form, biases, a head that is tied to the
token embedding. ``llama``: Touvron et al., "LLaMA", 2023: rotary positions, RMS norm,
SwiGLU, no biases, a head of its own. In both the initial weights of the projections
onto the residual stream are scaled by 1 / sqrt(2 x layers), as in GPT-2.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastserve.comm import world
from fastserve.core import Layer
from fastserve.core.initializers import RandomNormal
from fastserve.errors import CheckpointError, StateError
from fastserve.layers import (
    Chain,
    Dense,
    Dropout,
    Embedding,
    PositionEmbedding,
    TiedHead,
    TransformerBlock,
)
from fastserve.layers.attention import make_norm
from fastserve.layers.documents import Documents
from fastserve.layers.lora import add_lora, merge_lora
from fastserve.losses import SparseCategoricalCrossentropy
from fastserve.models import generation, gpt_options
from fastserve.models.model import Model
from fastserve.training import checkpoint

INITIAL_STDDEV = 0.02


class GPT(Model):
    """Tokens (batch, time) -> logits of the next token (batch, time, vocab_size).

    Args:
        vocab_size: number of different tokens.
        block_size: longest context, in tokens.
        n_layer, n_head: transformer blocks, and heads of attention in each of them.
        n_embd: width; ``n_head`` must divide it.
        dropout: share dropped of the embedding, of the attention's weights, and of
            what each part adds to the residual stream.
        seed: determines the initial weights, the order of samples and dropout; None:
            that of ``utils.set_random_seed``, or 0.
        dtype: 'float32' or 'float64', in which all is computed.
        variant: 'gpt2' or 'llama'; it gives the options below that are None.
        n_kv_head: heads of keys and values, a divisor of n_head; by default n_head.
        ff_dim: width of the MLP's hidden layer; by default 4 x n_embd, with swiglu
            8/3 x n_embd rounded up to a multiple of 64.
        positions: 'learned', or 'rotary', which needs an even n_embd / n_head.
        norm: 'layer' or 'rms'.
        mlp: 'gelu' (its tanh form) or 'swiglu'.
        bias: whether dense layers and layer norms have one; the head never has.
        tied: the head's weights are the token embedding's.
        epsilon: of the norms.
        rope_theta: base of the rotary positions' wavelengths.

    Raises ArgumentError or UnknownNameError for options that can't be.
    """

    def __init__(
        self,
        vocab_size: int,
        block_size: int = 128,
        n_layer: int = 4,
        n_head: int = 4,
        n_embd: int = 128,
        dropout: float = 0.0,
        seed: int | None = None,
        dtype: str = "float32",
        *,
        variant: str = "gpt2",
        n_kv_head: int | None = None,
        ff_dim: int | None = None,
        positions: str | None = None,
        norm: str | None = None,
        mlp: str | None = None,
        bias: bool | None = None,
        tied: bool | None = None,
        epsilon: float = 1e-5,
        rope_theta: float = 10000.0,
    ) -> None:
        given = {
            "vocab_size": vocab_size,
            "block_size": block_size,
            "n_layer": n_layer,
            "n_head": n_head,
            "n_embd": n_embd,
            "dropout": dropout,
            "variant": variant,
            "n_kv_head": n_kv_head,
            "ff_dim": ff_dim,
            "positions": positions,
            "norm": norm,
            "mlp": mlp,
            "bias": bias,
            "tied": tied,
            "epsilon": epsilon,
            "rope_theta": rope_theta,
        }
        self.options_of_gpt = o = gpt_options.resolve(given)
        self.vocab_size: int = o["vocab_size"]
        self.block_size: int = o["block_size"]
        super().__init__(seed=seed, dtype=dtype, root=self._network())
        self.build((self.block_size,))
        self.options_of_lora: dict[str, Any] | None = None

    @property
    def reset_at(self) -> int | None:
        """The end token that attention doesn't look across; None: it sees all."""
        assert isinstance(self.root, Documents)
        return self.root.end

    @reset_at.setter
    def reset_at(self, end: int | None) -> None:
        assert isinstance(self.root, Documents)
        self.root.end = end

    def _network(self) -> Layer:
        o: dict[str, Any] = self.options_of_gpt
        init = RandomNormal(0.0, INITIAL_STDDEV)
        tokens = Embedding(o["vocab_size"], o["n_embd"], init, name="tokens")
        head = (
            TiedHead(tokens, name="head")
            if o["tied"]
            else Dense(o["vocab_size"], None, False, init, name="head")
        )
        positions = (
            [PositionEmbedding(o["block_size"], init, name="positions")]
            if o["positions"] == "learned"
            else []
        )
        return Documents(
            tokens,
            *positions,
            Dropout(o["dropout"], name="dropout"),
            Chain(*(self._block() for _ in range(o["n_layer"])), name="blocks"),
            make_norm(o["norm"], o["epsilon"], o["bias"], name="norm"),
            head,
        )

    def _block(self) -> Layer:
        o: dict[str, Any] = self.options_of_gpt
        residual = INITIAL_STDDEV / math.sqrt(2 * o["n_layer"])
        return TransformerBlock(
            o["n_head"],
            o["ff_dim"],
            o["dropout"],
            activation="gelu_tanh" if o["mlp"] == "gelu" else "swiglu",
            causal=True,
            use_bias=o["bias"],
            epsilon=o["epsilon"],
            kernel_initializer=RandomNormal(0.0, INITIAL_STDDEV),
            residual_initializer=RandomNormal(0.0, residual),
            num_kv_heads=o["n_kv_head"],
            rope_theta=o["rope_theta"] if o["positions"] == "rotary" else None,
            norm=o["norm"],
            norm_bias=o["bias"],
        )

    def compile(
        self,
        optimizer: Any = "adamw",
        loss: Any = None,
        loss_weights: Any = None,
        metrics: str | Sequence[Any] | None = (),
        weighted_metrics: str | Sequence[Any] | None = (),
    ) -> None:
        """As ``Model.compile``; the loss is the cross-entropy of the next token."""
        loss = loss or SparseCategoricalCrossentropy(from_logits=True)
        super().compile(optimizer, loss, loss_weights, metrics, weighted_metrics)

    def generate(
        self,
        prompt: Sequence[int],
        tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> list[int]:
        """Return ``tokens`` new tokens after ``prompt``.

        Each is drawn from softmax(logits / temperature) over the ``top_k`` likeliest
        tokens, and of these the fewest whose probabilities reach ``top_p`` (Holtzman
        et al., 2020). ``temperature`` 0 takes the likeliest. The same seed gives the
        same tokens.

        The context is the last ``block_size`` tokens, of the prompt too. While it has
        room, keys and values are kept and a token costs one pass over the weights.
        Once it is full it moves on by a token each time, which changes what every
        position of it computes, so all of it is computed again for each token.

        Raises DataError for an empty prompt or a token outside of the vocabulary,
        ArgumentError for options outside of their range.
        """
        return generation.generate(
            self, prompt, tokens, temperature, top_k, top_p, seed
        )

    # -- LoRA --------------------------------------------------------------------

    def add_lora(
        self,
        rank: int = 8,
        alpha: float = 16.0,
        targets: Sequence[str] = ("qkv", "output"),
        dropout: float = 0.0,
    ) -> None:
        """Train small corrections of some matrices from now on, and nothing else.

        The formulas are in ``layers/lora.py``; the outputs stay as they are at first.

        Args:
            rank: of the corrections, at most the smaller side of each matrix.
            alpha: a correction is multiplied by alpha / rank.
            targets: the dense layers: qkv, output, expand, contract, gate.
            dropout: share of a correction's inputs that is dropped in training.

        Raises ArgumentError, UnknownNameError, or StateError if there is LoRA already.
        """
        add_lora(self.root, rank, alpha, targets, dropout)
        self.options_of_lora = {
            "rank": int(rank),
            "alpha": float(alpha),
            "targets": list(targets),
            "dropout": float(dropout),
        }
        self._renew_store()

    def merge_lora(self) -> None:
        """Make the corrections a part of the matrices, and train all from now on.

        Raises StateError without LoRA.
        """
        merge_lora(self.root)
        self.options_of_lora = None
        self._renew_store()

    def save_lora(self, path: str | Path) -> None:
        """Write the corrections alone to the file ``path``, with LoRA's options.

        Raises StateError without LoRA.
        """
        if self.options_of_lora is None:
            raise StateError(
                "expected a model with LoRA", "one without", "add it first"
            )
        if world().rank == 0:
            metadata = {"fastserve_lora": json.dumps(self.options_of_lora)}
            checkpoint.save_weights(Path(path), self.store, metadata, trained_only=True)
        world().barrier()

    def load_lora(self, path: str | Path) -> None:
        """Read the file ``path`` that ``save_lora`` wrote.

        Without LoRA in the model, it is added with the file's options.

        Raises CheckpointError if the file is damaged, or is for another model.
        """
        path = Path(path)
        text = checkpoint.read_metadata(path).get("fastserve_lora")
        try:
            options = json.loads(text or "")
            if self.options_of_lora is None:
                self.add_lora(**options)
        except (  # ArgumentError is a ValueError
            *(ArithmeticError, LookupError, TypeError, ValueError, RecursionError),
        ) as error:
            raise CheckpointError(
                "expected a file that save_lora wrote, for a model like this",
                f"{path}: {error}",
                "for a whole model use load_weights",
            ) from None
        if options != self.options_of_lora:
            raise CheckpointError(
                f"{path}: expected LoRA with the model's options, "
                f"{self.options_of_lora}",
                f"{options}",
                "merge the model's first, or load it into the model without LoRA",
            )
        checkpoint.load_weights(path, self.store, trained_only=True)

    def get_config(self) -> dict[str, Any]:
        """Return class, seed, type and options, as JSON types."""
        lora = self.options_of_lora
        return {
            "class": "GPT",
            "seed": self.seed,
            "dtype": self.dtype.name,
            **self.options_of_gpt,
            **({} if lora is None else {"lora": lora}),
        }

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> GPT:
        """Return the model of a folder of Hugging Face's: GPT-2 or Llama.

        ``options`` and errors are those of ``huggingface.load_pretrained``.
        """
        from fastserve.models.huggingface import load_pretrained

        return load_pretrained(folder, **options)

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Write a folder that Hugging Face's ``transformers`` loads.

        ``options`` and errors are those of ``huggingface.save_pretrained``.
        """
        from fastserve.models.huggingface import save_pretrained

        if world().rank == 0:
            save_pretrained(self, folder, **options)
        world().barrier()

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> GPT:
        """Make a model from what ``get_config`` returned; its weights are new."""
        model = cls(**{k: v for k, v in config.items() if k not in ("class", "lora")})
        if "lora" in config:
            model.add_lora(**config["lora"])
        return model
