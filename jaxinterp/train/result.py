"""The result of training, and the epochs that its summary names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jaxinterp.train.evaluate import Evaluation
from jaxinterp.train.step import TrainState

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
    """

    state: TrainState
    best: dict[str, Any] | None
    history: list[dict[str, Any]]
    summary: dict[str, dict[str, Any]]
    interrupted: str | None

    def __repr__(self) -> str:
        stopped = f", interrupted={self.interrupted!r}" if self.interrupted else ""
        return f"FitResult(step={int(self.state.step)}, epochs={len(self.history)}, summary={self.summary}{stopped})"


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
        numbers = "  ".join(f"{key} {value:.4f}" for key, value in values.items() if key.endswith("accuracy"))
        lines.append(f"{name} epoch ({values['epoch']}): {numbers}")
    return lines
