"""Speed beside its peers: `make bench`; docs/bench.md says how to read it."""
