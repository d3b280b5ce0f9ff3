"""Every number of the bundled model's training, in one place."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace


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


Shares = tuple[tuple[str, float], ...]

# Rows of a batch by source. Text first; then mostly tasks, because copying and arithmetic come
# late and need many examples; then text again while the learning rate falls.
_MOSTLY_TEXT: Shares = (
    ("stdlib-prose", 0.16),
    ("stdlib-code", 0.24),
    ("doctest", 0.22),
    ("facts", 0.08),
    ("recall", 0.14),
    ("repl", 0.16),
)
_MOSTLY_TASKS: Shares = (
    ("stdlib-prose", 0.10),
    ("stdlib-code", 0.16),
    ("doctest", 0.24),
    ("facts", 0.10),
    ("recall", 0.20),
    ("repl", 0.20),
)
# Copying, in its barest form, before the tasks that need it.
_COPYING: Shares = (
    ("stdlib-prose", 0.08),
    ("stdlib-code", 0.12),
    ("doctest", 0.08),
    ("facts", 0.07),
    ("recall", 0.15),
    ("repl", 0.15),
    ("echo", 0.35),
)
# Tasks with a drill for carrying; one for state; then what expressions still lack.
_SUMS: Shares = (
    ("stdlib-prose", 0.06),
    ("stdlib-code", 0.10),
    ("doctest", 0.22),
    ("sums", 0.18),
    ("facts", 0.14),
    ("recall", 0.06),
    ("repl", 0.24),
)
_STATE: Shares = (
    ("stdlib-prose", 0.05),
    ("stdlib-code", 0.08),
    ("doctest", 0.12),
    ("facts", 0.15),
    ("repl", 0.20),
    ("state", 0.40),
)
_EXPRESSIONS: Shares = (
    ("stdlib-prose", 0.06),
    ("stdlib-code", 0.10),
    ("doctest", 0.28),
    ("sums", 0.26),
    ("facts", 0.10),
    ("recall", 0.14),
    ("repl", 0.06),
)
_EVERYTHING: Shares = (
    ("stdlib-prose", 0.14),
    ("stdlib-code", 0.22),
    ("doctest", 0.24),
    ("sums", 0.14),
    ("facts", 0.08),
    ("recall", 0.12),
    ("repl", 0.06),
)


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one batch shape (`rows` x `length` tokens a step) and mixture.

    `answer_weight` multiplies the loss of a task's answers.
    """

    steps: int
    rows: int
    length: int
    shares: Shares
    answer_weight: float


@dataclass(frozen=True)
class Recipe:
    """Muon on the hidden matrices, AdamW on embeddings and norms, then a linear decay to zero.

    `prompt_weight` multiplies the loss of what is not answer in a task: prompts are random and
    teach nothing but their form.
    """

    seed: int = 0
    architecture: Architecture = field(default_factory=Architecture)
    phases: tuple[Phase, ...] = (
        Phase(800, 16, 256, _MOSTLY_TEXT, answer_weight=2.0),
        Phase(600, 16, 256, _MOSTLY_TASKS, answer_weight=4.0),
        Phase(400, 16, 256, _COPYING, answer_weight=4.0),
        Phase(200, 16, 256, _MOSTLY_TASKS, answer_weight=4.0),
        Phase(600, 16, 256, _SUMS, answer_weight=4.0),
        Phase(200, 16, 256, _STATE, answer_weight=4.0),
        Phase(500, 16, 256, _EXPRESSIONS, answer_weight=4.0),
        Phase(300, 8, 512, _EVERYTHING, answer_weight=2.0),
    )
    muon_lr: float = 3.5e-3
    adamw_lr: float = 3e-3
    weight_decay: float = 0.05
    warmup_steps: int = 100
    decay_steps: int = 600
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

    def shortened(self, steps: int) -> Recipe:
        """The same recipe with at most `steps` steps a phase: to try the machinery out."""
        phases = tuple(replace(p, steps=min(p.steps, steps)) for p in self.phases)
        return replace(self, phases=phases)

    def as_json(self) -> str:
        return json.dumps(asdict(self), indent=1)
