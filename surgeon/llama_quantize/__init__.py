"""llama-quantize's command line: read, and written from a plan. May import `resolve`."""
