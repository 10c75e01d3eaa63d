"""The ``config.json`` of Hugging Face's folders, and the options of ``GPT``.

Two architectures: GPT2LMHeadModel and LlamaForCausalLM. Every key of a ``config.json``
is either taken over, or has no influence on what a trained model computes, or must have
the one value that we can do; else the folder is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

CONFIG = "config.json"
GPT2, LLAMA = "GPT2LMHeadModel", "LlamaForCausalLM"
MAX_SIZE = 10**9  # of a number in a config.json
_MODEL_TYPES = {"gpt2": GPT2, "llama": LLAMA}
_TANH_GELUS = ("gelu_new", "gelu_pytorch_tanh")

# without influence on the logits, in any architecture
_NO_INFLUENCE = """
architectures model_type transformers_version _name_or_path name_or_path dtype
torch_dtype use_cache use_return_dict return_dict output_hidden_states
output_attentions torchscript tf_legacy_loss use_bfloat16 finetuning_task id2label
label2id tokenizer_class prefix bos_token_id eos_token_id pad_token_id sep_token_id
unk_token_id decoder_start_token_id task_specific_params problem_type
initializer_range attn_implementation _attn_implementation
_attn_implementation_autoset chunk_size_feed_forward gradient_checkpointing auto_map
max_length min_length max_new_tokens do_sample early_stopping num_beams
num_beam_groups diversity_penalty temperature top_k top_p typical_p
repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size
bad_words_ids num_return_sequences output_scores return_dict_in_generate
forced_bos_token_id forced_eos_token_id remove_invalid_values
exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
"""
_GPT2_NO_INFLUENCE = """
n_ctx reorder_and_upcast_attn summary_activation summary_first_dropout
summary_proj_to_labels summary_type summary_use_proj n_special
predict_special_tokens
"""


def read_options(
    folder: str | Path, dropout: float | None = None, block_size: int | None = None
) -> dict[str, Any]:
    """Return the options of ``GPT`` for the model of a folder.

    Args:
        dropout: instead of the folder's own.
        block_size: a shorter context than the folder's.

    Raises:
        CheckpointError: there is no such folder, no config.json in it, or one of
            another architecture, or with options that can't be had here.
    """
    config = _Config(Path(folder))
    options = config.gpt2() if config.architecture == GPT2 else config.llama()
    config.refuse_unknown()
    if dropout is not None:
        options["dropout"] = dropout
    elif options["dropout"] is None:
        raise config.fault(
            "one rate of dropout for attention weights, residuals and embeddings",
            json.dumps(config.rates),
            "give the rate to train with: dropout=0.1, or model.dropout in a job",
        )
    if block_size is not None:
        if not 1 <= block_size <= options["block_size"]:
            raise config.fault(
                f"a block_size from 1 to the folder's {options['block_size']}",
                str(block_size),
                "leave it out, or give a smaller one",
            )
        options["block_size"] = block_size
    return options


class _Config:
    """A config.json, and which of its keys have been looked at."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / CONFIG
        self.values = self._read(folder)
        self.known = set(_NO_INFLUENCE.split())
        self.rates: dict[str, float] = {}
        self.architecture = self._architecture()

    def fault(self, expected: str, received: str, todo: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: expected {expected}", received, todo)

    def _read(self, folder: Path) -> dict[str, Any]:
        if not self.path.is_file():
            run = (folder / "config.yaml").is_file()
            raise CheckpointError(
                "expected a folder with config.json and model.safetensors, as Hugging "
                "Face's libraries write it",
                f"{folder}, "
                + ("the folder of a run" if run else "")
                + ("which is not there" if not folder.exists() else "")
                + ("without a config.json" if folder.exists() and not run else ""),
                f"write one: fastserve export {folder} --to DIR"
                if run
                else "check the path",
            )
        try:
            values = json.loads(self.path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise self.fault("JSON", str(error), "fetch the folder again") from None
        if not isinstance(values, dict):
            what = type(values).__name__
            raise self.fault("an object of keys", what, "fetch the folder again")
        return values

    def _architecture(self) -> str:
        named = self.values.get("architectures")
        kind = self.values.get("model_type")
        found = _MODEL_TYPES.get(str(kind)) if not named else None
        if isinstance(named, list) and len(named) == 1 and named[0] in (GPT2, LLAMA):
            found = named[0]
        if found is None or kind not in (None, _type_of(found)):
            raise self.fault(
                f"the architecture {GPT2} or {LLAMA}",
                f"architectures {json.dumps(named)}, model_type {json.dumps(kind)}",
                "only GPT-2 and Llama can be loaded",
            )
        return found

    # -- keys ------------------------------------------------------------------------

    def get(self, key: str, default: Any = None) -> Any:
        self.known.add(key)
        value = self.values.get(key)
        return default if value is None else value

    def count(self, key: str, default: int | None = None) -> int:
        value = self.get(key, default)
        if type(value) is not int or not 1 <= value <= MAX_SIZE:
            raise self.fault(
                f"{key} to be an integer from 1 to {MAX_SIZE:,}",
                json.dumps(value),
                "check the folder",
            )
        return value

    def number(self, key: str, default: float) -> float:
        return self._number(key, self.get(key, default))

    def _number(self, key: str, value: Any) -> float:
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise self.fault(
                f"{key} to be a number above 0", json.dumps(value), "check the folder"
            )
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.fault(f"{key} to be true or false", json.dumps(value), "fix it")
        return value

    def only(self, key: str, *accepted: Any) -> None:
        """Refuse another value than the first, which is the default, or the others."""
        value = self.get(key, accepted[0])
        if value not in accepted:
            wanted = " or ".join(json.dumps(a) for a in accepted)
            raise self.fault(f"{key} {wanted}", json.dumps(value), _CANNOT)

    def dropout(self, **defaults: float) -> float | None:
        """Return the one rate of these keys; None if they differ."""
        for key, default in defaults.items():
            value = self.get(key, default)
            if type(value) not in (int, float) or not 0 <= value < 1:
                raise self.fault(
                    f"{key} from 0 to below 1", json.dumps(value), "check the folder"
                )
            self.rates[key] = value
        rates = set(self.rates.values())
        return float(rates.pop()) if len(rates) == 1 else None

    def refuse_unknown(self) -> None:
        others = {
            key: value
            for key, value in self.values.items()
            if key not in self.known and value not in (None, False, [], {}, "")
        }
        if others:
            raise self.fault(
                f"only keys that are known for {self.architecture}",
                json.dumps(others)[:200],
                "if they have no influence on the logits, remove them from the file",
            )

    # -- architectures ---------------------------------------------------------------

    def gpt2(self) -> dict[str, Any]:
        self.known |= set(_GPT2_NO_INFLUENCE.split())
        self.only("activation_function", *_TANH_GELUS)
        self.only("scale_attn_weights", True)
        self.only("scale_attn_by_inverse_layer_idx", False)
        self.only("add_cross_attention", False)
        width = self.count("n_embd")
        return {
            "vocab_size": self.count("vocab_size"),
            "block_size": self.count("n_positions"),
            "n_layer": self.count("n_layer"),
            "n_head": self.count("n_head"),
            "n_embd": width,
            "dropout": self.dropout(attn_pdrop=0.1, embd_pdrop=0.1, resid_pdrop=0.1),
            "variant": "gpt2",
            "n_kv_head": self.count("n_head"),
            "ff_dim": self.count("n_inner", 4 * width),
            "positions": "learned",
            "norm": "layer",
            "mlp": "gelu",
            "bias": True,
            "tied": self.flag("tie_word_embeddings", True),
            "epsilon": self.number("layer_norm_epsilon", 1e-5),
            "rope_theta": 10000.0,
        }

    def llama(self) -> dict[str, Any]:
        self.known.add("pretraining_tp")
        self.only("hidden_act", "silu", "swish")
        self.only("attention_bias", False)
        self.only("mlp_bias", False)
        self.only("partial_rotary_factor", 1.0)
        width, heads = self.count("hidden_size"), self.count("num_attention_heads")
        self.only("head_dim", width // heads)
        # Llama drops attention weights alone, and GPT in all places or none
        rate = self.dropout(attention_dropout=0.0)
        return {
            "vocab_size": self.count("vocab_size"),
            "block_size": self.count("max_position_embeddings", 2048),
            "n_layer": self.count("num_hidden_layers"),
            "n_head": heads,
            "n_embd": width,
            "dropout": 0.0 if rate == 0 else None,
            "variant": "llama",
            "n_kv_head": self.count("num_key_value_heads", heads),
            "ff_dim": self.count("intermediate_size"),
            "positions": "rotary",
            "norm": "rms",
            "mlp": "swiglu",
            "bias": False,
            "tied": self.flag("tie_word_embeddings", False),
            "epsilon": self.number("rms_norm_eps", 1e-6),
            "rope_theta": self._rope_theta(),
        }

    def _rope_theta(self) -> float:
        """Return the base; its place depends on the version of transformers."""
        theta = self.number("rope_theta", 10000.0)
        for key in ("rope_scaling", "rope_parameters"):
            found = self.get(key)
            if found is None:
                continue
            rest = dict(found) if isinstance(found, dict) else {"": found}
            kinds = {rest.pop(k, "default") for k in ("rope_type", "type")}
            theta = self._number(f"{key}.rope_theta", rest.pop("rope_theta", theta))
            if rest.get("partial_rotary_factor") == 1.0:
                del rest["partial_rotary_factor"]
            if kinds != {"default"} or rest:
                raise self.fault(
                    f"{key} null or of rope_type 'default'", json.dumps(found), _CANNOT
                )
        return theta


_CANNOT = "this option can't be had: take another model"


def _type_of(architecture: str) -> str:
    return next(t for t, name in _MODEL_TYPES.items() if name == architecture)


def make_config(options: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Return the config.json for a GPT with these options, all of them resolved.

    Raises:
        CheckpointError: neither architecture has this combination of options.
    """
    o = options
    common = {
        "dtype": dtype,
        "torch_dtype": dtype,  # its name before transformers 5
        "vocab_size": o["vocab_size"],
        "tie_word_embeddings": o["tied"],
        "bos_token_id": None,
        "eos_token_id": None,
        "use_cache": True,
    }
    if _has(o, "learned", "layer", "gelu", True) and o["n_kv_head"] == o["n_head"]:
        rates = ("attn_pdrop", "embd_pdrop", "resid_pdrop")
        return {
            "architectures": [GPT2],
            "model_type": "gpt2",
            "activation_function": "gelu_new",
            "n_positions": o["block_size"],
            "n_layer": o["n_layer"],
            "n_head": o["n_head"],
            "n_embd": o["n_embd"],
            "n_inner": o["ff_dim"],
            "layer_norm_epsilon": o["epsilon"],
            **dict.fromkeys(rates, o["dropout"]),
            **common,
        }
    if _has(o, "rotary", "rms", "swiglu", False):
        return {
            "architectures": [LLAMA],
            "model_type": "llama",
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "max_position_embeddings": o["block_size"],
            "num_hidden_layers": o["n_layer"],
            "num_attention_heads": o["n_head"],
            "num_key_value_heads": o["n_kv_head"],
            "head_dim": o["n_embd"] // o["n_head"],
            "hidden_size": o["n_embd"],
            "intermediate_size": o["ff_dim"],
            "rms_norm_eps": o["epsilon"],
            "rope_theta": o["rope_theta"],
            "rope_scaling": None,
            "attention_dropout": 0.0,
            **common,
        }
    keys = ("positions", "norm", "mlp", "bias", "n_head", "n_kv_head")
    raise CheckpointError(
        "expected a model with the options of variant gpt2 or of variant llama, which "
        "Hugging Face's classes have",
        ", ".join(f"{key} {o[key]}" for key in keys),
        "other combinations can't be exported: keep it as a run",
    )


def _has(o: Mapping[str, Any], *wanted: Any) -> bool:
    return (o["positions"], o["norm"], o["mlp"], o["bias"]) == wanted
