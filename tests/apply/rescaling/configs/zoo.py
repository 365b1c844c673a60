"""Configurations as each maker's users write them, and what of each is known by hand."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch


@dataclass(frozen=True)
class Case:
    """A configuration at a batch of 64, or of `unit` as many.

    Attributes:
        make: it, anew.
        batch: the samples a step that a run of it sees, by its maker's own rule.
        rate: its learning rate.
        steps: of the run; None where it counts epochs.
        linear: whether the linear rule is its own.
        more: further arguments of `rescale`.
    """

    make: Callable[[], Any]
    batch: Callable[[Any], int]
    rate: Callable[[Any], float]
    steps: Callable[[Any], int] | None
    linear: bool = False
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Optimizer:
    """A section of a frozen dataclass."""

    name: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.1


@dataclass
class Settings:
    """Settings as a project of one's own keeps them."""

    optimizer: Optimizer = field(default_factory=Optimizer)
    batch_size: int = 64
    max_steps: int = 1024
    seed: int = 0


def transformers() -> dict[str, Any]:
    return {
        "optim": "adamw_torch_fused",
        "learning_rate": 3e-4,
        "weight_decay": 0.1,
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "adam_epsilon": 1e-8,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 8,
        "world_size": 2,
        "max_steps": 1024,
        "warmup_steps": 128,
        "warmup_ratio": 0.0,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr": 3e-5},
        "save_steps": 500,
        "output_dir": "out",
    }


def lightning() -> dict[str, Any]:
    return {
        "seed_everything": 1,
        "model": {"class_path": "Net", "init_args": {"hidden": 4, "momentum": 0.1}},
        "optimizer": {
            "class_path": "torch.optim.SGD",
            "init_args": {"lr": 0.1, "momentum": 0.9, "nesterov": True},
        },
        "data": {"class_path": "Data", "init_args": {"batch_size": 16, "num_workers": 2}},
        "trainer": {"devices": 2, "accumulate_grad_batches": 2, "max_steps": 1024},
        "lr_scheduler": {"class_path": "StepLR", "init_args": {"step_size": 30}},
    }


def nanogpt() -> dict[str, Any]:
    return {
        "batch_size": 4,
        "block_size": 1024,
        "gradient_accumulation_steps": 16,
        "learning_rate": 6e-4,
        "max_iters": 1024,
        "lr_decay_iters": 1024,
        "warmup_iters": 64,
        "min_lr": 6e-5,
        "beta1": 0.9,
        "beta2": 0.95,
        "weight_decay": 0.1,
        "dropout": 0.0,
        "dtype": "bfloat16",
    }


def torchtune() -> dict[str, Any]:
    return {
        "optimizer": {"_component_": "bitsandbytes.optim.PagedAdamW8bit", "lr": 2e-5},
        "lr_scheduler": {"_component_": "get_cosine_schedule_with_warmup", "num_warmup_steps": 64},
        "batch_size": 2,
        "gradient_accumulation_steps": 32,
        "epochs": 1,
        "model": {"_component_": "torchtune.models.llama3", "eps": 1e-5},
    }


def deepspeed() -> dict[str, Any]:
    return {
        "train_batch_size": 64,
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 8,
        "optimizer": {
            "type": "Adam",
            "params": {"lr": "1e-4", "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1},
        },
        "scheduler": {
            "type": "WarmupDecayLR",
            "params": {
                "warmup_min_lr": 0,
                "warmup_max_lr": 1e-4,
                "warmup_num_steps": 64,
                "total_num_steps": 1024,
            },
        },
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 5e8},
        "fp16": {"enabled": "auto"},
    }


def composer() -> dict[str, Any]:
    return {
        "global_train_batch_size": 64,
        "device_train_microbatch_size": "auto",
        "max_duration": "1024ba",
        "eval_interval": "100ba",
        "optimizer": {"name": "decoupled_adamw", "lr": 6e-4, "weight_decay": 1e-4, "eps": 1e-8},
        "scheduler": {"name": "cosine_with_warmup", "t_warmup": "64ba", "alpha_f": 0.1},
    }


def timm() -> Namespace:
    return Namespace(
        opt="lamb",
        opt_betas=None,
        opt_eps=None,
        momentum=0.9,
        weight_decay=0.02,
        lr=5e-3,
        lr_base=0.1,
        lr_base_size=256,
        batch_size=32,
        grad_accum_steps=1,
        world_size=2,
        epochs=300,
        warmup_epochs=5,
        warmup_lr=1e-6,
        min_lr=1e-5,
        sched="cosine",
        model_ema_decay=0.9998,
        clip_grad=None,
    )


def mmengine() -> dict[str, Any]:
    return {
        "optim_wrapper": {
            "type": "OptimWrapper",
            "optimizer": {"type": "SGD", "lr": 0.02, "momentum": 0.9, "weight_decay": 1e-4},
        },
        "train_dataloader": {"batch_size": 64, "num_workers": 2},
        "val_dataloader": {"batch_size": 1},
        "train_cfg": {"type": "IterBasedTrainLoop", "max_iters": 1024},
        "param_scheduler": [
            {"type": "LinearLR", "by_epoch": False, "begin": 0, "end": 64},
            {"type": "MultiStepLR", "by_epoch": True, "milestones": [8, 11]},
        ],
    }


def fairseq() -> dict[str, Any]:
    return {
        "optimization": {"lr": [5e-4], "max_update": 1024, "update_freq": [2]},
        "optimizer": {"_name": "adam", "adam_betas": "(0.9, 0.98)", "weight_decay": 0.01},
        "lr_scheduler": {"_name": "inverse_sqrt", "warmup_updates": 64},
        "dataset": {"batch_size": 16},
        "distributed_training": {"distributed_world_size": 2},
    }


def megatron() -> Namespace:
    return Namespace(
        micro_batch_size=4,
        global_batch_size=64,
        world_size=16,
        tensor_model_parallel_size=2,
        optimizer="adam",
        lr=1e-4,
        min_lr=1e-5,
        adam_beta1=0.9,
        adam_beta2=0.95,
        adam_eps=1e-8,
        sgd_momentum=0.9,
        weight_decay=0.1,
        train_iters=1024,
        lr_decay_iters=1024,
        lr_warmup_iters=64,
        lr_decay_style="cosine",
    )


CASES: dict[str, Case] = {
    "a dictionary": Case(
        lambda: {"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.9, "batch_size": 64},
        lambda c: c["batch_size"],
        lambda c: c["learning_rate"],
        None,
        linear=True,
    ),
    "a dictionary of texts": Case(
        lambda: {"optimizer": "lion", "lr": "1e-4", "batch_size": "64", "steps": "1024"},
        lambda c: int(c["batch_size"]),
        lambda c: float(c["lr"]),
        lambda c: int(c["steps"]),
    ),
    "a dictionary with a class": Case(
        lambda: {"optimizer": {"class": torch.optim.AdamW, "lr": 1e-3}, "batch_size": 64},
        lambda c: c["batch_size"],
        lambda c: c["optimizer"]["lr"],
        None,
    ),
    "dotted keys": Case(
        lambda: {"optimizer.name": "adamw", "optimizer.lr": 1e-3, "train.batch_size": 64},
        lambda c: c["train.batch_size"],
        lambda c: c["optimizer.lr"],
        None,
    ),
    "flags": Case(
        lambda: {"--optimizer": "sgd", "--lr": 0.1, "--batch-size": 64, "--max-steps": 1024},
        lambda c: c["--batch-size"],
        lambda c: c["--lr"],
        lambda c: c["--max-steps"],
        linear=True,
    ),
    "a dataclass": Case(
        Settings, lambda c: c.batch_size, lambda c: c.optimizer.lr, lambda c: c.max_steps
    ),
    "Transformers": Case(
        transformers,
        lambda c: c["per_device_train_batch_size"] * c["gradient_accumulation_steps"] * 2,
        lambda c: c["learning_rate"],
        lambda c: c["max_steps"],
    ),
    "Transformers, as an object": Case(
        lambda: SimpleNamespace(**transformers()),
        lambda c: c.per_device_train_batch_size * c.gradient_accumulation_steps * c.world_size,
        lambda c: c.learning_rate,
        lambda c: c.max_steps,
    ),
    "Lightning": Case(
        lightning,
        lambda c: (
            c["data"]["init_args"]["batch_size"] * c["trainer"]["accumulate_grad_batches"] * 2
        ),
        lambda c: c["optimizer"]["init_args"]["lr"],
        lambda c: c["trainer"]["max_steps"],
        linear=True,
    ),
    "Lightning under fit": Case(
        lambda: {"fit": lightning()},
        lambda c: (
            c["fit"]["data"]["init_args"]["batch_size"]
            * c["fit"]["trainer"]["accumulate_grad_batches"]
            * 2
        ),
        lambda c: c["fit"]["optimizer"]["init_args"]["lr"],
        lambda c: c["fit"]["trainer"]["max_steps"],
        linear=True,
    ),
    "nanoGPT": Case(
        nanogpt,
        lambda c: c["batch_size"] * c["gradient_accumulation_steps"],
        lambda c: c["learning_rate"],
        lambda c: c["max_iters"],
    ),
    "torchtune": Case(
        torchtune,
        lambda c: c["batch_size"] * c["gradient_accumulation_steps"],
        lambda c: c["optimizer"]["lr"],
        None,
    ),
    "DeepSpeed": Case(
        deepspeed,
        lambda c: c["train_micro_batch_size_per_gpu"] * c["gradient_accumulation_steps"] * 2,
        lambda c: float(c["optimizer"]["params"]["lr"]),
        lambda c: c["scheduler"]["params"]["total_num_steps"],
    ),
    "Composer": Case(
        composer,
        lambda c: c["global_train_batch_size"],
        lambda c: c["optimizer"]["lr"],
        lambda c: int(c["max_duration"].removesuffix("ba")),
    ),
    "timm": Case(
        timm, lambda c: c.batch_size * c.grad_accum_steps * c.world_size, lambda c: c.lr, None
    ),
    "MMEngine": Case(
        mmengine,
        lambda c: (
            c["train_dataloader"]["batch_size"] * c["optim_wrapper"].get("accumulative_counts", 1)
        ),
        lambda c: c["optim_wrapper"]["optimizer"]["lr"],
        lambda c: c["train_cfg"]["max_iters"],
        linear=True,
    ),
    "fairseq": Case(
        fairseq,
        lambda c: c["dataset"]["batch_size"] * c["optimization"]["update_freq"][0] * 2,
        lambda c: c["optimization"]["lr"][0],
        lambda c: c["optimization"]["max_update"],
    ),
    "Megatron": Case(
        megatron, lambda c: c.global_batch_size, lambda c: c.lr, lambda c: c.train_iters
    ),
}
