"""Every number of the bundled model's training, in one place."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Architecture:
    """A small Llama: sizes are multiples of 256 so that GGUF's super-blocks fit its rows."""

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 768
    num_hidden_layers: int = 8
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    max_position_embeddings: int = 512


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one batch shape. `rows` x `length` tokens a step."""

    steps: int
    rows: int
    length: int


@dataclass(frozen=True)
class Recipe:
    """Muon on the hidden matrices, AdamW on embeddings and norms, then a linear decay to zero.

    `shares` are the rows of a batch by source. `answer_weight` and `prompt_weight` multiply the
    loss of a task's answers and of everything else in it: prompts are random and teach nothing.
    """

    seed: int = 0
    architecture: Architecture = field(default_factory=Architecture)
    phases: tuple[Phase, ...] = (Phase(5600, 16, 256), Phase(1400, 8, 512))
    shares: tuple[tuple[str, float], ...] = (
        ("stdlib-prose", 0.16),
        ("stdlib-code", 0.24),
        ("doctest", 0.22),
        ("facts", 0.08),
        ("recall", 0.14),
        ("repl", 0.16),
    )
    muon_lr: float = 3.5e-3
    adamw_lr: float = 3e-3
    weight_decay: float = 0.05
    warmup_steps: int = 100
    decay_steps: int = 2000
    answer_weight: float = 2.0
    prompt_weight: float = 0.1

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    @property
    def tokens(self) -> int:
        return sum(phase.steps * phase.rows * phase.length for phase in self.phases)

    def phase_at(self, step: int) -> Phase:
        for phase in self.phases:
            if step < phase.steps:
                return phase
            step -= phase.steps
        return self.phases[-1]

    def lr_factor(self, step: int) -> float:
        """Warm up, stay, then fall linearly over the last `decay_steps`."""
        warm = (step + 1) / self.warmup_steps
        left = (self.steps - step) / self.decay_steps
        return max(0.0, min(1.0, warm, left))

    def as_dict(self) -> dict[str, object]:
        return asdict(self)
