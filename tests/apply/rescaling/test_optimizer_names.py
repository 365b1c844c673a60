"""One table from an optimizer's name to its family, whoever spells it."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from undertow import apply, predict
from undertow.apply.rescaling import family

SPELLED = {
    "sgd": "SGD torch.optim.SGD sgd nesterov FusedSGD apex.optimizers.FusedSGD decoupled_sgdw",
    "momentum": "momentum fusedmomentum",
    "rmsprop": "RMSprop rmsprop rmsprop_bnb rmsprop_bnb_8bit rmsproptf RMSprop8bit",
    "adam": "Adam adam SparseAdam OneBitAdam",
    "adamw": "AdamW adamw adamw_torch adamw_torch_fused adamw_torch_xla adamw_torch_npu_fused "
    "adamw_hf adamw_apex_fused adamw_bnb_8bit adamw_8bit paged_adamw_32bit paged_adamw_8bit "
    "adamw_torch_4bit adamw_torch_8bit adamw_anyprecision AdamW8bit PagedAdamW8bit PagedAdamW "
    "bitsandbytes.optim.adamw.AdamW8bit FusedAdam DeepSpeedCPUAdam decoupled_adamw "
    "torch.optim.adamw.AdamW fusedadamw bnbadamw8bit ADAMW AdamW32bit",
    "nadam": "NAdam nadam nadamw",
    "radam": "RAdam radam",
    "adamax": "Adamax adamax",
    "adafactor": "Adafactor adafactor adafactorbv",
    "lamb": "LAMB lamb FusedLAMB FusedLamb LAMB8bit OneBitLamb",
    "lion": "Lion lion lion_32bit lion_8bit paged_lion_32bit paged_lion_8bit Lion8bit bnblion "
    "PagedLion8bit decoupled_lionw lionw",
    "muon": "Muon muon torch.optim.Muon",
    "sign": "signsgd signum",
    "schedulefree-sgd": "schedule_free_sgd SGDScheduleFree",
    "schedulefree-adamw": "schedule_free_adamw AdamWScheduleFree",
    "unknown": "Adagrad adagrad Adadelta ASGD Rprop LBFGS ademamix paged_ademamix_8bit lomo "
    "adalomo grokadamw galore_adamw galore_adamw_8bit galore_adamw_layerwise galore_adafactor "
    "apollo_adamw stable_adamw schedule_free_radam "
    "LARS Sophia Shampoo prodigy lookahead FusedNovoGrad SGDP",
}


@pytest.mark.parametrize("known", SPELLED)
def test_every_spelling_is_of_its_family(known: str) -> None:
    assert known in predict.FAMILIES
    for name in SPELLED[known].split():
        assert family(name) == known, name


def test_every_optimizer_of_torch_has_a_family() -> None:
    kinds = [
        kind
        for kind in vars(torch.optim).values()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
    ]
    assert len(kinds) > 12
    for kind in kinds:
        if kind is not torch.optim.Optimizer:
            assert family(kind.__name__) in predict.FAMILIES


@pytest.mark.parametrize("name", ["", "adamww", "sdg", "optimizer", "module.Thing", "adam w x"])
def test_what_is_no_optimizer_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no scaling rule is known for it"):
        family(name)


def test_a_class_or_a_partial_names_it_too() -> None:
    for named in (torch.optim.AdamW, partial(torch.optim.AdamW, fused=False), "adamw"):
        config = {"optimizer": named, "lr": 1e-3, "batch_size": 8}
        found = apply.rescale(config, to_batch=32)
        assert found.groups[0].hyper["lr"] == pytest.approx(2e-3)
