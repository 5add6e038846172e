"""Models that the tests, the command line and the notebooks run: SmolLM2, a BERT encoder and an MLP."""
