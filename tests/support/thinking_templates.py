"""Short chat templates of the shapes that reasoning models have."""

# A thought is read from a key or from the text, and written in the last answer only; the prompt has a switch.
_READ = (
    "{%- set thought, words = m.reasoning_content or '', m.content %}"
    "{%- if '</think>' in words %}"
    "{%- set thought = words.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{%- set words = words.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
)
_CHATML = "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"


def _chatml(answer: str, prompt: str) -> str:
    return (
        "{%- for m in messages %}{%- if m.role == 'assistant' %}" + _READ + "{{- '<|im_start|>assistant\\n' }}" + answer
        + "{{- words + '<|im_end|>\\n' }}{%- else %}" + _CHATML + "{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}" + prompt + "{%- endif %}"
    )  # fmt: skip


_LAST = "{%- if loop.last %}{{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}{%- endif %}"
_OFF = "{%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}"

QWEN3 = _chatml(_LAST, _OFF + "{%- endif %}")
QWEN35 = _chatml(_LAST, _OFF + "{%- else %}{{- '<think>\\n' }}{%- endif %}")  # the prompt opens the thought
QWEN35_OFF = _chatml(
    _LAST,
    "{%- if enable_thinking is defined and enable_thinking %}{{- '<think>\\n' }}{%- else %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}",
)
THINKING_ONLY = _chatml(_LAST, "{{- '<think>\\n' }}")  # no switch
# All thoughts are removed, but the prompt opens one.
R1 = (
    "{{- bos_token }}{%- for m in messages %}"
    "{%- if m.role == 'assistant' %}{{- '<|Assistant|>' + m.content.split('</think>')[-1] + eos_token }}"
    "{%- elif m.role == 'user' %}{{- '<|User|>' + m.content }}{%- else %}{{- m.content }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|Assistant|><think>\\n' }}{%- endif %}"
)
# An empty thought in answers and in the prompt without thinking, and a word behind the question.
GLM = (
    "{%- for m in messages %}{%- if m.role == 'assistant' %}" + _READ +
    "{{- '<|assistant|>\\n<think>' + thought + '</think>\\n' + words }}"
    "{%- else %}{{- '<|' + m.role + '|>\\n' + m.content }}"
    "{%- if m.role == 'user' and enable_thinking is defined and not enable_thinking %}{{- '/nothink' }}{%- endif %}"
    "{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|assistant|>' }}"
    "{%- if enable_thinking is defined and not enable_thinking %}{{- '\\n<think></think>' }}{%- endif %}{%- endif %}"
)  # fmt: skip
# The mode stands in the system message and changes all answers.
SMOLLM3 = (
    "{%- if enable_thinking is not defined %}{%- set enable_thinking = true %}{%- endif %}"
    "{{- '<|im_start|>system\\nReasoning Mode: ' + ('/think' if enable_thinking else '/no_think') + '<|im_end|>\\n' }}"
    "{%- set empty = '' if enable_thinking else '<think>\\n\\n</think>\\n' %}"
    "{%- for m in messages %}{%- if m.role == 'assistant' %}"
    "{{- '<|im_start|>assistant\\n' + empty + m.content.lstrip('\\n') + '<|im_end|>\\n' }}"
    "{%- else %}" + _CHATML + "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' + empty }}{%- endif %}"
)
# The switch is called `thinking`; thoughts are removed, and the prompt closes one that nobody opened.
V31 = (
    "{%- for m in messages %}{%- if m.role == 'assistant' %}"
    "{{- '<|Assistant|></think>' + m.content.split('</think>')[-1] + eos_token }}"
    "{%- else %}{{- '<|User|>' + m.content }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|Assistant|>' + ('<think>' if thinking else '</think>') }}{%- endif %}"
)
# Thoughts are messages of a channel, read from a key only; an effort instead of a switch.
CHANNELS = (
    "{{- '<|start|>system<|message|>Reasoning: ' + (reasoning_effort or 'medium') + '<|end|>' }}"
    "{%- for m in messages %}{%- if m.role == 'assistant' %}"
    "{%- if m.thinking %}{{- '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{%- endif %}"
    "{{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|return|>' }}"
    "{%- else %}{{- '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"
)
PLAIN = "{%- for m in messages %}" + _CHATML + (
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)  # fmt: skip
TEMPLATES = {
    "qwen3": QWEN3, "qwen35": QWEN35, "qwen35_off": QWEN35_OFF, "thinking_only": THINKING_ONLY, "r1": R1, "glm": GLM,
    "smollm3": SMOLLM3, "v31": V31, "channels": CHANNELS, "plain": PLAIN,
}  # fmt: skip
