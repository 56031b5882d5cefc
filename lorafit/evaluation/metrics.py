"""Metrics of losses and answers: bootstrap interval, statute citations, chrF and ROUGE-L. No model is used."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorafit.registry import Entry, load

Float64 = NDArray[np.float64]

CITATION = re.compile(r"《[^《》]+》\s*第\s*[〇零一二三四五六七八九十百千两\d]+\s*条")
RESAMPLES, SEED, LEVEL = 10_000, 42, 0.95
CHUNK = 1 << 22  # most indices drawn at once, to limit memory
_INSTALL = "pip install sacrebleu rapidfuzz"
CHRF = Entry("sacrebleu.metrics:CHRF", _INSTALL)
CHINESE_TOKENS = Entry("sacrebleu.tokenizers.tokenizer_zh:TokenizerZh", _INSTALL)
INDEL = Entry("rapidfuzz.distance:Indel", _INSTALL)


@dataclass(frozen=True)
class LossDifference:
    """Loss of the fine-tuned model minus loss of the base model, in nats per target token, with a 95% interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class ReferenceScores:
    """Similarity of answers to their references, 0 to 100: corpus chrF and mean ROUGE-L."""

    chrf: float
    rouge_l: float


def bootstrap(
    base_S: Float64, tuned_S: Float64, tokens_S: NDArray[np.int64], seed: int = SEED
) -> LossDifference | None:
    """Return the loss difference of two models on the same S samples, with its 95% bootstrap interval.

    `base_S` and `tuned_S` are sums (nats) over each sample's `tokens_S` target tokens. The difference is
    sum_S (tuned - base) / sum_S tokens. Return None for fewer than two samples. Samples are resampled, not tokens,
    because the tokens of one sample are correlated. Both losses of a sample are drawn together. Percentile interval
    over 10 000 draws (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13; paired over test
    samples as in Koehn, EMNLP 2004).
    """
    count = len(tokens_S)
    if count < 2:
        return None
    delta_S = tuned_S - base_S
    rng = np.random.default_rng(seed)
    means = []
    left = RESAMPLES
    while left > 0:
        rows = min(left, max(CHUNK // count, 1))
        drawn_RS = rng.integers(0, count, (rows, count))
        means.append(delta_S[drawn_RS].sum(1) / tokens_S[drawn_RS].sum(1))
        left -= rows
    low, high = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return LossDifference(float(delta_S.sum() / tokens_S.sum()), float(low), float(high))


def citations(text: str) -> set[str]:
    """Return the statutes that `text` cites, as 《…》第…条 without white space."""
    return {"".join(match.split()) for match in CITATION.findall(text)}


def reference_scores(answers: Sequence[str], references: Sequence[str]) -> ReferenceScores:
    """Return chrF and ROUGE-L of `answers` against `references`. Raises LorafitError if a package is not installed.

    chrF (Popović, WMT 2015): F2 of the n-grams of one to six characters without white space, by sacrebleu.
    ROUGE-L (Lin, 2004): F1 of the longest common subsequence of tokens, 2 LCS / (m + n), which is rapidfuzz's Indel
    similarity. sacrebleu's `zh` tokenizer makes the tokens: Chinese characters, words and punctuation marks. Case is
    ignored.
    """
    chrf, tokenise, indel = load(CHRF)(), load(CHINESE_TOKENS)(), load(INDEL)
    pairs = [[tokenise(text.lower()).split() for text in pair] for pair in zip(answers, references, strict=True)]
    rouge = [100 * indel.normalized_similarity(answer, reference) for answer, reference in pairs]
    return ReferenceScores(float(chrf.corpus_score(list(answers), [list(references)]).score), float(np.mean(rouge)))
