"""What commands print: progress, tables, reports. Imports no command."""
