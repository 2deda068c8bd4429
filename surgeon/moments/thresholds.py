"""How many tokens second moments need. Free of numpy, so that a plan is resolved without it."""

FEWEST, ENOUGH = 4, 16  # tokens a column: below the first an input is not used, below the second warned of
