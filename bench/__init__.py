"""Speed beside its peers: `make bench`; docs/operating/bench.md says how to read it."""
