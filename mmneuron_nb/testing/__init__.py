"""Models and proofs that tests and benchmarks use; nothing else imports this room."""
