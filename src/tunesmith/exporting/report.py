"""The export stage's report, with the parity gate."""

from dataclasses import dataclass
from pathlib import Path

from tunesmith.exporting.merge import MergeResult
from tunesmith.models.parity import Parity, ParityBound, bound_for
from tunesmith.report import Report, Severity

MAX_EFFECT_SHARE = 0.1
"""Most that merging may lose of what the adapter changes, as a share of their divergences from the adapter's answers.

A merge of half the scale loses about a quarter, a forgotten merge all of it, however weak the adapter is.
"""


WORTH_A_WORD = 0.8
"""Below this share of equal greedy answers a merge that is within the bound is told with a warning."""


@dataclass(frozen=True)
class ParityCheck:
    """What was measured of the merged model.

    Args:
        parity: adapter against merged model.
        effect_kl: mean KL divergence, in nats, of the base model from the adapter on the same tokens.
        prompts: what was asked, as "test prompts".
    """

    parity: Parity
    effect_kl: float
    prompts: str

    def failures(self, bound: ParityBound) -> list[str]:
        """One line for each part that is not kept."""
        lost = self.parity.mean_kl / max(self.effect_kl, 1e-12)
        too_weak = [] if lost <= MAX_EFFECT_SHARE else [f"merging loses {lost:.0%} of what the adapter changes"]
        return self.parity.failures(bound) + too_weak


def build_report(
    adapter_folder: Path,
    merged: MergeResult | None,
    check: ParityCheck | None,
    *,
    precision: str,
    passed_folder: Path | None = None,
) -> Report:
    """The report of what was written, and whether adapter and merged model agree.

    Args:
        adapter_folder: the adapter that was exported.
        merged: what the merge wrote, None where the recipe wants none.
        check: adapter against merged model, None without a merge.
        precision: fp32, bf16 or fp16; decides the bound.
        passed_folder: where the merged model goes if it agrees; otherwise it stays where it was written.
    """
    report = Report("export", "Export")
    report.add_figure("adapter_folder", "Adapter", str(adapter_folder))
    if merged is not None:
        agrees = check is not None and not check.failures(bound_for(precision))
        folder = passed_folder if agrees and passed_folder is not None else merged.folder
        report.add_figure("merged_folder", "Merged model", str(folder))
        report.add_figure("merged_size_gb", "Size of the merged model", round(merged.total_bytes / 1e9, 3), "GB")
        report.add_figure("modules_merged", "Modules merged", merged.modules_merged)
    if check is not None:
        _add_parity(report, check, precision)
    return report


def _add_parity(report: Report, check: ParityCheck, precision: str) -> None:
    bound, parity = bound_for(precision), check.parity
    allowed = "" if bound.max_logit_difference is None else f"at most {bound.max_logit_difference:g} allowed"
    report.add_figure("parity_prompts", "Prompts compared", parity.prompts, detail=f"{parity.positions} tokens")
    report.add_figure(
        "parity_mean_kl", "Mean KL divergence", parity.mean_kl, "nats", f"at most {bound.max_mean_kl:g} allowed"
    )
    report.add_figure(
        "parity_max_logit_difference", "Largest difference of a logit", parity.max_logit_difference, "", allowed
    )
    report.add_figure(
        "parity_top_token_agreement", "Same likeliest token", round(100 * parity.top_token_agreement, 2), "%"
    )
    report.add_figure("parity_answer_agreement", "Same greedy answers", round(100 * parity.answer_agreement, 2), "%")
    report.add_figure(
        "adapter_effect_kl",
        "Divergence of the base model",
        check.effect_kl,
        "nats",
        f"what the adapter changes; merging may lose {MAX_EFFECT_SHARE:.0%} of it",
    )
    if parity.answer_agreement < WORTH_A_WORD and not check.failures(bound):
        report.add_finding(
            Severity.WARNING,
            "answers-part-at-near-ties",
            f"only {parity.answer_agreement:.0%} of the greedy answers are the same: the model often has two tokens "
            f"that are equally likely within the rounding of {precision}, and then either may come",
            remedy="train longer, so that answers are surer; or model.precision: fp32",
        )
    failures = check.failures(bound)
    if failures:
        report.add_finding(
            Severity.ERROR,
            "parity-failed",
            "the merged model does not answer as the adapter does: " + "; ".join(failures),
            evidence=()
            if parity.first_difference is None
            else (f"first at number {parity.first_difference + 1} of the {check.prompts}",),
            remedy="the merged model was left in export/unverified; use the adapter on its base, "
            "or train and merge with model.precision: fp32",
        )
    else:
        report.add_finding(
            Severity.NOTE,
            "parity-passed",
            f"adapter and merged model agree on {parity.prompts} {check.prompts} within the bound of {precision}",
        )
