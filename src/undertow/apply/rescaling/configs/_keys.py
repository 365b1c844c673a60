"""What the keys of configurations mean: tables from a name to a role, and the sections they are in.

The names are those of Transformers, Lightning, nanoGPT, torchtune, DeepSpeed, OLMo, Composer, timm,
Axolotl, MMEngine, fairseq, Megatron and others. A name means one thing wherever it is not said
otherwise; what differs between them is a `Vocabulary`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


def _roles(table: Mapping[str, str]) -> Mapping[str, str]:
    return MappingProxyType({name: role for role, names in table.items() for name in names.split()})


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Hyperparameters, as the rules name them; where the optimizer is, or at the top.
HYPER = _roles(
    {
        "lr": "lr learning_rate base_learning_rate peak_lr peak_learning_rate lr_max opt_lr",
        "weight_decay": "weight_decay wd opt_weight_decay adam_weight_decay l2",
        "momentum": "momentum sgd_momentum opt_momentum",
        "betas": "betas adam_betas opt_betas",
        "beta1": "beta1 adam_beta1 beta_1 b1 opt_beta1",
        "beta2": "beta2 adam_beta2 beta_2 b2 opt_beta2",
        "alpha": "alpha rmsprop_alpha rho",
        "eps": "eps epsilon adam_epsilon adam_eps opt_eps",
        "nesterov": "nesterov",
        "momentum_decay": "momentum_decay",
        "decoupled_weight_decay": "decoupled_weight_decay adam_w_mode",
    }
)
# The peak of a schedule, where nothing above says the rate.
PEAKS = frozenset({"max_lr", "base_lr", "warmup_max_lr", "max_learning_rate"})
# Steps of the run and of its schedule; fewer by k.
STEPS = _roles(
    {
        "steps": "steps max_steps num_steps total_steps train_steps num_train_steps "
        "num_training_steps max_iters max_iter train_iters num_iterations num_iters iterations "
        "total_iters max_update max_train_steps training_steps total_training_steps max_duration "
        "total_train_steps max_step train_num_steps n_steps n_iters n_iter num_iter num_step",
        "warmup_steps": "warmup_steps warmup_iters num_warmup_steps lr_warmup_steps "
        "warmup_updates lr_warmup_iters warmup_num_steps warmup n_warmup_steps "
        "linear_warmup_steps t_warmup lr_num_warmup_steps warmup_iterations warm_up_steps "
        "warm_up_iters warm_up",
        "milestones": "milestones lr_milestones decay_milestones",
    }
)
# Other counts of steps, at the top or in a schedule.
COUNTS = _words(
    "lr_decay_iters lr_decay_steps decay_steps cooldown_steps cooldown_iters warmdown_iters "
    "num_decay_steps num_stable_steps total_num_steps cycle_first_step_size "
    "cycle_second_step_size decay_step_size steps_per_epoch lr_wsd_decay_iters stable_steps "
    "total_num_update annealing_steps lr_cooldown_steps constant_steps "
    "lr_constant_steps lr_stable_steps"
)
# Counts in a schedule that may be of steps or of epochs.
CLOCKS = _words(
    "t_max t_0 step_size milestones total_iters total_steps step_size_up step_size_down begin end "
    "num_steps max_iters max_steps steps warmup_iters t_warmup step t_initial decay_t warmup_t "
    "timescale first_cycle_steps"
)
# Learning rates beside the first: they move as it does.
RATES = _words(
    "min_lr lr_min eta_min min_learning_rate final_lr end_lr lr_end warmup_lr warmup_init_lr "
    "warmup_start_lr warmup_min_lr warmup_max_lr cycle_min_lr cycle_max_lr max_lr base_lr eta_max "
    "start_lr init_lr initial_lr swa_lr end_learning_rate lr_warmup_init final_learning_rate "
    "min_lr_value learning_rate_min"
)
# Switches by which a program moves the rate with the batch itself.
OWN_SCALING = _words("scale_lr auto_scale_lr lr_auto_scale linear_scale_lr scale_learning_rate")
# Reinforcement learning counts the steps of its environments, and not the optimizer's.
ENVIRONMENTS = _words("n_envs num_envs gae_lambda total_timesteps n_timesteps clip_range")
# Words that are near a key by their letters only.
OTHER_WORDS = _words("patch_size beta")
# Parts of names that say of a batch that it is none of training.
NO_TRAINING = _words("val valid validation eval evaluation test testing inference predict infer")
# Averages of weights over steps: d' = d^k.
EMAS = frozenset({"ema_decay", "model_ema_decay", "ema_beta", "ema_rate", "ema_smoothing"})
# Samples in a step.
BATCH = _roles(
    {
        "micro": "per_device_train_batch_size micro_batch_size train_micro_batch_size_per_gpu "
        "device_train_microbatch_size device_train_batch_size local_batch_size device_batch_size "
        "per_gpu_train_batch_size per_gpu_batch_size batch_size_per_gpu batch_size_per_device "
        "per_device_batch_size samples_per_gpu microbatch_size rank_microbatch_size mbs",
        "accumulation": "gradient_accumulation_steps accumulate_grad_batches grad_accum_steps "
        "accumulation_steps gradient_accumulation grad_accumulation_steps accum_steps accum_iter "
        "gradient_accumulation_iters accumulative_counts grad_acc_steps update_freq grad_accum "
        "accum_freq gradient_accumulate_steps gradient_accumulation_step",
        "devices": "devices num_gpus gpus num_devices ngpus n_gpus nproc_per_node gpus_per_node "
        "num_gpus_per_node n_gpu",
        "nodes": "num_nodes nnodes n_nodes",
        "world": "world_size num_processes distributed_world_size",
        "copies": "data_parallel_size dp_size data_parallel_degree",
        "total": "train_batch_size global_train_batch_size global_batch_size total_batch_size "
        "effective_batch_size ims_per_batch",
        "batch": "batch_size train_batchsize bsz bs",
        "sequence": "block_size seq_length seq_len sequence_length sequence_len max_seq_len "
        "max_seq_length max_sequence_length context_length",
    }
)
# Names of a batch that say neither "of a device" nor "of all".
BARE = _words("batch_size train_batch_size train_batchsize bsz bs")
# Cadences in steps: what is done then does not act on training, so they are left and said.
INTERVALS = _words(
    "eval_steps save_steps logging_steps eval_interval save_interval log_interval eval_iters "
    "checkpoint_interval val_check_interval log_every_n_steps eval_every save_every val_interval "
    "logging_interval console_log_interval eval_freq save_freq log_freq steps_per_print "
    "val_every log_every checkpoint_every save_iter eval_iter val_loss_every"
)
# Known, and the same at any batch size: shares of the run, epochs, switches.
STAY = _words(
    "warmup_epochs "
    "cooldown_epochs decay_epochs patience_epochs warmup_ratio warmup_fraction lr_warmup_fraction "
    "pct_start warmup_share min_lr_ratio min_lr_rate min_lr_factor alpha_f train_samples "
    "lr_decay_samples lr_warmup_samples max_tokens_total div_factor final_div_factor gamma "
    "amsgrad maximize foreach fused capturable differentiable decay_lr lr_scheduler_type "
    "lr_decay_style lr_scheduler sched scheduler schedule by_epoch interval frequency start_factor "
    "end_factor factor num_cycles power lr_base_size lr_base_scale"
)
EPOCHS = _words("epochs num_epochs num_train_epochs max_epochs n_epochs total_epochs")
# They say a norm of the gradient, whose noise falls by sqrt(k).
CLIPS = frozenset(
    {"max_grad_norm", "grad_clip", "clip_grad", "gradient_clip_val", "gradient_clipping"}
    | {"clip_grad_norm", "clip_norm", "max_norm", "grad_clip_norm"}
)
# Where an optimizer's name may stand: at the top, and inside its section.
NAMES = _words(
    "optimizer optim opt optimizer_name optimizer_type optim_name optimizer_class optim_type"
)
TYPES = _words("class_path _component_ _target_ type name _name class cls optimizer_type")

SECTIONS: Mapping[str, str] = _roles(
    {
        "optimizer": "optimizer optim optimizers optimizer_config optimizer_cfg optim_wrapper opt "
        "optimizer_kwargs optimizer_params optimizer_args optim_config optim_cfg",
        "schedule": "scheduler schedulers lr_scheduler lr_schedulers param_scheduler sched "
        "lr_scheduler_kwargs lr_schedule schedule lr_config lr_scheduler_config scheduler_config "
        "learning_rate_scheduler",
        "training": "trainer training train train_cfg train_config hyperparameters hparams hyper "
        "config fit trainer_args training_args training_arguments solver optimization "
        "distributed_training cfg args experiment run distributed trainer_config job tune",
        "data": "data dataloader train_dataloader train_loader dataset datamodule loader "
        "train_data data_config train_dataset data_module data_loader dataloaders",
        "model": "model lit_model lightning_module",
        "through": "init_args params kwargs parameters dict_kwargs arguments values",
    }
)
# What a model's section may say of its training; the rest there is the network's own.
OF_MODELS = frozenset({"lr", "weight_decay", "betas", "beta1", "beta2", "warmup_steps", "steps"})
# Devices that hold one copy of the model between them.
PARALLEL = _words(
    "tensor_model_parallel_size pipeline_model_parallel_size context_parallel_size tp_size pp_size "
    "tensor_parallel_size pipeline_parallel_size cp_size tensor_parallel_degree "
    "pipeline_parallel_degree context_parallel_degree"
)


@dataclass(frozen=True)
class Vocabulary:
    """What one maker's configurations mean beyond the tables.

    Attributes:
        name: whose it is.
        marks: sets of keys, one of which must be there whole.
        defaults: hyperparameters that its program takes where they are not given.
        adds: the key under which a hyperparameter may be added; None where any name may.
        optimizer: the only one that there is, or the default that is documented.
        decoupled: whether what it calls Adam takes its decay off the weights.
        holds_all: whether keys of optimizers that are not used stand there too.
        accumulation: the key of accumulation where it may be added.
        over_all: whether its accumulation is counted over all devices.
        whole: whether its `train_batch_size` is that of all devices.
        ticks: whether counts in its schedules are of steps.
        unsaid: a count that its program takes where accumulation is not given, if not 1.
    """

    name: str
    marks: tuple[frozenset[str], ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    adds: Mapping[str, str] | None = None
    optimizer: str | None = None
    decoupled: bool = False
    holds_all: bool = False
    accumulation: str | None = None
    over_all: bool = False
    whole: bool = False
    ticks: bool = False
    unsaid: int = 1


def _marks(*groups: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(group.split()) for group in groups)


_ADAM = {"beta1": "adam_beta1", "beta2": "adam_beta2", "weight_decay": "weight_decay"}
PLAIN = Vocabulary("a dictionary")
# The first whose marks are there is taken.
VOCABULARIES = (
    Vocabulary(
        "MMEngine's configuration",
        _marks("optim_wrapper"),
        accumulation="accumulative_counts",
    ),
    Vocabulary(
        "DeepSpeed's configuration",
        _marks("train_micro_batch_size_per_gpu", "zero_optimization", "optimizer.type params.lr"),
        {"weight_decay": 0.0},
        decoupled=True,
        accumulation="gradient_accumulation_steps",
        whole=True,
        ticks=True,
    ),
    Vocabulary(
        "fairseq's arguments",
        _marks("max_update", "adam_betas lr_scheduler", "update_freq"),
        {"weight_decay": 0.0, "betas": (0.9, 0.999)},
        {"betas": "adam_betas", "eps": "adam_eps", "weight_decay": "weight_decay"},
        decoupled=True,
        holds_all=True,
    ),
    Vocabulary(
        "Megatron's arguments",
        _marks("train_iters", "lr_decay_style", "micro_batch_size global_batch_size adam_beta1"),
        {"weight_decay": 0.01, "beta1": 0.9, "beta2": 0.999},
        _ADAM | {"eps": "adam_eps"},
        decoupled=True,
        holds_all=True,
    ),
    Vocabulary(
        "Composer's configuration",
        _marks("max_duration", "global_train_batch_size", "device_train_microbatch_size"),
        ticks=True,
    ),
    Vocabulary(
        "Axolotl's configuration",
        _marks("base_model micro_batch_size", "base_model gradient_accumulation_steps"),
        {"weight_decay": 0.0, "beta1": 0.9, "beta2": 0.999},
        _ADAM | {"eps": "adam_epsilon"},
        holds_all=True,
        accumulation="gradient_accumulation_steps",
        ticks=True,
    ),
    Vocabulary(
        "nanoGPT's configuration",
        _marks(
            *("learning_rate max_iters lr_decay_iters", "learning_rate max_iters beta2"),
            *("learning_rate max_iters warmup_iters", "learning_rate lr_decay_iters min_lr"),
            *("learning_rate max_iters beta1", "learning_rate decay_lr max_iters"),
        ),
        {"weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95},
        {"weight_decay": "weight_decay", "beta1": "beta1", "beta2": "beta2"},
        optimizer="adamw",
        accumulation="gradient_accumulation_steps",
        over_all=True,
        unsaid=40,
    ),
    Vocabulary(
        "Transformers' TrainingArguments",
        _marks(
            *("per_device_train_batch_size", "per_gpu_train_batch_size", "adam_epsilon"),
            *("optim learning_rate", "num_train_epochs learning_rate", "lr_scheduler_type optim"),
        ),
        {"weight_decay": 0.0, "beta1": 0.9, "beta2": 0.999},
        _ADAM | {"eps": "adam_epsilon"},
        optimizer="adamw",
        holds_all=True,
        accumulation="gradient_accumulation_steps",
        ticks=True,
    ),
    Vocabulary(
        "timm's arguments",
        _marks("opt", "lr_base", "opt_betas", "opt_eps"),
        {"weight_decay": 2e-5},
        {"betas": "opt_betas", "eps": "opt_eps", "weight_decay": "weight_decay", "lr": "lr"},
        holds_all=True,
        accumulation="grad_accum_steps",
    ),
    Vocabulary(
        "torchtune's configuration",
        _marks("_component_"),
        accumulation="gradient_accumulation_steps",
        ticks=True,
    ),
    Vocabulary(
        "a Lightning configuration",
        _marks("class_path", "accumulate_grad_batches"),
        accumulation="accumulate_grad_batches",
    ),
)


def is_adams(key: str, family: str) -> bool:
    """Whether a key such as adam_beta2 stands there for another optimizer than the one in use."""
    return key.startswith("adam") and family in ("rmsprop", "adafactor", "muon", "sign")
