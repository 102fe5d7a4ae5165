"""Naming what takes part: whatever exists in a model may be named, and of coupled sites a name means those that a layer makes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.methods import wanda_
from secateurs.types import PatternError


class Decoder(nn.Module):
    """Two blocks on one residual stream, a gated MLP in each, an output head that is tied to the embedding where asked for."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.mix = nn.RMSNorm(8), nn.Linear(8, 8)
            self.mlp = nn.ModuleDict({"gate": nn.Linear(8, 16), "up": nn.Linear(8, 16), "down": nn.Linear(16, 8)})

        def forward(self, x):
            x = x + self.mix(self.norm(x))
            return x + self.mlp["down"](self.mlp["gate"](x).relu() * self.mlp["up"](x))

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.blocks = nn.ModuleList([self.Block(), self.Block()])
        self.act, self.head = nn.ReLU(), nn.Linear(8, 20, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.act(x))


IDS = torch.zeros(1, 5, dtype=torch.long)
INNER = [f"blocks.{n}.mlp.gate" for n in (0, 1)]
PROJECTIONS = [f"blocks.{n}.{name}" for n in (0, 1) for name in ("mix", "mlp.gate", "mlp.up", "mlp.down")]


def found(pattern, model=None, **selection) -> list[str]:
    return [site.name for site in sc.find_sites(model or Decoder(), pattern, IDS, **selection)]


def test_the_sites_of_the_decoder():
    assert found(sc.Channel()) == ["embed", *INNER]
    assert found(sc.Element()) == PROJECTIONS
    assert found(sc.Element(), only="*") == ["embed", *PROJECTIONS]


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ("*.mlp.*", INNER),
        ("*.mlp", INNER),
        ("blocks.1", INNER[1:]),
        ("*.up", INNER),
        ("blocks.0.mlp.up.weight", INNER[:1]),
        ("embed", ["embed"]),
        ("head", ["embed"]),
        ("*", ["embed", *INNER]),
        (["embed", "*.mix", "*.down"], ["embed"]),
        (lambda name, module: isinstance(module, nn.Linear), INNER),
    ],
)
def test_only_chooses_the_coupled_sites_that_the_named_layers_make(only, expected):
    assert found(sc.Channel(), only=only) == expected


@pytest.mark.parametrize("only", ["*.down", "*.mix", ["blocks.0.mlp.down", "blocks.1"]])
def test_makers_among_others_choose_nothing_and_are_told_the_name_to_give(only):
    message = r"embed: made by more layers than only= names \(embed, blocks\.0\.mix, blocks\.0\.mlp\.down, …\); name embed in only="
    if only == ["blocks.0.mlp.down", "blocks.1"]:
        assert (
            "name embed"
            in {item.name: item.reason for item in sc.find_sites(Decoder(), sc.Channel(), IDS, only=only).skipped}["embed"]
        )
    else:
        with pytest.raises(PatternError, match=message):
            found(sc.Channel(), only=only)


@pytest.mark.parametrize(
    ("skip", "expected"),
    [
        ("*.mlp.*", []),
        ("*.up", ["embed"]),
        ("blocks.0.mlp.down", INNER),
        ("head", INNER),
        ("*.norm", ["embed", *INNER]),
        (["embed", "blocks.1.mlp.gate"], INNER[:1]),
    ],
)
def test_skip_leaves_every_coupled_site_that_a_named_layer_makes(skip, expected):
    if expected:
        assert found(sc.Channel(), skip=skip) == expected
    else:
        with pytest.raises(PatternError, match="named in skip="):
            found(sc.Channel(), skip=skip)


@pytest.mark.parametrize("name", ["head", "head.weight", "embed", "blocks.0.norm", "*.norm", "act", "blocks.0.mix.bias"])
def test_whatever_exists_may_be_named_in_skip_which_adds_to_the_defaults(name):
    assert found(sc.Element(), skip=name) == PROJECTIONS
    assert found(sc.Element(), skip=[name, "blocks.1"]) == PROJECTIONS[:4]


def test_a_tied_weight_is_meant_by_each_of_its_names():
    assert found(sc.Element(), only="head") == ["embed"]
    assert found(sc.Element(), only="*", skip="head") == PROJECTIONS
    assert found(sc.Element(), Decoder(tied=False), only="head") == ["head"]


def test_modules_and_parameters_may_be_given_themselves():
    model = Decoder()
    assert found(sc.Element(), model, only=model.blocks[0].mlp) == PROJECTIONS[1:4]
    assert found(sc.Element(), model, only=[model.blocks[1], model.blocks[0].mix.weight]) == [PROJECTIONS[0], *PROJECTIONS[4:]]
    assert found(sc.Channel(), model, skip=[model.embed]) == INNER
    assert found(sc.Element(), model, only=model) == found(sc.Element(), model, only="*")


@pytest.mark.parametrize("pattern", [sc.Element(), sc.Channel()])
@pytest.mark.parametrize("argument", ["only", "skip"])
@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (nn.Linear(1, 1), r"this Linear is no part of the Decoder"),
        ([nn.Parameter(torch.zeros(2))], r"this Parameter is no part of the Decoder"),
        (
            nn.Linear,
            r"takes names, globs, modules of the model or a predicate .* not the class Linear; for all layers of a class: lambda",
        ),
        ([nn.Linear], r"not the class Linear"),
        (3, r"takes names, .* not 3"),
        ("", r"nothing in Decoder is called ''; did you mean \w"),
        ("*.attention.*", r"nothing in Decoder is called '\*\.attention\.\*'"),
        ("blocks.0.mlp.gat", r"did you mean blocks\.0\.mlp\.gate"),
    ],
)
def test_what_means_nothing_is_refused(pattern, argument, selection, message):
    with pytest.raises(PatternError, match=f"{argument}=.*{message}"):
        found(pattern, **{argument: selection})


def test_reasons_may_be_given_with_the_names():
    sites = sc.find_sites(Decoder(), sc.Element(), IDS, skip={"*.mix": "too small to be worth it"})
    assert {item.name: item.reason for item in sites.skipped}["blocks.0.mix"] == "too small to be worth it"


@pytest.mark.parametrize("tied", [False, True])
def test_wanda_leaves_the_output_head_and_the_embeddings_alone_unless_only_names_them(tied):
    model, task = Decoder(tied), sc.Task(IDS, calibration=[torch.randint(0, 20, (2, 5))])
    masks = wanda_(model, task)
    assert list(masks) == [f"{name}.weight" for name in PROJECTIONS]
    assert "output head" in {item.name: item.reason for item in masks.skipped}["embed" if tied else "head"]
    assert list(wanda_(model, task, skip=["blocks.1", "*.mlp"])) == ["blocks.0.mix.weight"]
    if not tied:
        assert list(wanda_(model, task, only="head")) == ["head.weight"]
