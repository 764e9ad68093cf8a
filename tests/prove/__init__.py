"""Long tests, run by hand (`make prove`); their short versions are among the tests."""
