"""How far back weights remember: of every optimizer, under momentum, and what it says of a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from undertow import apply, predict

RUN: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.1, "steps": 1_000, "batch_size": 8}


@pytest.mark.parametrize("name", [*predict.FAMILIES, "paged_adamw_8bit", "Sophia", "my.Own", ""])
def test_no_optimizer_is_refused(name: str) -> None:
    momentum = 0.9 if name == "momentum" else 0.0
    found = apply.forecast(**RUN, optimizer=name, momentum=momentum)
    assert found.decay_exponent == pytest.approx(0.1 / (1 - momentum))
    family = predict.FAMILIES.get(name)
    plain = family is not None and family.decay != "normalised"
    if name in ("lamb", "unknown", "Sophia", "my.Own", "") or not (plain or "adamw" in name):
        assert not found.decays_so
        assert found.notes
        assert "were decay decoupled" in repr(found)
        assert "were decay decoupled" in found.text()
    else:
        assert found.decays_so


OPTIMIZERS: dict[str, Any] = {
    "sgd": (torch.optim.SGD, {}),
    "momentum": (torch.optim.SGD, {"momentum": 0.8}),
    "adamw": (torch.optim.AdamW, {}),
    "nadamw": (torch.optim.NAdam, {"decoupled_weight_decay": True}),
    "muon": (torch.optim.Muon, {"momentum": 0.8}) if hasattr(torch.optim, "Muon") else None,
    "adafactor": (torch.optim.Adafactor, {}) if hasattr(torch.optim, "Adafactor") else None,
}


@pytest.mark.parametrize("name", [name for name, made in OPTIMIZERS.items() if made])
def test_what_is_left_after_a_run_without_gradients_is_what_was_forecast(name: str) -> None:
    """Momentum amplifies the decay of SGD, which passes through it, and no other."""
    kind, options = OPTIMIZERS[name]
    param = torch.nn.Parameter(torch.ones(4, 4, dtype=torch.float64))
    optimizer = kind([param], lr=1e-2, weight_decay=0.02, **options)
    momentum = options.get("momentum", 0.0)
    steps = 3_000
    for _ in range(steps):
        param.grad = torch.zeros_like(param)
        optimizer.step()
    found = apply.forecast(
        lr=1e-2, weight_decay=0.02, steps=steps, batch_size=8, optimizer=name, momentum=momentum
    )
    assert found.residue == pytest.approx(float(param.detach().mean()), rel=0.01)
    amplified = 1 - momentum if name == "momentum" else 1
    assert found.memory_steps == pytest.approx(amplified / (1e-2 * 0.02))
    assert ("(1 - momentum) /" in found.text()) == (name == "momentum")
    if momentum and name != "momentum":
        assert any("momentum does not enter" in note for note in found.notes)


@given(
    st.floats(1e-5, 0.5),
    st.floats(1e-3, 0.9),
    st.integers(1, 5_000),
    st.integers(8, 10**6),
    st.floats(0, 0.9),
)
def test_a_memory_is_judged_by_the_run_and_the_epoch(
    lr: float, decay: float, steps: int, samples: int, momentum: float
) -> None:
    if lr * decay >= 1 - momentum:
        return
    found = apply.forecast(
        lr=lr, weight_decay=decay, steps=steps, batch_size=8, momentum=momentum, samples=samples
    )
    said = found.memory_says
    assert ("longer than the run" in said) == (found.decay_exponent < 1)
    assert ("shorter than an epoch" in said) == (found.memory_steps < samples / 8)
    assert ("between an epoch and the run" in said) == (
        found.decay_exponent >= 1 and found.memory_steps >= samples / 8
    )


def test_the_judgement_is_printed() -> None:
    text = apply.forecast(**RUN, samples=80_000).text()
    assert "longer than the run: 90% of the initial weights survive" in " ".join(text.split())
    assert "which is" not in apply.forecast(**RUN | {"weight_decay": 0.0}).text()
    found = apply.forecast(**RUN | {"weight_decay": 0.0})
    assert math.isinf(found.memory_steps)
    assert found.as_json()["memory_says"].startswith("the initial weights stay")


def test_names_that_say_how_they_decay() -> None:
    plain = apply.forecast(**RUN, optimizer="adamw").decay_exponent
    for name in ("SGDW", "timm.optim.sgdw.SGDW", "nadamw", "radamw"):
        momentum = 0.9 if "SGDW" in name else 0.0
        found = apply.forecast(**RUN, optimizer=name, momentum=momentum)
        assert found.decays_so
        assert found.decay_exponent == plain
        assert found.equilibrium is None
    found = apply.forecast(**RUN, optimizer="DecoupledAdamW")
    assert not found.decays_so
    assert "weight_decay x lr / (its first lr)" in found.notes[0]


def test_a_momentum_that_is_not_there_is_said() -> None:
    with pytest.raises(ValueError, match="adamw has betas"):
        apply.forecast(**RUN, optimizer="adamw", momentum=0.9)
    with pytest.raises(ValueError, match="momentum is needed"):
        apply.forecast(**RUN, optimizer="momentum")


def test_an_adapter_is_no_initialised_network(tmp_path: Path) -> None:
    lead = "base_model.model.q.lora_"
    pair = {f"{lead}A.weight": torch.randn(4, 16), f"{lead}B.weight": torch.zeros(32, 4)}
    save_file(pair, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 8}')
    with pytest.raises(ValueError, match="is an adapter, whose pairs start at no change"):
        apply.forecast(tmp_path, **RUN)
