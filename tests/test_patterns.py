"""How weights are cut into units, and which weights take part."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from secateurs.allocate import uniform
from secateurs.criteria import magnitude
from secateurs.patterns import (
    Block,
    Channel,
    Element,
    Filter,
    Kernel,
    NofM,
    Vector,
    as_units,
    find_sites,
    find_weights,
    layout_of,
    misfit,
    restrict,
    spread,
    unit_scores,
)
from secateurs.solve import TopK
from secateurs.testing import check_pattern
from secateurs.types import Evidence, PatternError, Skipped, TaskError


def reasons(sites) -> dict[str, str]:
    return {item.name: item.reason for item in sites.skipped}


def names(sites) -> list[str]:
    return [site.name for site in sites]


# ------------------------------------------------------------------------------------------------ the canonical view


@pytest.mark.parametrize(
    ("layer", "attribute", "shape"),
    [
        (nn.Linear(16, 8), "weight", (1, 8, 16)),
        (nn.Bilinear(3, 4, 5), "weight", None),
        (nn.Conv1d(8, 4, 3), "weight", (1, 4, 8, 3)),
        (nn.Conv2d(8, 16, (2, 3), groups=2), "weight", (2, 8, 4, 2, 3)),
        (nn.Conv2d(4, 8, 3, groups=4), "weight", (4, 2, 1, 3, 3)),
        (nn.Conv3d(4, 6, (1, 2, 3)), "weight", (1, 6, 4, 1, 2, 3)),
        (nn.ConvTranspose1d(8, 4, 3), "weight", (1, 4, 8, 3)),
        (nn.ConvTranspose2d(8, 16, (2, 3), groups=2), "weight", (2, 8, 4, 2, 3)),
        (nn.Embedding(12, 8), "weight", (1, 12, 8)),
        (nn.EmbeddingBag(12, 8), "weight", (1, 12, 8)),
        (nn.LSTM(8, 5), "weight_ih_l0", (4, 5, 8)),
        (nn.LSTM(8, 5), "weight_hh_l0", (4, 5, 5)),
        (nn.LSTM(8, 6, proj_size=3), "weight_hr_l0", (1, 3, 6)),
        (nn.LSTM(8, 6, proj_size=3), "weight_hh_l0", (4, 6, 3)),
        (nn.GRU(8, 5, bidirectional=True), "weight_ih_l0_reverse", (3, 5, 8)),
        (nn.RNN(8, 5), "weight_hh_l0", (1, 5, 5)),
        (nn.LSTMCell(8, 5), "weight_ih", (4, 5, 8)),
        (nn.GRUCell(8, 5), "weight_hh", (3, 5, 5)),
        (nn.RNNCell(8, 5), "weight_ih", (1, 5, 8)),
        (nn.MultiheadAttention(8, 2), "in_proj_weight", (3, 8, 8)),
        (nn.MultiheadAttention(8, 2, kdim=6, vdim=4), "k_proj_weight", (1, 8, 6)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_the_canonical_view_is_groups_outputs_inputs_kernel(layer, attribute, shape):
    layout = layout_of(layer, attribute)
    weight = getattr(layer, attribute)
    assert (None if layout is None else tuple(layout.canonical(weight).shape)) == shape


def test_a_biases_layout_is_none():
    assert [layout_of(layer, "bias") for layer in (nn.Linear(2, 2), nn.Conv2d(2, 2, 1))] == [None, None]
    assert layout_of(nn.LSTM(2, 2), "bias_ih_l0") is None


def test_the_inputs_of_a_transposed_convolution_are_its_inputs():
    layer = nn.ConvTranspose2d(4, 6, 1, groups=2, bias=False)
    with torch.no_grad():
        layout_of(layer, "weight").canonical(layer.weight)[1, 2, 0] = 0  # group 1, its output 2, its input 0
        one = torch.zeros(1, 4, 1, 1)
        one[0, 2] = 1  # group 1's input 0
        output = layer(one).flatten()
    assert (output == 0).tolist() == [True, True, True, False, False, True]


def test_the_gates_of_an_lstm_are_its_groups():
    layer = nn.LSTM(3, 2)
    layout = layout_of(layer, "weight_ih_l0")
    assert torch.equal(layout.canonical(layer.weight_ih_l0)[2], layer.weight_ih_l0[4:6])


# ------------------------------------------------------------------------------------------------ cutting


@given(
    st.integers(1, 3),
    st.integers(1, 6),
    st.integers(1, 6),
    st.lists(st.integers(1, 3), max_size=3),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_a_block_is_the_rectangle_that_a_loop_finds(groups, outputs, inputs, kernel, rows, columns):
    shape = (groups, outputs * rows, inputs * columns, *kernel)
    weight = torch.arange(torch.Size(shape).numel()).view(shape)
    block = Block(rows, columns).cut(shape)
    got = {frozenset(unit.tolist()) for unit in block.view(weight).reshape(-1, rows * columns)}
    expected = set()
    for places in torch.cartesian_prod(*(torch.arange(n) for n in (groups, outputs, inputs, *kernel, 1))).tolist():
        g, o, i, *k = places[:-1]
        corner = weight[(g, slice(o * rows, (o + 1) * rows), slice(i * columns, (i + 1) * columns), *k)]
        expected.add(frozenset(corner.flatten().tolist()))
    assert got == expected


def test_two_of_four_lets_four_consecutive_inputs_compete_at_each_place_of_the_kernel():
    weight = torch.arange(1 * 2 * 8 * 3).view(1, 2, 8, 3)
    units = NofM(2, 4).cut(weight.shape).view(weight)
    assert units.shape == (1, 2, 2, 3, 4)
    assert torch.equal(units[0, 1, 1, 2], weight[0, 1, 4:8, 2])


def test_a_block_of_two_of_four_is_shared_by_its_outputs():
    weight = torch.arange(4 * 8).view(1, 4, 8)
    units = Block(2, 1, within=4).cut(weight.shape).view(weight)
    assert units.shape == (1, 2, 2, 4, 2)  # contests (group, outputs, inputs), competitors, elements
    assert torch.equal(units[0, 1, 0, 3], weight[0, 2:4, 3])


@pytest.mark.parametrize(
    ("pattern", "shape", "message"),
    [
        (NofM(2, 4), (1, 64, 27), r"NofM\(2, 4\) needs the input dimension \(27\) to be a multiple of 4; use tail=\"keep\""),
        (NofM(2, 4), (1, 64, 3, 3, 3), r"the input dimension \(3\) to be a multiple of 4; use Element\(\)"),
        (Block(4, 1), (2, 6, 8), r"Block\(4, 1\) needs the output dimension \(6\) to be a multiple of 4; use tail=\"keep\""),
        (Vector("width", 2), (1, 8, 8, 2, 3), r"Vector\('width', length=2\) needs the kernel width dimension \(3\)"),
        (Vector("height", 2), (1, 8, 8, 3, 2), r"the kernel height dimension \(3\) to be a multiple of 2"),
        (Vector("depth", 2), (1, 8, 8, 3, 2, 2), r"the kernel depth dimension \(3\) to be a multiple of 2"),
        (Vector("width"), (1, 8, 8), r"Vector\('width'\) needs a convolution kernel with a width"),
        (Vector("height"), (1, 8, 8, 3), r"Vector\('height'\) needs a convolution kernel with a height"),
        (Kernel(), (1, 64, 32), r"Kernel\(\) needs a convolution; the weight is 64 x 32 without a kernel: use Element\(\)"),
        (Element(within=8, tail="keep"), (1, 4, 4), r"the input dimension \(4\) to be a multiple of 8; use Element\(\)"),
        (Element(), (1, 0, 4), r"Element\(\) finds no unit in a weight of shape \(1, 0, 4\)"),
    ],
)
def test_a_misfit_names_pattern_dimension_size_and_a_way_out(pattern, shape, message):
    with pytest.raises(PatternError, match=message):
        pattern.cut(shape)
    assert misfit(pattern, shape)


@pytest.mark.parametrize(
    ("pattern", "shape", "rest"),
    [
        (NofM(2, 4, tail="keep"), (1, 2, 7), (slice(None), slice(None), slice(4, None))),
        (Block(2, 1, tail="keep"), (2, 5, 4), (slice(None), slice(4, None))),
        (Vector("width", 2, tail="keep"), (1, 2, 2, 3, 3), (..., slice(2, None))),
    ],
)
def test_a_tail_that_is_kept_is_all_that_is_left_dense(pattern, shape, rest):
    touched = torch.zeros(shape, dtype=torch.bool)
    pattern.cut(shape).view(touched).fill_(True)
    expected = torch.ones(shape, dtype=torch.bool)
    expected[rest] = False
    assert torch.equal(touched, expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NofM(4, 4), r"NofM\(4, 4\): n must be below m"),
        (lambda: NofM(0, 4), r"n must be a whole number of at least 1, not 0"),
        (lambda: NofM(2, 2.5), r"m must be a whole number of at least 1, not 2.5"),
        (lambda: Block(0, 1), r"rows must be a whole number of at least 1, not 0"),
        (lambda: Block(1, True), r"columns must be a whole number of at least 1, not True"),
        (lambda: Vector("across"), r'axis is "outputs", "inputs", "width", "height" or "depth", not \'across\''),
        (lambda: Vector("inputs", -1), r"length must be a whole number of at least 1, not -1"),
        (
            lambda: Element(within="column"),
            r'within is "model", "isomorphic", "layer", "row" or a whole number of at least 2, not \'column\'',
        ),
        (lambda: Element(within=1), r"a whole number of at least 2, not 1"),
        (lambda: Element(within=True), r"a whole number of at least 2, not True"),
        (lambda: Filter(within="row"), r'filters compete within "layer", "isomorphic" or "model"'),
        (lambda: Filter(within=4), r'filters compete within "layer", "isomorphic" or "model"'),
    ],
)
def test_a_pattern_that_cannot_be_is_refused_when_it_is_made(make, message):
    with pytest.raises(PatternError, match=message):
        make()


@pytest.mark.parametrize(
    ("pattern", "written"),
    [
        (Element(), "Element()"),
        (Element(within="row", tail="keep"), "Element(within='row', tail='keep')"),
        (NofM(2, 4), "NofM(2, 4)"),
        (Vector("inputs", 8), "Vector('inputs', length=8)"),
        (Block(4, 1, within=4), "Block(4, 1, within=4)"),
    ],
)
def test_a_pattern_is_written_as_one_would_write_it(pattern, written):
    assert repr(pattern) == written


# ------------------------------------------------------------------------------------------------ scores and masks of units


def test_scores_of_filters_are_norms_of_their_weights():
    layer = nn.Conv2d(2, 3, 2)
    site = find_sites(layer, Filter(), only="*")[0]
    evidence = Evidence("weight", site.members[0].canonical(layer.weight.detach()))
    assert torch.allclose(unit_scores(site, magnitude(p=2), evidence)[0], layer.weight.detach().flatten(1).norm(dim=1))


@pytest.mark.parametrize("p", [0.5, 1, 2, 3, torch.inf])
def test_weights_are_scored_by_size_as_a_copy_without_signs_is(p):
    layer = nn.Conv2d(3, 8, 3)
    site = find_sites(layer, Filter(), only="*")[0]
    evidence = Evidence("weight", layer.weight.detach()[None])
    plainly = replace(magnitude(p=p), element=lambda each: each.weight.abs())
    assert torch.equal(unit_scores(site, magnitude(p=p), evidence), unit_scores(site, plainly, evidence))


def test_spreading_a_choice_marks_whole_units():
    site = find_sites(nn.Linear(4, 4), Block(2, 2), only="*")[0]
    mask = torch.ones(4, 4, dtype=torch.bool)
    spread(site, torch.tensor([[True, False, False, True]]), mask)
    assert mask.int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    assert as_units(site, mask).all(-1).all(-1).tolist() == [[True, False, False, True]]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_restricting_twice_leaves_what_both_choices_keep(layout):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1))
    made, read = (
        next(site for site in find_sites(model, Channel(), torch.zeros(1, 3, 9, 9)) if site.name == name) for name in "20"
    )
    rows, columns = torch.rand(1, 6) > 0.5, torch.rand(1, 8) > 0.5
    mask = torch.ones(6, 8, 3, 3, dtype=torch.bool).contiguous(memory_format=layout)
    for site, chosen in ((made, rows), (read, columns)):
        restrict(site, chosen, mask, [member.parameter for member in site.members].index("2.weight"))
    assert torch.equal(mask, (rows.T & columns)[:, :, None, None].expand(6, 8, 3, 3))


# ------------------------------------------------------------------------------------------------ which weights take part


def mlp() -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            first=nn.Linear(6, 8), act=nn.ReLU(), body=nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), last=nn.Linear(8, 3)
        )
    )


def test_by_default_every_weight_takes_part_that_the_pattern_fits(small_cnn):
    sites = find_sites(small_cnn, Element())
    assert names(sites) == ["0", "3", "7", "9"]
    assert sites.skipped == (Skipped("1", "a normalisation, never pruned"),)


def test_the_first_layer_and_the_classifier_are_left_alone_where_the_pattern_does_not_fit():
    sites = find_sites(mlp(), Block(8, 4))
    assert names(sites) == ["body.0", "body.1"]
    assert "the first layer, which the pattern does not fit: Block(8, 4) needs the input dimension (6)" in reasons(sites)["first"]
    assert "the classifier, which the pattern does not fit: Block(8, 4) needs the output dimension (3)" in reasons(sites)["last"]


def test_any_other_layer_that_the_pattern_does_not_fit_is_an_error_that_names_it_and_the_way_out():
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 8))
    with pytest.raises(PatternError, match=r"^1: NofM\(2, 4\) needs .*\(6\).*; or skip with skip=\['1', '2'\] \(1 more layers"):
        find_sites(model, NofM(2, 4))


@pytest.mark.parametrize("pattern", [Filter(), Vector("inputs"), Block(1, 8)], ids=repr)
def test_the_classifiers_outputs_are_not_removed_by_default(pattern):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3))
    sites = find_sites(model, pattern)
    assert names(sites) == ["0"]
    assert "its outputs are the model's answer; name it in only=" in reasons(sites)["1"]
    assert names(find_sites(model, pattern, only="1")) == ["1"]
    assert names(find_sites(model, pattern, only="*")) == ["0", "1"]


def test_embeddings_are_left_alone_by_default():
    model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    sites = find_sites(model, Element())
    assert names(sites) == ["1", "2"]
    assert "an embedding" in reasons(sites)["0"]
    assert names(find_sites(model, Element(), only=["0"])) == ["0"]


def test_normalisations_are_never_sites_and_are_listed():
    layers = [nn.BatchNorm1d(4), nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.RMSNorm(4), nn.InstanceNorm1d(4, affine=True)]
    sites = find_sites(nn.Sequential(nn.Linear(4, 4), *layers), Element())
    assert reasons(sites) == {str(n): "a normalisation, never pruned" for n in range(1, 6)}


class Reversed(nn.Module):
    """Defines its last layer first."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.tail = nn.Linear(8, 3), nn.Linear(6, 8)
        self.unused = nn.Linear(8, 8)

    def forward(self, x):
        return self.head(self.tail(x))


def test_first_and_last_are_what_the_example_passes_first_and_last():
    assert names(find_sites(Reversed(), Element(), torch.zeros(1, 6))) == ["tail", "head", "unused"]
    assert names(find_sites(Reversed(), Element())) == ["head", "tail", "unused"]


def test_the_projection_inside_an_attention_is_not_mistaken_for_the_classifier():
    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.classifier = nn.MultiheadAttention(8, 2), nn.Linear(8, 3)

        def forward(self, x):
            return self.classifier(self.attention(x, x, x)[0])

    sites = find_sites(Transformer(), Filter(), torch.zeros(4, 1, 8))
    assert names(sites) == ["attention.in_proj_weight", "attention.out_proj"]
    assert list(reasons(sites)) == ["classifier"]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ("first", ["first"]),
        ("first.weight", ["first"]),
        ("body", ["body.0", "body.1"]),
        ("body.*", ["body.0", "body.1"]),
        ("*", ["first", "body.0", "body.1", "last"]),
        (["last", "body.1"], ["body.1", "last"]),
        (("first", "first"), ["first"]),
        ({"last": "named in skip="}, ["last"]),
        (lambda name, module: module.in_features == 8, ["body.0", "body.1", "last"]),
        (lambda name, module: name.startswith("f"), ["first"]),
    ],
)
def test_layers_are_chosen_and_skipped_by_name_container_glob_or_predicate(selection, expected):
    every = ["first", "body.0", "body.1", "last"]
    chosen = find_sites(mlp(), Element(), only=selection)
    assert names(chosen) == expected
    assert reasons(chosen) == {name: "not named in only=" for name in every if name not in expected}
    if len(expected) < len(every):
        skipping = find_sites(mlp(), Element(), skip=selection)
        assert names(skipping) == [name for name in every if name not in expected]
        assert reasons(skipping) == dict.fromkeys(expected, "named in skip=")


def test_only_and_skip_go_together():
    sites = find_sites(mlp(), Element(), only="body", skip="body.1")
    assert names(sites) == ["body.0"]
    assert reasons(sites)["body.1"] == "named in skip="


@pytest.mark.parametrize("argument", ["only", "skip"])
def test_an_unknown_name_is_an_error_that_suggests_close_ones(argument):
    with pytest.raises(PatternError, match=rf"{argument}=: nothing in Sequential is called 'frist'; did you mean first\?"):
        find_sites(mlp(), Element(), **{argument: ["last", "frist"]})
    with pytest.raises(PatternError, match=r"called 'zzz\*'; did you mean first, body.0, body.1, last, "):
        find_sites(mlp(), Element(), **{argument: "zzz*"})


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"only": []}, "first: not named in only="),
        ({"skip": "*"}, "first: named in skip="),
        ({"only": lambda name, module: False}, "last: not named in only="),
    ],
)
def test_zero_sites_is_an_error_that_lists_what_was_left_alone(arguments, reason):
    with pytest.raises(PatternError, match=rf"Element\(\) finds no site in Sequential; left alone: .*{reason}.*pass only="):
        find_sites(mlp(), Element(), **arguments)


def test_a_pattern_that_fits_no_layer_is_an_error_with_the_reasons():
    with pytest.raises(PatternError, match=r"Kernel\(\) finds no site.*0: the first layer.*needs a convolution.*pass only="):
        find_sites(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), Kernel())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.ReLU(), "ReLU has no prunable weight; it has nothing of this kind"),
        (nn.LayerNorm(4), "LayerNorm has no prunable weight; left alone: .*a normalisation, never pruned"),
        (
            nn.Bilinear(2, 3, 4),
            r"no canonical view is known for Bilinear.weight; an example may show how .*, or add one to .*LAYOUTS",
        ),
    ],
)
def test_a_model_without_a_prunable_weight_is_an_error(model, message):
    with pytest.raises(PatternError, match=message):
        find_sites(model, Element())


def test_an_unknown_layer_with_a_matrix_is_listed_with_a_way_out():
    class Scaled(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 3)
            self.table = nn.Parameter(torch.ones(3, 4))

    sites = find_sites(Scaled(), Element())
    assert reasons(sites) == {"table": "no canonical view is known for Scaled.table; add one to secateurs.patterns.LAYOUTS"}


def test_tied_weights_are_pruned_once():
    model = nn.Sequential(OrderedDict(a=nn.Linear(4, 4), b=nn.Linear(4, 4), c=nn.Linear(4, 4)))
    model.c.weight = model.a.weight
    sites = find_sites(model, Element())
    assert names(sites) == ["a", "b"]
    assert reasons(sites) == {"c.weight": "tied to a.weight, pruned there"}


def test_a_layer_that_is_used_twice_is_one_site():
    layer = nn.Linear(4, 4)
    assert names(find_sites(nn.Sequential(layer, layer), Element())) == ["0"]


def test_weights_of_whole_numbers_are_listed():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    assert reasons(find_sites(model, Element())) == {
        "1.weight": "its numbers are torch.int8; only floating-point weights are pruned"
    }


def parametrized(model: nn.Module) -> nn.Module:
    return nn.utils.parametrizations.weight_norm(model)


def pruned_by_torch(model: nn.Module) -> nn.Module:
    from torch.nn.utils import prune

    return prune.l1_unstructured(model, "weight", amount=0.5)


def old_weight_norm(model: nn.Module) -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(model)


@pytest.mark.parametrize(
    ("change", "name", "remedy"),
    [
        (parametrized, "1.parametrizations.weight.original1", "(WeightNorm); remove it first: torch.nn.utils.parametrize"),
        (nn.utils.parametrizations.orthogonal, "1.parametrizations.weight.original", "remove_parametrizations"),
        (
            pruned_by_torch,
            "1.weight_orig",
            'a mask of torch; make that permanent first: torch.nn.utils.prune.remove(layer, "weight")',
        ),
        (nn.utils.spectral_norm, "1.weight_orig", 'torch.nn.utils.remove_spectral_norm(layer, "weight")'),
        (old_weight_norm, "1.weight_g", 'torch.nn.utils.remove_weight_norm(layer, "weight")'),
        (old_weight_norm, "1.weight_v", 'torch.nn.utils.remove_weight_norm(layer, "weight")'),
    ],
)
def test_weights_behind_a_parametrization_are_listed_with_a_way_out(change, name, remedy):
    model = nn.Sequential(nn.Linear(4, 4), change(nn.Linear(4, 4)))
    assert remedy in reasons(find_sites(model, Element()))[name]


def test_a_lazy_model_must_see_an_input_first():
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))
    with pytest.raises(PatternError, match=r"0.weight has no shape yet: run the lazy model on one input"):
        find_sites(model, Element())
    model(torch.zeros(1, 3))
    assert names(find_sites(model, Element())) == ["0", "1"]


def test_a_layer_of_ones_own_takes_part_with_one_line(monkeypatch):
    from secateurs.patterns import LAYOUTS, Layout

    monkeypatch.setitem(LAYOUTS, nn.Bilinear, lambda module, attribute: Layout() if attribute == "weight" else None)
    site = find_sites(nn.Bilinear(2, 3, 4), Element())[0]
    assert (site.name, site.units) == ("weight", 24)


def test_the_model_is_left_as_it_was_by_the_search(small_cnn):
    small_cnn.train()
    small_cnn[1].eval()
    before, modes = {k: v.clone() for k, v in small_cnn.state_dict().items()}, [m.training for m in small_cnn.modules()]
    random_state = torch.get_rng_state()
    find_sites(small_cnn, Element(), torch.ones(2, 4, 8, 8))
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(torch.equal(before[k], v) for k, v in small_cnn.state_dict().items())
    assert modes == [m.training for m in small_cnn.modules()]
    assert not any(m._forward_pre_hooks for m in small_cnn.modules())


def test_a_model_that_draws_random_numbers_does_not_disturb_those_of_the_caller():
    class Noisy(nn.Linear):
        def forward(self, x):
            return super().forward(x + torch.randn_like(x))

    model = Noisy(4, 4)
    before = torch.get_rng_state()
    find_sites(model, Element(), torch.zeros(1, 4))
    assert torch.equal(before, torch.get_rng_state())


def test_a_rejected_example_leaves_no_hook_behind(small_cnn):
    with pytest.raises(TaskError, match=r"rejects the example \(tensor \(1, 5, 8, 8\) torch.float32\)"):
        find_sites(small_cnn, Element(), torch.zeros(1, 5, 8, 8))
    assert not any(m._forward_pre_hooks for m in small_cnn.modules())


# ------------------------------------------------------------------------------------------------ Hugging Face


def test_the_weights_of_gpt2_are_seen_as_outputs_by_inputs():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=16, n_positions=8)
    model = transformers.GPT2LMHeadModel(config).eval()
    example = {"input_ids": torch.arange(4)[None]}
    sites = find_sites(model, NofM(2, 4), example)
    assert names(sites) == [f"transformer.h.0.{part}" for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]
    assert reasons(sites)["lm_head.weight"] == "tied to transformer.wte.weight, pruned there"
    assert "an embedding" in reasons(sites)["transformer.wte"]

    weight = model.transformer.h[0].attn.c_attn.weight
    assert weight.shape == (8, 24)  # (inputs, outputs)
    site = sites[0]
    assert site.contests == (1, 24, 2)
    units = as_units(site, torch.arange(8 * 24).view(8, 24))
    # The second contest of output 0 is the inputs 4 to 7, one column of the stored matrix.
    assert torch.equal(units[1], torch.arange(8 * 24).view(8, 24)[4:8, 0])


def test_a_layer_that_looks_like_hugging_faces_conv1d_keeps_the_laws():
    from secateurs.testing import LAYERS

    lookalike = [specimen for specimen in LAYERS if specimen.name.startswith("Conv1D")]
    assert len(lookalike) == 1
    assert find_weights(lookalike[0].model())[0][0].layout.transposed
    assert check_pattern(NofM(2, 4), on=lookalike) is None


def test_single_weights_compete_with_those_of_layers_of_their_kind():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(8, 4), nn.Linear(4, 2))
    with torch.no_grad():
        for factor, layer in zip((1, 100, 1000, 10000), (model[0], model[1], model[3], model[4]), strict=True):
            layer.weight.copy_(factor * (1 + torch.rand(layer.weight.shape)))
    sites = find_sites(model, Element(within="isomorphic"))
    assert [(site.kind, site.contest_count) for site in sites] == [("Conv2d.weight", 1)] * 2 + [("Linear.weight", 1)] * 2
    plan = uniform(keep=0.5)(sites, lambda: TopK(magnitude()).scores(sites, {}))
    assert dict(plan) == {"0": 1, "1": 26, "3": 12, "4": 8}


@pytest.mark.parametrize("pattern", [Element(), Channel()])
@pytest.mark.filterwarnings("ignore")
def test_quantised_layers_are_listed(pattern):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    quantised = torch.ao.quantization.quantize_dynamic(model, {"2", "4"}, dtype=torch.qint8)
    if pattern == Element():
        sites = find_sites(quantised, pattern, torch.zeros(1, 4))
        assert names(sites) == ["0"]
        assert reasons(sites) == dict.fromkeys(["2", "4"], "its weight is quantised; prune first, then quantise")
    else:
        with pytest.raises(PatternError, match="2: its weight is quantised; prune first, then quantise"):
            find_sites(quantised, pattern, torch.zeros(1, 4))


def test_weights_in_a_packed_kind_of_tensor_are_listed():
    from torch.testing._internal.two_tensor import TwoTensor

    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].weight = nn.Parameter(TwoTensor(torch.ones(4, 4), torch.ones(4, 4)))
    sites = find_sites(model, Element())
    assert names(sites) == ["1"]
    assert reasons(sites) == {"0.weight": "its numbers are packed in a TwoTensor; prune first, then pack"}
