"""What commands share of their options, their errors and their signals. Imports no command."""
