"""The project's own tools: generated files, house rules, mutants."""
