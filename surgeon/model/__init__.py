"""What a model is: layers, tensors, which tensors may be quantized, whether a file is sound. May import `gguf`."""
