"""Regression trees from completed rows to each column: what the latent models' residuals still hold."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.tree import ExtraTreeRegressor
from sklearn.tree._tree import Tree

from .deadline import Deadline

# trees of a column in a pass, and passes: the second sees what the first has filled in
_TREES, _PASSES = 20, 2
_LEAF = 3
# rows that trees learn from
_ROWS = 4096
# rows x columns^2 of a table for which growing takes a few seconds
_LARGEST = 2_000_000
# of wide tables a node looks at some of the columns
_WIDE = 12


class ColumnForest:
    """Extremely randomised trees that predict each column from a completed row, in two passes.

    As missForest does, with the rows completed by a latent model to begin with: in a pass all columns
    are predicted from the table as it was before, and what was missing is replaced by that for the next.
    Of yes/no and classes they predict the shares of a leaf's rows; the variance of 0 and 1 is Gini's
    impurity up to a factor, so that these are a classifier's trees. Trees learn from up to 4,096
    rows. They are not grown deeper than three rows in a leaf; their memory grows with the rows that they
    learn from.

    Args:
        seed: of the trees and rows.

    Source:
        Stekhoven and Buehlmann, MissForest, 2012; Geurts et al., Extremely randomized trees, 2006.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.passes: list[dict[int, list[Any]]] = []

    def __getstate__(self) -> dict[str, Any]:
        # what trees ask to predict, a quarter of what they hold
        packed = [{c: [_packed(tree) for tree in own] for c, own in p.items()} for p in self.passes]
        return {"seed": self.seed, "packed": packed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # earlier versions have pickled the trees themselves
        self.seed = state["seed"]
        self.passes = state.get("passes") or [
            {c: [_unpacked(tree) for tree in own] for c, own in p.items()}
            for p in state.get("packed", ())
        ]

    @staticmethod
    def suits(num_rows: int, num_columns: int, num_codes: int | None = None) -> bool:
        """Whether trees of a table of this size are grown in seconds."""
        num_codes = num_columns if num_codes is None else num_codes
        return num_columns > 1 and min(num_rows, _ROWS) * num_columns * num_codes <= _LARGEST

    def fit(
        self,
        filled: np.ndarray,
        observed: np.ndarray,
        owner: np.ndarray | None = None,
        deadline: Deadline | None = None,
    ) -> Self:
        """Grows trees.

        Args:
            filled: codes of completed rows [N, K], observed ones as they are.
            observed: bool [N, D]: what trees learn to predict.
            owner: of each code the column [K]; None where each column is one code.
            deadline: when to give up.

        Raises:
            OutOfTime: the deadline has passed before all trees were grown.
        """
        deadline = Deadline() if deadline is None else deadline
        owner = np.arange(filled.shape[1]) if owner is None else owner
        if len(filled) > _ROWS:
            some = np.sort(np.random.default_rng(self.seed).permutation(len(filled))[:_ROWS])
            filled, observed = filled[some], observed[some]
        self.passes = []
        for number in range(_PASSES):
            trees = {}
            for column in range(observed.shape[1]):
                deadline.check()
                own, codes = observed[:, column], owner == column
                values = filled[own].compress(codes, 1)
                # nothing is to be found where all are alike
                if len(values) < 2 or (values == values[0]).all():
                    continue
                seeds = np.random.default_rng((self.seed, number, column))
                trees[column] = _grown(filled[own].compress(~codes, 1), values, seeds)
            self.passes.append(trees)
            if number + 1 < _PASSES:
                filled = self._pass(trees, filled, ~observed, owner)
        return self

    def complete(
        self, filled: np.ndarray, missing: np.ndarray, owner: np.ndarray | None = None
    ) -> np.ndarray:
        """What trees say of missing entries, as codes of rows [N, K]; elsewhere the codes as they are.

        Args:
            filled: codes of completed rows, as the latent model fills them.
            missing: bool [N, D].
            owner: as in `fit`.
        """
        owner = np.arange(filled.shape[1]) if owner is None else owner
        for trees in self.passes:
            filled = self._pass(trees, filled, missing, owner)
        return filled

    @staticmethod
    def _pass(
        trees: dict[int, list[Any]], filled: np.ndarray, missing: np.ndarray, owner: np.ndarray
    ) -> np.ndarray:
        found = filled.copy()
        for column, own in trees.items():
            holes, codes = missing[:, column], owner == column
            if holes.any():
                given = filled[holes].compress(~codes, 1)
                said = sum(tree.predict(given).reshape(len(given), -1) for tree in own) / len(own)
                found[np.ix_(holes, codes)] = said
        return found


def _grown(x: np.ndarray, y: np.ndarray, generator: np.random.Generator) -> list[Any]:
    """Trees from float32 codes x [n, K - k] to those of a column, y [n, k]."""
    share = 1.0 if x.shape[1] < _WIDE else 0.5
    seeds = generator.integers(2**31 - 1, size=_TREES).tolist()
    options = {"min_samples_leaf": _LEAF, "max_features": share}
    grown = (ExtraTreeRegressor(random_state=seed, **options) for seed in seeds)
    # what predicts is kept alone: a regressor around each tree would take as long as the tree
    return [tree.fit(x, y.astype(np.float64), check_input=False).tree_ for tree in grown]


def _packed(tree: Tree) -> tuple[Any, ...]:
    """What a tree asks to predict: where nodes lead and split, and the values of leaves."""
    state = tree.__getstate__()
    nodes, leaf = state["nodes"], tree.children_left < 0
    shape = (tree.n_features, tree.n_classes, tree.n_outputs, state["max_depth"])
    index = np.int32 if len(nodes) < 2**31 else np.int64
    left, right = (nodes[name].astype(index) for name in ("left_child", "right_child"))
    inner = nodes[~leaf]
    splits = (inner["feature"].astype(np.int32), inner["threshold"], inner["missing_go_to_left"])
    return shape, nodes.dtype, left, right, splits, state["values"][leaf]


def _unpacked(packed: tuple[Any, ...]) -> Tree:
    """The tree that predicts the same; impurities and counts of rows are 0."""
    (features, classes, outputs, depth), dtype, left, right, splits, values = packed
    nodes, leaf = np.zeros(len(left), dtype), left < 0
    nodes["left_child"], nodes["right_child"] = left, right
    # scikit-learn's marks of a leaf
    nodes["feature"], nodes["threshold"] = -2, -2.0
    for name, own in zip(("feature", "threshold", "missing_go_to_left"), splits, strict=True):
        nodes[name][~leaf] = own
    whole = np.zeros((len(nodes), *values.shape[1:]))
    whole[leaf] = values
    tree = Tree(features, classes, outputs)
    state = {"max_depth": depth, "node_count": len(nodes), "nodes": nodes, "values": whole}
    tree.__setstate__(state)
    return tree
