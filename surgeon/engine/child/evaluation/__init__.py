"""Measuring a loaded model: perplexity, KL divergence and its base files, tasks, speed, probes. May import `llama`."""
