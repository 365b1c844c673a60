"""Adapters as what they change: scale x B A for every target of a LoRA (Hu et al., 2106.09685).

The scale is alpha / r, with `use_rslora` alpha / sqrt(r) (2312.03732). PEFT keeps alpha in
adapter_config.json, kohya's and ComfyUI's files beside each pair; diffusers' have none, for 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from undertow.apply.inspection._checkpoint import Checkpoint
from undertow.apply.inspection._folder import read_json
from undertow.measure import WeightMatrix, weight_matrices

_PEFT = re.compile(
    r"(?P<target>.+?)\.lora_(?P<part>A|B|embedding_A|embedding_B|magnitude_vector)"
    r"(?:\.(?!weight$|bias$)(?P<adapter>[^.]+))?(?:\.weight)?$"
)
_KOHYA = re.compile(r"(?P<target>.+?)[._]lora[._](?P<part>up|down|mid)\.weight$")
_OTHER_KINDS = {
    "hada_w": "LoHa",
    "lokr_w": "LoKr",
    "oft_": "OFT",
    "vera_lambda": "VeRA",
    "ia3_l": "IA3",
    "lora_E": "AdaLoRA",
    "prompt_embeddings": "prompt tuning",
    "hra_u": "HRA",
    "bone_": "Bone",
    "fourierft_spectrum": "FourierFT",
    "glora": "GLoRA",
}
# Initialisations that change the base, so that B A is not what the adapter adds to the original.
_OTHER_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
_MERGE = "merge it into its base (model.merge_and_unload()) and give the result with its base"


@dataclass(frozen=True, eq=False)
class LowRankChange:
    """What an adapter adds to one weight: scale x left x right.

    Attributes:
        name: of the weight that it changes, as far as the adapter says.
        left: B, `[rows, r]`.
        right: A, `[r, cols]`.
        scale: of their product.
        magnitude: DoRA's norm of each row (2402.09353), where it has one.
    """

    name: str
    left: Float[Tensor, "rows r"]
    right: Float[Tensor, "r cols"]
    scale: float
    magnitude: Float[Tensor, " rows"] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the weight."""
        return self.left.shape[0], self.right.shape[1]

    def spectrum(self) -> Float64[Tensor, " values"]:
        """Singular values of the change in descending order, zeros after the r-th.

        Raises:
            ValueError: a factor holds infinities or NaN.
        """
        left, right = self.left.double(), self.right.double()
        if not (torch.isfinite(left).all() and torch.isfinite(right).all()):
            raise ValueError(f"{self.name} holds infinities or NaN")
        core = torch.linalg.qr(left).R @ torch.linalg.qr(right.mT).R.mT
        values = torch.linalg.svdvals(core) * abs(self.scale)
        spectrum = torch.zeros(min(self.shape), dtype=torch.float64)
        kept = min(len(values), len(spectrum))
        spectrum[:kept] = values[:kept]
        return spectrum

    def dense(self, base: Float64[Tensor, "rows cols"]) -> Float64[Tensor, "rows cols"]:
        """The change of a base weight as a matrix; of DoRA, with its rows' new norms."""
        change = self.scale * (self.left.double() @ self.right.double())
        if self.magnitude is None:
            return change
        direction = base + change
        norms = torch.linalg.vector_norm(direction, dim=1, keepdim=True)
        return self.magnitude.double()[:, None] * direction / norms - base

    def minus(self, other: LowRankChange) -> LowRankChange:
        """The difference of two changes of one weight."""
        left = torch.cat([self.scale * self.left.double(), -other.scale * other.left.double()], 1)
        return LowRankChange(self.name, left, torch.cat([self.right, other.right]).double(), 1.0)


@dataclass(frozen=True, eq=False)
class Adapter:
    """The changes of one adapter, the whole weights that it brings, and what is to be said.

    Attributes:
        changes: a low-rank change per target.
        whole: weights that it replaces (`modules_to_save`).
        notes: on what was left out or assumed.
        only_alone: why it cannot be held against its base, if it cannot.
    """

    changes: list[LowRankChange]
    whole: list[WeightMatrix] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    only_alone: str = ""


def adapter_of(checkpoint: Checkpoint) -> Adapter | None:
    """The adapter that a checkpoint is, or None where it is none.

    Raises:
        ValueError: it is one of a kind that is not read, or its scale is not known.
    """
    name = checkpoint.place.name
    file = checkpoint.place.parent / "adapter_config.json"
    beside = file.is_file() and (name.startswith("adapter_model") or _is_peft(checkpoint.tensors))
    config = read_json(file) if beside else None
    if config is not None:
        _check_kind(config, name)
    for mark, kind in _OTHER_KINDS.items():
        if any(f".{mark}" in key or key.startswith(mark) for key in checkpoint.tensors):
            raise ValueError(f"{name} is a {kind} adapter, which is not read; {_MERGE}")
    parts, rest = _sorted_out(checkpoint.tensors, name)
    if not parts:
        return None
    if config is None and any(value.ndim > 1 for value in rest.values()):
        return None  # a whole model with adapters in it
    if config is None and all(key.startswith("base_model.model.") for key in parts):
        raise ValueError(
            f"{name} has no adapter_config.json beside it, which says by what B A is multiplied "
            "(lora_alpha); give the folder that holds both"
        )
    return _assembled(parts, rest, config, name)


def holds_pairs(tensors: Mapping[str, Tensor]) -> bool:
    """Whether pairs of an adapter stand among other weights."""
    return any(_PEFT.match(key) or _KOHYA.match(key) for key in tensors)


def _is_peft(tensors: Mapping[str, Tensor]) -> bool:
    return any(_PEFT.match(key) for key in tensors)


def _check_kind(config: Any, name: str) -> None:
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        said = f"a {kind} adapter" if isinstance(kind, str) else "an adapter of no known kind"
        raise ValueError(f"{name} is {said[:60]}, which is not read; {_MERGE}")
    for key, what in (
        ("target_parameters", "changes parameters that are no layer's weight"),
        ("use_qalora", "is a QA-LoRA"),
        ("megatron_config", "belongs to Megatron's parallel layers"),
        ("layer_replication", "changes a model with layers repeated"),
    ):
        if config.get(key):
            raise ValueError(f"{name} {what}, which is not read; {_MERGE}")


def _sorted_out(
    tensors: Mapping[str, Tensor], name: str
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """The parts of each target, and all other tensors."""
    parts: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    adapters = set()
    for key, value in tensors.items():
        found = _PEFT.match(key) or _KOHYA.match(key)
        if found is None:
            rest[key] = value
            continue
        adapters.add(found.groupdict().get("adapter"))
        parts.setdefault(found["target"], {})[found["part"]] = value
    if len(adapters) > 1:
        listed = ", ".join(sorted(str(one) for one in adapters)[:4])
        raise ValueError(f"{name} holds several adapters ({listed}); save each on its own")
    for key in list(rest):
        target, _, last = key.rpartition(".")
        if target in parts and last in ("alpha", "dora_scale"):
            parts[target][last] = rest.pop(key)
    return parts, rest


def _assembled(
    parts: Mapping[str, Mapping[str, Tensor]],
    rest: Mapping[str, Tensor],
    config: Any,
    name: str,
) -> Adapter:
    changes, notes = [], []
    for target, pair in parts.items():
        changes.append(_change(target, pair, config, name))
    biases = [key for key in rest if key.endswith("bias")]
    if biases:
        notes.append(f"biases of the adapter are not shown: {_some(biases)}")
    rows = [key for key in rest if ".token_adapter." in key]
    if rows:
        notes.append(f"rows of single tokens are not shown: {_some(rows)}")
    # An embedding is saved with its adapter as it was, where a token may have been added to it.
    saved = {
        _target(key).replace(".modules_to_save", ""): value
        for key, value in rest.items()
        if value.ndim > 1 and key not in rows and ".base_layer." not in key
    }
    whole = weight_matrices(saved, check_finite=False)[0] if saved else []
    if whole:
        notes.append(f"replaced as a whole: {_some([item.name for item in whole])}")
    if config is None and all("alpha" not in pair for pair in parts.values()):
        notes.append("the file gives no alpha, which means a scale of 1 to those who write it so")
    if any(change.magnitude is not None for change in changes):
        notes.append(
            "DoRA: alone, scale x B A is shown; against its base, what it makes of the weights"
        )
    started = config.get("init_lora_weights") if config is not None else None
    only_alone = ""
    if isinstance(started, str) and started.lower().startswith(_OTHER_BASE):
        only_alone = f"it was started by {started[:20]}, which changes the base weights as well"
        notes.append(f"{only_alone}: scale x B A is shown")
    return Adapter(changes, whole, notes, only_alone)


def _change(target: str, pair: Mapping[str, Tensor], config: Any, file: str) -> LowRankChange:
    embedding = "embedding_A" in pair
    names = ("embedding_A", "embedding_B") if embedding else ("A", "B")
    names = names if names[0] in pair or names[1] in pair else ("down", "up")
    if any(name not in pair for name in names):
        raise ValueError(f"{file} has one half of the pair of {target} alone; save it again")
    down, up = (pair[name] for name in names)
    if not (down.is_floating_point() and up.is_floating_point() and min(down.ndim, up.ndim) > 1):
        raise ValueError(f"{file}: the pair of {target} is no pair of matrices")
    rank = down.shape[0]
    if up.shape[1] != rank or up[0, 0].numel() != 1 or rank == 0:
        raise ValueError(
            f"{file}: the pair of {target} does not fit, {tuple(up.shape)} x {tuple(down.shape)}"
        )
    if "mid" in pair:
        # A convolution in three steps: 1 x 1 down, the taps, 1 x 1 up.
        if pair["mid"].ndim < 3 or pair["mid"].shape[:2] != (rank, rank) or down[0, 0].numel() != 1:
            raise ValueError(f"{file}: the middle of {target} does not fit its pair")
        down = torch.einsum("qp...,pi->qi...", pair["mid"].double(), down.flatten(1).double())
    left, right = up.flatten(1), down.flatten(1)
    if embedding or (config is not None and config.get("fan_in_fan_out") is True):
        left, right = right.mT, left.mT
    magnitude = pair.get("magnitude_vector", pair.get("dora_scale"))
    if magnitude is not None:
        magnitude = magnitude.flatten()
        if embedding or magnitude.shape != left.shape[:1] or config is None:
            raise ValueError(f"{file}: DoRA of {target} is of a layout that is not read; {_MERGE}")
        if config.get("fan_in_fan_out") is True:
            raise ValueError(f"{file}: DoRA with fan_in_fan_out is not read; {_MERGE}")
    scale = _scale(_target(target), pair, rank, config, file)
    return LowRankChange(f"{_target(target)}.weight", left, right, scale, magnitude)


def _some(names: Sequence[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]


def _target(name: str) -> str:
    return name.removeprefix("base_model.model.")


def _scale(target: str, pair: Mapping[str, Tensor], rank: int, config: Any, file: str) -> float:
    if config is None:
        alpha = pair.get("alpha")
        if alpha is None:
            return 1.0
        value = float(alpha) if alpha.numel() == 1 else math.nan
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{file}: the alpha of {target} is no positive number")
        return value / rank
    said = _of_pattern(config.get("rank_pattern"), target, config.get("r"), file)
    if said != rank:
        raise ValueError(
            f"{file} has rank {rank} at {target}, and adapter_config.json says {str(said)[:20]}; "
            "one of them is another adapter's"
        )
    alpha = _of_pattern(config.get("alpha_pattern"), target, config.get("lora_alpha"), file)
    number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if not (number and math.isfinite(alpha)):
        raise ValueError(f"adapter_config.json gives no number as lora_alpha of {target}")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") is True else rank)


def _of_pattern(patterns: Any, target: str, otherwise: Any, file: str) -> Any:
    """PEFT's rule: the first key of which the target is, or ends in, a match."""
    for key, value in (patterns or {}).items() if isinstance(patterns, dict | None) else ():
        # A file's expression may take for ever: two repetitions, none of a group, cannot.
        if len(key) > 300 or re.search(r"\)[*+?{]", key) or len(re.findall(r"[*+{]", key)) > 2:
            raise ValueError(f"{file}: the pattern {key[:40]!r} of adapter_config.json is too rich")
        try:
            matched = re.match(rf"(.*\.)?({key})$", target)
        except re.error as error:
            raise ValueError(f"{file}: adapter_config.json has no pattern in {key!r}") from error
        if matched:
            return value
    return otherwise
