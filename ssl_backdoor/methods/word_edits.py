"""The augmented twin of a caption: some words dropped, some swapped, on tokens.

After EDA (Wei and Zou 2019), https://arxiv.org/abs/1901.11196, which CleanCLIP augments captions with.

NOTE: EDA also inserts and replaces synonyms; they need WordNet, which is a download, and are left out. The share of
edited words is EDA's, spread over two operations instead of four.

Shapes: B captions, L tokens: a start token, the words, the end token (the vocabulary's largest), zeros.
"""

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from ssl_backdoor.methods.base import Replicas
from ssl_backdoor.seeds import torch_generator


@final
class WordEdits(nn.Module):
    """Makes the twins of captions, for one tokenizer and seed."""

    ends_word: Tensor

    def __init__(self, tokenizer: Any, word_edit_p: float, seed: int) -> None:
        super().__init__()
        names: Mapping[int, str] = tokenizer.decoder  # token to text; "</w>" marks the end of a word
        ends = [names[token].endswith("</w>") for token in range(len(names))]
        self.register_buffer("ends_word", torch.tensor(ends), persistent=False)
        self._word_edit_p = word_edit_p
        self._seed = seed

    def forward(self, tokens: Tensor, step: int, replicas: Replicas, name: str = "word edits") -> Tensor:
        """Twins (b, L) of this replica's captions, drawn for the global batch from the stream (``name``, step)."""
        num_captions, length = len(tokens) * replicas.count, tokens.shape[1]
        draws = draw_edits(num_captions, length, self._word_edit_p, torch_generator(self._seed, name, step))
        mine = draws[replicas.slice(num_captions)].to(tokens.device)
        return edit_words(tokens, self.ends_word, self._word_edit_p, mine)


def draw_edits(num_captions: int, length: int, word_edit_p: float, generator: torch.Generator) -> Tensor:
    """Random numbers for ``edit_words``: (num_captions, edits, 3) in [0, 1), ``edits`` enough for ``length`` tokens."""
    return torch.rand(num_captions, _num_edits_at_most(length, word_edit_p), 3, generator=generator)


def _num_edits_at_most(length: int, word_edit_p: float) -> int:
    return max(1, round(word_edit_p * (length - 2))) if word_edit_p else 0


def edit_words(tokens: Tensor, ends_word: Tensor, word_edit_p: float, draws: Tensor) -> Tensor:
    """Captions with ``word_edit_p`` of their words edited, rounded, but at least one and never all of them.

    The edits follow each other; each takes a uniformly drawn word and, with equal chance, drops it or swaps it with
    another. A dropped word may be drawn again, then nothing more happens to it. A caption of one word stays.

    Args:
        tokens: (B, L) int64.
        ends_word: (vocabulary,) bool: whether a word ends with this token.
        word_edit_p: In [0, 1]; 0 returns ``tokens``.
        draws: Rows of ``draw_edits`` for these captions: the word, the operation, the other word.

    Returns:
        (B, L) int64, as ``tokens``.
    """
    if not draws.shape[1]:
        return tokens
    length = tokens.shape[1]
    position = torch.arange(length, device=tokens.device).expand_as(tokens)
    end = tokens.argmax(1, keepdim=True)  # (B, 1)
    is_word = (position > 0) & (position < end)
    word_ends = ends_word[tokens] & is_word
    word = (word_ends.cumsum(1) - word_ends.long()) * is_word  # (B, L): index of the token's word in its caption
    num_words = (word.amax(1) + 1) * is_word.any(1)  # (B,)
    num_edits = torch.minimum((word_edit_p * num_words).round().long().clamp(min=1), num_words - 1)

    place = position.clone()  # (B, L): of word w, the rank it is written at; ``length`` where it is dropped
    for edit, (drawn, operation, partner) in enumerate(draws.permute(1, 2, 0)):
        first = (drawn * num_words).long()
        second = (partner * (num_words - 1)).long()
        second = (second + (second >= first)).clamp(max=length - 1)  # uniform over the other words
        first, second = first[:, None], second[:, None]
        old_first, old_second = place.gather(1, first), place.gather(1, second)
        both_there = (old_first < length) & (old_second < length)
        active = (edit < num_edits)[:, None]
        drops = active & (operation < 0.5)[:, None]
        swaps = active & ~drops & both_there
        place.scatter_(1, first, torch.where(drops, length, torch.where(swaps, old_second, old_first)))
        place.scatter_(1, second, torch.where(swaps, old_first, place.gather(1, second)))

    rank = torch.where(is_word, place.gather(1, word), torch.where(position == 0, -1, length + 1))
    rank = torch.where(position == end, length - 1, rank)
    order = rank.argsort(dim=1, stable=True)
    edited = tokens.gather(1, order)
    return torch.where(rank.gather(1, order) < length, edited, 0)
