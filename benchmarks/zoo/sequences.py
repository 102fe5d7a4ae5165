"""Recurrent networks, sound, and 1-d convolutions as people write them by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from zoo.subject import Subject, floats, positional, subject, tokens


class LstmClassifier(nn.Module):
    """Words, an LSTM, and the last hidden state; or both last states of a bidirectional stack."""

    def __init__(self, layers: int = 1, bidirectional: bool = False) -> None:
        super().__init__()
        self.bidirectional = bidirectional
        self.embed = nn.Embedding(97, 20)
        self.lstm = nn.LSTM(20, 28, layers, batch_first=True, bidirectional=bidirectional, dropout=0.1 if layers > 1 else 0.0)
        self.fc = nn.Linear(56 if bidirectional else 28, 10)

    def forward(self, words: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(self.embed(words))
        last = torch.cat((hidden[-2], hidden[-1]), dim=1) if self.bidirectional else hidden[-1]
        return self.fc(last)


class GruTagger(nn.Module):
    """A bidirectional GRU that is sequence first; the two directions are added."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(97, 20)
        self.gru = nn.GRU(20, 26, bidirectional=True)
        self.fc = nn.Linear(26, 11)

    def forward(self, words: Tensor) -> Tensor:
        out, _ = self.gru(self.embed(words).transpose(0, 1))
        out = out[:, :, :26] + out[:, :, 26:]
        return self.fc(torch.tanh(out)).transpose(0, 1)


class PackedLstm(nn.Module):
    """An LSTM with a projection over sequences of different lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs = nn.Linear(9, 20)
        self.lstm = nn.LSTM(20, 28, batch_first=True, proj_size=14)
        self.fc = nn.Linear(14, 10)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(F.relu(self.inputs(x)), lengths, batch_first=True, enforce_sorted=False)
        out, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        return self.fc(out.mean(1))


class ElmanNet(nn.Module):
    """`nn.RNN` with an initial state that is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.initial = nn.Parameter(torch.zeros(2, 1, 24))
        self.rnn = nn.RNN(9, 24, 2, batch_first=True)
        self.fc = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x, self.initial.expand(-1, x.shape[0], -1).contiguous())
        return self.fc(out[:, -1, :])


class CellLoop(nn.Module):
    """`LSTMCell` and `GRUCell` in a loop over time, each state fed back by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTMCell(9, 20)
        self.gru = nn.GRUCell(20, 26)
        self.fc = nn.Linear(26, 10)

    def forward(self, x: Tensor) -> Tensor:
        h, c, g = x.new_zeros(x.shape[0], 20), x.new_zeros(x.shape[0], 20), x.new_zeros(x.shape[0], 26)
        outputs = []
        for t in range(x.shape[1]):
            h, c = self.lstm(x[:, t], (h, c))
            g = self.gru(h, g)
            outputs.append(self.fc(g))
        return torch.stack(outputs, dim=1)


class HandWrittenLstm(nn.Module):
    """The four gates by `chunk` of one linear layer's output."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = 22
        self.x2h = nn.Linear(9, 4 * 22)
        self.h2h = nn.Linear(22, 4 * 22, bias=False)
        self.fc = nn.Linear(22, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros(x.size(0), self.hidden_size)
        for step in x.unbind(1):
            i, f, g, o = (self.x2h(step) + self.h2h(h)).chunk(4, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.fc(h)


class Seq2SeqGru(nn.Module):
    """A translator with additive attention (arXiv:1409.0473)."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(97, 20), nn.Embedding(83, 18)
        self.encoder = nn.GRU(20, 14, batch_first=True, bidirectional=True)
        self.bridge = nn.Linear(28, 24)
        self.query, self.memory, self.score = nn.Linear(24, 16), nn.Linear(28, 16), nn.Linear(16, 1, bias=False)
        self.cell = nn.GRUCell(18 + 28, 24)
        self.out = nn.Linear(24 + 28, 83)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, last = self.encoder(self.source(source))
        state = torch.tanh(self.bridge(torch.cat((last[0], last[1]), 1)))
        keys, words = self.memory(memory), self.target(target)
        outputs = []
        for t in range(target.shape[1]):
            weights = self.score(torch.tanh(keys + self.query(state).unsqueeze(1))).softmax(1)
            context = (weights * memory).sum(1)
            state = self.cell(torch.cat((words[:, t], context), 1), state)
            outputs.append(self.out(torch.cat((state, context), 1)))
        return torch.stack(outputs, 1)


class TiedLanguageModel(nn.Module):
    """An LSTM whose output layer is its embedding, through a projection to the embedding's size (arXiv:1608.05859)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Embedding(97, 24)
        self.lstm = nn.LSTM(24, 36, 2, batch_first=True)
        self.project = nn.Linear(36, 24)
        self.decoder = nn.Linear(24, 97)
        self.decoder.weight = self.encoder.weight

    def forward(self, words: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        out, state = self.lstm(self.encoder(words))
        return F.log_softmax(self.decoder(torch.tanh(self.project(out))), dim=-1), state


class ConvRecurrent(nn.Module):
    """CRNN: the columns of a feature map become the steps of an LSTM; channels and rows are merged."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 12, 3, padding=1)
        self.conv2 = nn.Conv2d(12, 18, 3, padding=1)
        self.lstm = nn.LSTM(18 * 4, 22, bidirectional=True)
        self.fc = nn.Linear(44, 11)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), (2, 1))
        b, c, h, w = x.size()
        x = x.reshape(b, c * h, w).permute(2, 0, 1)
        return self.fc(self.lstm(x)[0])


class ConvLstm(nn.Module):
    """A convolutional LSTM cell (arXiv:1506.04214)."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = 14
        self.gates = nn.Conv2d(3 + 14, 4 * 14, 3, padding=1)
        self.out = nn.Conv2d(14, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _, height, width = x.shape
        h = torch.zeros(b, self.hidden, height, width)
        c = torch.zeros_like(h)
        for step in range(t):
            i, f, o, g = torch.split(self.gates(torch.cat([x[:, step], h], dim=1)), self.hidden, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.out(h)


class WaveNet(nn.Module):
    """Dilated causal convolutions, gated units by `chunk`, residuals and a sum of skips (arXiv:1609.03499)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, 18, 1)
        self.gated = nn.ModuleList(nn.Conv1d(18, 2 * 14, 2, dilation=2**i) for i in range(3))
        self.residual = nn.ModuleList(nn.Conv1d(14, 18, 1) for _ in range(3))
        self.skip = nn.ModuleList(nn.Conv1d(14, 22, 1) for _ in range(3))
        self.last1, self.last2 = nn.Conv1d(22, 20, 1), nn.Conv1d(20, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        skips: Tensor | float = 0.0
        for i, (gated, residual, skip) in enumerate(zip(self.gated, self.residual, self.skip, strict=True)):
            y = gated(F.pad(x, (2**i, 0)))
            a, b = y.chunk(2, dim=1)
            y = torch.tanh(a) * torch.sigmoid(b)
            x = x + residual(y)
            skips = skips + skip(y)
        return self.last2(F.relu(self.last1(F.relu(torch.as_tensor(skips)))))


class TemporalConvolution(nn.Module):
    """A residual of two weight-normed causal convolutions whose surplus is cut off (arXiv:1803.01271)."""

    def __init__(self) -> None:
        super().__init__()
        norm = torch.nn.utils.parametrizations.weight_norm
        self.conv1 = norm(nn.Conv1d(5, 18, 3, padding=4, dilation=2))
        self.conv2 = norm(nn.Conv1d(18, 22, 3, padding=4, dilation=2))
        self.downsample = nn.Conv1d(5, 22, 1)
        self.fc = nn.Linear(22, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv1(x)[:, :, :-4].contiguous())
        y = F.relu(self.conv2(y)[:, :, :-4].contiguous())
        return self.fc(F.relu(y + self.downsample(x))[:, :, -1])


class AudioNet(nn.Module):
    """Demucs: 1-d convolutions with GLU down, transposed ones up; `squeeze` and `unsqueeze` at the ends."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.mix1 = nn.Conv1d(1, 12, 8, 4, 2), nn.Conv1d(12, 24, 1)
        self.down2, self.mix2 = nn.Conv1d(12, 20, 8, 4, 2), nn.Conv1d(20, 40, 1)
        self.up2, self.up1 = nn.ConvTranspose1d(20, 12, 8, 4, 2), nn.ConvTranspose1d(12, 1, 8, 4, 2)

    def forward(self, wave: Tensor) -> Tensor:
        x = wave.unsqueeze(1)
        x = F.glu(self.mix1(F.relu(self.down1(x))), dim=1)
        y = F.glu(self.mix2(F.relu(self.down2(x))), dim=1)
        return self.up1(F.relu(self.up2(y)) + x).squeeze(1)


class MelSpeech(nn.Module):
    """Spectrogram by `torch.stft` and a filter bank in a buffer, BatchNorm1d over frequencies, statistics pooling."""

    window: Tensor
    bank: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(32))
        self.register_buffer("bank", torch.rand(10, 17, generator=torch.Generator().manual_seed(5)))
        self.norm = nn.BatchNorm1d(10)
        self.conv1, self.bn1 = nn.Conv1d(10, 22, 3, padding=1), nn.BatchNorm1d(22)
        self.conv2 = nn.Conv1d(22, 18, 3, dilation=2)
        self.fc = nn.Linear(36, 12)

    def forward(self, wave: Tensor) -> Tensor:
        spectrum = torch.stft(wave, 32, 16, window=self.window, return_complex=True).abs().pow(2)
        x = self.norm(torch.log(self.bank @ spectrum + 1e-3))
        x = F.relu(self.conv2(self.bn1(F.relu(self.conv1(x)))))
        return self.fc(torch.cat((x.mean(2), x.std(2)), dim=1))


class ConformerConvolution(nn.Module):
    """LayerNorm, pointwise, GLU, depthwise, BatchNorm1d, pointwise, with transposes around (arXiv:2005.08100)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(20)
        self.pointwise1 = nn.Conv1d(20, 2 * 26, 1)
        self.depthwise = nn.Conv1d(26, 26, 5, padding=2, groups=26)
        self.bn = nn.BatchNorm1d(26)
        self.pointwise2 = nn.Conv1d(26, 20, 1)
        self.fc = nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = F.glu(self.pointwise1(self.norm(x).transpose(1, 2)), dim=1)
        y = self.pointwise2(F.silu(self.bn(self.depthwise(y)))).transpose(1, 2)
        return self.fc(x + y)


class TextCnn(nn.Module):
    """Kernels as wide as the embedding, maxima over time, concatenated (arXiv:1408.5882)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(97, 20)
        self.convs = nn.ModuleList(nn.Conv2d(1, 14, (size, 20)) for size in (2, 3, 4))
        self.fc = nn.Linear(42, 10)

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words).unsqueeze(1)
        parts = [F.relu(conv(x)).squeeze(3) for conv in self.convs]
        return self.fc(torch.cat([F.max_pool1d(part, part.size(2)).squeeze(2) for part in parts], 1))


class StateSpace(nn.Module):
    """Mamba's block: a depthwise causal convolution, a selective scan in a loop, a gate (arXiv:2312.00752)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(97, 20)
        self.norm = nn.RMSNorm(20)
        self.in_proj = nn.Linear(20, 2 * 32, bias=False)
        self.conv = nn.Conv1d(32, 32, 3, groups=32, padding=2)
        self.x_proj = nn.Linear(32, 5 + 2 * 6, bias=False)
        self.dt_proj = nn.Linear(5, 32)
        self.a_log = nn.Parameter(torch.log(torch.arange(1.0, 7).repeat(32, 1)))
        self.d = nn.Parameter(torch.ones(32))
        self.out_proj = nn.Linear(32, 20, bias=False)

    def forward(self, words: Tensor) -> Tensor:
        residual = self.embed(words)
        x, z = self.in_proj(self.norm(residual)).chunk(2, dim=-1)
        x = F.silu(self.conv(x.transpose(1, 2))[..., : words.shape[1]]).transpose(1, 2)
        dt, b, c = self.x_proj(x).split([5, 6, 6], dim=-1)
        dt, a = F.softplus(self.dt_proj(dt)), -torch.exp(self.a_log)
        state, outputs = x.new_zeros(x.shape[0], 32, 6), []
        for t in range(x.shape[1]):
            state = torch.exp(dt[:, t, :, None] * a) * state + (dt[:, t] * x[:, t])[..., None] * b[:, t, None]
            outputs.append(torch.einsum("bds,bs->bd", state, c[:, t]))
        y = (torch.stack(outputs, 1) + self.d * x) * F.silu(z)
        return F.linear(residual + self.out_proj(y), self.embed.weight)


class TimeMixing(nn.Module):
    """RWKV's channel mixing: the previous word is mixed in by a shift (arXiv:2305.13048)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(97, 20)
        self.shift = nn.ZeroPad2d((0, 0, 1, -1))
        self.mix_k, self.mix_r = nn.Parameter(torch.rand(1, 1, 20)), nn.Parameter(torch.rand(1, 1, 20))
        self.key = nn.Linear(20, 60, bias=False)
        self.receptance = nn.Linear(20, 20, bias=False)
        self.value = nn.Linear(60, 20, bias=False)
        self.head = nn.Linear(20, 97, bias=False)

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words)
        before = self.shift(x)
        k = torch.square(torch.relu(self.key(torch.lerp(before, x, self.mix_k))))
        r = self.receptance(x * self.mix_r + before * (1 - self.mix_r))
        return self.head(x + torch.sigmoid(r) * self.value(k))


WORDS = tokens(2, 7)
STEPS = floats(2, 7, 9)
WAVE = floats(2, 256)

SEQUENCES: list[Subject] = [
    subject("lstm_classifier", "recurrent", LstmClassifier, WORDS),
    subject("lstm_stacked", "recurrent", lambda: LstmClassifier(2), WORDS),
    subject("lstm_stacked_bidirectional", "recurrent", lambda: LstmClassifier(2, True), WORDS),
    subject("gru_tagger", "recurrent", GruTagger, WORDS),
    subject("packed_lstm", "recurrent", PackedLstm, positional(STEPS, lambda: torch.tensor([5, 7]))),
    subject("elman_net", "recurrent", ElmanNet, STEPS),
    subject("cell_loop", "recurrent", CellLoop, STEPS),
    subject("hand_written_lstm", "recurrent", HandWrittenLstm, STEPS),
    subject("seq2seq_gru", "recurrent", Seq2SeqGru, positional(WORDS, tokens(2, 5, vocabulary=83))),
    subject("tied_language_model", "recurrent", TiedLanguageModel, WORDS),
    subject("conv_recurrent", "recurrent", ConvRecurrent, floats(2, 1, 16, 24)),
    subject("conv_lstm", "recurrent", ConvLstm, floats(2, 4, 3, 6, 6)),
    subject("wave_net", "sound", WaveNet, floats(2, 1, 24)),
    subject("temporal_convolution", "sound", TemporalConvolution, floats(2, 5, 12)),
    subject("audio_net", "sound", AudioNet, WAVE),
    subject("mel_speech", "sound", MelSpeech, WAVE),
    subject("conformer_convolution", "sound", ConformerConvolution, floats(2, 9, 20)),
    subject("text_cnn", "sound", TextCnn, WORDS),
    subject("state_space", "recurrent", StateSpace, WORDS),
    subject("time_mixing", "recurrent", TimeMixing, WORDS),
]
