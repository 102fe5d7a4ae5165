"""Mixers, gates, experts, sets and graphs, sharing, bare parameters and other things that people write."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.subject import Subject, floats, keywords, positional, subject, tokens


def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    model = nn.Sequential(nn.Linear(sizes[0], sizes[1]))
    for a, b in pairwise(sizes[1:]):
        model.extend([nn.ReLU(), nn.Linear(a, b)])
    return model


class MlpMixer(nn.Module):
    """Mixes tokens after a transpose, then channels (arXiv:2105.01601)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 28, 4, stride=4)
        self.norm1, self.norm2 = nn.LayerNorm(28), nn.LayerNorm(28)
        self.tokens = nn.Sequential(nn.Linear(16, 22), nn.GELU(), nn.Linear(22, 16))
        self.channels = nn.Sequential(nn.Linear(28, 52), nn.GELU(), nn.Linear(52, 28))
        self.head = nn.Linear(28, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norm2(x))
        return self.head(x.mean(1))


class GatedMlp(nn.Module):
    """gMLP: half of the channels gate the other half after mixing along the sequence (arXiv:2105.08050)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(97, 28)
        self.norm, self.gate_norm = nn.LayerNorm(28), nn.LayerNorm(20)
        self.inputs, self.outputs = nn.Linear(28, 40), nn.Linear(20, 28)
        self.spatial = nn.Conv1d(7, 7, 1)
        self.head = nn.Linear(28, 10)

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words)
        u, v = F.gelu(self.inputs(self.norm(x))).chunk(2, dim=-1)
        x = x + self.outputs(u * self.spatial(self.gate_norm(v)))
        return self.head(x[:, 0])


class ResMlp(nn.Module):
    """Affine maps instead of norms, a linear layer over patches (arXiv:2105.03404)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(48, 24)
        self.alpha1, self.beta1 = nn.Parameter(torch.ones(1, 1, 24)), nn.Parameter(torch.zeros(1, 1, 24))
        self.alpha2, self.beta2 = nn.Parameter(torch.ones(24)), nn.Parameter(torch.zeros(24))
        self.patches = nn.Linear(16, 16)
        self.fc1, self.fc2 = nn.Linear(24, 44), nn.Linear(44, 24)
        self.scale = nn.Parameter(torch.full((24,), 1e-4))
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(F.unfold(x, 4, stride=4).transpose(1, 2))
        x = x + self.scale * self.patches((self.alpha1 * x + self.beta1).transpose(1, 2)).transpose(1, 2)
        x = x + self.fc2(F.gelu(self.fc1(torch.addcmul(self.beta2, self.alpha2, x))))
        return self.head(x.mean(1))


class Glu(nn.Module):
    """`F.glu`, `nn.GLU` over channels, and a bilinear gate."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.glu = nn.Conv1d(5, 2 * 14, 3), nn.GLU(dim=1)
        self.fc1 = nn.Linear(14, 2 * 18)
        self.a, self.b = nn.Linear(18, 22), nn.Linear(18, 22)
        self.out = nn.Linear(22, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.glu(self.fc1(self.glu(self.conv(x)).mean(2)))
        return self.out(self.a(x) * self.b(x))


class Highway(nn.Module):
    """A gate between a transform and the identity (arXiv:1505.00387)."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs = nn.Linear(9, 24)
        self.transform = nn.ModuleList(nn.Linear(24, 24) for _ in range(2))
        self.gate = nn.ModuleList(nn.Linear(24, 24) for _ in range(2))
        self.out = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inputs(x)
        for transform, gate in zip(self.transform, self.gate, strict=True):
            g = torch.sigmoid(gate(x))
            x = g * F.relu(transform(x)) + (1 - g) * x
        return self.out(x)


class DenseExperts(nn.Module):
    """All experts run, stacked in three-dimensional parameters, and are weighted by a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.gate = nn.Linear(9, 20), nn.Linear(20, 4)
        self.w1, self.b1 = nn.Parameter(torch.randn(4, 20, 32)), nn.Parameter(torch.zeros(4, 32))
        self.w2 = nn.Parameter(torch.randn(4, 32, 18))
        self.out = nn.Linear(18, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.inputs(x))
        weights = F.softmax(self.gate(x), dim=-1)
        hidden = F.gelu(torch.einsum("bi,eih->beh", x, self.w1) + self.b1)
        return self.out(torch.einsum("be,beh,eho->bo", weights, hidden, self.w2))


class SparseExperts(nn.Module):
    """Each token goes to its two best experts: `topk`, `torch.where` and `index_add_`."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gate = nn.Embedding(97, 24), nn.Linear(24, 4, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(24, 32 + 4 * i), nn.SiLU(), nn.Linear(32 + 4 * i, 24)) for i in range(4)
        )
        self.out = nn.Linear(24, 10)

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words).view(-1, 24)
        weights, chosen = torch.topk(F.softmax(self.gate(x), dim=-1), 2)
        y = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            row, slot = torch.where(chosen == i)
            y.index_add_(0, row, expert(x[row]) * weights[row, slot, None])
        return self.out(x + y).view(*words.shape, 10)


class PointNet(nn.Module):
    """A network on each point by 1x1 convolutions, an input transform, a maximum over points (arXiv:1612.00593)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv1d(3, 18, 1), nn.BatchNorm1d(18)
        self.transform = nn.Linear(18, 9)
        self.conv2, self.bn2 = nn.Conv1d(3, 22, 1), nn.BatchNorm1d(22)
        self.conv3 = nn.Conv1d(22, 34, 1)
        self.segment = nn.Conv1d(22 + 34, 8, 1)

    def forward(self, points: Tensor) -> Tensor:
        n = points.shape[2]
        t = torch.max(F.relu(self.bn1(self.conv1(points))), 2)[0]
        t = self.transform(t).view(-1, 3, 3) + torch.eye(3)
        x = torch.bmm(points.transpose(2, 1), t).transpose(2, 1)
        local = F.relu(self.bn2(self.conv2(x)))
        best = torch.max(self.conv3(local), 2, keepdim=True)[0].view(-1, 34, 1).repeat(1, 1, n)
        return self.segment(torch.cat([best, local], 1))


class DeepSets(nn.Module):
    """A sum over the elements between two networks (arXiv:1703.06114)."""

    def __init__(self) -> None:
        super().__init__()
        self.phi, self.rho = mlp(5, 22, 18), mlp(18, 26, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.rho(self.phi(x).sum(dim=1))


class GraphConvolution(nn.Module):
    """Multiplication by an adjacency matrix in a buffer (arXiv:1609.02907)."""

    adjacency: Tensor

    def __init__(self) -> None:
        super().__init__()
        adjacency = (torch.rand(8, 8, generator=torch.Generator().manual_seed(5)) < 0.4).float() + torch.eye(8)
        self.register_buffer("adjacency", adjacency / adjacency.sum(1, keepdim=True))
        self.weight1, self.weight2 = nn.Parameter(torch.randn(5, 18)), nn.Parameter(torch.randn(18, 7))
        self.bias1 = nn.Parameter(torch.zeros(18))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.adjacency @ (x @ self.weight1) + self.bias1)
        return self.adjacency @ (x @ self.weight2)


class MessagePassing(nn.Module):
    """Edges as pairs of indices: messages are gathered and added up by `index_add`."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.message, self.update = nn.Linear(5, 18), mlp(36, 22, 14), nn.GRUCell(14, 18)
        self.out = nn.Linear(18, 7)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        x = torch.relu(self.inputs(x))
        source, target = edges
        messages = self.message(torch.cat((x[source], x[target]), -1))
        total = torch.zeros(x.shape[0], 14).index_add(0, target, messages)
        return self.out(self.update(total, x))


class GraphAttention(nn.Module):
    """Scores from two halves of a vector, masked by the edges, four heads (arXiv:1710.10903)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 4 * 8, bias=False)
        self.left, self.right = nn.Parameter(torch.randn(4, 8)), nn.Parameter(torch.randn(4, 8))
        self.out = nn.Linear(32, 7)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        h = self.linear(x).view(-1, 4, 8)
        scores = F.leaky_relu((h * self.left).sum(-1)[:, None] + (h * self.right).sum(-1)[None], 0.2)
        scores = torch.where(adjacency[..., None] > 0, scores, -1e9).softmax(1)
        return self.out(F.elu(torch.einsum("ijh,jhd->ihd", scores, h).flatten(1)))


class Capsules(nn.Module):
    """Channels become capsules, squashed, routed by agreement (arXiv:1710.09829)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.primary = nn.Conv2d(1, 14, 3), nn.Conv2d(14, 4 * 6, 3, stride=2)
        self.weight = nn.Parameter(torch.randn(1, 36, 5, 8, 6))

    @staticmethod
    def squash(x: Tensor) -> Tensor:
        square = (x**2).sum(-1, keepdim=True)
        return square / (1 + square) * x / (square + 1e-8).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        x = self.primary(F.relu(self.conv1(x)))
        x = self.squash(x.view(x.size(0), 4, 6, -1).permute(0, 1, 3, 2).reshape(x.size(0), -1, 6))
        votes = (self.weight @ x[:, :, None, :, None]).squeeze(-1)
        logits = torch.zeros(*votes.shape[:3], 1)
        for _ in range(2):
            v = self.squash((logits.softmax(2) * votes).sum(1, keepdim=True))
            logits = logits + (votes * v).sum(-1, keepdim=True)
        return v.squeeze(1).norm(dim=-1)


class FourierFeatures(nn.Module):
    """A field over coordinates: sines and cosines of a buffer's directions, concatenated once more halfway (arXiv:2006.10739)."""

    directions: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("directions", torch.randn(2, 12, generator=torch.Generator().manual_seed(5)))
        self.first, self.second, self.out = mlp(24, 32, 28), mlp(28 + 24, 36, 20), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        angles = 2 * torch.pi * x @ self.directions
        features = torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1)
        x = F.relu(self.first(features))
        return torch.sigmoid(self.out(torch.sin(self.second(torch.cat([x, features], -1)))))


class Hypernetwork(nn.Module):
    """A network makes the weights of another for each sample (arXiv:1609.09106)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Linear(9, 14)
        self.hyper = mlp(4, 20, 14 * 11 + 11)
        self.out = nn.Linear(11, 10)

    def forward(self, x: Tensor, task: Tensor) -> Tensor:
        made = self.hyper(task)
        weight, bias = made[:, : 14 * 11].view(-1, 11, 14), made[:, 14 * 11 :]
        x = torch.einsum("boi,bi->bo", weight, F.relu(self.features(x))) + bias
        return self.out(F.relu(x))


class Bilinear(nn.Module):
    """`nn.Bilinear` of two branches, and an outer product that is flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(9, 14), nn.Linear(6, 11)
        self.bilinear = nn.Bilinear(14, 11, 18)
        self.out = nn.Linear(18 + 14 * 11, 10)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a, b = F.relu(self.a(x)), F.relu(self.b(y))
        outer = (a.unsqueeze(2) * b.unsqueeze(1)).flatten(1)
        return self.out(torch.cat((F.relu(self.bilinear(a, b)), outer), 1))


class Siamese(nn.Module):
    """One network for two images, compared by absolute differences."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 12, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 18, 3), nn.ReLU(), nn.Flatten()
        )
        self.embed, self.out = nn.Linear(18 * 9, 22), nn.Linear(22, 1)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        x, y = (torch.sigmoid(self.embed(self.features(image))) for image in (a, b))
        return torch.sigmoid(self.out(torch.abs(x - y))), F.pairwise_distance(x, y)


class SharedLayers(nn.Module):
    """Two layers hold the same weight; a third uses its transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs = nn.Linear(9, 24)
        self.a, self.b = nn.Linear(24, 18, bias=False), nn.Linear(24, 18)
        self.b.weight = self.a.weight
        self.bias = nn.Parameter(torch.zeros(24))
        self.out = nn.Linear(18, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.inputs(x))
        x = F.relu(F.linear(F.relu(self.a(x)), self.a.weight.t(), self.bias)) + x
        return self.out(F.relu(self.b(x)))


class Recursive(nn.Module):
    """The same block four times, a residual around it."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.out = nn.Conv2d(3, 14, 3, padding=1), nn.Conv2d(14, 3, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(14, 20, 3, padding=1), nn.ReLU(), nn.Conv2d(20, 14, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        y = first = self.inputs(x)
        for _ in range(4):
            y = self.block(F.relu(y)) * 0.5 + first
        return x + self.out(y)


@dataclass
class TwoHeads:
    """What `DictInput` gives."""

    logits: Tensor
    boxes: Tensor
    hidden: Tensor | None = None


class DictInput(nn.Module):
    """Takes keyword arguments, one with a default, and gives a dataclass."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.words = nn.Conv2d(3, 14, 3), nn.EmbeddingBag(97, 12)
        self.join = nn.Linear(26, 30)
        self.logits, self.boxes = nn.Linear(30, 10), nn.Linear(30, 4)

    def forward(self, pixel_values: Tensor, input_ids: Tensor, return_hidden: bool = False) -> TwoHeads:
        image = F.relu(self.image(pixel_values)).mean((2, 3))
        hidden = F.relu(self.join(torch.cat((image, self.words(input_ids)), 1)))
        return TwoHeads(self.logits(hidden), self.boxes(hidden).sigmoid(), hidden if return_hidden else None)


class BatchDict(nn.Module):
    """Takes one dict as its only positional argument, categorical and numeric columns, and gives a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.embeds = nn.ModuleDict({"colour": nn.Embedding(11, 6), "shape": nn.Embedding(7, 5)})
        self.numeric = nn.BatchNorm1d(4)
        self.body, self.heads = mlp(15, 28, 22), nn.ModuleDict({"price": nn.Linear(22, 1), "class": nn.Linear(22, 10)})

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        parts = [embed(batch[name]) for name, embed in self.embeds.items()]
        hidden = F.relu(self.body(torch.cat([*parts, self.numeric(batch["numeric"])], dim=1)))
        return {name: head(hidden).squeeze(-1) for name, head in self.heads.items()}


class BareParameters(nn.Module):
    """`F.conv2d`, `F.batch_norm`, `F.linear` and `torch.addmm` with parameters of the model itself."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.kernel_bias = nn.Parameter(torch.randn(14, 3, 3, 3)), nn.Parameter(torch.zeros(14))
        self.gamma, self.beta = nn.Parameter(torch.ones(14)), nn.Parameter(torch.zeros(14))
        self.register_buffer("running_mean", torch.zeros(14))
        self.register_buffer("running_var", torch.ones(14))
        self.w1 = nn.Parameter(torch.randn(18, 14))
        self.w2, self.b2 = nn.Parameter(torch.randn(18, 10)), nn.Parameter(torch.zeros(10))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.kernel, self.kernel_bias, padding=1)
        x = F.relu(F.batch_norm(x, self.running_mean, self.running_var, self.gamma, self.beta, self.training))
        return torch.addmm(self.b2, F.relu(F.linear(x.mean((2, 3)), self.w1)), self.w2)


class PositionSlice(nn.Module):
    """`self.pos[:, :n]`, and features multiplied by an unnormalised gate of one unit."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.pos = nn.Linear(9, 28), nn.Parameter(torch.zeros(1, 40, 28))
        self.gate, self.fc1, self.fc2 = nn.Linear(28, 1), nn.Linear(28, 36), nn.Linear(36, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inputs(x) + self.pos[:, : x.size(1)]
        weights = torch.softmax(self.gate(x).squeeze(-1), dim=1)
        return self.fc2(F.relu(self.fc1((weights.unsqueeze(-1) * x).sum(1))))


class AutoEncoder(nn.Module):
    """Convolutions down to a code, `nn.Unflatten`, transposed convolutions up."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 12, 3, 2, 1), nn.ReLU(), nn.Conv2d(12, 18, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(18 * 16, 14)
        )
        self.decoder = nn.Sequential(
            nn.Linear(14, 20 * 16),
            nn.ReLU(),
            nn.Unflatten(1, (20, 4, 4)),
            nn.ConvTranspose2d(20, 10, 3, 2, 1, output_padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(10, 1, 3, 2, 1, output_padding=1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


class Vae(nn.Module):
    """A variational autoencoder; noise only in training, a view to the shape that came in."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.mean, self.log_var = nn.Linear(64, 30), nn.Linear(30, 7), nn.Linear(30, 7)
        self.fc3, self.fc4 = nn.Linear(7, 34), nn.Linear(34, 64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = F.relu(self.fc1(x.view(-1, 64)))
        mean, log_var = self.mean(h), self.log_var(h)
        z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_var) if self.training else mean
        return torch.sigmoid(self.fc4(F.relu(self.fc3(z)))).view_as(x), mean, log_var


class VectorQuantiser(nn.Module):
    """Each code is replaced by its nearest neighbour in a table (arXiv:1711.00937)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.table, self.decoder = mlp(9, 22, 6), nn.Embedding(16, 6), mlp(6, 26, 9)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x)
        nearest = torch.cdist(z, self.table.weight).argmin(1)
        return self.decoder(z + (self.table(nearest) - z).detach()), nearest


class Flow(nn.Module):
    """Affine coupling: one half transforms the other, then they swap; the reversed order by `flip` (arXiv:1605.08803)."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleList(mlp(4, 22, 18, 8) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros(x.shape[0])
        for net in self.nets:
            a, b = x.chunk(2, dim=1)
            log_scale, shift = net(a).chunk(2, dim=1)
            log_scale = torch.tanh(log_scale)
            x = torch.cat((a, b * torch.exp(log_scale) + shift), dim=1).flip(1)
            total = total + log_scale.sum(1)
        return x, total


class Recommender(nn.Module):
    """DLRM: embeddings, a bottom network, pairwise dot products by `bmm` and triangle indices (arXiv:1906.00091)."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, 12) for size in (97, 31, 17))
        self.bottom, self.top = mlp(5, 20, 12), mlp(12 + 6, 24, 1)

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        x = F.relu(self.bottom(numbers))
        rows = torch.stack([x] + [table(categories[:, i]) for i, table in enumerate(self.tables)], dim=1)
        products = torch.bmm(rows, rows.transpose(1, 2))
        i, j = torch.tril_indices(4, 4, offset=-1)
        return torch.sigmoid(self.top(torch.cat([x, products[:, i, j]], dim=1)))


class Kolmogorov(nn.Module):
    """Radial functions of every input, a linear layer over all of them (arXiv:2404.19756, simplified)."""

    grid: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("grid", torch.linspace(-2, 2, 6))
        self.fc1, self.fc2 = nn.Linear(9 * 6, 14), nn.Linear(14 * 6, 10)
        self.norm = nn.LayerNorm(14)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(torch.exp(-((x[..., None] - self.grid) ** 2)).flatten(1))
        return self.fc2(torch.exp(-((self.norm(x)[..., None] - self.grid) ** 2)).view(*x.shape[:-1], -1))


class LowRank(nn.Module):
    """LoRA: a frozen layer and a product of two thin ones, scaled (arXiv:2106.09685)."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(9, 28).requires_grad_(False)
        self.a, self.b = nn.Parameter(torch.randn(5, 9)), nn.Parameter(torch.zeros(28, 5))
        self.out = nn.Linear(28, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.base(x) + 0.5 * (x @ self.a.T @ self.b.T)))


class Permuted(nn.Module):
    """Channels are permuted by a buffer of indices, gathered, sorted, and rolled."""

    order: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.randperm(18, generator=torch.Generator().manual_seed(5)))
        self.fc1, self.fc2, self.fc3, self.fc4 = nn.Linear(9, 18), nn.Linear(18, 22), nn.Linear(22, 26), nn.Linear(26, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(x))[:, self.order]
        x = torch.sort(self.fc2(x), dim=1).values
        return self.fc4(torch.roll(F.relu(self.fc3(x)), 3, dims=1))


class SoftmaxChannels(nn.Module):
    """Softmax, cumulative sums, norms and argmax over hidden units: none of them may go unnoticed."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3, self.fc4 = nn.Linear(9, 18), nn.Linear(18, 22), nn.Linear(22, 26), nn.Linear(26, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.softmax(self.fc1(x), dim=-1)
        x = torch.cumsum(self.fc2(x), dim=-1)
        x = F.normalize(self.fc3(x), dim=-1)
        return self.fc4(x), x.argmax(-1)


class SumAndMean(nn.Module):
    """Sums, means and variances over hidden units, and a unit that is picked by its number."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(9, 18), nn.Linear(9, 22), nn.Linear(9, 26)
        self.out = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = F.relu(self.fc1(x)), F.relu(self.fc2(x)), self.fc3(x)
        return self.out(torch.stack((a.sum(1), b.mean(1), b.var(1), c[:, 5]), dim=1))


class EarlyExit(nn.Module):
    """The hidden features are an output as well, so that they must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(9, 18), nn.Linear(18, 22), nn.Linear(22, 10)

    def forward(self, x: Tensor) -> list[Tensor]:
        hidden = F.relu(self.fc1(x))
        return [hidden, self.fc3(F.relu(self.fc2(hidden)))]


class InputResidual(nn.Module):
    """The residual stream is the input itself."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(14, 30), nn.Linear(30, 14)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.relu(self.fc1(x)))


class Unused(nn.Module):
    """Has a layer that is never called, and a branch whose result is thrown away."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.dead, self.ignored, self.out = nn.Linear(9, 22), nn.Linear(22, 14), nn.Linear(22, 18), nn.Linear(22, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(x))
        self.ignored(x)
        return self.out(x)


class HardCoded(nn.Module):
    """Sizes written into the forward pass, where nothing can change them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(9, 24), nn.Linear(24, 20), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(x)) / 24**0.5
        x = F.layer_norm(self.fc2(x), (20,))
        return self.fc3(x[:, 4:16])


FEATURES = floats(3, 9)
IMAGE = floats(2, 3, 16, 16)
EDGES = tokens(2, 20, vocabulary=8, seed=6)

ODDITIES: list[Subject] = [
    subject("mlp", "mlp", lambda: mlp(9, 32, 24, 10), FEATURES),
    subject(
        "mlp_no_bias",
        "mlp",
        lambda: nn.Sequential(nn.Linear(9, 24, bias=False), nn.Tanh(), nn.Linear(24, 10, bias=False)),
        FEATURES,
    ),
    subject(
        "mlp_batch_norm", "mlp", lambda: nn.Sequential(nn.Linear(9, 24), nn.BatchNorm1d(24), nn.ELU(), nn.Linear(24, 10)), FEATURES
    ),
    subject("mlp_mixer", "mlp", MlpMixer, IMAGE),
    subject("gated_mlp", "mlp", GatedMlp, tokens(2, 7)),
    subject("res_mlp", "mlp", ResMlp, IMAGE),
    subject("glu", "mlp", Glu, floats(2, 5, 9)),
    subject("highway", "mlp", Highway, FEATURES),
    subject("dense_experts", "experts", DenseExperts, FEATURES),
    subject("sparse_experts", "experts", SparseExperts, tokens(2, 7)),
    subject("point_net", "set", PointNet, floats(2, 3, 11)),
    subject("deep_sets", "set", DeepSets, floats(2, 7, 5)),
    subject("graph_convolution", "graph", GraphConvolution, floats(8, 5)),
    subject("message_passing", "graph", MessagePassing, positional(floats(8, 5), EDGES)),
    subject("graph_attention", "graph", GraphAttention, positional(floats(8, 5), lambda: torch.eye(8) + torch.ones(8, 8).triu(5))),
    subject("capsules", "odd", Capsules, floats(2, 1, 9, 9)),
    subject("fourier_features", "odd", FourierFeatures, floats(6, 2)),
    subject("hypernetwork", "odd", Hypernetwork, positional(FEATURES, floats(3, 4))),
    subject("bilinear", "odd", Bilinear, positional(FEATURES, floats(3, 6))),
    subject("siamese", "shared", Siamese, positional(floats(2, 1, 12, 12), floats(2, 1, 12, 12, seed=4))),
    subject("shared_layers", "shared", SharedLayers, FEATURES),
    subject("recursive", "shared", Recursive, IMAGE),
    subject("dict_input", "interface", DictInput, keywords(pixel_values=IMAGE, input_ids=tokens(2, 7))),
    subject(
        "batch_dict",
        "interface",
        BatchDict,
        positional(keywords(colour=tokens(3, vocabulary=11), shape=tokens(3, vocabulary=7), numeric=floats(3, 4))),
    ),
    subject("bare_parameters", "functional", BareParameters, IMAGE),
    subject("position_slice", "functional", PositionSlice, floats(2, 7, 9)),
    subject("auto_encoder", "generative", AutoEncoder, floats(2, 1, 16, 16)),
    subject("vae", "generative", Vae, floats(2, 1, 8, 8)),
    subject("vector_quantiser", "generative", VectorQuantiser, FEATURES),
    subject("flow", "generative", Flow, floats(3, 8)),
    subject("recommender", "odd", Recommender, positional(floats(3, 5), tokens(3, 3, vocabulary=17))),
    subject("kolmogorov", "odd", Kolmogorov, FEATURES),
    subject("low_rank", "functional", LowRank, FEATURES),
    subject("permuted", "odd", Permuted, FEATURES),
    subject("softmax_channels", "odd", SoftmaxChannels, FEATURES),
    subject("sum_and_mean", "odd", SumAndMean, FEATURES),
    subject("early_exit", "interface", EarlyExit, FEATURES),
    subject("input_residual", "trivial", InputResidual, floats(3, 14)),
    subject("unused", "odd", Unused, FEATURES),
    subject("hard_coded", "odd", HardCoded, FEATURES),
    subject("single_linear", "trivial", lambda: nn.Linear(9, 10), FEATURES),
    subject("single_convolution", "trivial", lambda: nn.Conv2d(3, 8, 3), IMAGE),
    subject("single_embedding", "trivial", lambda: nn.Embedding(97, 12), tokens(2, 7)),
    subject("no_parameters", "trivial", lambda: nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()), IMAGE),
]
