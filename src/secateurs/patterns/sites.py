"""From a model and a pattern to sites."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from secateurs.given import MODEL, PATTERN, require
from secateurs.patterns.selection import listed
from secateurs.types import Chosen, Pattern, PatternError, Selection, Sites


def find_sites(
    model: nn.Module,
    pattern: Pattern,
    example: Any = None,
    *,
    only: Selection | None = None,
    skip: Selection | None = None,
    masks: Mapping[str, Tensor] | None = None,
) -> Sites:
    """The sites of a pattern on a model's weights, in the order in which the example passes them.

    For `Channel` and `Head` the model is traced, and a site is an axis with all that is coupled to it; ``print(sites)`` shows them,
    and what was left alone and why. ``only`` then means sites by their names, or by the layers that make them: all of a site's, or
    one of some that stand side by side (gate and up projection of one MLP). ``skip`` leaves every site that a named layer makes.

    For patterns on single weights: without ``only``, three kinds of weights are left alone and listed: embeddings; the first layer
    and the classifier where the pattern does not fit them; and the classifier where a unit is a whole output, since its outputs are
    the answer. ``only`` names what takes part (``only="*"``: everything), ``skip`` what else does not. ``masks`` are those of an
    earlier pruning: what they removed stays removed.

    Raises `PatternError` where no site is left, a name means nothing in the model, or the pattern does not fit a chosen layer;
    `TaskError` where the model rejects the example.

    >>> from secateurs.patterns import Element
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> [(site.name, site.units) for site in find_sites(model, Element(), only="0")]
    [('0', 32)]
    """
    require("find_sites", "model", model, MODEL)
    require("find_sites", "pattern", pattern, PATTERN)
    sites = pattern.sites(model, example, Chosen(_held(only), _held(skip)), masks)
    if not sites:
        raise PatternError(f"{pattern} finds no site in {type(model).__name__}; {listed(sites.skipped)}")
    return sites


def _held(selection: Selection | None) -> Selection | None:
    """A selection that can be looked at again."""
    return list(selection) if isinstance(selection, Iterator) else selection
