"""What calibration collects while a text runs: imatrix, expert and moment sums. May import `evaluation` and `llama`."""
