"""Patterns, criteria and allocators, as one writes them on a command line."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import partial
from typing import Any

from secateurs import allocate, costs, criteria, evidence, patterns, solve
from secateurs.report.words import shortened
from secateurs.types import Allocator, Budget, Cost, Criterion, Pattern, SecateursError, Solver


def parsed_pattern(text: str) -> Pattern:
    """A pattern as one writes it in Python, with literals only; ``2:4`` and bare names (``kernel``) for short."""
    n, colon, m = text.partition(":")
    if colon and n.isdecimal() and m.isdecimal() and len(text) < 20:
        return patterns.NofM(int(n), int(m))
    shapes = {shape.__name__.lower(): shape for shape in _shapes()}
    try:
        tree = ast.parse(text if "(" in text else f"{text}()", mode="eval").body
        if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name) or tree.func.id.lower() not in shapes:
            raise ValueError(f"the patterns are {', '.join(shape.__name__ for shape in _shapes())}")
        arguments = [ast.literal_eval(argument) for argument in tree.args]
        named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in tree.keywords}
        return shapes[tree.func.id.lower()](*arguments, **named)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        if isinstance(error, SecateursError):
            raise
        text = shortened(text, 60)
        raise SecateursError(f"{text!r} is no pattern ({error}); write one as 2:4, kernel, or Block(4, 1)") from error


def _shapes() -> Iterable[Any]:
    tilings = (patterns.Element, patterns.NofM, patterns.Vector, patterns.Kernel, patterns.Block, patterns.Filter)
    return (*tilings, patterns.Channel, patterns.Head, patterns.Depth, patterns.Expert)


def parsed_tiling(text: str) -> Pattern:
    """A pattern on single weights."""
    shape = parsed_pattern(text)
    if shape.removable:
        raise SecateursError(
            f"{shape} does not fit single layers but removes what is coupled: see secateurs inspect MODEL --channels"
        )
    return shape


def amount_removed(
    shape: Pattern, sparsity: float | None, keep_macs: float | None, keep_params: float | None
) -> tuple[float, Cost | None]:
    """The fraction to remove, and of which cost, where it is not of the units; raises where the options do not fit each other."""
    given = {"--sparsity": sparsity, "--keep-macs": keep_macs, "--keep-params": keep_params}
    said = [name for name, value in given.items() if value is not None]
    if not shape.removable:
        if keep_macs is not None or keep_params is not None:
            raise SecateursError(f"{said[-1]} is for --pattern channel and head, not for {shape}; say --sparsity")
        return 0.9 if sparsity is None else sparsity, None
    if len(said) != 1:
        raise SecateursError(
            f"{shape}: say how much stays with one of --keep-macs, --keep-params (fractions kept) and --sparsity (fraction of the "
            f"units removed), not with {' and '.join(said) or 'none of them'}"
        )
    if sparsity is not None:
        return sparsity, None
    keep = keep_macs if keep_macs is not None else keep_params
    if keep is None or not 0 < keep <= 1:
        raise SecateursError(f"{said[0]} {keep} is not in (0, 1]; 0.5 keeps half")
    return 1 - keep, costs.macs if keep_macs is not None else costs.params


def parsed_criterion(text: str, seed: int, coupled: bool) -> Criterion:
    """A criterion as one writes it in Python, with literals only: ``taylor``, ``magnitude(p=1) * input_norm()``.

    ``magnitude`` alone counts every weight that coupled units lie in, ``random`` alone the command's seed. Raises `SecateursError`
    that lists the names.

    >>> parsed_criterion("magnitude(p=1) * input_norm()", 0, False)
    magnitude(p=1) * input_norm(p=2)
    """
    if text == "magnitude":
        return criteria.magnitude(members="all" if coupled else "producers")
    if text == "random":
        return criteria.random(seed)
    try:
        made = _product(ast.parse(text, mode="eval").body)
        if not isinstance(made, Criterion):
            raise ValueError("a statistic alone scores nothing; multiply a criterion with it")
        return made
    except SecateursError:
        raise
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise SecateursError(
            f"{shortened(text, 60)!r} is no criterion ({shortened(str(error), 200)}); write one of {', '.join(criteria.__all__)}, with "
            "arguments where it takes some: magnitude(p=1) * input_norm()"
        ) from error


def _product(node: ast.expr) -> Any:
    """A criterion or statistic, or a product of them, from what was written."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        return _product(node.left) * _product(node.right)
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if not isinstance(call.func, ast.Name):
        raise ValueError("expected a name, or a name with arguments")
    name = call.func.id
    if name in criteria.__all__:
        factory = getattr(criteria, name)
    elif name in _STATISTICS:
        factory = getattr(evidence, name)
    else:
        close = get_close_matches(name, [*criteria.__all__, *_STATISTICS], n=2)
        raise ValueError(f"there is no {name!r}" + (f"; did you mean {' or '.join(close)}?" if close else ""))
    return factory(
        *(_argument(argument) for argument in call.args),
        **{str(keyword.arg): _argument(keyword.value) for keyword in call.keywords},
    )


def _makes_statistic(name: str) -> bool:
    """Whether what stands in ``evidence`` makes a statistic that can multiply a criterion: not products of inputs, or what was recorded."""
    made = inspect.signature(getattr(evidence, name)).return_annotation
    return made == "Statistic" and name not in ("input_gram", "recorded")


_STATISTICS = [name for name in evidence.__all__ if _makes_statistic(name)]


def _argument(node: ast.expr) -> Any:
    """A literal, or a criterion within a criterion: ``normalised(taylor())``."""
    return _product(node) if isinstance(node, (ast.Call, ast.BinOp, ast.Name)) else ast.literal_eval(node)


def parsed_solver(text: str, criterion: Criterion | None) -> Solver:
    """A solver as one writes it in Python: ``SparseGPT(block=64)``, ``LeastSquares(Swaps(TopK(taylor())))``.

    What chooses by a criterion, or starts from another solver, and says none, takes `criterion`. Raises `SecateursError` that lists the
    names, and where a criterion was given that the solver has no use for.

    >>> from secateurs.criteria import lamp
    >>> parsed_solver("LeastSquares(damping=0.1)", lamp()), parsed_solver("TopK", lamp())
    (LeastSquares(choice=TopK(criterion=lamp()), damping=0.1), TopK(criterion=lamp()))
    """
    given = [] if criterion is None else [criterion]
    try:
        made = _solver(ast.parse(text, mode="eval").body, given)
    except SecateursError:
        raise
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise SecateursError(
            f"{shortened(text, 60)!r} is no solver ({shortened(str(error), 200)}); write one of {', '.join(_SOLVERS)}, with arguments "
            "where it takes some: LeastSquares(TopK(taylor()))"
        ) from error
    if given:
        raise SecateursError(f"--solver {shortened(text, 60)} says itself how it chooses: leave --criterion {criterion} away")
    return made


def solver_of(text: str, criterion: str | None, seed: int, coupled: bool) -> Solver:
    """What ``--solver`` and ``--criterion`` say together."""
    if criterion is not None:
        return parsed_solver(text, parsed_criterion(criterion, seed, coupled))
    if text == "TopK":
        return solve.TopK(parsed_criterion("magnitude", seed, coupled))
    return parsed_solver(text, None)


def _solver(node: ast.expr, given: list[Criterion]) -> Any:
    """A solver from what was written; a criterion that it uses is taken out of `given`."""
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if not isinstance(call.func, ast.Name) or call.func.id not in _SOLVERS:
        name = ast.unparse(call.func)
        close = get_close_matches(name, _SOLVERS, n=2)
        raise ValueError(f"there is no {name!r}" + (f"; did you mean {' or '.join(close)}?" if close else ""))
    factory = getattr(solve, call.func.id)

    def argument(node: ast.expr) -> Any:
        inner = node.func if isinstance(node, ast.Call) else node
        return _solver(node, given) if isinstance(inner, ast.Name) and inner.id in _SOLVERS else _argument(node)

    named = {str(keyword.arg): argument(keyword.value) for keyword in call.keywords}
    first = next(iter(inspect.signature(factory).parameters), None)
    if first in ("criterion", "choice", "start") and not call.args and first not in named:
        chosen = given.pop() if given else criteria.magnitude()
        named[first] = chosen if first == "criterion" else solve.TopK(chosen)
    return factory(*(argument(each) for each in call.args), **named)


_SOLVERS = [name for name in solve.__all__ if hasattr(getattr(solve, name), "scores") and name != "Chosen"]  # that one takes masks


def parsed_allocator(text: str, same_in_every_block: bool = False) -> partial[Allocator]:
    """What makes an allocator of how much stays, as one writes it in Python: ``uniform``, ``"global(ceiling=0.9)"``.

    ``same_in_every_block`` is said to it beside what the text says.

    Raises `SecateursError` that lists the names.

    >>> parsed_allocator("erdos-renyi(kernel=False)", same_in_every_block=True).keywords
    {'kernel': False, 'same_in_every_block': True}
    """
    try:
        name, bracket, arguments = text.partition("(")
        tree = ast.parse(f"{_SHORT.get(name.strip(), name)}{bracket}{arguments}", mode="eval").body
        call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
        if not isinstance(call.func, ast.Name) or call.func.id not in _ALLOCATORS or call.args:
            raise ValueError("expected one of these, with named arguments where it takes some")
        factory, named = _ALLOCATORS[call.func.id], {str(each.arg): ast.literal_eval(each.value) for each in call.keywords}
        named |= {"same_in_every_block": True} if same_in_every_block else {}
        known = inspect.signature(factory).parameters.keys() - {"sparsity", "keep", "per"}
        if named.keys() - known:
            raise ValueError(f"its arguments are {', '.join(sorted(known))}; how much stays is said apart from it")
        return partial(factory, **named)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise SecateursError(
            f"{shortened(text, 60)!r} is no allocator ({shortened(str(error), 200)}); write {', '.join(_WRITTEN)}, with arguments "
            "where it takes some: global(ceiling=0.9)"
        ) from error


def _makes_allocator(name: str) -> bool:
    """Whether what stands in ``allocate`` makes an allocator of nothing but how much stays, and what may be left away."""
    made = inspect.signature(getattr(allocate, name))
    return made.return_annotation == "Allocator" and {"sparsity", "keep"} <= made.parameters.keys()


_ALLOCATORS: dict[str, Callable[..., Allocator]] = {
    name: getattr(allocate, name)
    for name in allocate.__all__
    if inspect.isfunction(getattr(allocate, name)) and _makes_allocator(name)
}
_SHORT = {"global": "global_threshold", "erdos-renyi": "erdos_renyi", "alpha-pruning": "alpha_pruning"}
_WRITTEN = sorted((_ALLOCATORS.keys() - _SHORT.values()) | _SHORT.keys())


def usual_allocator(shape: Pattern) -> str:
    """The allocator where nothing is said."""
    return "uniform" if shape.removable else "global"


def compares_all(made: partial[Allocator]) -> bool:
    """Whether units of many sizes compete for one threshold."""
    return made.func is allocate.global_threshold


def allocator_for(made: partial[Allocator], shape: Pattern, cost: Cost | None) -> Callable[..., Allocator]:
    """What makes an allocator of a sparsity for a pattern; of a cost where one is given."""
    if shape.kept_of_each is not None:
        return lambda sparsity: allocate.as_pattern()
    if shape.removable and made.func is allocate.erdos_renyi:
        raise SecateursError(f"Erdős–Rényi densities are for single weights, not for {shape}: say --allocator uniform or global")
    if cost is not None:
        return lambda sparsity: allocate.within_budget(Budget(cost, keep=1 - sparsity), made)
    if compares_all(made) and shape.within not in ("layer", "model"):
        return partial(allocate.uniform, **made.keywords)
    return made
