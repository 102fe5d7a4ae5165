"""A recurrent language model."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import dropout


class LstmLanguageModel(nn.Module):
    """Embedding, LSTM layers, and one linear layer, with dropout between them; ``tied`` makes it share the embedding's weight.

    >>> import torch
    >>> model = LstmLanguageModel(classes=5, width=8, depth=1, drop=0.5, tied=False)
    >>> tuple(model(torch.zeros(2, 3, dtype=torch.long)).shape)
    (2, 3, 5)
    """

    def __init__(self, classes: int, width: int, depth: int, drop: float, tied: bool) -> None:
        super().__init__()
        self.drop = drop
        self.embedding = nn.Embedding(classes, width)
        self.lstm = nn.LSTM(width, width, depth, dropout=drop if depth > 1 else 0.0, batch_first=True)
        self.output = nn.Linear(width, classes)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.05, 0.05)
        if tied:
            self.output.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = dropout(self.embedding(tokens), self.drop, self.training)
        x, _ = self.lstm(x)
        return self.output(dropout(x, self.drop, self.training))


def lstm_language_model(
    classes: int = 10_000, width: int = 650, depth: int = 2, drop: float = 0.5, tied: bool = False
) -> LstmLanguageModel:
    """Two LSTM layers of 650 units over a vocabulary of 10,000 words: the medium one for the Penn Treebank.

    Zaremba et al. 2014, arXiv:1409.2329, section 4.1; ``tied`` is Press and Wolf 2016, arXiv:1608.05859. Input integers
    ``(n, time)`` below ``classes``, output ``(n, time, classes)``: logits for the next word; 19,780,400 parameters, or
    13,280,400 if ``tied``.

    >>> import torch
    >>> with torch.device("meta"):
    ...     model = lstm_language_model()
    >>> sum(p.numel() for p in model.parameters())
    19780400
    """
    return LstmLanguageModel(classes, width, depth, drop, tied)
