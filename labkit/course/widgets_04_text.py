"""Chapter 04: fixed passages, so that the encoder sees the same tokens on every machine."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

PASSAGES = (
    "The kettle whistled while rain ran down the kitchen window, and my grandmother counted the "
    "spoons twice before she admitted that one of them had been missing since the wedding.",
    "A compiler reads source text, builds a tree from it, checks the types of all expressions, "
    "and only then begins to choose registers and instructions for the processor that will run it.",
    "Interest rates rose by a quarter of a percent on Thursday, the third increase this year, as "
    "the central bank tries to slow inflation without pushing the economy into a recession.",
    "The glacier has lost forty metres of its thickness since 1990; where hikers used to cross on "
    "ice there is now a grey lake, and below it a valley that floods every second summer.",
    "To make the dough, stir flour, water, salt and a little yeast, fold it four times within two "
    "hours, let it rest in the cold overnight, and bake it in a pot with a lid at 240 degrees.",
    "In the second half the visitors pressed higher, won the ball near the touchline, and scored "
    "twice within three minutes, so that the goalkeeper threw his gloves into the net.",
    "Photosynthesis turns carbon dioxide and water into sugar and oxygen; the energy comes from "
    "light that chlorophyll absorbs, mostly in the blue and in the red part of the spectrum.",
    "Section 12 of the agreement states that either party may terminate the contract with ninety "
    "days of written notice, unless the other party has failed to pay an undisputed invoice.",
    "She tuned the old violin a semitone lower, closed the shutters against the noise of the "
    "street, and played the slow movement so quietly that the dog in the next room began to snore.",
    "The patient reported a dull pain in the left knee after running, no swelling, no fever, and a "
    "family history of arthritis; the X-ray showed nothing unusual, so rest was recommended.",
    "Take the 7:42 train to Basel, change to platform 9, and sit in the last two carriages, "
    "because the front of the train is uncoupled at the border and continues in another direction.",
    "A sample of 1,024 voters was asked in March; 47 percent said yes, 38 percent said no, and the "
    "remaining 15 percent were undecided, with a margin of error of about three points.",
)

LENGTH = 34


def passage_ids(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """The first LENGTH tokens of every passage, int64 [passages, LENGTH]; none needs padding."""
    return torch.tensor(tokenizer(list(PASSAGES), truncation=True, max_length=LENGTH)["input_ids"])
