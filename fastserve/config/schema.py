"""The job's schema: each section of the YAML file is one class, each key one field.

Fields hold what the file says; what needs more than one key to decide is in
``checks.py``. Values are never converted between kinds, with one exception: a number
like ``1e6`` is an integer where an integer is wanted.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.json_schema import GenerateJsonSchema

from .base import (
    Betas,
    Count,
    Duration,
    Factor,
    File,
    Fraction,
    HostEntry,
    Identifier,
    Interface,
    LayerEntry,
    Level,
    Line,
    Memory,
    NamedEntry,
    Natural,
    NotNegative,
    Positive,
    Program,
    RunName,
    Section,
    Seed,
    SpikeFactor,
    SshWord,
    Text,
    Vocabulary,
    Word,
)
from .labelled import Labelled


class Lora(Section):
    """Low-rank corrections of some matrices; all other weights are frozen."""

    rank: Count = Field(default=8, description="Rank of the corrections.")
    alpha: Positive = Field(
        default=16.0, description="A correction is multiplied by alpha / rank."
    )
    targets: list[Literal["qkv", "output", "expand", "contract", "gate"]] = Field(
        default=["qkv", "output"],
        min_length=1,
        description="Matrices of each block that get one; gate: of swiglu alone.",
    )
    dropout: Fraction = Field(
        default=0.0, description="Share of a correction's inputs that is dropped."
    )


class GptModel(Section):
    """A language model of causal transformer blocks, each with its norm first."""

    type: Literal["gpt"] = Field(description="The kind of model.")
    n_layer: Count = Field(default=4, description="Number of transformer blocks.")
    n_head: Count = Field(default=4, description="Attention heads in each block.")
    n_embd: Count = Field(default=128, description="Width; a multiple of n_head.")
    block_size: Count = Field(default=128, description="Longest context, in tokens.")
    dropout: Fraction = Field(default=0.0, description="Share of activations dropped.")
    variant: Literal["gpt2", "llama"] = Field(
        default="gpt2",
        description="Which set of options those below have that are null.",
    )
    n_kv_head: Count | None = Field(
        default=None,
        description="Heads of keys and values, a divisor of n_head; null: n_head.",
    )
    ff_dim: Count | None = Field(
        default=None,
        description="Width of the MLP's hidden layer; null: 4 x n_embd, with swiglu "
        "8/3 x n_embd rounded up to a multiple of 64.",
    )
    positions: Literal["learned", "rotary"] | None = Field(
        default=None,
        description="How positions are told apart; null: learned for gpt2, rotary for "
        "llama.",
    )
    norm: Literal["layer", "rms"] | None = Field(
        default=None,
        description="Kind of normalisation; null: layer for gpt2, rms for llama.",
    )
    mlp: Literal["gelu", "swiglu"] | None = Field(
        default=None,
        description="Kind of MLP; null: gelu for gpt2, swiglu for llama.",
    )
    bias: bool | None = Field(
        default=None,
        description="Whether dense layers and layer norms have biases; null: true for "
        "gpt2, false for llama.",
    )
    tied: bool | None = Field(
        default=None,
        description="Whether the head shares the token embedding's weights; null: true "
        "for gpt2, false for llama.",
    )
    epsilon: Positive = Field(
        default=1e-5, description="What the norms add to the variance."
    )
    rope_theta: Positive = Field(
        default=10000.0, description="Base of the rotary positions' wavelengths."
    )
    lora: Lora | None = Field(
        default=None,
        description="Train low-rank corrections alone; null: train all weights.",
    )
    vocab_size: Count | None = Field(
        default=None, description="Number of different tokens; null: the data's."
    )
    init_from: File | None = Field(
        default=None,
        description="Folder with the weights to start from, in Hugging Face's layout; "
        "the keys above that aren't given are its own. null: random weights.",
    )


class SequentialModel(Section):
    """A stack of layers, one after the other."""

    type: Literal["sequential"] = Field(description="The kind of model.")
    layers: list[LayerEntry] = Field(
        min_length=1,
        description="The layers by their Python names, first to last: a bare name, or "
        "one name with a mapping of its arguments.",
    )
    loss: NamedEntry = Field(
        description="The loss: a name, or one name with a mapping of its arguments."
    )
    metrics: list[NamedEntry] = Field(
        default=[], description="The metrics to show, written like the loss."
    )
    input_shape: list[Count] | None = Field(
        default=None,
        description="Shape of one sample; null: taken from the first batch.",
    )


class PythonModel(Section):
    """A model that a function of the user's own file returns."""

    type: Literal["python"] = Field(description="The kind of model.")
    file: File = Field(description="The Python file, relative to the working folder.")
    function: Identifier = Field(
        default="make_model", description="Function that makes the model."
    )
    arguments: dict[str, Any] = Field(default={}, description="Its keyword arguments.")


class JsonModel(Section):
    """A model whose architecture is in a file that ``model.to_json()`` gave."""

    type: Literal["json"] = Field(description="The kind of model.")
    file: File = Field(description="The JSON file, relative to the working folder.")
    loss: Text | dict[Text, Text] = Field(
        description="Name of the loss; of several outputs a name for each of them."
    )
    metrics: list[Text] | dict[Text, list[Text]] = Field(
        default=[],
        description="Names of the metrics to show; of several outputs a list for each.",
    )
    loss_weights: dict[Text, float] | None = Field(
        default=None, description="Factors of the outputs' losses; null: 1."
    )


ResetAttention = Annotated[
    bool,
    Field(description="Keep documents apart: attention doesn't cross an end token."),
]
EndToken = Annotated[
    Natural | None,
    Field(
        description="Number of the token that ends a document, for reset_attention; "
        "null: the tokenizer's own."
    ),
]


class TextData(Section):
    """Text for a language model."""

    type: Literal["text"] = Field(description="The kind of data.")
    source: File = Field(
        description="A built-in text (pydoc-topics, shakespeare, gcide), or the path "
        "of a UTF-8 text file."
    )
    tokenizer: File = Field(
        default="char",
        description="What a token is: char (a character), byte, bpe (byte pairs, found "
        "in the text), or as a tokenizer.json, or the folder of one, says.",
    )
    vocab_size: Vocabulary | None = Field(
        default=None, description="Most different tokens of bpe, which needs it."
    )
    validation_split: Fraction = Field(
        default=0.1,
        description="Share of the text, at its end, that is only validated on.",
    )
    reset_attention: ResetAttention = False
    end_token: EndToken = None


class TokensData(Section):
    """Token numbers in files that are mapped into memory."""

    type: Literal["tokens"] = Field(description="The kind of data.")
    train: File = Field(
        description="A .npy file, a .bin file of raw uint16 or with llm.c's header, or "
        "a folder that fastserve prepare made."
    )
    validation: File | None = Field(
        default=None, description="The same for validation; null: no validation."
    )
    vocab_size: Level | None = Field(
        default=None,
        description="Number of different tokens; null: the files tell it.",
    )
    reset_attention: ResetAttention = False
    end_token: EndToken = None


class CompletionsData(Section):
    """Prompts and completions to fine-tune a language model on."""

    type: Literal["completions"] = Field(description="The kind of data.")
    file: File = Field(
        description="A JSON Lines file: the texts prompt and completion on each line."
    )
    validation: File | None = Field(
        default=None, description="The same for validation; null: validation_split."
    )
    validation_split: Fraction = Field(
        default=0.1,
        description="Share of the examples, the last of the file, that is only "
        "validated on where there is no validation file.",
    )
    tokenizer: File = Field(
        default="char",
        description="char, byte, or the path of a tokenizer, such as that of a run.",
    )
    end: Text | None = Field(
        default=None,
        min_length=1,
        description="Text of one token that ends a completion; null: the tokenizer's "
        "own end token, or else a new token behind its last.",
    )
    packing: bool = Field(
        default=True, description="Put several examples into a row, kept apart."
    )
    too_long: Literal["refuse", "cut"] = Field(
        default="refuse",
        description="Examples of more than block_size + 1 tokens are an error, or lose "
        "the end of their completion.",
    )


class ArraysData(Section):
    """Arrays in one .npz file, or in .npy files that are mapped into memory."""

    type: Literal["arrays"] = Field(description="The kind of data.")
    file: File | None = Field(
        default=None,
        description="The .npz file with x_train and y_train, and optionally x_val, "
        "y_val, x_test and y_test; null: the .npy files of the keys below.",
    )
    x: File | None = Field(default=None, description=".npy file of the inputs.")
    y: File | None = Field(default=None, description=".npy file of the targets.")
    x_val: File | None = Field(default=None, description="Inputs to validate on.")
    y_val: File | None = Field(default=None, description="Targets to validate on.")
    x_test: File | None = Field(default=None, description="Inputs of the test part.")
    y_test: File | None = Field(default=None, description="Targets of the test part.")
    validation_split: Fraction = Field(
        default=0.0, description="Share of the last training rows used for validation."
    )
    one_hot: Level | None = Field(
        default=None,
        description="Number of classes to one-hot encode y with; null: don't.",
    )
    scale: float = Field(default=1.0, description="Factor that x is multiplied with.")


class PythonData(Section):
    """Data that a function of the user's own file returns."""

    type: Literal["python"] = Field(description="The kind of data.")
    file: File = Field(description="The Python file, relative to the working folder.")
    function: Identifier = Field(
        default="make_data", description="Function that makes the data."
    )
    arguments: dict[str, Any] = Field(default={}, description="Its keyword arguments.")


class Train(Section):
    """How long and in which batches to train; either steps or epochs is required."""

    global_batch: Count = Field(
        default=32, description="Samples in a step, over all ranks together."
    )
    micro_batch: Count | None = Field(
        default=None,
        description="Samples that a rank computes at once; null: its whole share.",
    )
    steps: Count | None = Field(default=None, description="Number of steps to train.")
    epochs: Count | None = Field(
        default=None, description="Passes over the data to train."
    )
    recompute: bool = Field(
        default=False,
        description="Keep only the inputs of a gpt's blocks, and compute the rest "
        "again in the backward pass: less memory, more time.",
    )
    shard_optimizer: bool = Field(
        default=False,
        description="Each rank keeps the optimizer's state of its own part of the "
        "weights alone (ZeRO stage 1): less memory, the same result.",
    )
    clip_norm: Positive | None = Field(
        default=None,
        description="Largest global norm of the gradient; null: no clipping.",
    )
    eval_every: Count | None = Field(
        default=None, description="Steps between validations; null: only at the end."
    )
    eval_batches: Count | None = Field(
        default=None,
        description="Global batches of a validation, always the first ones; null: all.",
    )
    early_stop: Count | None = Field(
        default=None,
        description="Validations without a lower loss after which the job ends as "
        "complete; null: it makes all steps.",
    )
    overfit_batches: Count | None = Field(
        default=None,
        description="Train on so many first batches again and again, and validate on "
        "the same, to find faults; null: on all data.",
    )
    spike_factor: SpikeFactor | None = Field(
        default=None,
        description="Skip steps whose loss exceeds this factor x the median of the 50 "
        "before, or isn't finite; null: skip none, and end when it isn't finite.",
    )
    log_every: Count = Field(default=10, description="Steps between two logged lines.")
    csv: bool = Field(
        default=True, description="Write metrics.csv, the lines of metrics.jsonl."
    )
    tensorboard: bool = Field(
        default=False,
        description="Write them also for TensorBoard, into the folder tensorboard.",
    )
    shuffle: bool = Field(
        default=True, description="Shuffle the samples in every epoch."
    )
    sample_tokens: Natural = Field(
        default=200, description="Tokens of text that a gpt shows at the end; 0: none."
    )
    sample_every: Count | None = Field(
        default=None,
        description="Steps between such texts during training; null: only at the end.",
    )
    baseline: bool = Field(
        default=True,
        description="Show a bigram model's loss beside a gpt's validation loss.",
    )


Decay = Annotated[NotNegative, Field(description="Decay of matrices, not of vectors.")]
Eps = Annotated[Positive, Field(description="Added to the divisor.")]
Moments = Annotated[Betas, Field(description="Memory of both moments.")]
Accumulated = Annotated[
    NotNegative, Field(description="What the sum of squared gradients begins with.")
]
LargestMoment = Annotated[
    bool, Field(description="Divide by the largest second moment so far.")
]


class Sgd(Section):
    """Gradient descent, with or without momentum."""

    type: Literal["sgd"] = Field(description="The kind of optimizer.")
    lr: Positive = Field(default=0.01, description="Learning rate.")
    momentum: Fraction = Field(
        default=0.0, description="Share of the last update kept."
    )
    nesterov: bool = Field(
        default=False, description="Look ahead; needs momentum above 0."
    )
    weight_decay: Decay = 0.0


class RmsProp(Section):
    """RMSprop."""

    type: Literal["rmsprop"] = Field(description="The kind of optimizer.")
    lr: Positive = Field(default=1e-3, description="Learning rate.")
    rho: Fraction = Field(
        default=0.9, description="Memory of the squared gradient's mean."
    )
    momentum: Fraction = Field(
        default=0.0, description="Share of the last update kept."
    )
    eps: Eps = 1e-7
    centered: bool = Field(
        default=False, description="Subtract the square of the gradient's mean."
    )
    weight_decay: Decay = 0.0


class Adam(Section):
    """Adam, without decay of weights."""

    type: Literal["adam"] = Field(description="The kind of optimizer.")
    lr: Positive = Field(default=1e-3, description="Learning rate.")
    betas: Moments = (0.9, 0.999)
    eps: Eps = 1e-8
    amsgrad: LargestMoment = False


class AdamW(Section):
    """Adam with decoupled decay of matrices."""

    type: Literal["adamw"] = Field(description="The kind of optimizer.")
    lr: Positive = Field(default=1e-3, description="Learning rate.")
    betas: Moments = (0.9, 0.95)
    eps: Eps = 1e-8
    weight_decay: Decay = 0.1
    amsgrad: LargestMoment = False


class Adamax(Section):
    """Adam with the largest gradient in place of the root of squares."""

    type: Literal["adamax"] = Field(description="The kind of optimizer.")
    lr: Positive = Field(default=1e-3, description="Learning rate.")
    betas: Moments = (0.9, 0.999)
    eps: Eps = 1e-7
    weight_decay: Decay = 0.0


class Nadam(Section):
    """Adam with Nesterov's momentum."""

    type: Literal["nadam"] = Field(description="The kind of optimizer.")
    lr: Positive = Field(default=1e-3, description="Learning rate.")
    betas: Moments = (0.9, 0.999)
    eps: Eps = 1e-7
    weight_decay: Decay = 0.0


class Lamb(Section):
    """Adam's steps, scaled to the norm of each parameter, for large batches."""

    type: Literal["lamb"] = Field(description="The kind of optimizer.")
    lr: Positive = Field(default=1e-3, description="Learning rate.")
    betas: Moments = (0.9, 0.999)
    eps: Eps = 1e-7
    weight_decay: Decay = 0.01


class Lion(Section):
    """The sign of a mean of gradients."""

    type: Literal["lion"] = Field(description="The kind of optimizer.")
    lr: Positive = Field(
        default=1e-4, description="Learning rate: the length of each step."
    )
    betas: Annotated[
        tuple[Annotated[float, Field(gt=0, lt=1)], Fraction], Field(strict=False)
    ] = Field(default=(0.9, 0.99), description="Memory of the step, and of the mean.")
    weight_decay: Decay = 0.0


class Adagrad(Section):
    """Steps divided by the root of all squared gradients so far."""

    type: Literal["adagrad"] = Field(description="The kind of optimizer.")
    lr: Positive = Field(default=1e-3, description="Learning rate.")
    initial_accumulator_value: Accumulated = 0.1
    eps: Eps = 1e-7
    weight_decay: Decay = 0.0


class Adadelta(Section):
    """Steps of the size that past steps had."""

    type: Literal["adadelta"] = Field(description="The kind of optimizer.")
    lr: Positive = Field(default=1e-3, description="Learning rate; the paper's is 1.")
    rho: Fraction = Field(
        default=0.95, description="Memory of squared gradients and steps."
    )
    eps: Eps = 1e-7
    weight_decay: Decay = 0.0


class Ftrl(Section):
    """Follow the regularized leader."""

    type: Literal["ftrl"] = Field(description="The kind of optimizer.")
    lr: Positive = Field(default=1e-3, description="Learning rate.")
    learning_rate_power: Annotated[float, Field(le=0)] = Field(
        default=-0.5, description="How the rate falls with the squared gradients."
    )
    initial_accumulator_value: Accumulated = 0.1
    l1: NotNegative = Field(
        default=0.0, description="Strength of the penalty on absolute values."
    )
    l2: NotNegative = Field(
        default=0.0, description="Strength of the penalty on squares."
    )
    beta: NotNegative = Field(
        default=0.0, description="Added to the root of squared gradients."
    )
    weight_decay: Decay = 0.0


WarmupSteps = Annotated[
    Natural,
    Field(description="Steps in which the rate grows from 0 to the optimizer's lr."),
]
LeastRate = Annotated[NotNegative, Field(description="The rate never falls below it.")]
LastStep = Annotated[
    Count | None,
    Field(description="Step at which min_lr is reached; null: the job's last."),
]


class Constant(Section):
    """The same rate throughout."""

    type: Literal["constant"] = Field(description="The kind of schedule.")
    warmup_steps: WarmupSteps = 0


class Linear(Section):
    """A straight line down to min_lr."""

    type: Literal["linear"] = Field(description="The kind of schedule.")
    warmup_steps: WarmupSteps = 0
    min_lr: LeastRate = 0.0
    decay_steps: LastStep = None


class Cosine(Section):
    """Half a cosine down to min_lr."""

    type: Literal["cosine"] = Field(description="The kind of schedule.")
    warmup_steps: WarmupSteps = 0
    min_lr: LeastRate = 0.0
    decay_steps: LastStep = None


class Exponential(Section):
    """lr * rate ** (steps after the warm-up / decay_steps), at least min_lr."""

    type: Literal["exponential"] = Field(description="The kind of schedule.")
    warmup_steps: WarmupSteps = 0
    min_lr: LeastRate = 0.0
    rate: Factor = Field(default=0.1, description="Factor in each decay_steps steps.")
    decay_steps: Count | None = Field(
        default=None, description="Steps for one factor of rate; null: the job's steps."
    )


class Step(Section):
    """lr * gamma ** (steps after the warm-up // step_size), at least min_lr."""

    type: Literal["step"] = Field(description="The kind of schedule.")
    warmup_steps: WarmupSteps = 0
    min_lr: LeastRate = 0.0
    step_size: Count = Field(description="Steps between two reductions.")
    gamma: Factor = Field(default=0.1, description="Factor of each reduction.")


class CosineRestarts(Section):
    """Half cosines down to min_lr, again and again."""

    type: Literal["cosine_restarts"] = Field(description="The kind of schedule.")
    warmup_steps: WarmupSteps = 0
    min_lr: LeastRate = 0.0
    first_decay_steps: Count | None = Field(
        default=None, description="Steps of the first cosine; null: the job's steps."
    )
    t_mul: Annotated[float, Field(ge=1)] = Field(
        default=2.0, description="How many times longer each cosine is than the last."
    )
    m_mul: NotNegative = Field(
        default=1.0, description="How many times higher each begins than the last."
    )


class Polynomial(Section):
    """(1 - steps after the warm-up / decay_steps) ** power down to min_lr."""

    type: Literal["polynomial"] = Field(description="The kind of schedule.")
    warmup_steps: WarmupSteps = 0
    min_lr: LeastRate = 0.0
    decay_steps: LastStep = None
    power: Positive = Field(default=1.0, description="1: a straight line.")
    cycle: bool = Field(
        default=False, description="Begin again from a smaller rate at the end."
    )


class Piecewise(Section):
    """lr, and from each boundary on lr times that boundary's factor."""

    type: Literal["piecewise"] = Field(description="The kind of schedule.")
    warmup_steps: WarmupSteps = 0
    boundaries: list[Count] = Field(
        min_length=1, description="Steps of the job, growing."
    )
    factors: list[NotNegative] = Field(
        min_length=1, description="Factors of lr, one for each boundary."
    )


class Plateau(Section):
    """lr, and lower each time that the validation loss has stopped to fall."""

    type: Literal["plateau"] = Field(description="The kind of schedule.")
    warmup_steps: WarmupSteps = 0
    min_lr: LeastRate = 0.0
    factor: Factor = Field(default=0.1, description="The new rate is lr times this.")
    patience: Count = Field(
        default=10, description="Validations without a lower loss before a reduction."
    )
    min_delta: NotNegative = Field(
        default=1e-4, description="A loss must be lower by more than this to count."
    )
    cooldown: Natural = Field(
        default=0, description="Validations after a reduction that don't count."
    )


class Checkpoint(Section):
    """When to save, and how much to keep."""

    every: Count | None = Field(
        default=None, description="Steps between checkpoints; null: none on the way."
    )
    keep: Count = Field(default=2, description="Newest checkpoints that are kept.")
    keep_every: Count | None = Field(
        default=None,
        description="Besides them those of each multiple of so many steps, for good.",
    )
    at_end: bool = Field(
        default=True, description="Save once more after the last step."
    )
    best: bool = Field(
        default=False,
        description="Also keep the checkpoint of the lowest validation loss, as best.",
    )


# of a batch with the algorithm exact, unless micro_batch is given; training/exact.py
# has it too, for scripts, which load no schema
SHARDS = 8


class Comm(Section):
    """The exchange of gradients between the ranks."""

    algorithm: Literal["ring", "mpi", "exact"] = Field(
        default="ring",
        description="ring: our own; mpi: MPI_Allreduce; exact: the same bits on any "
        "number of ranks, which compute shards of train.micro_batch rows, or of an "
        "eighth of global_batch, with one thread unless launch.threads says more.",
    )
    bucket_mb: Positive = Field(
        default=4.0,
        description="MiB of gradients that are known before the first are sent; a "
        "smaller last bucket leaves less to wait for after the backward pass.",
    )
    overlap: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Send while the backward pass still computes; auto: on where there "
        "are several hosts.",
    )
    wire: Literal["float32", "float16", "bfloat16"] = Field(
        default="float32",
        description="Type of gradients in messages between hosts; sums are taken in "
        "float32, and 16 bits halve the bytes.",
    )
    check_every: Natural = Field(
        default=100, description="Steps between comparisons of the replicas; 0: never."
    )
    timeout: Positive = Field(
        default=60.0,
        description="Seconds to wait for another rank before the job ends.",
    )


class Slurm(Section):
    """What ``fastserve submit`` asks Slurm for; null leaves it to the site's choice."""

    partition: Word | None = Field(default=None, description="Partition.")
    account: Word | None = Field(default=None, description="Account that is charged.")
    qos: Word | None = Field(default=None, description="Quality of service.")
    time: Duration | None = Field(
        default=None,
        description="Longest run time: '02:30:00', '1-12:00:00', '90m', '12h' or '2d'.",
    )
    nodes: Count | None = Field(default=None, description="Number of nodes.")
    tasks_per_node: Count | None = Field(default=None, description="Ranks on a node.")
    cpus_per_task: Count | None = Field(default=None, description="Cores of a rank.")
    mem: Memory | None = Field(
        default=None, description="Memory on each node, for example '16G'."
    )
    constraint: Word | None = Field(
        default=None, description="Features that nodes need."
    )
    gres: Word | None = Field(default=None, description="Generic resources.")
    exclusive: bool = Field(
        default=False, description="Whether to share no node with other jobs."
    )
    requeue: bool = Field(
        default=True, description="Whether Slurm may start the job again, to go on."
    )
    signal_seconds: Count = Field(
        default=120, description="Seconds before the end to save and stop."
    )
    prologue: list[Line] = Field(
        default=[], description="Shell lines before the job, such as module load."
    )
    extra: list[Line] = Field(
        default=[], description="Further #SBATCH arguments, such as '--reservation=x'."
    )
    mpi: Literal["auto", "pmix", "pmi2", "mpirun"] = Field(
        default="auto", description="What starts the ranks: srun's --mpi, or mpirun."
    )


class Launch(Section):
    """The processes of a job, where they run, and what each of them gets."""

    launcher: Literal["auto", "local", "openmpi", "mpich", "slurm"] = Field(
        default="auto", description="What starts the ranks; auto: what is found."
    )
    ranks: Count | None = Field(
        default=None,
        description="Number of ranks (processes); null: one on this host, every slot "
        "of the hosts, every task in a Slurm allocation.",
    )
    threads: Count | Literal["auto"] = Field(
        default="auto",
        description="Threads of each rank; auto: its cores divided fairly.",
    )
    bind: Literal["core", "none"] = Field(
        default="core", description="Whether each rank is bound to its own cores."
    )
    env: dict[str, Text] = Field(
        default={}, description="Environment variables for all ranks, name to text."
    )
    hosts: list[HostEntry] | None = Field(
        default=None,
        min_length=1,
        description="Hosts with their slots, such as node1:2 or user@node[2-4]:4; "
        "null: this host.",
    )
    hostfile: File | None = Field(
        default=None, description="File with a host a line, instead of hosts."
    )
    include: list[HostEntry] = Field(
        default=[], description="Names of the only hosts to use; none: all."
    )
    exclude: list[HostEntry] = Field(
        default=[], description="Names of hosts not to use."
    )
    interface: Interface | None = Field(
        default=None,
        description="Network of the ranks: an interface's name or a subnet such as "
        "10.0.0.0/8; null: what the MPI takes.",
    )
    ssh: list[SshWord] = Field(
        default=[],
        description="Further arguments of ssh, such as -i and a key; what has other "
        "characters than letters, digits and _@%+=:,./~- goes into ~/.ssh/config.",
    )
    oversubscribe: bool = Field(
        default=False, description="Allow more ranks than the hosts have slots."
    )
    python: Program | None = Field(
        default=None,
        description="Path of the interpreter on the hosts; null: the same as here.",
    )
    start_timeout: Positive = Field(
        default=30.0, description="Seconds in which all ranks must have started."
    )
    max_restarts: Natural = Field(
        default=0,
        description="How often the job may start again from its last checkpoint after "
        "it has lost a rank, a host or a link.",
    )
    min_ranks: Count | None = Field(
        default=None,
        description="Ranks that must be left for a restart; null: as many as before.",
    )
    slurm: Slurm = Field(default=Slurm(), description="What Slurm is asked for.")


Model = GptModel | SequentialModel | PythonModel | JsonModel
Data = TextData | TokensData | CompletionsData | ArraysData | PythonData | Labelled
Optimizer = (
    Sgd
    | RmsProp
    | Adam
    | AdamW
    | Adamax
    | Nadam
    | Lamb
    | Lion
    | Adagrad
    | Adadelta
    | Ftrl
)
Schedule = (
    Constant
    | Linear
    | Cosine
    | Exponential
    | Step
    | Plateau
    | CosineRestarts
    | Polynomial
    | Piecewise
)


class Job(Section):
    """One training job, from the data to the hosts."""

    name: RunName = Field(description="Name of the run and of its folder.")
    seed: Seed = Field(
        default=0, description="Decides weights, order of samples, dropout."
    )
    model: Model = Field(discriminator="type", description="What is trained.")
    data: Data = Field(discriminator="type", description="What it is trained on.")
    train: Train = Field(description="How long and in which batches.")
    optimizer: Optimizer = Field(
        default=AdamW(type="adamw"),
        discriminator="type",
        description="How weights change.",
    )
    schedule: Schedule = Field(
        default=Constant(type="constant"),
        discriminator="type",
        description="How the learning rate changes.",
    )
    checkpoint: Checkpoint = Field(default=Checkpoint(), description="When to save.")
    comm: Comm = Field(default=Comm(), description="How the ranks exchange gradients.")
    launch: Launch = Field(default=Launch(), description="Where the ranks run.")
    run_dir: File | None = Field(
        default=None,
        description="Folder of the run; null: runs/NAME in the working folder.",
    )

    @property
    def shard_rows(self) -> int | None:
        """Rows that are computed at a time with the algorithm exact; None: another."""
        if self.comm.algorithm != "exact":
            return None
        return self.train.micro_batch or -(-self.train.global_batch // SHARDS)


class _Untitled(GenerateJsonSchema):
    """Leaves out the titles, which only repeat the keys' names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


@cache  # it takes longer than the rest of reading a job that has a fault
def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a job file, for editors; not to be changed."""
    schema = Job.model_json_schema(schema_generator=_Untitled)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
