"""Files for Ollama: the chat template of the training as a Go template, in a Modelfile."""
