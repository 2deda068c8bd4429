"""One module per sub-command; each has `main(arguments: list[str]) -> int` and is imported only when it is called."""
