"""Long proofs, run by hand; their short versions are among the tests."""
