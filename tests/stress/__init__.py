"""Faults, and what every backend must make of them; `make stress`, `docs/reliability.md`."""
