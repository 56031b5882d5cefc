"""GGUF files for llama.cpp, Ollama and LM Studio: a merged model, or a LoRA adapter alone."""
