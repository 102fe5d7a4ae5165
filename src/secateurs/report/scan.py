"""What a scan of single sites measured, as the curves that a page draws."""

from __future__ import annotations

from typing import TYPE_CHECKING

from secateurs.report.record import Curve, Point

if TYPE_CHECKING:
    from secateurs.search import Sensitivity


def site_curves(found: Sensitivity) -> tuple[Curve, ...]:
    """The curves of `sensitivity` for ``SearchRecord(sensitivity=…)``, drawn by `sensitivity_curves`; trials that failed are left out.

    >>> from secateurs.search import Sensitivity, SiteCurve, Study
    >>> curve = SiteCurve("conv1", 8, (8, 4, 2), (0.9, 0.85, None))
    >>> site_curves(Sensitivity((curve,), 0.9, True, "accuracy", Study((), True)))[0].points[1]
    Point(sparsity=0.5, metric=0.85, epoch=None, spread=None)
    """
    return tuple(
        Curve(
            curve.site,
            tuple(
                Point(1 - kept / curve.units, value)
                for kept, value in zip(curve.kept, curve.values, strict=True)
                if value is not None
            ),
        )
        for curve in found.curves
    )
