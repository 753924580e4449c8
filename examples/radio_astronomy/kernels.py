"""Interferometric imaging in plain numpy: gridding by FFT, Hogbom CLEAN, phase calibration.

Visibilities are dicts: ``uvw`` (rows x 3, wavelengths), ``vis``, ``wgt``, ``a1``, ``a2``
(antennas), ``nant``, ``freq``; a slice has ``rows`` too. Images are n x n, axes (l, m), ``cell``
radians apart. No function changes its arguments.
"""
# ruff: noqa: INP001 - an example is no package

import functools

import numpy as np

C = 299_792_458.0
TAPS, HALF = 6, 3.0
BETA = 2.30 * TAPS


def create_vis(i, count, nant, ntime, seed=0):
    """Visibilities of one of `count` channels, all zero, weights one."""
    freq = np.linspace(0.8e8, 1.2e8, count)[i]
    r = np.random.default_rng(seed)
    xy, z = r.standard_normal((nant, 2)) * 250, r.standard_normal(nant) * 4
    a1, a2 = np.triu_indices(nant, 1)
    uvw = []
    for t in np.linspace(-0.5, 0.5, ntime):
        turn = np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]])
        uv = (xy[a1] - xy[a2]) @ turn
        w = z[a1] - z[a2] + 20 * np.sin(t)
        uvw.append(np.column_stack([uv, w]) * (freq / C))
    rows = len(a1) * ntime
    return {
        "uvw": np.concatenate(uvw), "vis": np.zeros(rows, complex), "wgt": np.ones(rows),
        "a1": np.tile(a1, ntime), "a2": np.tile(a2, ntime), "nant": nant, "freq": freq,
    }  # fmt: skip


def create_model(_, n):
    """An empty image."""
    return np.zeros((n, n))


def sky(_, n, sources, seed=7):
    """Point sources."""
    r = np.random.default_rng(seed)
    image = np.zeros((n, n))
    for _ in range(sources):
        y, x = r.integers(n // 4, 3 * n // 4, 2)
        image[y, x] += r.uniform(1, 5)
    return image


def direction(n, cell):
    """The directions of pixels: l, m and sqrt(1 - l^2 - m^2) - 1."""
    l, m = np.meshgrid(*[(np.arange(n) - n // 2) * cell] * 2, indexing="ij")  # noqa: E741
    return l, m, np.sqrt(1 - l * l - m * m) - 1


def direct_predict(vis, image, cell):
    """The measurement equation as it is written, for checks: slow."""
    l, m, nn = direction(len(image), cell)  # noqa: E741
    out = np.zeros(len(vis["uvw"]), complex)
    for y, x in np.argwhere(image):
        u, v, w = vis["uvw"].T
        phase = u * l[y, x] + v * m[y, x] + w * nn[y, x]
        out += image[y, x] * np.exp(-2j * np.pi * phase)
    return out


def _gridding(x):
    """The gridding function: exponential of a semicircle (Barnett et al. 2019)."""
    inside = np.abs(x) <= 1
    return np.where(inside, np.exp(BETA * (np.sqrt(np.where(inside, 1 - x * x, 0)) - 1)), 0)


@functools.cache
def _correction(n):
    """What the gridding function does to an image, undone."""
    k = np.linspace(-1, 1, 2001)
    j = np.arange(-n // 2, n // 2)[:, None]
    line = 1 / (HALF * (k[1] - k[0]) * (_gridding(k) * np.cos(6 * np.pi * j * k / (2 * n))).sum(1))
    return np.outer(line, line)


def _taps(vis, n, cell):
    """Cells of the grid that each row uses, and their weights: rows x 36."""
    size = 2 * n
    places, weights = [], []
    for axis in (0, 1):
        position = vis["uvw"][:, axis] * cell * size
        first = np.ceil(position - HALF)
        tap = first[:, None] + np.arange(TAPS)
        weights.append(_gridding((tap - position[:, None]) / HALF))
        places.append(tap.astype(int) % size)
    cells = places[0][:, :, None] * size + places[1][:, None, :]
    return cells.reshape(len(cells), -1), (weights[0][:, :, None] * weights[1][:, None, :]).reshape(
        len(cells), -1
    )


def _w_term(vis, n, cell):
    """The phase of the slice's mean w over the image."""
    return np.exp(-2j * np.pi * vis["uvw"][:, 2].mean() * direction(n, cell)[2])


def scatter(vis, slices):
    """Slices by w."""
    order = np.argsort(vis["uvw"][:, 2], kind="stable")
    by_row = ("uvw", "vis", "wgt", "a1", "a2")
    return [
        {**vis, **{name: vis[name][rows] for name in by_row}, "rows": rows}
        for rows in np.array_split(order, slices)
    ]


def predict(part, model, cell):
    """The visibilities that a model would give."""
    n = len(model)
    padded = np.zeros((2 * n, 2 * n), complex)
    inner = slice(n // 2, n // 2 + n)
    padded[inner, inner] = model * _w_term(part, n, cell) * _correction(n)
    grid = np.fft.fft2(np.fft.ifftshift(padded)).ravel()
    cells, weights = _taps(part, n, cell)
    return {**part, "vis": (grid[cells] * weights).sum(1)}


def gather(parts, vis):
    """Slices back in place."""
    out = np.zeros_like(vis["vis"])
    for part in parts:
        out[part["rows"]] = part["vis"]
    return {**vis, "vis": out}


def invert(part, model, cell, dopsf):
    """The dirty image of a slice, or its point spread function; and the sum of weights."""
    n = len(model)
    values = part["wgt"] * (1.0 if dopsf else part["vis"])
    cells, weights = _taps(part, n, cell)
    spread, size = (weights * values[:, None]).ravel(), 4 * n * n
    grid = np.bincount(cells.ravel(), spread.real, size) + 1j * np.bincount(
        cells.ravel(), spread.imag, size
    )
    image = np.fft.fftshift(np.fft.ifft2(grid.reshape(2 * n, 2 * n)) * size)
    inner = slice(n // 2, n // 2 + n)
    image = image[inner, inner] * _correction(n) * np.conj(_w_term(part, n, cell))
    return image.real, part["wgt"].sum()


def sum_images(parts, last):
    """Partial images added, in their order; the last sum divides by the weights."""
    image = sum(image for image, _ in parts)
    weight = sum(weight for _, weight in parts)
    return (image / weight if last else image), weight


def zero(vis):
    """The same without signal."""
    return {**vis, "vis": np.zeros_like(vis["vis"])}


def subtract(vis, other):
    """What is left of visibilities without others."""
    return {**vis, "vis": vis["vis"] - other["vis"]}


def empty_like(model):
    """An image of zeros."""
    return np.zeros_like(model)


def image_scatter(image, facets):
    """Blocks of an image in row order."""
    return [b for row in np.split(image, facets) for b in np.split(row, facets, axis=1)]


def image_gather(blocks, empty):
    """An image of blocks."""
    facets = round(len(blocks) ** 0.5)
    rows = [np.hstack(blocks[i * facets : (i + 1) * facets]) for i in range(facets)]
    return np.vstack(rows).reshape(empty.shape)


def clean(dirty, psf, niter=200, gain=0.1):
    """Hogbom: peak by peak, a fraction each."""
    residual, model = dirty.copy(), np.zeros_like(dirty)
    n, size = len(dirty), len(psf)
    centre = size // 2
    for _ in range(niter):
        y, x = np.unravel_index(np.abs(residual).argmax(), residual.shape)
        f = gain * residual[y, x] / psf[centre, centre]
        model[y, x] += f
        top, left = max(0, y - centre), max(0, x - centre)
        bottom, right = min(n, y - centre + size), min(n, x - centre + size)
        residual[top:bottom, left:right] -= (
            f * psf[top - y + centre : bottom - y + centre, left - x + centre : right - x + centre]
        )
    return model


def add_model(found, model):
    """Two models together."""
    return found + model


def restore(model, _, residual):
    """The model with what could not be explained."""
    return model + residual


def corrupt(vis, phase):
    """Visibilities with a phase error at each antenna."""
    g = np.exp(1j * phase * np.random.default_rng(3).standard_normal(vis["nant"]))
    return {**vis, "vis": vis["vis"] * g[vis["a1"]] * np.conj(g[vis["a2"]])}


def divide(vis, model):
    """Visibilities over those of the model, weighted by its power."""
    power = np.abs(model["vis"]) ** 2
    seen = power > 0
    ratio = np.where(seen, vis["vis"] * np.conj(model["vis"]) / np.where(seen, power, 1), 0)
    return {**vis, "vis": ratio, "wgt": vis["wgt"] * power}


def gather_channel(all_vis):
    """All channels together."""
    return list(all_vis)


def integrate(all_vis):
    """Sums over time and channels by pairs of antennas."""
    nant = all_vis[0]["nant"]
    x, g = np.zeros((nant, nant), complex), np.zeros((nant, nant))
    for vis in all_vis:
        np.add.at(x, (vis["a1"], vis["a2"]), vis["vis"] * vis["wgt"])
        np.add.at(g, (vis["a1"], vis["a2"]), vis["wgt"])
    return x + x.conj().T, g + g.T


def solve(sums, niter=60):
    """The antennas' phases (StefCal, Salvini and Wijnholds 2014, phases only)."""
    x, weights = sums
    g = np.ones(len(x), complex)
    for _ in range(niter):
        h = (x @ g) / np.maximum(weights @ np.abs(g) ** 2, 1e-30)
        g = (g + h / np.abs(h)) / 2
    return g


def apply(vis, g):
    """Visibilities with the antennas' phases undone."""
    return {**vis, "vis": vis["vis"] / (g[vis["a1"]] * np.conj(g[vis["a2"]]))}
