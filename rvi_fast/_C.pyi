"""The kernels in C++ (`csrc/`): each takes addresses of tensors and writes its results there."""

from collections.abc import Sequence
from typing import ClassVar

SIGNATURES: str
LAWS: tuple[str, ...]

def cpu_path() -> str: ...
def cpu_paths() -> list[str]: ...
def set_cpu_path(
    *,
    name: str,
) -> None: ...

class Form:
    linear: ClassVar[Form]
    cluster: ClassVar[Form]
    mixture: ClassVar[Form]

class RowLayout:
    def __init__(
        self,
        *,
        latent_dim: int,
        groups: Sequence[int],
        kept: Sequence[int],
        form: Form,
        group_offsets: Sequence[int],
        deviation_offset: int,
        log_std_offset: int,
        width: int,
    ) -> None: ...

def relay_sample_fwd(
    *,
    layout: RowLayout,
    is_double: bool,
    threads: int,
    rows: int,
    num_data: int,
    relays: int,
    index: tuple[int, bool, int],
    seed: int,
    noise: int,
    noise_index: tuple[int, bool, int],
    num_samples: int,
    z: int,
    kl: int,
    bits: int,
    mean: int,
) -> None: ...
def relay_sample_bwd(
    *,
    layout: RowLayout,
    is_double: bool,
    threads: int,
    rows: int,
    num_data: int,
    relays: int,
    index: tuple[int, bool, int],
    seed: int,
    noise: int,
    noise_index: tuple[int, bool, int],
    num_samples: int,
    grad_z: int,
    grad_kl: int,
    bits: int,
    mean: int,
    grad_batch: int,
    grad_relays: int,
) -> None: ...
def philox(
    *,
    counter: int,
    key: int,
    words: int,
    count: int,
) -> None: ...

class DataType:
    float32: ClassVar[DataType]
    float64: ClassVar[DataType]
    float16: ClassVar[DataType]
    bfloat16: ClassVar[DataType]
    uint8: ClassVar[DataType]

class ScaleKind:
    scalar: ClassVar[ScaleKind]
    feature: ClassVar[ScaleKind]
    entry: ClassVar[ScaleKind]

class MaskKind:
    none: ClassVar[MaskKind]
    bytes: ClassVar[MaskKind]
    bits: ClassVar[MaskKind]

def log_likelihood_fwd(
    *,
    threads: int,
    num_samples: int,
    batch: int,
    num_features: int,
    law: str,
    x_type: DataType,
    scale_kind: ScaleKind,
    mask_kind: MaskKind,
    x: int,
    output: int,
    scale: int,
    mask: int,
    log_prob: int,
) -> None: ...
def log_likelihood_bwd(
    *,
    threads: int,
    num_samples: int,
    batch: int,
    num_features: int,
    law: str,
    x_type: DataType,
    scale_kind: ScaleKind,
    mask_kind: MaskKind,
    x: int,
    output: int,
    scale: int,
    mask: int,
    grad: int,
    grad_output: int,
    grad_scale: int,
) -> None: ...
def linear_log_likelihood_fwd(
    *,
    threads: int,
    num_samples: int,
    batch: int,
    num_features: int,
    law: str,
    x_type: DataType,
    scale_kind: ScaleKind,
    mask_kind: MaskKind,
    x: int,
    scale: int,
    mask: int,
    hidden_dim: int,
    hidden: int,
    weight: int,
    bias: int,
    log_prob: int,
) -> None: ...
def linear_log_likelihood_bwd(
    *,
    threads: int,
    num_samples: int,
    batch: int,
    num_features: int,
    law: str,
    x_type: DataType,
    scale_kind: ScaleKind,
    mask_kind: MaskKind,
    x: int,
    scale: int,
    mask: int,
    hidden_dim: int,
    hidden: int,
    weight: int,
    bias: int,
    log_prob: int,
    grad: int,
    grad_hidden: int,
    grad_weight: int,
    grad_bias: int,
    grad_scale: int,
) -> None: ...

class RowTypes:
    float32: ClassVar[RowTypes]
    float64: ClassVar[RowTypes]
    float32_bfloat16: ClassVar[RowTypes]

class AdamMode:
    dense: ClassVar[AdamMode]
    lazy: ClassVar[AdamMode]
    row: ClassVar[AdamMode]

def row_adam_catch_up(
    *,
    types: RowTypes,
    threads: int,
    num_data: int,
    width: int,
    rows: int,
    exp_avg: int,
    exp_avg_sq: int,
    row_step: int,
    index: tuple[int, bool, int],
    key_index: tuple[int, bool, int],
    clock: int,
    history: tuple[int, int],
    beta1: float,
    beta2: float,
    eps: float,
) -> None: ...
def row_adam_step(
    *,
    types: RowTypes,
    threads: int,
    num_data: int,
    width: int,
    rows: int,
    exp_avg: int,
    exp_avg_sq: int,
    row_step: int,
    index: tuple[int, bool, int],
    key_index: tuple[int, bool, int],
    clock: int,
    history: tuple[int, int],
    beta1: float,
    beta2: float,
    eps: float,
    grad: int,
    lr: int,
    weight_decay: float,
    mode: AdamMode,
    repeats: bool,
) -> None: ...
def adam_step(
    *,
    is_double: bool,
    threads: int,
    size: int,
    num_parts: int,
    params: int,
    exp_avg: int,
    exp_avg_sq: int,
    grads: int,
    step: int,
    lr: int,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None: ...
