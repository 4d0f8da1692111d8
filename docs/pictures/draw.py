"""Draws the pictures of README and of the site, from the results in bench/results and from the package.

    python docs/pictures/draw.py             # all of them
    python docs/pictures/draw.py speed roofline

Colours are those of Okabe and Ito, which the colour-blind tell apart.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

HERE = Path(__file__).parent
RESULTS = HERE.parent.parent / "bench" / "results"
BLUE, ORANGE, GREEN, SKY, GREY = "#0072B2", "#E69F00", "#009E73", "#56B4E9", "#999999"
ROWS_KERNELS = ("catch_up_and_select", "relay_decode", "backward_to_rows")
MISSING = (0.86, 0.80, 0.69)


def figure(width, height):
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def bare(axes):
    axes.spines[["top", "right"]].set_visible(False)


def digits():
    """Handwritten digits, what is left of them, what `rvi_fast` fills in: the run of `make demo`."""
    import torch

    import rvi_fast

    x = rvi_fast.data.load_data("digits").train
    mask = rvi_fast.data.mcar(x.shape, 0.5, seed=0)
    model = rvi_fast.models.rvi(*x.shape, generator=torch.Generator().manual_seed(0))
    rvi_fast.fit(model, x, mask=mask, epochs=300)
    filled = rvi_fast.impute(model, x, mask=mask).numpy()
    rows = {"the digits": x / 255.0, "half is missing": None, "filled in": filled}
    shown = figure(9, 2.35)
    grid = shown.subplots(3, 14)
    for axes, (name, values) in zip(grid, rows.items(), strict=True):
        for column, axis in enumerate(axes):
            left = rows["the digits"][column] if values is None else values[column]
            picture = np.repeat(1 - left.reshape(8, 8, 1), 3, axis=2).clip(0, 1)
            if values is None:
                picture[~mask[column].reshape(8, 8)] = MISSING
            axis.imshow(picture)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        axes[0].set_ylabel(name, rotation=0, ha="right", va="center")
    shown.savefig(HERE / "digits.png", dpi=110)


def speed():
    """Time of a training step beside plain torch, from bench/results/amd-epyc.json."""
    duels = json.loads((RESULTS / "amd-epyc.json").read_text())["duels"]
    shown = figure(9, 2.9)
    for axes, size, label in zip(
        shown.subplots(1, 2), (10_000, 1_000_000), ("10,000", "1,000,000"), strict=True
    ):
        asked = f"training step, B = 256, N = {size}"
        duel = next(duel for duel in duels if duel["question"].startswith(asked))
        times = {"rvi_fast": duel["rvi_fast_us"] / 1000}
        for name, peer in duel["peers"].items():
            if "rvi_fast" not in name:
                name = name.replace("torch.compile(default), ", "torch.compile, ")
                times[name] = peer["us"] / 1000
        bars = axes.barh(list(times), list(times.values()), color=[BLUE] + [GREY] * 4)
        axes.bar_label(bars, [f"{time:.3g} ms" for time in times.values()], padding=3)
        axes.set(xscale="log", xlim=(1, 3 * max(times.values())), title=f"{label} rows")
        axes.set_xlabel("milliseconds a step, one CPU thread")
        axes.invert_yaxis()
        bare(axes)
    shown.savefig(HERE / "speed.svg")


def launches():
    """The six launches of a training step on a GPU, and what passes between them."""
    steps = [
        ("catch_up_and_select", "gather rows,\nmissed steps of Adam,\nselect coefficients"),
        ("relay_decode", "relays × weights,\nnoise, KL,\ntwo hidden layers"),
        ("likelihood_rows", "last layer + likelihood,\ngradient of hidden"),
        ("likelihood_features", "gradients of\nlast layer and scale"),
        ("backward_to_rows", "hidden layers, posterior,\nAdam of the rows in place"),
        ("finish_step", "sum pieces, Adam of\nrelays, decoder, scale"),
    ]
    shown = figure(11, 3.0)
    axes = shown.subplots()
    axes.set(xlim=(-0.1, 12.1), ylim=(-0.05, 3.2))
    axes.axis("off")
    for number, (name, text) in enumerate(steps):
        left = 2.02 * number + 0.05
        axes.add_patch(
            FancyBboxPatch((left, 1.3), 1.62, 1.5, "round,pad=0.06", fc="#EAF3F9", ec=BLUE)
        )
        axes.text(left + 0.81, 2.5, f"{number + 1}  {name}", ha="center", size=8.2, weight="bold")
        axes.text(left + 0.81, 1.85, text, ha="center", va="center", size=8)
        if number < 5:
            ends = (left + 1.7, 2.05), (left + 1.98, 2.05)
            axes.add_patch(FancyArrowPatch(*ends, arrowstyle="-|>", mutation_scale=11, color=GREY))
    tables = [
        (4.09, 0.72, 3.64, "data and mask [N, D]", ORANGE, (4.9, 6.92)),
        (0.05, 0.1, 9.7, "rows and their moments [N, 308]", GREEN, (0.86, 8.94)),
        (10.15, 0.1, 1.62, "relays, decoder, scale", SKY, (10.96,)),
    ]
    for left, low, width, name, colour, uses in tables:
        axes.add_patch(
            FancyBboxPatch((left, low), width, 0.25, "round,pad=0.05", fc="white", ec=colour)
        )
        axes.text(left + width / 2, low + 0.12, name, ha="center", va="center", size=8.5)
        for use in uses:
            ends = (use, low + 0.28), (use, 1.26)
            axes.add_patch(
                FancyArrowPatch(*ends, arrowstyle="<|-|>", mutation_scale=10, color=colour)
            )
    shown.savefig(HERE / "launches.svg")


def roofline():
    """FLOP and bytes of a row of the batch against the ceilings of an H100, and what a step reaches."""
    measured = json.loads((RESULTS / "launches.json").read_text())
    name = "step, N = 100000, B = 65536, uint8, highest: launches, us each"
    times = dict(measured[name])
    likelihood = sum(us for kernel, us in times.items() if "likelihood" in kernel)
    rows = sum(times[f"_{kernel}_kernel"] for kernel in ROWS_KERNELS)
    bandwidth = measured["copy, GB/s"] / 1e3
    products = measured["matrix product, torch.float32, high, TFLOP/s"] / 3
    shown = figure(7.5, 3.6)
    axes = shown.subplots()
    intensity = np.geomspace(1, 3000, 200)
    for name, ceiling, colour in (
        ("float32 on vector units, 67 TFLOP/s", 67, GREY),
        (f"three TF32 products, {3 * products:.0f} / 3 TFLOP/s", products, BLUE),
    ):
        axes.plot(intensity, np.minimum(bandwidth * intensity, ceiling), color=colour)
        axes.text(2900, ceiling / 1.07, name, ha="right", va="top", color=colour, size=9)
    points = [
        ("posterior and row Adam\n67 kFLOP, 7,280 bytes", 67e3, 7280, rows, ORANGE),
        ("likelihood, uint8 and a mask\n350 kFLOP, 1,568 bytes", 350e3, 1568, likelihood, GREEN),
    ]
    for name, flop, moved, us, colour in points:
        at = flop / moved
        height, reached = min(bandwidth * at, products), 65_536 * flop / us / 1e6
        axes.plot(at, height, "o", color=colour, mfc="none", ms=8)
        axes.plot(at, reached, "o", color=colour, ms=8)
        axes.plot([at, at], [reached, height], ":", color=colour)
        axes.annotate(name, (at, reached), xytext=(10, -8), textcoords="offset points", size=8.5)
        axes.annotate(f"{reached:.2g}", (at, reached), xytext=(-26, -4), textcoords="offset points")
    axes.set(xscale="log", yscale="log", xlim=(1, 3000), ylim=(1, 320))
    axes.set_xlabel("FLOP per byte of memory traffic")
    axes.set_ylabel("TFLOP/s")
    axes.set_title("A step of 65,536 rows on an H100: ceilings, and what is reached", size=10.5)
    bare(axes)
    shown.savefig(HERE / "roofline.svg")


def relay():
    """What a posterior is: a sparse combination of shared vectors, and a deviation."""
    shown = figure(9, 2.5)
    axes = shown.subplots()
    axes.set(xlim=(0, 12), ylim=(-0.55, 3.3))
    axes.axis("off")
    axes.text(0.1, 3.0, "a row of its own", size=9.5, color=GREEN, weight="bold")
    axes.text(3.3, 3.0, "shared by all rows", size=9.5, color=BLUE, weight="bold")
    kept = {1, 4, 5}
    for place in range(7):
        y = 2.5 - 0.36 * place
        chosen = place in kept
        axes.add_patch(
            FancyBboxPatch(
                (0.15, y - 0.12),
                0.9,
                0.22,
                "square,pad=0",
                fc=GREEN if chosen else "white",
                ec=GREEN,
            )
        )
        axes.add_patch(
            FancyBboxPatch(
                (3.3, y - 0.12), 2.2, 0.22, "square,pad=0", fc=SKY if chosen else "white", ec=BLUE
            )
        )
        if chosen:
            axes.add_patch(FancyArrowPatch((1.1, y), (3.25, y), arrowstyle="-", color=GREY, ls=":"))
    axes.text(0.6, -0.5, "coefficients,\nthe largest are kept", ha="center", size=8.5, va="bottom")
    axes.text(4.4, -0.3, "relay vectors", ha="center", size=8.5, va="bottom")
    for left, width, name, colour in (
        (6.35, 1.2, "relay", BLUE),
        (8.05, 1.4, "deviation", GREEN),
        (10.1, 1.7, "mean of z", "#333333"),
    ):
        axes.add_patch(
            FancyBboxPatch((left, 1.3), width, 0.6, "round,pad=0.05", fc="white", ec=colour)
        )
        axes.text(left + width / 2, 1.6, name, ha="center", va="center", size=9.5)
    axes.add_patch(
        FancyArrowPatch((5.6, 1.6), (6.28, 1.6), arrowstyle="-|>", mutation_scale=11, color=GREY)
    )
    axes.text(7.82, 1.6, "+", ha="center", va="center", size=13)
    axes.text(9.8, 1.6, "=", ha="center", va="center", size=13)
    shown.savefig(HERE / "relay.svg")


def report():
    """The top of the page that `rvi-fast impute --report` writes; needs chromium."""
    from PIL import Image

    browser = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    )
    sys.path.insert(0, str(HERE.parent.parent / "tests"))
    from messy_table import messy_table

    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "visits.csv").write_bytes(messy_table(1200).content)
        words = ("visits.csv", "--out", "filled.csv", "--report", "report.html")
        subprocess.run(
            (sys.executable, "-m", "rvi_fast", "impute", *words), cwd=directory, check=True
        )
        size = (
            "--window-size=1280,1060",
            "--hide-scrollbars",
            f"--user-data-dir={directory}/browser",
        )
        taken = Path(directory) / "page.png"
        subprocess.run(
            (browser, "--headless=new", "--no-sandbox", *size, f"--screenshot={taken}",
             (Path(directory) / "report.html").as_uri()),
            check=True,
        )  # fmt: skip
        # of few colours, it is a third as large
        Image.open(taken).convert("RGB").quantize(64).save(HERE / "report.png", optimize=True)


PICTURES = {draw.__name__: draw for draw in (digits, speed, launches, roofline, relay, report)}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PICTURES))
    for name in parser.parse_args().names or PICTURES:
        PICTURES[name]()
