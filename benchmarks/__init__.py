"""What is measured on files that others made; each module is run on its own."""
