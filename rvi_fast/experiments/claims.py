"""What the paper (arXiv 2110.13422) claims, each with the rule by which runs decide it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .comparisons import (
    FEW,
    ROBUST,
    Compare,
    Comparison,
    against,
    beside_simple_ones,
    boxes,
    classified,
    forms,
    imputed,
    last,
    more_groups,
    reaches,
    robust,
    same_recipe,
    stages,
    started,
    test,
    train,
)
from .experiment import Experiment
from .figure import Results

HOLDS, PARTLY, FAILS, MISSING = "holds", "partly", "does not hold", "no results"
SO_FAR = " so far"

RULE = (
    "A comparison is made seed by seed, since runs of one seed have the same rows and masks; it "
    "holds (✓) if it does for every seed, fails (✗) if it does for none, and is open (~) otherwise. "
    f"A claim “{HOLDS}” if all of its comparisons do, “{FAILS}” if all fail, and holds "
    f"“{PARTLY}” in every other case; “{SO_FAR.strip()}” says that runs are missing. "
    "Numbers are means over the seeds. Where a table keeps no more of two runs than mean and spread, "
    "every run of one side is compared with every run of the other."
)


@dataclass(frozen=True)
class Claim:
    """A claim of the paper.

    Args:
        text: in words.
        place: where in the paper.
        figure: name of the figure whose runs decide it.
        rule: what is compared with what.
        compare: comparisons from the runs of one data set; none where runs are missing.
    """

    text: str
    place: str
    figure: str
    rule: str
    compare: Compare


@dataclass(frozen=True)
class Judgement:
    """What the runs on one data set say of a claim; `done` of `wanted` runs."""

    claim: Claim
    data: str
    comparisons: tuple[Comparison, ...]
    seeds: int
    done: int
    wanted: int

    @property
    def verdict(self) -> str:
        """One of the four, with "so far" where runs are missing."""
        outcomes = {comparison.outcome for comparison in self.comparisons}
        if not outcomes:
            return MISSING
        found = HOLDS if outcomes == {True} else FAILS if outcomes == {False} else PARTLY
        return found if self.done == self.wanted else f"{found}{SO_FAR}"

    @property
    def reason(self) -> str:
        """One sentence on what does not hold; nothing if all does."""
        parts = []
        for outcome, words in ((False, "Not so in"), (None, "Depends on the seed in")):
            found = [str(each) for each in self.comparisons if each.outcome is outcome]
            more = f"; and {len(found) - 4} more" if len(found) > 4 else ""
            if found:
                count = f"{len(found)} of {len(self.comparisons)}"
                parts.append(f"{words} {count}: {'; '.join(found[:4])}{more}.")
        return " ".join(parts)


def judge(claim: Claim, wanted: Sequence[Experiment], results: Results) -> list[Judgement]:
    """One judgement for each data set of the wanted runs, from those that have results."""
    judgements = []
    for data in dict.fromkeys(run.data for run in wanted):
        own = [pair for pair in results if pair[0].data == data]
        seeds = len({experiment.seed for experiment, _ in own})
        counts = len(own), sum(run.data == data for run in wanted)
        judgements.append(Judgement(claim, data, tuple(claim.compare(own)), seeds, *counts))
    return judgements


_ENDS = "epochs until RVI's training error is that of {} after its last epoch < epochs of {}"
CLAIMS = (
    Claim(
        "RVI converges faster than encoderless inference without relays (VAD)",
        "Figure 2",
        "fig2",
        _ENDS.format("VAD", "VAD"),
        reaches("vad", "missing"),
    ),
    Claim(
        "RVI converges faster than VAD as its authors train it: squared error, no KL divergence, "
        "posteriors of log variance -14",
        "Figure 2",
        "fig2",
        _ENDS.format("that VAD", "that VAD"),
        reaches("vad-authors", "missing"),
    ),
    Claim(
        "RVI converges faster than VAD over learning rates, decoders and missing rates",
        "Figure 1",
        "fig1",
        _ENDS.format("VAD", "VAD") + ", at every point of the grid",
        reaches("vad", "lr", "hidden", "missing"),
    ),
    Claim(
        "RVI converges faster than a VAE, at high missing rates too",
        "Figure 2",
        "fig2",
        _ENDS.format("the VAE", "the VAE"),
        reaches("vae", "missing"),
    ),
    Claim(
        "RVI ends at a lower or equal training error than VAD and VAE at every missing rate",
        "Figure 2",
        "fig2",
        "training error of RVI after the last epoch ≤ that of VAD, in both kinds, of VAE",
        against(last, "vad", "vad-authors", "vae", over=("missing",), sign="<="),
    ),
    Claim(
        "RVI has the lowest test error at every missing rate",
        "Figure 3",
        "fig3",
        "test error of RVI over observed entries < that of VAD, of VAE",
        against(test, "vad", "vae", over=("missing",)),
    ),
    Claim(
        "RVI imputes better than a VAE at every missing rate",
        "Figure 4",
        "fig4",
        "test error of RVI over missing entries < that of VAE",
        against(imputed, "vae", over=("missing",)),
    ),
    Claim(
        "RVI imputes better than VAD at every missing rate",
        "Figure 4",
        "fig4",
        "test error of RVI over missing entries < that of VAD",
        against(imputed, "vad", over=("missing",)),
    ),
    Claim(
        "RVI's representations serve a classifier better and faster than a VAE's",
        "Figure 5",
        "fig5",
        "over the classifier's epochs: lowest test cross-entropy lower, highest accuracy higher, "
        "and fewer epochs to the VAE's lowest cross-entropy",
        classified,
    ),
    Claim(
        "RVI is robust to the learning rate of the posterior",
        "Figure 6, section 6.4",
        "fig6",
        f"training error at every rate ≤ limit, {ROBUST:g} times that at the best rate",
        robust(train, "posterior_lr"),
    ),
    Claim(
        "Each group of relay vectors improves the reconstruction",
        "Figure 7",
        "fig7",
        "error with the first g groups, without deviations < that with the first g - 1",
        stages,
    ),
    Claim(
        "Each group does so with other choices of groups",
        "Figure 9",
        "fig9",
        "error with the first g groups, without deviations < that with the first g - 1",
        stages,
    ),
    Claim(
        "More groups of relays end at a lower error",
        "Figure 9",
        "fig9",
        "training error with a further group < that without it",
        more_groups,
    ),
    Claim(
        "Cluster relays are weaker than linear ones",
        "Figure 8, Appendix A",
        "fig8",
        "training error of linear relays < that of clusters",
        forms,
    ),
    Claim(
        "RVI is robust to the share of coefficients kept, m/K",
        "Figure 10",
        "fig10",
        f"training error at every ratio ≤ limit, {ROBUST:g} times that at the best ratio",
        robust(last, "top"),
    ),
    Claim(
        "RVI is better with missing boxes too",
        "Figure 11",
        "fig11",
        "test error of RVI, over observed and over missing entries < that of VAD, of VAE",
        boxes,
    ),
    Claim(
        "RVI converges faster than VAD whether Adam learns the scale or it is found in closed form",
        "beyond the paper",
        "scale",
        _ENDS.format("VAD", "VAD") + ", under either rule",
        reaches("vad", "missing", "scale_update"),
    ),
    Claim(
        f"From a linear model's solution RVI reaches in {FEW} epochs the error at which VAD ends from "
        "drawn values, and before VAD does from the same solution",
        "beyond the paper",
        "start",
        f"epochs until RVI's training error is that of VAD after its last epoch ≤ {FEW}, < those of "
        "VAD; both from the linear model",
        started,
    ),
    *(
        Claim(
            f"RVI imputes a table with outliers no worse than VAD with the same recipe: {words}",
            "beyond the paper",
            "outliers",
            "test error of RVI over missing entries ≤ that of VAD, in the same units and with the same "
            "start of the standard deviations",
            same_recipe(quantity),
        )
        for quantity, words in (
            ("test_missing", "all errors"),
            ("test_trimmed", "without the worst 0.1 %"),
            ("wide_missing", "all errors, held-out scale"),
            ("wide_trimmed", "without the worst 0.1 %, held-out scale"),
        )
    ),
    *(
        Claim(
            f"RVI imputes a table with outliers better than imputers that learn no latents: {words}",
            "beyond the paper",
            "outliers",
            "test error of RVI over missing entries < that of zeros, of a conditional Gaussian",
            beside_simple_ones(quantity),
        )
        for quantity, words in (
            ("wide_missing", "all errors, held-out scale"),
            ("wide_trimmed", "without the worst 0.1 %, held-out scale"),
        )
    ),
)
