"""Imaging and self-calibration as graphs: scatter, a wide map reading one model, sums, a barrier.

Each function takes an `Execute` as its first argument.
"""
# ruff: noqa: INP001 - an example is no package

from dataclasses import dataclass

import kernels


@dataclass(frozen=True)
class Size:
    """How large an observation and its processing are."""

    channels: int
    slices: int
    cycles: int
    pixels: int = 128
    antennas: int = 20
    times: int = 2
    sources: int = 4
    facets: int = 1
    cell: float = 1e-3


SIZES = {
    "laptop": Size(channels=3, slices=5, cycles=3),
    "published": Size(channels=7, slices=37, cycles=5, pixels=64),
    "continuum": Size(channels=77, slices=11, cycles=5, pixels=64),
}


def observe(do, size):
    """Empty visibilities of each channel, and an empty model."""
    vis = [
        do.execute(kernels.create_vis)(i, size.channels, size.antennas, size.times)
        for i in range(size.channels)
    ]
    return vis, do.execute(kernels.create_model)(vis[size.channels // 2], size.pixels)


def predict(do, vis, model, size):
    """Visibilities of a model."""
    results = []
    for v in vis:
        parts = do.execute(kernels.scatter, nout=size.slices)(v, size.slices)
        predicted = [do.execute(kernels.predict)(part, model, size.cell) for part in parts]
        results.append(do.execute(kernels.gather)(predicted, v))
    return results


def invert(do, vis, model, size, dopsf=False):
    """The dirty image of visibilities, or the point spread function, and the sum of weights."""
    sums = []
    for v in vis:
        parts = do.execute(kernels.scatter, nout=size.slices)(v, size.slices)
        images = [do.execute(kernels.invert)(part, model, size.cell, dopsf) for part in parts]
        sums.append(do.execute(kernels.sum_images)(images, False))
    return do.execute(kernels.sum_images, nout=2)(sums, True)


def residual(do, vis, model, size):
    """The dirty image of what the model leaves."""
    predicted = predict(do, [do.execute(kernels.zero)(v) for v in vis], model, size)
    left = [do.execute(kernels.subtract)(v, p) for v, p in zip(vis, predicted, strict=True)]
    return invert(do, left, model, size)


def clean(do, dirty, psf, model, size):
    """The model with what CLEAN finds in a dirty image."""
    empty = do.execute(kernels.empty_like)(model)
    blocks = do.execute(kernels.image_scatter, nout=size.facets**2)(dirty[0], size.facets)
    cleaned = [do.execute(kernels.clean)(block, psf[0]) for block in blocks]
    found = do.execute(kernels.image_gather)(cleaned, empty)
    return do.execute(kernels.add_model)(found, model)


def selfcal(do, vis, model, size):
    """Visibilities with the phases that the model tells undone."""
    predicted = predict(do, [do.execute(kernels.zero)(v) for v in vis], model, size)
    ratios = [do.execute(kernels.divide)(v, p) for v, p in zip(vis, predicted, strict=True)]
    sums = do.execute(kernels.integrate)(do.execute(kernels.gather_channel)(ratios))
    gains = do.execute(kernels.solve)(sums)
    return [do.execute(kernels.apply)(v, gains) for v in vis]


def ical(do, vis, model, size, first_selfcal=None):
    """Imaging, with self-calibration from a cycle on: model, residual, restored image."""
    psf = invert(do, vis, model, size, dopsf=True)
    model = clean(do, residual(do, vis, model, size), psf, model, size)
    for cycle in range(size.cycles):
        if first_selfcal is not None and cycle >= first_selfcal:
            vis = selfcal(do, vis, model, size)
        model = clean(do, residual(do, vis, model, size), psf, model, size)
    left = residual(do, vis, model, size)
    return model, left, do.execute(kernels.restore)(model, psf[0], left[0])


def simulated(do, size, phase=0.0, first_selfcal=None):
    """Visibilities of a made-up sky, with phase errors, and what imaging makes of them."""
    vis, model = observe(do, size)
    vis = predict(do, vis, do.execute(kernels.sky)(vis[0], size.pixels, size.sources), size)
    if phase:
        vis = [do.execute(kernels.corrupt)(v, phase) for v in vis]
    return ical(do, vis, model, size, first_selfcal)
