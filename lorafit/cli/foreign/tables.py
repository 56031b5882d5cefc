"""The names of settings in other tools, one table a tool, each name with the rule that translates it.

Sources: LLaMA-Factory's `hparams/*_args.py`, Axolotl's `utils/schemas/`, mlx-lm's `lora.py`, transformers'
`TrainingArguments`, TRL's `SFTConfig` and `ModelConfig`, PEFT's `LoraConfig`, Unsloth's `FastLanguageModel`.
"""

from collections.abc import Iterable
from typing import Any

from lorafit.cli.foreign import datasets, rules
from lorafit.cli.foreign.mlx import MLX_LM
from lorafit.cli.foreign.rules import Keys, Outcome, Rule, refused_unless, said, same
from lorafit.messages import noted


def _each(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


def _adapter(rank: str, alpha: str, rslora: str) -> dict[str, Rule]:
    scale = rules.adapter_scale(rank, alpha, rslora)
    return {rank: rules.adapter_rank(alpha, scale), alpha: scale, rslora: scale}


# Shared by LLaMA-Factory, TRL and Axolotl, which pass these names to transformers.
TRAINER: dict[str, Rule] = {
    "per_device_train_batch_size": rules.effective_batch("per_device_train_batch_size", "gradient_accumulation_steps"),
    "gradient_accumulation_steps": rules.effective_batch("per_device_train_batch_size", "gradient_accumulation_steps"),
    "num_train_epochs": same("num_epochs"),
    "max_steps": rules.max_steps,
    "lr_scheduler_type": rules.schedule,
    "warmup_steps": rules.warmup_steps,
    "optim": rules.optimizer,
    "save_steps": rules.steps_or("save_steps", rules.CHECKPOINTS),
    "eval_steps": rules.steps_or("eval_steps", rules.EVALUATIONS),
    "save_total_limit": same("keep_checkpoints"),
    **{
        name: same(name)
        for name in ("learning_rate", "warmup_ratio", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon",
                     "max_grad_norm", "seed", "output_dir", "trust_remote_code")
    },
    **_each("bf16 fp16 tf32 torch_dtype dtype bf16_full_eval pure_bf16", said(rules.PRECISION)),
    **_each("gradient_checkpointing gradient_checkpointing_kwargs use_gradient_checkpointing "
            "use_reentrant_gc disable_gradient_checkpointing", said(rules.CHECKPOINTING)),
    **_each("deepspeed fsdp fsdp_config ddp_timeout ddp_find_unused_parameters local_rank tp_size",
            said(rules.SEVERAL)),
    **_each("fsdp_version ddp_bucket_cap_mb ddp_broadcast_buffers ddp_backend accelerator_config", said(rules.SEVERAL)),
    **_each("packing neat_packing padding_free group_by_length dataloader_drop_last", said(rules.PACKED)),
    **_each("attn_implementation flash_attn use_liger_kernel enable_liger_kernel torch_compile "
            "per_device_eval_batch_size eval_accumulation_steps auto_find_batch_size torch_compile_backend "
            "torch_compile_mode activation_offloading use_cache torch_empty_cache_steps", said(rules.PLANNED)),
    **_each("logging_steps logging_first_step logging_strategy logging_dir plot_loss "
            "include_num_input_tokens_seen log_level disable_tqdm", said(rules.LOGS)),
    **_each("report_to run_name wandb_project use_swanlab swanlab_project swanlab_run_name swanlab_mode swanlab_workspace "
            "swanlab_logdir swanlab_lark_webhook_url swanlab_lark_secret", said(rules.TRACKERS)),
    **_each("overwrite_output_dir", said(rules.FOLDERS)),
    **_each("dataloader_num_workers dataloader_pin_memory dataset_num_proc dataloader_persistent_workers "
            "dataloader_prefetch_factor remove_unused_columns", said(rules.PREPARED)),
    **_each("save_strategy save_only_model save_safetensors save_on_each_node", said(rules.CHECKPOINTS)),
    **_each("eval_strategy evaluation_strategy", said(rules.EVALUATIONS)),
    **_each("load_best_model_at_end metric_for_best_model greater_is_better", said(rules.BEST)),
    "do_predict": rules.prediction,
    **_each("do_train do_eval predict_with_generate eval_on_start compute_accuracy push_to_hub hub_model_id "
            "hub_strategy hub_private_repo hub_token", said(rules.NOT_TRAINING)),
    **_each("label_smoothing_factor neftune_noise_alpha lr_scheduler_kwargs optim_args optim_target_modules",
            refused_unless(rules.UNSUPPORTED)),
    "resume_from_checkpoint": refused_unless(rules.CHECKPOINT_OF_OTHERS),
}  # fmt: skip

LLAMA_FACTORY: dict[str, Rule] = {
    **TRAINER,
    "model_name_or_path": same("model_name"),
    "dataset": datasets.llama_factory("dataset_name"),
    "eval_dataset": datasets.llama_factory("valid_dataset"),
    "dataset_dir": said(noted("part of dataset")),
    "adapter_name_or_path": same("init_adapter"),
    "cutoff_len": same("max_length"),
    "max_samples": same("max_samples", noted("there of each dataset, here of all together")),
    "val_size": same("val_size"),
    "default_system": same("system_prompt"),
    **_adapter("lora_rank", "lora_alpha", "use_rslora"),
    "lora_dropout": same("lora_dropout"),
    "lora_target": rules.targets,
    "quantization_bit": lambda value, keys: Outcome({"quantization": f"{value}bit"}),
    "use_modelscope_hub": lambda value, keys: Outcome({"hub": "modelscope"} if rules.on(value) else {}),
    "mask_history": lambda value, keys: Outcome({"train_on": "last"} if rules.on(value) else {}, rules.SAME),
    "stage": refused_unless(rules.SFT_ONLY, "sft"),
    "finetuning_type": refused_unless(rules.LORA_ONLY, "lora"),
    "train_on_prompt": refused_unless(rules.ANSWERS_ONLY),
    "use_dora": refused_unless(rules.DORA),
    "pissa_init": refused_unless(rules.INITIALIZATION),
    "additional_target": refused_unless(rules.LINEAR_ONLY),
    **_each("use_galore use_apollo use_badam use_muon use_adam_mini", refused_unless(rules.OPTIMIZERS)),
    **_each("freeze_trainable_layers freeze_trainable_modules freeze_extra_modules oft_rank oft_block_size oft_target "
            "module_dropout", refused_unless(rules.LORA_ONLY)),
    **_each("pref_beta pref_loss pref_ftx ref_model reward_model kto_chosen_weight kto_rejected_weight dpo_label_smoothing "
            "simpo_gamma", refused_unless(rules.SFT_ONLY)),
    **_each("loraplus_lr_ratio use_llama_pro use_dft_loss shift_attn mixture_of_depths resize_vocab add_tokens "
            "add_special_tokens rope_scaling interleave_probs moe_aux_loss_coef train_from_scratch disable_shuffling "
            "fp8 tool_format create_new_adapter loraplus_lr_embedding use_asft_loss use_eaft_loss use_kt "
            "new_special_tokens_config preserve_thinking", refused_unless(rules.UNSUPPORTED)),
    "mix_strategy": refused_unless(rules.UNSUPPORTED, "concat"),
    "model_revision": refused_unless(rules.UNSUPPORTED, "main"),
    "quantization_method": refused_unless(rules.UNSUPPORTED, "bitsandbytes", "bnb"),
    "quantization_type": refused_unless(rules.UNSUPPORTED, "nf4"),
    **_each("template enable_thinking", said(rules.TEMPLATE)),
    **_each("overwrite_cache preprocessing_num_workers preprocessing_batch_size tokenized_path streaming buffer_size "
            "dataset_shards cache_dir media_dir", said(rules.PREPARED)),
    **_each("use_unsloth use_unsloth_gc low_cpu_mem_usage double_quantization upcast_layernorm use_fast_tokenizer "
            "quantization_device_map offload_folder use_v1_kernels", said(rules.PLANNED)),
    **_each("include_effective_tokens_per_second print_param_status", said(rules.LOGS)),
    **_each("early_stopping_steps", said(rules.BEST)),
    **_each("infer_backend infer_dtype use_kv_cache do_sample temperature top_p top_k max_new_tokens max_length num_beams "
            "eval_num_beams eval_on_each_dataset export_dir export_size export_device export_legacy_format image_max_pixels "
            "image_min_pixels video_max_pixels freeze_vision_tower freeze_multi_modal_projector pissa_convert pissa_iter "
            "hf_hub_token ms_hub_token om_hub_token swanlab_api_key ignore_pad_token_for_loss repetition_penalty "
            "length_penalty skip_special_tokens export_quantization_bit export_quantization_dataset export_hub_model_id "
            "video_min_pixels video_fps video_maxlen vllm_maxlen vllm_gpu_util vllm_enforce_eager ray_num_workers",
            said(rules.NOT_TRAINING)),
}  # fmt: skip
LLAMA_FACTORY_DEFAULTS = {
    "lora_rank": 8, "lora_target": "all", "cutoff_len": 2048, "per_device_train_batch_size": 8, "learning_rate": 5e-5,
    "num_train_epochs": 3.0, "lr_scheduler_type": "linear", "warmup_ratio": 0.0, "val_size": 0.0, "optim": "adamw_torch",
}  # fmt: skip

NOT_OF_AXOLOTL = ("per_device_train_batch_size", "num_train_epochs", "lr_scheduler_type", "optim")


def _plugins(value: Any, keys: Keys) -> Outcome:
    """Accept the plugins that change only the speed, or log elsewhere."""
    names = value if isinstance(value, list) else [value]
    fast = ("liger", "cut_cross_entropy", "kernels.KernelsPlugin", "swanlab")
    others = tuple(str(name) for name in names if not any(word in str(name) for word in fast))
    return Outcome({}, rules.UNSUPPORTED, refused=True, names=others) if others else Outcome({}, rules.PLANNED)


AXOLOTL: dict[str, Rule] = {
    **{name: rule for name, rule in TRAINER.items() if name not in NOT_OF_AXOLOTL},
    "base_model": same("model_name"),
    "datasets": datasets.axolotl("dataset_name", "dataset_split"),
    "test_datasets": datasets.axolotl("valid_dataset", "valid_split"),
    "lora_model_dir": same("init_adapter"),
    "adapter": lambda value, keys: (
        Outcome({"quantization": "4bit"} if value == "qlora" else {}, rules.SAME)
        if value in ("lora", "qlora") else Outcome({}, rules.LORA_ONLY, refused=True)
    ),
    "load_in_4bit": rules.quantization("4bit"),
    "load_in_8bit": rules.quantization("8bit"),
    "sequence_len": same("max_length"),
    "val_set_size": same("val_size"),
    "num_epochs": same("num_epochs"),
    "optimizer": rules.optimizer,
    "lr_scheduler": rules.schedule,
    "micro_batch_size": rules.effective_batch("micro_batch_size", "gradient_accumulation_steps"),
    "gradient_accumulation_steps": rules.effective_batch("micro_batch_size", "gradient_accumulation_steps"),
    **_adapter("lora_r", "lora_alpha", "peft_use_rslora"),
    "lora_dropout": same("lora_dropout"),
    "lora_target_modules": rules.targets,
    "lora_target_linear": lambda value, keys: Outcome({"lora_targets": "all-linear"} if rules.on(value) else {}),
    "default_system_message": same("system_prompt"),
    "chat_template_jinja": same("chat_template"),
    "chat_template": refused_unless(
        noted("only the model's own chat template; `chat_template_jinja` sets another"), "tokenizer_default", "jinja"
    ),
    "train_on_inputs": refused_unless(rules.ANSWERS_ONLY),
    "peft_use_dora": refused_unless(rules.DORA),
    "peft_init_lora_weights": rules.only(rules.INITIALIZATION, True),
    "lora_modules_to_save": refused_unless(rules.LINEAR_ONLY),
    **_each("rl pretraining_dataset reward_model process_reward_model", refused_unless(rules.SFT_ONLY)),
    **_each("unfrozen_parameters freeze_mm_modules", refused_unless(rules.LORA_ONLY)),
    **_each("loraplus_lr_ratio relora relora_steps peft_layers_to_transform peft_layers_pattern lora_target_parameters "
            "embedding_lr lr_groups cosine_min_lr_ratio cosine_constant_lr_ratio noisy_embedding_alpha dataset_exact_deduplication "
            "tokens tokenizer_config curriculum_sampling added_tokens_overrides revision_of_model gptq "
            "batch_size s2_attention overrides_of_model_config", refused_unless(rules.UNSUPPORTED)),
    "shuffle_merged_datasets": rules.only(rules.UNSUPPORTED, True),
    "special_tokens": lambda value, keys: (
        Outcome({}, rules.SAME)
        if isinstance(value, dict) and not {name for name, one in value.items() if one} - {"pad_token"}
        else Outcome({}, rules.UNSUPPORTED, refused=True)
    ),
    "plugins": _plugins,
    "eot_tokens": said(rules.TEMPLATE),
    **_each("sample_packing eval_sample_packing pad_to_sequence_len sample_packing_group_size sample_packing_bin_size "
            "multipack_real_batches", said(rules.PACKED)),
    **_each("flash_attention sdp_attention xformers_attention flex_attention eager_attention cut_cross_entropy "
            "liger_rope liger_rms_norm liger_glu_activation liger_layer_norm liger_fused_linear_cross_entropy "
            "lora_mlp_kernel lora_qkv_kernel lora_o_kernel unsloth_lora_mlp unsloth_lora_qkv unsloth_lora_o "
            "unsloth_cross_entropy_loss eval_batch_size lora_fan_in_fan_out lora_on_cpu low_cpu_mem_usage "
            "gpu_memory_limit device_map float32 bfloat16 float16 gc_steps use_kernels liger_rms_norm_gated "
            "flash_attn_cross_entropy flash_attn_rms_norm flash_attn_fuse_mlp fused_attn_kernel use_scattermoe "
            "flex_attn_compile_kwargs", said(rules.PLANNED)),
    **_each("dp_shard_size dp_replicate_size tensor_parallel_size", said(rules.SEVERAL)),
    **_each("model_type tokenizer_type processor_type tokenizer_use_fast is_llama_derived_model "
            "is_mistral_derived_model is_qwen_derived_model is_falcon_derived_model strict debug "
            "sequence_parallel_degree context_parallel_size loss_watchdog_threshold loss_watchdog_patience eval_table_size "
            "eval_max_new_tokens save_first_step auto_resume_from_checkpoints mlflow_tracking_uri", said(rules.NOT_TRAINING)),
    **_each("skip_prepare_dataset dataset_prepared_path dataset_processes dataset_keep_in_memory", said(rules.PREPARED)),
    **_each("wandb_entity wandb_watch wandb_name wandb_log_model wandb_run_id wandb_mode mlflow_experiment_name "
            "comet_project_name use_tensorboard use_wandb use_mlflow mlflow_run_name use_comet swanlab_experiment_name "
            "swanlab_description", said(rules.TRACKERS)),
    **_each("evals_per_epoch", said(rules.EVALUATIONS)),
    **_each("saves_per_epoch", said(rules.CHECKPOINTS)),
    **_each("early_stopping_patience", said(rules.BEST)),
}  # fmt: skip
AXOLOTL_DEFAULTS = {
    "adapter": None, "sequence_len": 512, "micro_batch_size": 1, "num_epochs": 1.0, "val_set_size": 0.0,
    "lr_scheduler": "cosine", "warmup_ratio": 0.03, "optimizer": "adamw_torch_fused", "lora_target_linear": True,
}  # fmt: skip

PEFT: dict[str, Rule] = {
    **_adapter("r", "lora_alpha", "use_rslora"),
    "target_modules": rules.targets,
    "lora_target_modules": rules.targets,
    "load_in_4bit": rules.quantization("4bit"),
    "load_in_8bit": rules.quantization("8bit"),
    "max_seq_length": same("max_length"),
    "random_state": same("seed"),
    "dataset_train_split": same("dataset_split"),
    "dataset_config": same("dataset_subset"),
    "lora_path": same("init_adapter"),
    **_each("use_dora", refused_unless(rules.DORA)),
    **_each("modules_to_save lora_modules_to_save", refused_unless(rules.LINEAR_ONLY)),
    "full_finetuning": refused_unless(rules.LORA_ONLY),
    "use_peft": rules.only(rules.LORA_ONLY, True),
    "init_lora_weights": rules.only(rules.INITIALIZATION, True),
    "loftq_config": refused_unless(rules.INITIALIZATION),
    "bias": refused_unless(rules.LINEAR_ONLY, "none"),
    **_each("assistant_only_loss completion_only_loss train_on_responses_only", rules.only(rules.ANSWERS_ONLY, True)),
    **_each("task_type dataset_text_field fast_inference lora_task_type", said(rules.NOT_TRAINING)),
}  # fmt: skip

COMMON: dict[str, Rule] = {  # short names that several tools and scripts use
    "lr": same("learning_rate"),
    "epochs": same("num_epochs"),
    "rank": same("lora_r"),
    "alpha": same("lora_alpha"),
    "dataset": same("dataset_name"),
    "max_len": same("max_length"),
    "resume_from_checkpoint": same("resume"),
}  # fmt: skip
ANSWERING: dict[str, Rule] = {  # names of chat and compare
    **_each("model model_name model_name_or_path", same("base_model")),
    **_each("adapter_path lora_path adapter_name_or_path init_adapter", same("lora_weights")),
    "max_tokens": same("max_new_tokens"),
    "temp": same("temperature"),
    **_each("template infer_backend", said(rules.TEMPLATE)),
}
TYPED: Iterable[tuple[str, dict[str, Rule]]] = (  # the tables in the order in which a typed name is looked up
    ("", COMMON),
    ("LLaMA-Factory", {name: rule for name, rule in LLAMA_FACTORY.items() if name not in TRAINER}),
    ("transformers", TRAINER),
    ("mlx-lm", MLX_LM),
    ("PEFT, TRL, Unsloth", PEFT),
    ("Axolotl", {name: rule for name, rule in AXOLOTL.items() if name not in TRAINER}),
)
