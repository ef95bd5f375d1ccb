"""The result of training, and the epochs that its summary names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax

from jaxinterp.train.evaluate import Evaluation
from jaxinterp.train.step import TrainState

if TYPE_CHECKING:
    from jaxinterp.figures.shown import ShownFigure

Which = Literal["last", "best"]


@dataclass(frozen=True, repr=False)
class FitResult:
    """The result of `fit`.

    Attributes:
        state: The state at the end.
        best: Variables of the epoch that was best on the validation part; None without such a part.
        history: One record per finished epoch, as in metrics.jsonl.
        summary: `{"last": {...}, "best": {...}}`, each with `epoch`, `step` and, where there are such parts,
            `val_accuracy`, `val_loss`, `test_accuracy`, `test_loss`; with `eval_test_each_epoch` also `highest`, the
            epoch of the highest test accuracy. Empty if the run was interrupted.
        interrupted: Name of the signal that stopped the run before its end.
        run_dir: The run's folder, with its checkpoints.
    """

    state: TrainState
    best: dict[str, Any] | None
    history: list[dict[str, Any]]
    summary: dict[str, dict[str, Any]]
    interrupted: str | None
    run_dir: Path | None = None

    def __repr__(self) -> str:
        return "\n  ".join([f"FitResult: {', '.join(self._sizes().values())}", *accuracies(self.summary)])

    def _repr_html_(self) -> str:
        from jaxinterp.figures.html import Table, fragment

        rows = [(name, f"epoch {row['epoch']}", *_accuracies(row)) for name, row in self.summary.items()]
        return fragment(Table(("training", ""), [*self._sizes().items(), *rows]))

    def _sizes(self) -> dict[str, str]:
        """Return what was trained, for how long, how it ended and where it lies."""
        count = sum(leaf.size for leaf in jax.tree.leaves(self.state.params))
        sizes = {"size": f"{count:,} parameters", "length": f"{len(self.history)} epochs, {self.state.step} steps"}
        sizes |= {"stopped": f"stopped by {self.interrupted}"} if self.interrupted else {}
        return sizes | ({} if self.run_dir is None else {"folder": str(self.run_dir)})

    def plot(self) -> "ShownFigure":
        """Draw loss and accuracy over the epochs; see `jaxinterp.figures.curves.training_curves`."""
        from jaxinterp.figures.curves import training_curves

        return training_curves(self.history)


def best_record(history: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the first of the epochs with the highest validation accuracy; None if none was evaluated."""
    records = [record for record in history if "val_accuracy" in record]
    return max(records, key=lambda record: record["val_accuracy"], default=None)


def summarize(
    history: Sequence[Mapping[str, Any]], last: Any, best: Any, evaluation: Evaluation | None
) -> dict[str, dict[str, Any]]:
    """Evaluate the last and the best variables on the test part; see `FitResult.summary`."""
    summary = {}
    for name, record, variables in (("last", history[-1], last), ("best", best_record(history), best)):
        if record is not None and variables is not None:
            kept = {key: value for key, value in record.items() if key in ("epoch", "step") or key.startswith("val_")}
            test = {} if evaluation is None else evaluation(variables)
            summary[name] = kept | {f"test_{key}": value for key, value in test.items()}
    tested = [record for record in history if "test_accuracy" in record]
    if tested:
        highest = max(tested, key=lambda record: record["test_accuracy"])
        summary["highest"] = {key: highest[key] for key in ("epoch", "step", "test_accuracy")}
    return summary


def accuracies(summary: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line about each epoch of a summary."""
    lines = []
    for name, values in summary.items():
        lines.append(f"{name} epoch ({values['epoch']}): {'  '.join(_accuracies(values))}")
    return lines


def _accuracies(values: Mapping[str, Any]) -> list[str]:
    return [f"{key} {value:.4f}" for key, value in values.items() if key.endswith("accuracy")]
