"""Published suites of checkpoints: addresses, listings, downloads, audits."""
