"""Verdicts come from runs by the stated rule: holds, fails, partly, or no results."""

import pytest

from rvi_fast.experiments.claims import CLAIMS, FAILS, HOLDS, MISSING, PARTLY, SO_FAR, judge
from rvi_fast.experiments.comparisons import Comparison, epochs_to
from rvi_fast.experiments.experiment import Experiment
from rvi_fast.experiments.figure import Bound
from rvi_fast.experiments.registry import FIGURES

MODELS = ("rvi", "vad", "vae")


def verdict(text, results):
    (claim,) = [claim for claim in CLAIMS if text in claim.text]
    (judgement,) = judge(claim, [run for run, _ in results] or [Experiment()], results)
    return judgement


def trained(errors, *, missing=0.5, seed=0, field="elastic", **more):
    """Runs of the three models with the given errors; those of a curve are its end."""
    return [
        (
            Experiment(model=model, missing=missing, seed=seed),
            {field: [9.0, error] if field == "elastic" else error, **more},
        )
        for model, error in zip(MODELS, errors, strict=True)
    ]


def curves(rvi, vad, *, seed=0, **fields):
    return [
        (Experiment(model="rvi", seed=seed, **fields), {"elastic": rvi}),
        (Experiment(model="vad", seed=seed, **fields), {"elastic": vad}),
    ]


LOWEST = "lower or equal training error"


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([(1, 2, 3), (1, 2, 3)], HOLDS),
        ([(1, 1, 3), (1, 2, 3)], HOLDS),  # equal is enough
        ([(4, 2, 3), (4, 2, 3)], FAILS),
        ([(2, 1, 3), (2, 1, 3)], PARTLY),  # loses to one of two
        ([(1, 2, 3), (2, 1, 3)], PARTLY),  # depends on the seed
        ([], MISSING),
    ],
)
def test_a_claim_is_judged_by_all_comparisons_in_every_seed(errors, expected):
    runs = [run for seed, each in enumerate(errors) for run in trained(each, seed=seed)]
    judgement = verdict(LOWEST, runs)
    assert judgement.verdict == expected
    assert bool(judgement.reason) == (expected in (FAILS, PARTLY))


def test_what_fails_is_said_with_its_numbers():
    runs = trained((1, 2, 3), missing=0.0) + trained((0.25, 0.125, 0.5), missing=0.9)
    reason = verdict(LOWEST, runs).reason
    assert reason == "Not so in 1 of 4: missing rate 0.9: RVI 0.2500, VAD 0.1250."


def test_seeds_are_compared_in_pairs_and_only_where_both_are_done():
    # seed 0 is easier for both; seed 2 has no rival yet
    runs = trained((1, 2, 3), seed=0) + trained((5, 6, 7), seed=1)
    runs.append((Experiment(seed=2), {"elastic": [99.0]}))
    first = verdict(LOWEST, runs).comparisons[0]
    assert (first.ours, first.theirs, first.outcome) == ((1, 5), (2, 6), True)


def test_where_it_is_not_known_whose_a_number_is_every_pair_counts():
    def bounded(low, high):
        return [
            (run, result | {"bound": bound})
            for bound, errors in ((Bound.LOW, low), (Bound.HIGH, high))
            for run, result in trained(errors)
        ]

    apart = verdict(LOWEST, bounded((1, 3, 5), (2, 4, 6)))
    assert apart.verdict == HOLDS
    assert sorted(zip(apart.comparisons[0].ours, apart.comparisons[0].theirs, strict=True)) == [
        (1, 3), (1, 4), (2, 3), (2, 4)
    ]  # fmt: skip
    # each is lower by one, if seeds are paired as the bounds are; they need not be
    assert verdict(LOWEST, bounded((1, 2, 9), (3, 4, 9))).verdict == PARTLY
    assert verdict(LOWEST, bounded((4, 2, 3), (5, 2, 3))).verdict == FAILS
    # runs that are there beside some that are not
    mixed = trained((1, 9, 9))[:1] + bounded((0, 2, 3), (0, 4, 5))[1:3]
    assert verdict(LOWEST, mixed).comparisons[0].theirs == (2,)
    curve = [(run, result | {"bound": Bound.LOW}) for run, result in curves([3, 1, 1], [3, 2, 2])]
    assert verdict("without relays (VAD)", curve).comparisons[0].ours == (2,)


def test_both_kinds_of_vad_are_rivals():
    runs = [
        *curves([3, 2, 1], [3, 2, 2]),
        (Experiment(model="vad-authors"), {"elastic": [3, 1.5, 0.5]}),
    ]
    assert verdict("without relays (VAD)", runs).verdict == HOLDS
    authors = verdict("as its authors train it", runs)
    assert authors.verdict == FAILS
    assert "RVI never, VAD of its authors 3 epochs" in authors.reason
    assert [c.outcome for c in verdict(LOWEST, runs).comparisons] == [True, False]


def test_faster_means_there_before_the_rival_ends():
    text = "without relays (VAD)"
    assert epochs_to([3.0, 2.0, 1.0], 2.0) == 2
    assert epochs_to([3.0], 2.0) == float("inf")
    assert verdict(text, curves([3, 1, 1], [3, 2, 1.5])).verdict == HOLDS
    assert verdict(text, curves([3, 2, 1], [3, 2, 1])).verdict == FAILS  # not before
    never = verdict(text, curves([3, 3, 3], [3, 2, 1]))
    assert never.verdict == FAILS
    assert "RVI never, VAD 3 epochs" in never.reason
    both = curves([3, 1, 1], [3, 2, 2]) + curves([3, 3, 3], [3, 2, 1], missing=0.9)
    assert verdict(text, both).verdict == PARTLY


def test_what_was_not_imputed_is_not_compared():
    complete = trained((None, None, None), missing=0.0, field="test_missing")
    assert verdict("imputes better than a VAE", complete).verdict == MISSING
    hidden = trained((1.0, 0.5, 2.0), missing=0.9, field="test_missing")
    assert verdict("imputes better than a VAE", complete + hidden).verdict == HOLDS
    assert verdict("imputes better than VAD", complete + hidden).verdict == FAILS


def test_a_classifier_is_compared_in_loss_accuracy_and_epochs():
    rvi = {"cross_entropy": [0.9, 0.5, 0.7], "accuracy": [0.5, 0.9, 0.8]}
    vae = {"cross_entropy": [1.0, 0.8, 0.6], "accuracy": [0.4, 0.6, 0.7]}
    runs = [(Experiment(model=m), r) for m, r in (("rvi", rvi), ("vae", vae))]
    judgement = verdict("representations serve", runs)
    assert judgement.verdict == HOLDS
    assert [(c.ours[0], c.theirs[0]) for c in judgement.comparisons] == [
        (0.5, 0.6),
        (0.9, 0.7),
        (2, 3),
    ]
    swapped = [(Experiment(model=m), r) for m, r in (("rvi", vae), ("vae", rvi))]
    assert verdict("representations serve", swapped).verdict == FAILS


def test_robust_is_within_a_fifth_of_the_best():
    def runs(*errors):
        return [(Experiment(top=(k + 1) / 10), {"elastic": [e]}) for k, e in enumerate(errors)]

    text = "share of coefficients"
    assert verdict(text, runs(1.2, 1.0, 1.1)).verdict == HOLDS
    assert verdict(text, runs(1.3, 1.0, 1.1)).verdict == PARTLY
    assert verdict(text, runs(1.3, 1.0, 1.4)).verdict == FAILS
    assert verdict(text, runs(1.0)).verdict == MISSING  # nothing to compare with


def test_groups_boxes_and_forms_are_compared():
    def staged(*stages, groups=(2, 3)):
        return [(Experiment(groups=groups), {"stages": list(stages)})]

    assert verdict("Each group of relay", staged(3, 2, 1, 0.5)).verdict == HOLDS
    assert verdict("Each group of relay", staged(3, 2, 2, 0.5)).verdict == PARTLY
    assert verdict("Each group of relay", staged(1, 2, 3, 0.5)).verdict == FAILS
    assert (
        verdict("More groups", staged(2, 1, 1, groups=(2,)) + staged(3, 2, 1, 0.5)).verdict == HOLDS
    )
    assert verdict("More groups", staged(3, 2, 1, 0.5)).verdict == MISSING

    forms = [(Experiment(form=f), {"elastic": [e]}) for f, e in (("linear", 1), ("cluster", 2))]
    assert verdict("Cluster relays", forms).verdict == HOLDS

    boxed = [
        (Experiment(model=m, boxes=10), {"test_observed": e, "test_missing": 4 - e})
        for m, e in zip(MODELS, (1, 2, 3), strict=True)
    ]
    judgement = verdict("missing boxes", boxed)
    assert judgement.verdict == PARTLY
    assert [c.outcome for c in judgement.comparisons] == [True, True, False, False]


def test_data_sets_are_judged_apart():
    other = [
        (Experiment(data="mosi", model=model), {"elastic": [error]})
        for model, error in zip(MODELS, (3, 2, 1), strict=True)
    ]
    (claim,) = [claim for claim in CLAIMS if LOWEST in claim.text]
    results = trained((1, 2, 3)) + other
    wanted = [*(run for run, _ in results), Experiment(data="mnist")]
    judgements = judge(claim, wanted, results)
    assert [each.verdict for each in judgements] == [HOLDS, FAILS, MISSING]
    assert [each.seeds for each in judgements] == [1, 1, 0]


def test_a_verdict_on_a_part_of_the_runs_says_so():
    (claim,) = [claim for claim in CLAIMS if LOWEST in claim.text]
    results = trained((1, 2, 3), missing=0.0)
    wanted = [run for missing in (0.0, 0.9) for run, _ in trained((0, 0, 0), missing=missing)]
    (judgement,) = judge(claim, wanted, results)
    assert judgement.verdict == f"{HOLDS}{SO_FAR}"
    assert (judgement.done, judgement.wanted) == (3, 6)
    (nothing,) = judge(claim, wanted, [])
    assert nothing.verdict == MISSING


def test_an_outcome_needs_every_seed():
    def outcome(ours, theirs, sign="<"):
        return Comparison("", ("a", "b"), ours, theirs, sign).outcome

    assert outcome((1, 2), (2, 3)) is True
    assert outcome((2, 3), (2, 3)) is False
    assert outcome((1, 3), (2, 2)) is None
    assert outcome((1, 3), (1, 4), "<=") is True
    assert outcome((2,), (1,), ">") is True


def test_a_start_is_judged_by_few_epochs_and_by_the_rival_with_the_same_start():
    start = {"linear_factors": 32, "posterior_lr": 0.01}
    # where VAD ends from drawn values; the rows' learning rate alone changes nothing in that
    drawn = curves([9.0, 9.0], [5.0, 3.0]) + curves([1.0, 1.0], [1.0, 1.0], posterior_lr=0.01)
    slow, soon = [4.0] * 10 + [3.0], [4.0, 3.0]
    text = "From a linear model's solution"
    assert verdict(text, drawn + curves(soon, slow, **start)).verdict == HOLDS
    assert verdict(text, drawn + curves(slow, soon, **start)).verdict == FAILS
    # ahead of the rival, and not soon enough
    found = verdict(text, drawn + curves(slow, [4.0], **start))
    assert found.verdict == PARTLY
    assert "RVI 11 epochs, goal 10 epochs" in found.reason
    assert verdict(text, drawn).verdict == MISSING


def test_every_figure_of_the_paper_has_a_claim():
    judged = {claim.figure for claim in CLAIMS}
    beyond = {"outliers", "scale", "start"}
    assert judged == {name for name in FIGURES if name.startswith("fig")} | beyond
    assert len({claim.text for claim in CLAIMS}) == len(CLAIMS)
