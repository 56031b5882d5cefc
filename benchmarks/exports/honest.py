"""Exports without a fault, over families, types of weights, targets and adapters: none may be refused."""

from exports.trials import Trial

MERGED = {
    "": ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "mixtral", "qwen3_moe", "granite", "olmo2",
         "glm4", "llama, bf16", "llama, tied", "llama 3", "llama, rslora", "llama, ranks", "llama, r 64", "llama, large",
         "run", "run, 4 bits, bf16"),
    "bf16": ("llama", "qwen2", "gemma2", "llama, small", "demo"),
    "fp16": ("qwen3", "llama, bf16", "mistral, ranks"),
    "fp32": ("llama, bf16", "llama, faint", "gemma3_text"),
}  # fmt: skip
GGUF = {
    "f32": ("llama", "qwen2, bf16"),
    "f16": ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "llama 3"),
    "bf16": ("llama, bf16", "qwen2, small"),
    "q8_0": ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi3", "llama, tied", "llama, rslora", "llama, small",
             "demo"),
    "q6_k": ("llama", "qwen3", "gemma2", "run"),
    "q5_k_m": ("qwen2", "phi3", "qwen3, rslora"),
    "q4_k_m": ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "llama 3", "llama, large", "demo"),
    "q4_0": ("qwen3", "qwen2", "llama, r 64", "mistral, ranks"),
}  # fmt: skip
ALONE = ("qwen2", "gemma2", "phi3", "llama, rslora", "run, 4 bits")
OLLAMA = {"q8_0": ("llama", "qwen2"), "q4_k_m": ("phi3",)}
LMSTUDIO = {"q6_k": ("gemma3_text",)}
PEFT = ("llama", "llama, rslora", "run, 4 bits")


def _trials(to: str, flag: str, sources: dict[str, tuple[str, ...]]) -> list[Trial]:
    return [
        named(Trial("", source, to, {flag: kind} if kind else {}))
        for kind, names in sources.items()
        for source in names
    ]


def named(trial: Trial) -> Trial:
    """Return `trial` with the name of its export."""
    return Trial(trial.same_without_fault, trial.source, trial.to, trial.flags)


HONEST = [
    *_trials("merged", "dtype", MERGED),
    *_trials("gguf", "quantize", GGUF),
    *(named(Trial("", source, "gguf", {"adapter_only": True})) for source in ALONE),
    *_trials("ollama", "quantize", OLLAMA),
    *_trials("lmstudio", "quantize", LMSTUDIO),
    *(named(Trial("", source, "peft")) for source in PEFT),
]


def with_controls(faults: list[Trial]) -> list[Trial]:
    """Return the exports of `faults` without their faults, each once. Those that are refused without a plant have none."""
    planted = [trial for trial in faults if trial.plant or trial.damage]
    return list({trial.same_without_fault: named(trial) for trial in planted}.values())
